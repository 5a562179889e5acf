// The way of weights through shared memory in lib/stream_product.cuh: which
// weights a lane loads, and in what order.
#pragma once

#include "instructions.cuh"
#include "product_args.cuh"
#include "reduce.cuh"

constexpr uint32_t kStreamWarps = 8;
constexpr uint32_t kStreamThreads = 32 * kStreamWarps;

// Outputs of a warp at a time: two pairs.
constexpr uint32_t kStreamOutputs = 4;

// Loads of 16 bytes of each of them that a lane has on the way: more than half
// of a multiprocessor's shared memory in all, so that each has one block.
constexpr uint32_t kRing = 8;

// How the warps of a block share its work: `parts` warps the columns of a
// group of outputs, the others other groups.
struct StreamPlan {
  uint32_t parts;
  // Loads of a lane for each row.
  uint32_t steps;

  // Groups that a block makes at a time.
  __host__ __device__ uint32_t rows() const { return kStreamWarps / parts; }
};

// Halves of one load of a warp.
constexpr uint32_t kSlotHalves = kStreamOutputs * 32 * 8;

// The groups of a block.
struct GroupShare {
  uint32_t begin;
  uint32_t end;
};

__device__ inline GroupShare share_of_block(uint32_t groups) {
  const uint64_t all = groups;
  return {static_cast<uint32_t>(all * blockIdx.x / gridDim.x),
          static_cast<uint32_t>(all * (blockIdx.x + 1) / gridDim.x)};
}

// This lane's loads of the weights of its warp's groups, in order.
template <class Pairs>
class WeightStream {
 public:
  __device__ WeightStream(const Product &product, const Pairs &pairs,
                          const StreamPlan &plan, const GroupShare &share,
                          skv_half *ring)
      : product_(product),
        pairs_(pairs),
        plan_(plan),
        group_(share.begin + warp_id() / plan.parts),
        end_(share.end),
        left_(plan.steps),
        to_(ring) {
    turn();
  }

  // Starts the next load into place `slot` of the ring.
  __device__ void fetch(uint32_t slot) {
    if (group_ < end_) {
      const bool is_column = column_ < product_.weight.pitch;
      skv_half *to = to_ + slot * kSlotHalves;
#pragma unroll
      for (uint32_t o = 0; o < kStreamOutputs; o++) {
        copy_async(to + o * 256, rows_[o] + column_, is_column);
      }
      column_ += plan_.parts * 256;
      left_--;
      if (left_ == 0) {
        group_ += plan_.rows();
        left_ = plan_.steps;
        turn();
      }
    }
    commit_copies();
  }

 private:
  // Goes to the first column of the present group.
  __device__ void turn() {
    column_ = 8 * (32 * (warp_id() % plan_.parts) + lane_id());
    const skv_matrix &weight = product_.weight;
    const uint32_t last = pairs_of(weight) - 1;
#pragma unroll
    for (uint32_t o = 0; o < kStreamOutputs; o++) {
      const uint32_t pair = min(2 * group_ + o / 2, last);
      const uint32_t row = min(pairs_.output(pair, o % 2), weight.rows - 1);
      rows_[o] = weight.data + static_cast<size_t>(row) * weight.pitch;
    }
  }

  const Product &product_;
  const Pairs &pairs_;
  const StreamPlan plan_;
  uint32_t group_;
  const uint32_t end_;
  uint32_t left_;
  uint32_t column_;
  skv_half *const to_;
  const skv_half *rows_[kStreamOutputs];
};

// Products of one row of activations with a large weight matrix: each weight is
// read once and passes through shared memory.
//
// One block per multiprocessor makes an equal share of the outputs. Each lane
// copies and multiplies weights of its own, 16 bytes of four rows at a time,
// kRing such loads ahead: lanes wait for nobody but memory. A lane keeps its
// part of the activations in registers, and sums wait in shared memory until
// kBatch groups of outputs are there, and are then finished by all threads at
// once.
//
// An RMS norm scales the whole row by one number, which is a factor of every
// product: Σ w·(x·n) first, then times 1 / rms(x).
//
// The alternatives that lost, for the shape of Llama 3.1 8B on an H200, where
// this one takes a step of 4.10 ms: weights straight to registers, 4.59 ms;
// half the ring, so that the next product's blocks fit beside this one's and
// fill theirs, 5.46 ms with equal rings, because some multiprocessors get two
// blocks and others none, and 4.27 ms with unequal ones, which prevents that;
// batches of outputs that blocks take as they get on, 5.46 ms; sixteen
// warps, 4.72 ms; asking for the next product's first weights to come to the
// second-level cache when a block has none left to load, 4.58 ms, because that
// holds up the others.
#pragma once

#include <type_traits>

#include "overlap.cuh"
#include "weight_stream.cuh"

// Groups of outputs that a warp makes between two barriers.
constexpr uint32_t kBatch = 16;

struct StreamShared {
  // Two batches: one is finished while the next is made.
  float sums[2][kStreamWarps][kBatch][kStreamOutputs];
  float squares[kStreamWarps];
};

// Eight activations, normed but for the length of the row, and the sum of their
// squares before that.
__device__ inline void load_row(float (&x)[8], const Product &product,
                                const float *row, uint32_t column,
                                float &squares) {
  if (product.weight.columns % 8 == 0) {
    load_normed<true>(x, product, row, column, squares);
  } else {
    load_normed<false>(x, product, row, column, squares);
  }
}

// The sum of output `lane / 8` over all lanes, in the lanes of that output.
__device__ inline float sum_of_lanes(const float (&sums)[kStreamOutputs]) {
  static_assert(kStreamOutputs == 4, "two bits of a lane name the output");
  const bool upper = (lane_id() & 16) != 0, odd = (lane_id() & 8) != 0;
  float a = upper ? sums[2] : sums[0], b = upper ? sums[3] : sums[1];
  a += __shfl_xor_sync(kAllLanes, upper ? sums[0] : sums[2], 16);
  b += __shfl_xor_sync(kAllLanes, upper ? sums[1] : sums[3], 16);
  float sum = odd ? b : a;
  sum += __shfl_xor_sync(kAllLanes, odd ? a : b, 8);
#pragma unroll
  for (int offset = 4; offset > 0; offset /= 2) {
    sum += __shfl_xor_sync(kAllLanes, sum, offset);
  }
  return sum;
}

// HELD: loads whose activations a lane keeps; those of wider rows are read
// again for every group. The ring has `slots` places, kRing or as many as
// a warp has loads.
template <class Pairs, uint32_t HELD>
__global__ void __launch_bounds__(kStreamThreads, 2)
    stream_product_kernel(Product product, Pairs pairs, StreamPlan plan,
                          uint32_t slots) {
  __shared__ StreamShared shared;
  let_next_start();
  if (!product.is_wanted(0)) {
    wait_for_previous();
    return;
  }
  const uint32_t count = pairs_of(product.weight);
  const GroupShare share = share_of_block((count + 1) / 2);
  const uint32_t part = warp_id() % plan.parts, row = warp_id() / plan.parts;
  skv_half *const ring = reinterpret_cast<skv_half *>(dynamic_shared_memory()) +
                         warp_id() * slots * kSlotHalves + 8 * lane_id();
  WeightStream<Pairs> stream(product, pairs, plan, share, ring);
#pragma unroll 1
  for (uint32_t i = 0; i < kRing; i++) stream.fetch(i);

  // The pair of a batch that this thread finishes: what that takes is on its
  // way before the products are there.
  const uint32_t end = min(2 * share.end, count);
  const auto pair_of = [&](uint32_t batch) {
    return threadIdx.x < 2 * kBatch * plan.rows()
               ? 2 * (share.begin + batch * kBatch * plan.rows()) + threadIdx.x
               : end;
  };
  typename Pairs::Held held = {};
  if (pair_of(0) < end) held = pairs.hold(0, pair_of(0));
  wait_for_previous();

  const float *const from = product.row(0);
  const uint32_t first = 8 * (32 * part + lane_id());
  const uint32_t stride = plan.parts * 256;
  float x[HELD][8];
  float squares = 0.0f;
#pragma unroll
  for (uint32_t i = 0; i < HELD; i++) {
    load_row(x[i], product, from, first + i * stride, squares);
  }
  for (uint32_t i = HELD; i < plan.steps; i++) {
    float ignored[8];
    load_row(ignored, product, from, first + i * stride, squares);
  }
  squares = warp_sum(squares);
  if (lane_id() == 0) shared.squares[warp_id()] = squares;

  uint32_t slot = 0;
  // Takes the next weights out of the ring, and starts to load others.
  const auto take = [&](float(&sums)[kStreamOutputs], const float(&values)[8]) {
    wait_copies<kRing - 1>();
    const skv_half *weights = ring + slot * kSlotHalves;
#pragma unroll
    for (uint32_t o = 0; o < kStreamOutputs; o++) {
      add_eight(sums[o], *reinterpret_cast<const uint4 *>(weights + o * 256),
                values);
    }
    stream.fetch(slot);
    slot = slot + 1 == slots ? 0 : slot + 1;
  };
  uint32_t group = share.begin + row;
  for (uint32_t batch = 0;
       share.begin + batch * kBatch * plan.rows() < share.end; batch++) {
    float(&kept)[kStreamWarps][kBatch][kStreamOutputs] = shared.sums[batch % 2];
    for (uint32_t i = 0; i < kBatch && group < share.end; i++) {
      float sums[kStreamOutputs] = {};
#pragma unroll
      for (uint32_t k = 0; k < HELD; k++) {
        if (k < plan.steps) take(sums, x[k]);
      }
      for (uint32_t k = HELD; k < plan.steps; k++) {
        float values[8], ignored = 0.0f;
        load_row(values, product, from, first + k * stride, ignored);
        take(sums, values);
      }
      const float sum = sum_of_lanes(sums);
      if (lane_id() % 8 == 0) kept[warp_id()][i][lane_id() / 8] = sum;
      group += plan.rows();
    }
    __syncthreads();
    if (pair_of(batch) >= end) continue;
    const uint32_t local = threadIdx.x / 2;
    float2 sum = {};
    float norm = 0.0f;
    for (uint32_t p = 0; p < plan.parts; p++) {
      const uint32_t warp = local % plan.rows() * plan.parts + p;
      const float *ends = kept[warp][local / plan.rows()];
      sum.x += ends[threadIdx.x % 2 * 2];
      sum.y += ends[threadIdx.x % 2 * 2 + 1];
      norm += shared.squares[warp];
    }
    const float scale =
        product.norm == nullptr
            ? 1.0f
            : rsqrtf(norm / product.weight.columns + product.epsilon);
    pairs.finish(held, sum.x * scale, sum.y * scale);
    if (pair_of(batch + 1) < end) held = pairs.hold(0, pair_of(batch + 1));
  }
}

// Enough parts that lanes keep what they can of a row, and as few idle lanes as
// possible.
inline StreamPlan stream_plan(const Product &product, uint32_t held) {
  const uint32_t chunks = product.weight.pitch / 8;
  StreamPlan best = {};
  for (uint32_t parts = kStreamWarps; parts > 0; parts /= 2) {
    const uint32_t steps = (chunks + 32 * parts - 1) / (32 * parts);
    if (best.parts != 0 &&
        (steps > held || steps * parts >= best.steps * best.parts)) {
      continue;
    }
    best = {parts, steps};
  }
  return best;
}

template <class Pairs, uint32_t HELD>
inline cudaError_t launch_stream(const Product &product, const Pairs &pairs,
                                 const StreamPlan &plan, const Launch &launch) {
  const uint32_t groups = (pairs_of(product.weight) + 1) / 2;
  const uint32_t blocks = min(launch.multiprocessors, groups);
  const uint32_t most = (groups + blocks - 1) / blocks;
  const uint32_t loads = (most + plan.rows() - 1) / plan.rows() * plan.steps;
  const uint32_t slots = min(kRing, loads);
  const size_t bytes = size_t{kStreamWarps} * slots * kSlotHalves * 2;
  const auto kernel = stream_product_kernel<Pairs, HELD>;
  const cudaError_t status = allow_shared_memory(kernel, bytes);
  if (status != cudaSuccess) return status;
  return launch_kernel(launch, kernel, blocks, kStreamThreads, bytes, product,
                       pairs, plan, slots);
}

// Least bytes of a multiprocessor's share, in rings, and least columns. Smaller
// products are over before the ring has gone round, or add up more than they
// multiply: see lib/vector_product.cuh.
constexpr float kLeastRings = 1.5f;
constexpr uint32_t kLeastColumns = 2048;

inline bool is_streamed(const Product &product, const Launch &launch) {
  constexpr size_t kRingBytes = size_t{kStreamWarps} * kRing * kSlotHalves * 2;
  const skv_matrix &weight = product.weight;
  const float bytes =
      2.0f * static_cast<float>(weight.rows) * static_cast<float>(weight.pitch);
  return weight.columns >= kLeastColumns &&
         kRingBytes + sizeof(StreamShared) <= launch.shared_bytes &&
         bytes >= kLeastRings * kRingBytes * launch.multiprocessors;
}

template <class Pairs>
inline cudaError_t multiply_stream(const Product &product, const Pairs &pairs,
                                   const Launch &launch) {
  constexpr uint32_t kMostHeld = 8;
  const StreamPlan plan = stream_plan(product, kMostHeld);
  const auto run = [&](auto held) {
    return launch_stream<Pairs, decltype(held)::value>(product, pairs, plan,
                                                       launch);
  };
  if (plan.steps <= 2) return run(std::integral_constant<uint32_t, 2>());
  if (plan.steps <= 3) return run(std::integral_constant<uint32_t, 3>());
  if (plan.steps <= 5) return run(std::integral_constant<uint32_t, 5>());
  return run(std::integral_constant<uint32_t, kMostHeld>());
}

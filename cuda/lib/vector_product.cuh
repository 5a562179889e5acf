// Products of one row of activations with a weight matrix, for decode steps of
// one sequence: each weight is read once, 16 bytes per lane and load.
//
// One block per multiprocessor makes an equal share of the outputs, four at a
// time, so that memory never waits for a last wave of blocks, and the next
// kernel has room to start its own loads. The warps of a block share the
// columns of four outputs and add up through shared memory, or split into sets
// that do where there are few columns. Each lane has 16 loads under way from
// before the kernel in front has ended to the end.
//
// The row waits in shared memory, normed but for the factor of the whole row,
// by which sums are multiplied.
//
// The alternatives that lost: a block for every few outputs, which leaves
// memory idle while the first and the last of them run; the row from the L1
// cache, and its squares, again for every four outputs.
#pragma once

#include <algorithm>

#include "overlap.cuh"
#include "product_args.cuh"
#include "reduce.cuh"

constexpr uint32_t kVectorWarps = 8;
constexpr uint32_t kVectorThreads = 32 * kVectorWarps;

// Outputs that a set of warps makes at a time, two pairs.
constexpr uint32_t kGroupOutputs = 4;

// Chunks of eight columns of a group that a lane has under way.
constexpr uint32_t kVectorDepth = 4;

// Groups of a set between two barriers.
constexpr uint32_t kRoundGroups = 16;

static_assert(kRoundGroups % kVectorDepth == 0,
              "a round ends where a turn of the loads does");

// Bytes of the kernel's own variables.
constexpr size_t kVectorOwnBytes =
    (2 * kRoundGroups * kGroupOutputs + 1) * kVectorWarps * sizeof(float);

// Groups of a block: numbers from `begin` to `end`.
struct GroupShare {
  uint32_t begin;
  uint32_t end;

  __device__ GroupShare(uint32_t groups) {
    const uint32_t least = groups / gridDim.x, longer = groups % gridDim.x;
    begin = blockIdx.x * least + min(blockIdx.x, longer);
    end = begin + least + (blockIdx.x < longer ? 1 : 0);
  }
};

// The groups that a set of `parts` warps makes, and the chunks of this lane.
template <class Pairs>
class GroupLoader {
 public:
  __device__ GroupLoader(const Product &product, const Pairs &pairs,
                         const GroupShare &share, uint32_t parts)
      : product_(product),
        pairs_(pairs),
        end_(share.end),
        chunks_(product.weight.pitch / 8),
        sets_(kVectorWarps / parts),
        stride_(32 * parts),
        first_(warp_id() % parts * 32 + lane_id()),
        group_(share.begin + warp_id() / parts),
        chunk_(first_) {
    find_rows();
  }

  // Starts to load the lane's chunk of the present group, if there is one, and
  // goes on to the next.
  __device__ void load(uint4 (&words)[kGroupOutputs]) {
    if (group_ < end_ && chunk_ < chunks_) {
#pragma unroll
      for (uint32_t o = 0; o < kGroupOutputs; o++) {
        words[o] = load_weights(rows_[o] + 8 * chunk_);
      }
    }
    chunk_ += stride_;
    if (chunk_ - first_ < chunks_) return;
    chunk_ = first_;
    group_ += sets_;
    find_rows();
  }

 private:
  __device__ void find_rows() {
    const skv_matrix &weight = product_.weight;
    const uint32_t count = pairs_of(weight);
#pragma unroll
    for (uint32_t o = 0; o < kGroupOutputs; o++) {
      const uint32_t pair = min(2 * group_ + o / 2, count - 1);
      const uint32_t row = min(pairs_.output(pair, o % 2), weight.rows - 1);
      rows_[o] = weight.data + static_cast<size_t>(row) * weight.pitch;
    }
  }

  const Product &product_;
  const Pairs &pairs_;
  const uint32_t end_;
  const uint32_t chunks_;
  const uint32_t sets_;
  const uint32_t stride_;
  const uint32_t first_;
  uint32_t group_;
  uint32_t chunk_;
  const skv_half *rows_[kGroupOutputs];
};

// The row in shared memory: the first four floats of every chunk, and the last
// four, so that lanes next to each other read what is next to each other.
struct VectorRow {
  float4 *first;
  float4 *last;
};

// Fills the row; returns this thread's part of the sum of squares.
template <bool NORMED, bool ALIGNED>
__device__ inline float fill_row(const Product &product, const VectorRow &row) {
  const float *from = product.row(0);
  const uint32_t width = product.weight.columns;
  const uint32_t chunks = product.weight.pitch / 8;
  float squares = 0.0f;
#pragma unroll 2
  for (uint32_t chunk = threadIdx.x; chunk < chunks; chunk += kVectorThreads) {
    float x[8];
    load_floats<ALIGNED>(x, from, 8 * chunk, width);
    if constexpr (NORMED) {
      float n[8];
      load_floats<ALIGNED>(n, product.norm, 8 * chunk, width);
#pragma unroll
      for (int i = 0; i < 8; i++) {
        squares += x[i] * x[i];
        x[i] *= n[i];
      }
    }
    row.first[chunk] = {x[0], x[1], x[2], x[3]};
    row.last[chunk] = {x[4], x[5], x[6], x[7]};
  }
  return squares;
}

__device__ inline void add_chunk(float (&sums)[kGroupOutputs],
                                 const uint4 (&words)[kGroupOutputs],
                                 const VectorRow &row, uint32_t chunk) {
  const float4 a = row.first[chunk], b = row.last[chunk];
  const float x[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
  for (uint32_t o = 0; o < kGroupOutputs; o++) {
    const uint32_t pairs[4] = {words[o].x, words[o].y, words[o].z, words[o].w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const float2 pair = to_floats(pairs[i]);
      sums[o] += pair.x * x[2 * i];
      sums[o] += pair.y * x[2 * i + 1];
    }
  }
}

// Sums over the lanes of a warp: lanes 8 o to 8 o + 7 get that of output o.
__device__ inline float sum_lanes(const float (&sums)[kGroupOutputs]) {
  const bool is_upper = (lane_id() & 16) != 0, is_odd = (lane_id() & 8) != 0;
  float pair[2];
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const float kept = is_upper ? sums[2 + i] : sums[i];
    const float given = is_upper ? sums[i] : sums[2 + i];
    pair[i] = kept + __shfl_xor_sync(kAllLanes, given, 16);
  }
  float sum = is_odd ? pair[1] : pair[0];
  sum += __shfl_xor_sync(kAllLanes, is_odd ? pair[0] : pair[1], 8);
#pragma unroll
  for (int offset = 4; offset > 0; offset /= 2) {
    sum += __shfl_xor_sync(kAllLanes, sum, offset);
  }
  return sum;
}

template <class Pairs, bool NORMED>
__global__ void __launch_bounds__(kVectorThreads, 2)
    vector_product_kernel(Product product, Pairs pairs, uint32_t parts) {
  // Sums of all warps, by the set and the group of a round; those of a round
  // are finished while others of the next arrive.
  __shared__ float table[2][kRoundGroups * kVectorWarps][kGroupOutputs];
  __shared__ float squares[kVectorWarps];
  let_next_start();
  const uint32_t chunks = product.weight.pitch / 8;
  const uint32_t count = pairs_of(product.weight);
  const GroupShare share((count + 1) / 2);
  const uint32_t sets = kVectorWarps / parts;
  const uint32_t set = warp_id() / parts, part = warp_id() % parts;
  const uint32_t first_chunk = part * 32 + lane_id();
  // All sets go through as many groups, and all lanes through as many chunks.
  const uint32_t groups = (share.end - share.begin + sets - 1) / sets;
  const uint32_t turns = (chunks + 32 * parts - 1) / (32 * parts);
  GroupLoader<Pairs> loader(product, pairs, share, parts);
  uint4 words[kVectorDepth][kGroupOutputs];
#pragma unroll
  for (uint32_t i = 0; i < kVectorDepth; i++) loader.load(words[i]);
  wait_for_previous();

  float4 *const memory = reinterpret_cast<float4 *>(dynamic_shared_memory());
  const VectorRow row = {memory, memory + chunks};
  const float square = product.weight.columns % 8 == 0
                           ? fill_row<NORMED, true>(product, row)
                           : fill_row<NORMED, false>(product, row);
  if constexpr (NORMED) {
    const float sum = warp_sum(square);
    if (lane_id() == 0) squares[warp_id()] = sum;
  }
  __syncthreads();

  const auto finish_round = [&](uint32_t round) {
    __syncthreads();
    const uint32_t at = threadIdx.x / 2, end = threadIdx.x % 2 * 2;
    const uint32_t group = share.begin + round * kRoundGroups * sets + at;
    const uint32_t pair = 2 * group + threadIdx.x % 2;
    if (at >= kRoundGroups * sets || group >= share.end || pair >= count ||
        !product.is_wanted(0)) {
      return;
    }
    float a = 0.0f, b = 0.0f;
    for (uint32_t p = 0; p < parts; p++) {
      const float *sums = table[round % 2][at * parts + p];
      a += sums[end];
      b += sums[end + 1];
    }
    float scale = 1.0f;
    if constexpr (NORMED) {
      float sum = 0.0f;
#pragma unroll
      for (uint32_t w = 0; w < kVectorWarps; w++) sum += squares[w];
      scale = rsqrtf(sum / product.weight.columns + product.epsilon);
    }
    pairs.finish(0, pair, a * scale, b * scale);
  };

  float sums[kGroupOutputs] = {};
  uint32_t group = 0, turn = 0, round = 0;
  while (group < groups) {
#pragma unroll
    for (uint32_t i = 0; i < kVectorDepth; i++) {
      if (group >= groups) break;
      const uint32_t chunk = first_chunk + turn * (32 * parts);
      if (chunk < chunks) add_chunk(sums, words[i], row, chunk);
      loader.load(words[i]);
      turn++;
      if (turn < turns) continue;
      const float sum = sum_lanes(sums);
      const uint32_t at = group % kRoundGroups * sets + set;
      if (lane_id() % 8 == 0) {
        table[group / kRoundGroups % 2][at * parts + part][lane_id() / 8] = sum;
      }
#pragma unroll
      for (uint32_t o = 0; o < kGroupOutputs; o++) sums[o] = 0.0f;
      turn = 0;
      group++;
    }
    // A round is longer than what is under way, so at most one has ended.
    if (group / kRoundGroups > round) finish_round(round++);
  }
  if (group % kRoundGroups != 0) finish_round(round);
}

// Warps that share the columns of a group: as many as keep all lanes busiest.
inline uint32_t vector_parts(const Product &product, uint32_t groups) {
  const uint32_t chunks = product.weight.pitch / 8;
  uint32_t best = kVectorWarps, least = ~0u;
  for (uint32_t parts = kVectorWarps; parts > 0; parts /= 2) {
    const uint32_t sets = kVectorWarps / parts;
    const uint32_t turns =
        (groups + sets - 1) / sets * ((chunks + 32 * parts - 1) / (32 * parts));
    if (turns < least) best = parts, least = turns;
  }
  return best;
}

inline size_t vector_row_bytes(const Product &product) {
  return product.weight.pitch * sizeof(float);
}

// Whether blocks that may have `shared_bytes` have room for the row.
inline bool fits_vector(const Product &product, size_t shared_bytes) {
  return vector_row_bytes(product) + kVectorOwnBytes <= shared_bytes;
}

template <class Pairs>
inline cudaError_t multiply_vector(const Product &product, const Pairs &pairs,
                                   const Launch &launch) {
  const uint32_t groups = (pairs_of(product.weight) + 1) / 2;
  const uint32_t blocks = std::min(groups, launch.multiprocessors);
  const uint32_t parts = vector_parts(product, (groups + blocks - 1) / blocks);
  const size_t bytes = vector_row_bytes(product);
  const auto kernel = product.norm == nullptr
                          ? vector_product_kernel<Pairs, false>
                          : vector_product_kernel<Pairs, true>;
  const cudaError_t status = allow_shared_memory(kernel, bytes);
  if (status != cudaSuccess) return status;
  return launch_kernel(launch, kernel, blocks, kVectorThreads, bytes, product,
                       pairs, parts);
}

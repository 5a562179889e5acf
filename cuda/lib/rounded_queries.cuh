// The queries of a chunk, rounded to what caches hold, in memory.
#pragma once

#include "../runtime/launch.cuh"
#include "mma.cuh"
#include "observed.cuh"
#include "overlap.cuh"

// Queries as products want them.
struct RoundedQueries {
  // (kv_heads, pairs, DIM): pair p is query head p % group of row p / group
  skv_cached *lines;
  // (kv_heads, pairs): what products are multiplied by: logits in units of ln 2
  float *inverse;
  uint32_t pairs;

  __device__ size_t index(uint32_t kv_head, uint32_t pair) const {
    return static_cast<size_t>(kv_head) * pairs + pair;
  }
};

constexpr uint32_t kRoundThreads = 256;

// One warp per pair of an observed row.
template <int DIM>
__global__ void __launch_bounds__(kRoundThreads)
    round_pairs_kernel(skv_chunk_args args, RoundedQueries to) {
  begin_kernel();
  const ObservedRows rows(args);
  const skv_sizes &sizes = args.sizes;
  const uint32_t group = sizes.heads / sizes.kv_heads;
  const uint32_t pair = blockIdx.x * (kRoundThreads / 32) + warp_id();
  if (pair < rows.first * group || pair >= rows.end * group) return;
  const uint32_t kv_head = blockIdx.y, head_dim = sizes.head_dim;
  const float *query =
      args.queries + (static_cast<size_t>(pair / group) * sizes.heads +
                      kv_head * group + pair % group) *
                         head_dim;
  float2 x[DIM / 64];
  float largest = 0.0f;
#pragma unroll
  for (int i = 0; i < DIM / 64; i++) {
    const uint32_t column = 64 * i + 2 * lane_id();
    x[i] = column < head_dim ? *reinterpret_cast<const float2 *>(query + column)
                             : float2{};
    largest = fmaxf(largest, fmaxf(fabsf(x[i].x), fabsf(x[i].y)));
  }
  const Scale scale = scale_for(warp_max(largest));
  const size_t index = to.index(kv_head, pair);
#pragma unroll
  for (int i = 0; i < DIM / 64; i++) {
    *reinterpret_cast<uint32_t *>(to.lines + index * DIM + 64 * i +
                                  2 * lane_id()) =
        cached_pair(x[i].x * scale.scale, x[i].y * scale.scale);
  }
  if (lane_id() == 0) {
    to.inverse[index] =
        scale.inverse * rsqrtf(static_cast<float>(head_dim)) * kLog2E;
  }
}

// Takes memory for the rounded queries of a chunk.
template <int DIM>
inline RoundedQueries take_queries(const skv_chunk_args &args,
                                   Scratch &scratch) {
  const uint32_t pairs =
      args.step.rows * (args.sizes.heads / args.sizes.kv_heads);
  const size_t all = static_cast<size_t>(pairs) * args.sizes.kv_heads;
  RoundedQueries queries;
  queries.lines = scratch.take<skv_cached>(all * DIM);
  queries.inverse = scratch.take<float>(all);
  queries.pairs = pairs;
  return queries;
}

template <int DIM>
inline cudaError_t launch_round_pairs(const skv_chunk_args &args,
                                      const RoundedQueries &to,
                                      const Launch &launch) {
  constexpr uint32_t kWarps = kRoundThreads / 32;
  const dim3 pairs((to.pairs + kWarps - 1) / kWarps, args.sizes.kv_heads);
  return launch_kernel(launch, round_pairs_kernel<DIM>, pairs, kRoundThreads, 0,
                       args, to);
}

// Queries as operands of tensor core products, in two parts each.
#pragma once

#include "attend_shape.cuh"

// Row of a query head of the job.
__device__ inline size_t query_row(const skv_merge_attend_args &args,
                                   const HeadJob &job, uint32_t g) {
  return static_cast<size_t>(job.row) * args.sizes.heads +
         job.kv_head * job.group + job.first_head + g;
}

// One of eight columns of right operands: the high or the low parts of a query.
struct QueryColumn {
  // Null for zeros.
  const float *query;
  uint32_t head_dim;

  // Elements 2t and 2t + 1 of half i of a step.
  __device__ float2 pair(int step, int i) const {
    const uint32_t column = 16 * step + 8 * i + 2 * (lane_id() % 4);
    if (query == nullptr || column >= head_dim) return {};
    return __ldcg(reinterpret_cast<const float2 *>(query + column));
  }
  // Lanes of the same column have the scale together.
  __device__ static Scale scale_of_lanes(float largest) {
    largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 2));
    return scale_for(largest);
  }
  // Operands of a step.
  __device__ static uint2 split(float2 first, float2 second, float scale) {
    const SplitPair a = split_cached(first.x * scale, first.y * scale);
    const SplitPair b = split_cached(second.x * scale, second.y * scale);
    return lane_id() / 4 % 2 == 0 ? uint2{a.high, b.high} : uint2{a.low, b.low};
  }
  // What products of columns 2t and 2t + 1 must be multiplied by.
  __device__ float inverse(const Scale &scale) const {
    return __shfl_sync(kAllLanes, scale.inverse, 8 * (lane_id() % 4)) *
           rsqrtf(static_cast<float>(head_dim));
  }
};

__device__ inline float largest_of(float2 x) {
  return fmaxf(fabsf(x.x), fabsf(x.y));
}

// This lane's column of tile u, of the job's `queries`: 2h has the high parts
// of head 4u + h and 2h + 1 the low ones, so that a lane of the product, which
// has columns 2t and 2t + 1, has all of head 4u + t.
//
// The alternative that lost: queries as rows. Products have 16 of those and
// eight columns, so that groups of up to four heads take twice as many, and
// lanes of rows that no head needs do the same work as others.
__device__ inline QueryColumn query_column(const skv_merge_attend_args &args,
                                           const HeadJob &job,
                                           const float *queries, int u) {
  const uint32_t head = kColumnHeads * u + lane_id() / 8;
  const uint32_t head_dim = args.sizes.head_dim;
  if (head >= job.heads) return {nullptr, head_dim};
  return {queries + query_row(args, job, head) * head_dim, head_dim};
}

// Query heads as right operands.
template <int DIM, int TILES>
struct QueryOperands {
  uint2 steps[TILES][DIM / 16];
  // What products of head 4u + t must be multiplied by.
  float inverse[TILES];

  __device__ void load(const skv_merge_attend_args &args, const HeadJob &job) {
#pragma unroll
    for (int u = 0; u < TILES; u++) {
      const QueryColumn column = query_column(args, job, args.queries, u);
      float2 x[DIM / 16][2];
      float largest = 0.0f;
#pragma unroll
      for (int step = 0; step < DIM / 16; step++) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
          x[step][i] = column.pair(step, i);
          largest = fmaxf(largest, largest_of(x[step][i]));
        }
      }
      const Scale scale = column.scale_of_lanes(largest);
#pragma unroll
      for (int step = 0; step < DIM / 16; step++) {
        steps[u][step] = column.split(x[step][0], x[step][1], scale.scale);
      }
      inverse[u] = column.inverse(scale);
    }
  }
};

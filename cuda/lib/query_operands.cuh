// Queries as operands of tensor core products, in two parts each.
#pragma once

#include "attend_shape.cuh"

// Row of a query head of the job.
__device__ inline size_t query_row(const skv_merge_attend_args &args,
                                   const HeadJob &job, uint32_t g) {
  return static_cast<size_t>(job.row) * args.sizes.heads +
         job.kv_head * job.group + job.first_head + g;
}

// Query heads as right operands: of the columns of tile u, 2h has the high
// parts of head 4u + h and 2h + 1 the low ones, so that a lane of the product,
// which has columns 2t and 2t + 1, has all of head 4u + t.
//
// The alternative that lost: queries as rows. Tiles have 16 of those and eight
// columns, so that groups of up to four heads take twice the products, and
// lanes of rows that no head needs do the same work as others.
template <int DIM, int TILES>
struct QueryOperands {
  uint2 steps[TILES][DIM / 16];
  // What products of head 4u + t must be multiplied by.
  float inverse[TILES];

  // Loads the queries of the job; zeros for heads that it does not have.
  __device__ void load(const skv_merge_attend_args &args, const HeadJob &job,
                       const float *queries) {
    const uint32_t head_dim = args.sizes.head_dim;
#pragma unroll
    for (int u = 0; u < TILES; u++) {
      const uint32_t head = kColumnHeads * u + lane_id() / 8;
      const float *query = queries + query_row(args, job, head) * head_dim;
      load_tile(u, head < job.heads ? query : nullptr, head_dim);
    }
  }

  // A null pointer stands for zeros.
  __device__ void load_tile(int u, const float *query, uint32_t head_dim) {
    const uint32_t g = lane_id() / 4, t = lane_id() % 4;
    float2 x[DIM / 16][2];
    float largest = 0.0f;
#pragma unroll
    for (int step = 0; step < DIM / 16; step++) {
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const uint32_t column = 16 * step + 8 * i + 2 * t;
        x[step][i] = {};
        if (query != nullptr && column < head_dim) {
          x[step][i] = __ldcg(reinterpret_cast<const float2 *>(query + column));
        }
        largest =
            fmaxf(largest, fmaxf(fabsf(x[step][i].x), fabsf(x[step][i].y)));
      }
    }
    largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 2));
    const Scale scale = scale_for(largest);
#pragma unroll
    for (int step = 0; step < DIM / 16; step++) {
      const SplitPair a =
          split_cached(x[step][0].x * scale.scale, x[step][0].y * scale.scale);
      const SplitPair b =
          split_cached(x[step][1].x * scale.scale, x[step][1].y * scale.scale);
      steps[u][step] = g % 2 == 0 ? uint2{a.high, b.high} : uint2{a.low, b.low};
    }
    // Column 2t is that of lane 8t.
    inverse[u] = __shfl_sync(kAllLanes, scale.inverse, 8 * t) *
                 rsqrtf(static_cast<float>(head_dim));
  }
};

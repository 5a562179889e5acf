// Queries as operands of tensor core products, in two parts each.
#pragma once

#include "attend_job.cuh"
#include "row_tiles.cuh"

// Products of rows g and g + 8 of a tile of left operands with slots 2t, 2t +
// 1, 2t + 8 and 2t + 9 of a tile of keys, and the squared lengths of those.
struct TileProducts {
  float high[4];
  float low[4];
  float squares[4];
};

// Query heads as left operands: head g in rows g, high parts, and g + 8, low
// parts. Rows of heads that there are not are free for riders.
template <int DIM>
struct QueryOperands {
  uint4 steps[DIM / 16];
  // What products of head g = lane / 4 must be multiplied by.
  float inverse;

  // A null pointer stands for zeros.
  __device__ void load(const float *query, uint32_t head_dim) {
    const uint32_t t = lane_id() % 4;
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
      steps[step] = {a.high, a.low, b.high, b.low};
    }
    inverse = scale.inverse * rsqrtf(static_cast<float>(head_dim));
  }

  // Puts riders on the rows of a lane that has no query head; its logits are 0.
  __device__ void take_riders(const uint4 (&riders)[DIM / 16]) {
#pragma unroll
    for (int step = 0; step < DIM / 16; step++) steps[step] = riders[step];
    inverse = 0.0f;
  }

  // Multiplies with the keys of a tile. SQUARES: finds their lengths as well,
  // on the diagonal of their products with each other: as left operands they
  // are in the same registers as on the right.
  template <bool SQUARES>
  __device__ TileProducts multiply(const skv_cached *keys) const {
    // Two sums each: products wait for those of the same sum.
    float x[2][2][4] = {}, own[2][4] = {};
#pragma unroll
    for (int step = 0; step < DIM / 16; step++) {
      const uint4 k = key_operands<DIM>(keys, 0, 16 * step);
      mma_cached(x[step % 2][0], steps[step], k.x, k.y);
      mma_cached(x[step % 2][1], steps[step], k.z, k.w);
      if constexpr (SQUARES) {
        const uint4 left = {k.x, k.z, k.y, k.w};
        mma_cached(own[0], left, k.x, k.y);
        mma_cached(own[1], left, k.z, k.w);
      }
    }
    TileProducts products;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int n = i / 2, at = i % 2;
      products.high[i] = x[0][n][at] + x[1][n][at];
      products.low[i] = x[0][n][at + 2] + x[1][n][at + 2];
      products.squares[i] = 0.0f;
      if constexpr (SQUARES) {
        // Slot 2t + at of the eight is in row and column 2t + at of both.
        products.squares[i] = __shfl_sync(kAllLanes, own[n][at + 2 * n],
                                          9 * (lane_id() % 4) + 4 * at);
      }
    }
    return products;
  }

  // Raw logit of the i-th of these slots for head g.
  __device__ float logit(const TileProducts &products, int i) const {
    return (products.high[i] + products.low[i]) * inverse;
  }
};

// Row of a query head of the job.
__device__ inline size_t query_row(const skv_merge_attend_args &args,
                                   const HeadJob &job, uint32_t g) {
  return static_cast<size_t>(job.row) * args.sizes.heads +
         job.kv_head * job.group + job.first_head + g;
}

// This lane's query head of `queries`, or null where there is none.
__device__ inline const float *query_of_lane(const skv_merge_attend_args &args,
                                             const HeadJob &job,
                                             const float *queries) {
  const uint32_t g = lane_id() / 4;
  if (g >= job.heads) return nullptr;
  return queries + query_row(args, job, g) * args.sizes.head_dim;
}

// Which of a lane's four slots of a tile is which.
__device__ inline uint32_t tile_slot(int i) {
  return 2 * (lane_id() % 4) + i % 2 + i / 2 * 8;
}

// Products of a tile of keys with queries and riders.
#pragma once

#include "query_operands.cuh"
#include "riders.cuh"

// What a lane has of it, for slots g and g + 8 of the tile.
template <int TILES>
struct TileProducts {
  // Raw logits of head 4u + t.
  float logits[TILES][2];
  // Where there are riders: products with rider t, and the squared lengths of
  // the keys.
  float riders[2];
  float squares[2];
};

// Multiplies a tile of keys, at a lane's operands; RIDES: with riders as well.
template <bool RIDES, int DIM, int TILES>
__device__ inline TileProducts<TILES> multiply_keys(
    const skv_cached *keys, const QueryOperands<DIM, TILES> &queries,
    const LaneRiders<DIM> &riders) {
  // Products wait for those of the same sum: two of each where that is all.
  constexpr int kSums = RIDES ? 1 : 2;
  float x[kSums][TILES][4] = {}, rode[4] = {}, own[2][4] = {};
#pragma unroll
  for (int step = 0; step < DIM / 16; step++) {
    const uint4 k = load_matrices(keys + 16 * step);
#pragma unroll
    for (int u = 0; u < TILES; u++) {
      const uint2 q = queries.steps[u][step];
      mma_cached(x[step % kSums][u], k, q.x, q.y);
    }
    if constexpr (RIDES) {
      mma_cached(rode, k, riders.steps[step].x, riders.steps[step].y);
      // Squared lengths are on the diagonal of the products of keys with each
      // other: as right operands keys are in the registers that they are in on
      // the left. By halves, since whole operands are two registers in a row,
      // and moving them takes longer.
      mma_cached_half(own[0], k.x, k.y, k.x);
      mma_cached_half(own[1], k.x, k.y, k.y);
      mma_cached_half(own[0], k.z, k.w, k.z);
      mma_cached_half(own[1], k.z, k.w, k.w);
    }
  }
  TileProducts<TILES> products;
  const uint32_t g = lane_id() / 4;
#pragma unroll
  for (int k = 0; k < 2; k++) {
#pragma unroll
    for (int u = 0; u < TILES; u++) {
      float high = x[0][u][2 * k], low = x[0][u][2 * k + 1];
      if constexpr (kSums == 2) {
        high += x[1][u][2 * k], low += x[1][u][2 * k + 1];
      }
      products.logits[u][k] = (high + low) * queries.inverse[u];
    }
    if constexpr (RIDES) {
      products.riders[k] = rode[2 * k];
      // Slot g of eight is in row and column g of these.
      const float square = g % 2 == 0 ? own[k][2 * k] : own[k][2 * k + 1];
      products.squares[k] = __shfl_sync(kAllLanes, square, 4 * g + g / 2);
    }
  }
  return products;
}

// Logits with the queries for sinks. Few tiles have sinks, so these operands
// wait nowhere: they are read for each. As long as nothing was evicted both
// queries are the same, and so are the sums, added up in the same order.
template <int DIM, int TILES>
__device__ inline void multiply_sinks(const skv_merge_attend_args &args,
                                      const HeadJob &job,
                                      const skv_cached *keys,
                                      float (&logits)[TILES][2]) {
#pragma unroll
  for (int u = 0; u < TILES; u++) {
    const QueryColumn column = query_column(args, job, args.sink_queries, u);
    float largest = 0.0f;
#pragma unroll 4
    for (int i = 0; i < DIM / 8; i++) {
      largest = fmaxf(largest, largest_of(column.pair(i / 2, i % 2)));
    }
    const Scale scale = column.scale_of_lanes(largest);
    float x[2][4] = {};
#pragma unroll 2
    for (int step = 0; step < DIM / 16; step++) {
      const uint2 q =
          column.split(column.pair(step, 0), column.pair(step, 1), scale.scale);
      mma_cached(x[step % 2], load_matrices(keys + 16 * step), q.x, q.y);
    }
    const float inverse = column.inverse(scale);
#pragma unroll
    for (int k = 0; k < 2; k++) {
      const float high = x[0][2 * k] + x[1][2 * k];
      const float low = x[0][2 * k + 1] + x[1][2 * k + 1];
      logits[u][k] = (high + low) * inverse;
    }
  }
}

// Products of a tile of keys with queries and riders.
#pragma once

#include "query_operands.cuh"
#include "riders.cuh"

// What a lane has of it, for slots g and g + 8 of the tile.
template <int TILES>
struct TileProducts {
  // Raw logits of head 4u + t.
  float logits[TILES][2];
  // Products with rider t, and the squared lengths of the keys.
  float riders[2];
  float squares[2];
};

// Multiplies a tile of keys; with riders as well where there are any.
template <int DIM, int TILES>
__device__ inline TileProducts<TILES> multiply_keys(
    const skv_cached *keys, const QueryOperands<DIM, TILES> &queries,
    const LaneRiders<DIM> *riders) {
  // Two sums each: products wait for those of the same sum.
  float x[2][TILES][4] = {}, rode[4] = {}, own[2][4] = {};
#pragma unroll
  for (int step = 0; step < DIM / 16; step++) {
    const uint4 k = line_operands<DIM>(keys, 0, 16 * step);
#pragma unroll
    for (int u = 0; u < TILES; u++) {
      const uint2 q = queries.steps[u][step];
      mma_cached(x[step % 2][u], k, q.x, q.y);
    }
    if (riders == nullptr) continue;
    mma_cached(rode, k, riders->steps[step].x, riders->steps[step].y);
    // Squared lengths are on the diagonal of the products of keys with each
    // other. As right operands keys are in the registers that they are in on
    // the left: 24 instructions in place of 256 to square and add every
    // element.
    mma_cached(own[0], k, k.x, k.z);
    mma_cached(own[1], k, k.y, k.w);
  }
  TileProducts<TILES> products;
  const uint32_t g = lane_id() / 4;
#pragma unroll
  for (int k = 0; k < 2; k++) {
#pragma unroll
    for (int u = 0; u < TILES; u++) {
      const float high = x[0][u][2 * k] + x[1][u][2 * k];
      const float low = x[0][u][2 * k + 1] + x[1][u][2 * k + 1];
      products.logits[u][k] = (high + low) * queries.inverse[u];
    }
    products.riders[k] = rode[2 * k];
    // Slot g of eight is in row and column g of these.
    const float square = g % 2 == 0 ? own[k][2 * k] : own[k][2 * k + 1];
    products.squares[k] = riders == nullptr
                              ? 0.0f
                              : __shfl_sync(kAllLanes, square, 4 * g + g / 2);
  }
  return products;
}

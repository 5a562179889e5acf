// Lines from anywhere as a tile of products of groups.
#pragma once

#include "group_instructions.cuh"

// Starts to copy LINES lines to a tile as products want it: see
// tile_descriptor(). `line(i)` is where line i is in memory, or null for zeros.
template <int DIM, uint32_t LINES, uint32_t THREADS, class Line>
__device__ inline void gather_tile(skv_cached (*tile)[LINES][kTileColumns],
                                   uint32_t head_dim, Line line) {
  constexpr uint32_t kChunks = DIM / 8;
  static_assert(LINES * kChunks % THREADS == 0, "as much for each thread");
  const uint32_t chunk = threadIdx.x % kChunks;
#pragma unroll
  for (uint32_t k = 0; k < LINES * kChunks / THREADS; k++) {
    const uint32_t at = threadIdx.x / kChunks + k * (THREADS / kChunks);
    const skv_cached *from = line(at);
    copy_async(tile[chunk / 8][at] + 8 * (chunk % 8 ^ at % 8), from + 8 * chunk,
               from != nullptr && 8 * chunk < head_dim);
  }
}

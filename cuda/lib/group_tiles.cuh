// Tiles of keys or values, one slot per line, for products of groups of warps:
// see tile_descriptor().
#pragma once

#include "group_instructions.cuh"

// Widths of heads whose tiles are whole lines of 128 bytes.
template <int DIM>
constexpr bool kHasGroupTiles = DIM == 64 || DIM == 128;

// Starts to copy LINES lines to a tile; `line(i)` is where line i is in memory,
// or null for zeros.
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

// Starts to multiply 64 lines of a tile, from `line` on, with the N of another.
template <int DIM, int N, uint32_t LINES>
__device__ inline void multiply_tiles(
    const skv_cached (*left)[LINES][kTileColumns], uint32_t line,
    const skv_cached (*right)[N][kTileColumns], float (*x)[4]) {
#pragma unroll
  for (int k = 0; k < DIM / 16; k++) {
    const uint32_t part = 16 * k / kTileColumns;
    const uint32_t column = 16 * k % kTileColumns;
    const uint64_t own = lines_at(&left[part][line][column]);
    const uint64_t other = lines_at(&right[part][0][column]);
    if (k == 0) {
      group_product_new<N>(x, own, other);
    } else {
      group_product_cached<N>(x, own, other);
    }
  }
}

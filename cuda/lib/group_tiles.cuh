// Products of tiles of keys or values by groups of warps.
#pragma once

#include "gather_tile.cuh"

// Widths of heads whose tiles are whole lines of 128 bytes.
template <int DIM>
constexpr bool kHasGroupTiles = DIM == 64 || DIM == 128;

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

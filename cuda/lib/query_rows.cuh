// Rows of queries as left operands of products with what caches hold, in shared
// memory.
#pragma once

#include "cached.cuh"
#include "reduce.cuh"

// Where element (row, column) of a tile of 16 rows is among the elements of the
// `a` operands, 32 lanes of a uint4 for each 16 columns.
__device__ inline uint32_t fragment_index(uint32_t row, uint32_t column) {
  const uint32_t step = column >> 4;
  const uint32_t right = (column >> 3) & 1;
  const uint32_t lane = (row & 7) * 4 + ((column & 7) >> 1);
  const uint32_t word = (row >> 3) + 2 * right;
  return ((step * 32 + lane) * 4 + word) * 2 + (column & 1);
}

// Elements that a lane has of a row of WIDTH floats.
template <int WIDTH>
struct QueryRow {
  float x[WIDTH / 32];

  // A null pointer stands for zeros.
  __device__ void load(const float *values, uint32_t width) {
#pragma unroll
    for (int i = 0; i < WIDTH / 32; i++) {
      const uint32_t column = lane_id() + 32 * i;
      x[i] = values != nullptr && column < width ? values[column] : 0.0f;
    }
  }

  // Splits the row into `a` operands; called by a whole warp. Returns what
  // products must be multiplied by.
  __device__ float split(uint32_t row, uint4 *high, uint4 *low) const {
    float largest = 0.0f;
#pragma unroll
    for (int i = 0; i < WIDTH / 32; i++) largest = fmaxf(largest, fabsf(x[i]));
    const Scale scale = scale_for(warp_max(largest));
#pragma unroll
    for (int i = 0; i < WIDTH / 32; i++) {
      const uint32_t at = fragment_index(row, lane_id() + 32 * i);
      const float scaled = x[i] * scale.scale;
      const skv_cached rounded = to_cached(scaled);
      reinterpret_cast<skv_cached *>(high)[at] = rounded;
      reinterpret_cast<skv_cached *>(low)[at] =
          to_cached(scaled - to_float(rounded));
    }
    return scale.inverse;
  }
};

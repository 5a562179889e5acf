// Tensor core products of halves with f32 sums, and how 32-bit floats take part
// in them without losing precision.
//
// A float is split into two halves, x ≈ high + low, after its row was scaled by
// a power of two that takes the largest of the row to [2^14, 2^15). Elements
// down to 2^-17 of that are kept to 2^-22 of themselves, smaller ones to 2^-39
// of the largest: what 32-bit sums would lose anyway. Two products of halves
// are still four times as fast as one of tf32 pairs, and as exact.
#pragma once

#include "half.cuh"
#include "instructions.cuh"
#include "reduce.cuh"

// A power of two and its inverse.
struct Scale {
  float scale;
  float inverse;
};

// The scale that takes `largest` to [2^14, 2^15).
__device__ inline Scale scale_for(float largest) {
  const uint32_t exponent = (__float_as_uint(largest) >> 23) & 255;
  const uint32_t e = min(max(exponent, 15u), 254u);
  return {__uint_as_float((268 - e) << 23), __uint_as_float((e - 14) << 23)};
}

// Two halves that make up x.
struct Split {
  skv_half high;
  skv_half low;
};

__device__ inline Split split_float(float x) {
  const skv_half high = to_half(x);
  return {high, to_half(x - to_float(high))};
}

// The same for two numbers, packed.
struct SplitPair {
  uint32_t high;
  uint32_t low;
};

__device__ inline SplitPair split_pair(float x, float y) {
  const uint32_t high = to_halves(x, y);
  const float2 rounded = to_floats(high);
  return {high, to_halves(x - rounded.x, y - rounded.y)};
}

// Where element (row, column) of a tile of 16 rows is among the halves of the
// `a` operands, 32 lanes of a uint4 for each 16 columns.
//
// NATURAL: columns as they are, for `b` from load_matrices. Otherwise columns
// are dealt so that the `b` operands of 32 columns are 16 consecutive bytes of
// each lane: a dot product does not care about the order of its terms.
template <bool NATURAL>
__device__ inline uint32_t fragment_index(uint32_t row, uint32_t column) {
  uint32_t step, pair, half, right;
  if constexpr (NATURAL) {
    step = column >> 4;
    right = (column >> 3) & 1;
    pair = (column & 7) >> 1;
  } else {
    const uint32_t inner = column & 31;
    step = 2 * (column >> 5) + ((inner & 7) >> 2);
    right = (inner & 3) >> 1;
    pair = inner >> 3;
  }
  half = column & 1;
  const uint32_t lane = (row & 7) * 4 + pair;
  const uint32_t word = (row >> 3) + 2 * right;
  return ((step * 32 + lane) * 4 + word) * 2 + half;
}

// Elements that a lane has of a row of WIDTH floats.
template <int WIDTH>
struct RowPart {
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
  template <bool NATURAL>
  __device__ float split(uint32_t row, uint4 *high, uint4 *low) const {
    float largest = 0.0f;
#pragma unroll
    for (int i = 0; i < WIDTH / 32; i++) largest = fmaxf(largest, fabsf(x[i]));
    const Scale scale = scale_for(warp_max(largest));
#pragma unroll
    for (int i = 0; i < WIDTH / 32; i++) {
      const uint32_t at = fragment_index<NATURAL>(row, lane_id() + 32 * i);
      const Split parts = split_float(x[i] * scale.scale);
      reinterpret_cast<skv_half *>(high)[at] = parts.high;
      reinterpret_cast<skv_half *>(low)[at] = parts.low;
    }
    return scale.inverse;
  }
};

// Splits one row of `width` floats, or of zeros where `values` is null, into
// `a` operands; called by a whole warp. Returns what products must be
// multiplied by.
template <int WIDTH, bool NATURAL>
__device__ inline float split_row(const float *values, uint32_t width,
                                  uint32_t row, uint4 *high, uint4 *low) {
  RowPart<WIDTH> part;
  part.load(values, width);
  return part.template split<NATURAL>(row, high, low);
}

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

// Two halves that make up each of two numbers, packed.
struct SplitPair {
  uint32_t high;
  uint32_t low;
};

__device__ inline SplitPair split_pair(float x, float y) {
  const uint32_t high = to_halves(x, y);
  const float2 rounded = to_floats(high);
  return {high, to_halves(x - rounded.x, y - rounded.y)};
}

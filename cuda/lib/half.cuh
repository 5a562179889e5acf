// Halves: 16-byte loads of eight of them, and conversions.
#pragma once

#include <cuda_fp16.h>
#include <stdint.h>

#include "../steadykv.h"
#include "instructions.cuh"

// The smallest number that rounding to a half takes to infinity.
constexpr float kHalfOverflow = 65520.0f;

__device__ inline float2 to_floats(uint32_t halves) {
  return __half22float2(*reinterpret_cast<const __half2 *>(&halves));
}

__device__ inline float to_float(skv_half bits) {
  return __half2float(__ushort_as_half(bits));
}

__device__ inline skv_half to_half(float x) {
  return __half_as_ushort(__float2half_rn(x));
}

__device__ inline uint32_t to_halves(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t *>(&pair);
}

// COUNT 16-bit elements of a row of `width` from `first`, in pairs; zeros
// beyond its end. Rows whose width is a multiple of 8 are read 8 or 16 bytes at
// a time.
template <int COUNT, bool ALIGNED, class T>
__device__ inline void load_pairs(uint32_t (&out)[COUNT / 2], const T *row,
                                  uint32_t first, uint32_t width) {
  static_assert(sizeof(T) == 2, "16-bit elements");
  static_assert(COUNT == 4 || COUNT == 8, "one load per lane");
  if constexpr (ALIGNED) {
    if (first >= width) {
#pragma unroll
      for (int i = 0; i < COUNT / 2; i++) out[i] = 0;
    } else if constexpr (COUNT == 8) {
      const uint4 v = *reinterpret_cast<const uint4 *>(row + first);
      out[0] = v.x, out[1] = v.y, out[2] = v.z, out[3] = v.w;
    } else {
      const uint2 v = *reinterpret_cast<const uint2 *>(row + first);
      out[0] = v.x, out[1] = v.y;
    }
  } else {
    // The width is even, so pairs are whole and aligned.
#pragma unroll
    for (int i = 0; i < COUNT / 2; i++) {
      const uint32_t at = first + 2 * i;
      out[i] = at < width ? *reinterpret_cast<const uint32_t *>(row + at) : 0;
    }
  }
}

// Halves: conversions that round to nearest, ties to even.
#pragma once

#include <stdint.h>

#include "cuda_runtime.h"

struct __half {
  uint16_t bits;
};
struct __half2 {
  __half x, y;
} __align__(4);

inline __half __ushort_as_half(uint16_t bits) { return {bits}; }
inline uint16_t __half_as_ushort(__half x) { return x.bits; }

inline float __half2float(__half x) {
  const uint32_t sign = (x.bits & 0x8000u) << 16;
  const uint32_t exponent = x.bits >> 10 & 31, fraction = x.bits & 1023;
  if (exponent == 31) {
    return __uint_as_float(sign | 0x7f800000u | fraction << 13);
  }
  if (exponent == 0) {
    const float tiny = static_cast<float>(fraction) * 0x1p-24f;
    return sign != 0 ? -tiny : tiny;
  }
  return __uint_as_float(sign | (exponent + 112) << 23 | fraction << 13);
}

inline __half __float2half_rn(float x) {
  const uint32_t bits = __float_as_uint(x);
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {0x7fff};
  // From 65520 on, rounding gives infinity.
  if (magnitude >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};
  if (magnitude < 0x38800000u) {
    // Below 2^-14 halves are multiples of 2^-24; so are the floats from 0.5 on
    // when 0.5 in these units is added.
    const float shifted = __uint_as_float(magnitude) + 0.5f;
    return {static_cast<uint16_t>(sign | (__float_as_uint(shifted) & 0x7ffu))};
  }
  const uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1);
  return {static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13))};
}

inline float2 __half22float2(__half2 x) {
  return {__half2float(x.x), __half2float(x.y)};
}

inline __half2 __floats2half2_rn(float x, float y) {
  return {__float2half_rn(x), __float2half_rn(y)};
}

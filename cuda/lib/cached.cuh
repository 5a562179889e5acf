// What caches hold: keys and values in 16 bits, as halves, or as bfloat16 where
// SKV_CACHE_BFLOAT16 is defined. No kernel knows which: this file and
// mma_cached() in instructions.cuh do.
//
// bfloat16 has the range of a 32-bit float and 8 bits of precision in place of
// 11, so storing has an error of 2^-8 in place of 2^-11. A float that is split
// in two of them keeps 2^-17 of itself, two halves keep 2^-22 (lib/mma.cuh).
// The alternative that lost: three parts, which are exact, but do not fit into
// the tiles of decode steps and are finer than what is stored.
#pragma once

#include "half.cuh"
#include "instructions.cuh"
#include "mma.cuh"

#ifdef SKV_CACHE_BFLOAT16

#include <cuda_bf16.h>

constexpr bool kCachesHalves = false;

__device__ inline float2 cached_floats(uint32_t pair) {
  return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162 *>(&pair));
}

__device__ inline float to_float(skv_cached x) {
  return __bfloat162float(__ushort_as_bfloat16(x.bits));
}

__device__ inline skv_cached to_cached(float x) {
  return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
}

__device__ inline uint32_t cached_pair(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t *>(&pair);
}

#else

constexpr bool kCachesHalves = true;

__device__ inline float2 cached_floats(uint32_t pair) {
  return to_floats(pair);
}

__device__ inline float to_float(skv_cached x) { return to_float(x.bits); }

__device__ inline skv_cached to_cached(float x) { return {to_half(x)}; }

__device__ inline uint32_t cached_pair(float low, float high) {
  return to_halves(low, high);
}

#endif

// The smallest number that rounding to what caches hold takes to infinity.
constexpr float kCacheOverflow = kCachesHalves ? kHalfOverflow : 0x1.ffp127f;

// Two numbers, each in two parts that can be multiplied with what caches hold.
__device__ inline SplitPair split_cached(float x, float y) {
  const uint32_t high = cached_pair(x, y);
  const float2 rounded = cached_floats(high);
  return {high, cached_pair(x - rounded.x, y - rounded.y)};
}

// The same, with the two parts of a number next to each other: the high part is
// the first of the pair.
struct PartPairs {
  uint32_t x;
  uint32_t y;
};

__device__ inline PartPairs parts_of(float x, float y) {
  const float2 rounded = cached_floats(cached_pair(x, y));
  return {cached_pair(x, x - rounded.x), cached_pair(y, y - rounded.y)};
}

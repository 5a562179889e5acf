// A key or a value that four lanes share: each has 8 of every 32 elements, so
// that loads are as wide as they can be. In this order elements are right
// operands of tensor core products whose left ones are dealt alike, which a dot
// product does not notice.
#pragma once

#include "cached.cuh"
#include "reduce.cuh"

// This lane's first element of 32.
__device__ inline uint32_t shared_column() { return lane_id() % 4 * 8; }

// The square of eight elements, and of their differences from eight others.
__device__ inline float square_of(const uint32_t (&words)[4]) {
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const float2 x = cached_floats(words[i]);
    sum += x.x * x.x + x.y * x.y;
  }
  return sum;
}

__device__ inline float square_of(const uint32_t (&words)[4],
                                  const uint32_t (&others)[4]) {
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const float2 x = cached_floats(words[i]), y = cached_floats(others[i]);
    sum += (x.x - y.x) * (x.x - y.x) + (x.y - y.y) * (x.y - y.y);
  }
  return sum;
}

// Sum of what four lanes have of each 32 elements of a vector.
template <int COUNT>
__device__ inline float sum_shared(float (&sums)[COUNT]) {
#pragma unroll
  for (int step = 1; step < COUNT; step *= 2) {
#pragma unroll
    for (int c = 0; c < COUNT; c += 2 * step) sums[c] += sums[c + step];
  }
  const float sum = sums[0] + __shfl_xor_sync(kAllLanes, sums[0], 1);
  return sum + __shfl_xor_sync(kAllLanes, sum, 2);
}

// The same where CHUNKS lanes have eight elements each. The order is the same
// as well, so that the distance of two slots does not depend on which of them
// is a row: see lib/partner_tile.cuh.
template <int CHUNKS>
__device__ inline float sum_of_lanes(float x) {
#pragma unroll
  for (int bit = 4; bit < CHUNKS; bit *= 2) {
    x += __shfl_xor_sync(kAllLanes, x, bit);
  }
  x += __shfl_xor_sync(kAllLanes, x, 1);
  return x + __shfl_xor_sync(kAllLanes, x, 2);
}

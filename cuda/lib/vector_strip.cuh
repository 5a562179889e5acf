// A key or a value over four lanes: 8 of every 32 elements each, so that loads
// are as wide as they can be. In this order elements are right operands of
// tensor core products whose left ones are dealt alike, which a dot product
// does not notice.
#pragma once

#include "cached.cuh"
#include "reduce.cuh"

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

// Sum of what the lanes that share a row of CHUNKS chunks of eight elements
// have of it, in the order in which VectorStrip adds.
template <int CHUNKS>
__device__ inline float sum_of_chunks(float x) {
#pragma unroll
  for (int bit = 4; bit < CHUNKS; bit *= 2) {
    x += __shfl_xor_sync(kAllLanes, x, bit);
  }
  x += __shfl_xor_sync(kAllLanes, x, 1);
  return x + __shfl_xor_sync(kAllLanes, x, 2);
}

template <int DIM>
struct VectorStrip {
  static constexpr int kChunks = DIM / 32;
  uint32_t words[kChunks][4];

  // Zeros where there is no vector.
  template <bool ALIGNED>
  __device__ void load(const skv_cached *vector, uint32_t head_dim) {
#pragma unroll
    for (int c = 0; c < kChunks; c++) {
      const uint32_t first =
          vector == nullptr ? head_dim : 32 * c + lane_id() % 4 * 8;
      load_pairs<8, ALIGNED>(words[c], vector, first, head_dim);
    }
  }

  // The same in all four lanes.
  __device__ float square() const {
    float sums[kChunks];
#pragma unroll
    for (int c = 0; c < kChunks; c++) sums[c] = square_of(words[c]);
    return sum(sums);
  }
  __device__ float distance(const VectorStrip &other) const {
    float sums[kChunks];
#pragma unroll
    for (int c = 0; c < kChunks; c++) {
      sums[c] = square_of(words[c], other.words[c]);
    }
    return sum(sums);
  }

 private:
  __device__ static float sum(float (&sums)[kChunks]) {
#pragma unroll
    for (int step = 1; step < kChunks; step *= 2) {
#pragma unroll
      for (int c = 0; c < kChunks; c += 2 * step) sums[c] += sums[c + step];
    }
    return sum_of_chunks<4>(sums[0]);
  }
};

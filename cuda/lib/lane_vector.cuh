// A vector of a slot over the lanes of a warp.
#pragma once

#include "slots.cuh"

// The dimensions that this lane holds, zeros beyond the end.
struct LaneVector {
  float x[kLaneDims];

  __device__ LaneVector(const skv_cached *vector, uint32_t head_dim) {
#pragma unroll
    for (int i = 0; i < kLaneDims; i++) {
      const uint32_t d = lane_id() + 32 * i;
      x[i] = d < head_dim ? to_float(vector[d]) : 0.0f;
    }
  }
  // The following are the same in every lane.
  __device__ float dot(const LaneVector &other) const {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kLaneDims; i++) sum += x[i] * other.x[i];
    return warp_sum(sum);
  }
  // Squared distance.
  __device__ float distance(const LaneVector &other) const {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kLaneDims; i++) {
      sum += (x[i] - other.x[i]) * (x[i] - other.x[i]);
    }
    return warp_sum(sum);
  }
  // 1 / |x|, or 0 for a zero vector.
  __device__ float inverse_norm() const {
    const float square = dot(*this);
    return square == 0.0f ? 0.0f : rsqrtf(square);
  }
};

// A weighted sum of vectors over the lanes of a warp.
struct LaneSum {
  float x[kLaneDims] = {};

  __device__ void add(float weight, const LaneVector &vector) {
#pragma unroll
    for (int i = 0; i < kLaneDims; i++) x[i] += weight * vector.x[i];
  }
  // Stores the sum times `scale`.
  __device__ void store(skv_cached *to, float scale, uint32_t head_dim) const {
#pragma unroll
    for (int i = 0; i < kLaneDims; i++) {
      const uint32_t d = lane_id() + 32 * i;
      if (d < head_dim) to[d] = to_cached(x[i] * scale);
    }
  }
};

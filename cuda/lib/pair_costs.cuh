// What merging two slots costs: the twin of src/reference/pairs.ts.
#pragma once

#include "scores.cuh"

// Where two slots are the same, their cost still has a logarithm.
constexpr float kLeastDistance = 1e-30f;

// How far slots are apart, and what that costs.
struct PairCosts {
  // What squared distances of keys and of values count.
  float keys;
  float values;
  bool is_product;

  __device__ PairCosts(const skv_policy &policy, float spread)
      : keys(policy.key_weight),
        values(spread > 0.0f ? policy.value_weight / spread : 0.0f),
        is_product(policy.product_distance != 0) {}

  // The distance of slots whose keys and values have these squared distances.
  __device__ float distance(float key_square, float value_square) const {
    const float k = keys * key_square, v = values * value_square;
    return is_product ? k * (1.0f + v) : k + v;
  }
  // ln of the cost of merging slots whose weights have these logarithms.
  __device__ static float cost(float a, float b, float distance) {
    // a + b - ln(exp(a) + exp(b)), without what cancels out.
    return fminf(a, b) - log1pf(expf(-fabsf(a - b))) +
           logf(fmaxf(distance, kLeastDistance));
  }
};

// ln of the weight that a slot has in a merge.
__device__ inline float log_weight(const Slot &slot, const skv_policy &policy,
                                   uint32_t lanes) {
  return pooled_bias(slot, lanes) + log_score(slot, policy);
}

// What merging two slots costs: the twin of src/reference/pairs.ts.
#pragma once

#include "lane_vector.cuh"
#include "scores.cuh"
#include "select_smallest.cuh"

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

constexpr uint32_t kSpreadWarps = 16;

// Sums over the warps of a block, by dimension.
struct SpreadScratch {
  float sums[kSpreadWarps][kMaxHeadDim];
};

// Mean squared distance of the values of `slot_of(0)` to `slot_of(count - 1)`
// from their mean, free slots left out. Two passes over the values, a warp a
// value: a sum of squares would lose what scatters little about a mean far from
// 0. Called by a whole block of kSpreadWarps.
template <class SlotOf>
__device__ inline float value_spread(uint32_t count, uint32_t head_dim,
                                     SpreadScratch &scratch,
                                     SelectScratch &select, SlotOf slot_of) {
  LaneSum own;
  uint32_t mine = 0, held;
  for (uint32_t i = warp_id(); i < count; i += kSpreadWarps) {
    const Slot slot = slot_of(i);
    if (slot.word(kSlotTokens) == 0) continue;
    own.add(1.0f, LaneVector(slot.value, head_dim));
    mine += lane_id() == 0 ? 1 : 0;
  }
#pragma unroll
  for (int d = 0; d < kLaneDims; d++) {
    scratch.sums[warp_id()][lane_id() + 32 * d] = own.x[d];
  }
  block_prefix(mine, held, select.block);
  // Every warp adds the sums up, in the same order.
  LaneSum mean;
#pragma unroll
  for (int d = 0; d < kLaneDims; d++) {
    for (uint32_t w = 0; w < kSpreadWarps; w++) {
      mean.x[d] += scratch.sums[w][lane_id() + 32 * d];
    }
    mean.x[d] /= static_cast<float>(max(1u, held));
  }
  float squares = 0.0f;
  for (uint32_t i = warp_id(); i < count; i += kSpreadWarps) {
    const Slot slot = slot_of(i);
    if (slot.word(kSlotTokens) == 0) continue;
    const LaneVector value(slot.value, head_dim);
#pragma unroll
    for (int d = 0; d < kLaneDims; d++) {
      const float rest = value.x[d] - mean.x[d];
      squares += rest * rest;
    }
  }
  return block_sum(squares, select) / static_cast<float>(max(1u, held));
}

// How far each key points away from the mean direction of the head's keys, the
// score of KeyDiff: −cos(k, Σ k / |k|).
//
// One block per head reads its keys twice, a warp a key. A running mean would
// read them once, but slots come and go.
#pragma once

#include "lane_vector.cuh"

// For blocks of WARPS warps.
template <uint32_t WARPS>
struct KeyScratch {
  float sums[WARPS][kMaxHeadDim];
};

// Rates the slots `slot(0)` to `slot(count - 1)`, free ones left out. Called by
// a whole block, which sees all ratings afterwards.
template <uint32_t WARPS, class SlotOf>
__device__ inline void rate_by_key(uint32_t count, uint32_t head_dim,
                                   float *ratings, KeyScratch<WARPS> &scratch,
                                   SlotOf slot_of) {
  float sum[kLaneDims] = {};
  for (uint32_t i = warp_id(); i < count; i += WARPS) {
    const Slot slot = slot_of(i);
    if (slot.word(kSlotTokens) == 0) continue;
    const LaneVector key(slot.key, head_dim);
    const float inverse = key.inverse_norm();
#pragma unroll
    for (int d = 0; d < kLaneDims; d++) sum[d] += key.x[d] * inverse;
  }
#pragma unroll
  for (int d = 0; d < kLaneDims; d++) {
    scratch.sums[warp_id()][lane_id() + 32 * d] = sum[d];
  }
  __syncthreads();
  // Every warp adds the sums up, in the same order.
  float mean[kLaneDims] = {}, square = 0.0f;
#pragma unroll
  for (int d = 0; d < kLaneDims; d++) {
    for (uint32_t w = 0; w < WARPS; w++) {
      mean[d] += scratch.sums[w][lane_id() + 32 * d];
    }
    square += mean[d] * mean[d];
  }
  square = warp_sum(square);
  const float scale = square == 0.0f ? 0.0f : rsqrtf(square);
  for (uint32_t i = warp_id(); i < count; i += WARPS) {
    const Slot slot = slot_of(i);
    if (slot.word(kSlotTokens) == 0) continue;
    const LaneVector key(slot.key, head_dim);
    float product = 0.0f;
#pragma unroll
    for (int d = 0; d < kLaneDims; d++) product += mean[d] * key.x[d];
    product = warp_sum(product);
    const float inverse = key.inverse_norm();
    if (lane_id() == 0) ratings[i] = -product * scale * inverse;
  }
  __syncthreads();
}

// How far each key points away from the mean direction of the head's keys, the
// score of KeyDiff: −cos(k, Σ k / |k|).
//
// One block per head reads its keys twice, a warp a key. A running mean would
// read them once, but slots come and go.
#pragma once

#include "merge_slots.cuh"

// Widest head that kernels take.
constexpr uint32_t kMaxHeadDim = 32 * kLaneDims;

// Warps of a block that rates keys.
constexpr uint32_t kKeyWarps = 16;

struct KeyScratch {
  float sums[kKeyWarps][kMaxHeadDim];
};

// The dimensions of a key that this lane holds, zeros beyond its end.
struct LaneKey {
  float x[kLaneDims];

  __device__ LaneKey(const Slot &slot, uint32_t head_dim) {
#pragma unroll
    for (int i = 0; i < kLaneDims; i++) {
      const uint32_t d = lane_id() + 32 * i;
      x[i] = d < head_dim ? to_float(slot.key[d]) : 0.0f;
    }
  }
  // 1 / |key|, or 0 for a zero key, in every lane.
  __device__ float inverse_norm() const {
    float square = 0.0f;
#pragma unroll
    for (int i = 0; i < kLaneDims; i++) square += x[i] * x[i];
    square = warp_sum(square);
    return square == 0.0f ? 0.0f : rsqrtf(square);
  }
};

// Rates the slots `slot(0)` to `slot(count - 1)`, free ones left out. Called by
// a whole block of kKeyWarps, which sees all ratings afterwards.
template <class SlotOf>
__device__ inline void rate_by_key(uint32_t count, uint32_t head_dim,
                                   float *ratings, KeyScratch &scratch,
                                   SlotOf slot_of) {
  float sum[kLaneDims] = {};
  for (uint32_t i = warp_id(); i < count; i += kKeyWarps) {
    const Slot slot = slot_of(i);
    if (slot.word(kSlotTokens) == 0) continue;
    const LaneKey key(slot, head_dim);
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
    for (uint32_t w = 0; w < kKeyWarps; w++) {
      mean[d] += scratch.sums[w][lane_id() + 32 * d];
    }
    square += mean[d] * mean[d];
  }
  square = warp_sum(square);
  const float scale = square == 0.0f ? 0.0f : rsqrtf(square);
  for (uint32_t i = warp_id(); i < count; i += kKeyWarps) {
    const Slot slot = slot_of(i);
    if (slot.word(kSlotTokens) == 0) continue;
    const LaneKey key(slot, head_dim);
    float product = 0.0f;
#pragma unroll
    for (int d = 0; d < kLaneDims; d++) product += mean[d] * key.x[d];
    product = warp_sum(product);
    const float inverse = key.inverse_norm();
    if (lane_id() == 0) ratings[i] = -product * scale * inverse;
  }
  __syncthreads();
}

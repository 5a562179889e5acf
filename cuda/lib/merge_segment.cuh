// Merging slots that follow each other in the text and have similar keys: the
// twin of src/reference/segments.ts, by one warp.
#pragma once

#include "lane_vector.cuh"
#include "scores.cuh"

// Of `evictable` slots, `count` of which go, those that may be merged.
__device__ inline uint32_t light_slots(const skv_policy &policy,
                                       uint32_t evictable, uint32_t count) {
  const uint32_t fitting = evictable - min(evictable, count);
  return evictable -
         static_cast<uint32_t>(policy.heavy * static_cast<float>(fitting));
}

// Merges `count` members into the first of them, their pivot. The caller frees
// the others. `member(i)` returns a Slot. Called by a whole warp.
template <class Member>
__device__ inline void merge_segment(uint32_t count, Member member,
                                     uint32_t head_dim,
                                     const skv_policy &policy) {
  const Slot pivot = member(0);
  const LaneVector pivot_key(pivot.key, head_dim);
  const auto square_of = [&](const Slot &slot) {
    return pivot_key.distance(LaneVector(slot.key, head_dim));
  };
  float distances = 0.0f;
  for (uint32_t m = 1; m < count; m++) distances += sqrtf(square_of(member(m)));
  const float mean = distances / static_cast<float>(count);

  // The pivot's own weight is 1.
  LaneSum keys, values;
  keys.add(1.0f, pivot_key);
  values.add(1.0f, LaneVector(pivot.value, head_dim));
  float total = 1.0f;
  float norm = pivot.get(kSlotValueNorm);
  float score = log_score(pivot, policy);
  float accumulated = pivot.get(kSlotAccumulated);
  uint32_t observations = pivot.word(kSlotObservations);
  uint32_t tokens = pivot.word(kSlotTokens);
  for (uint32_t m = 1; m < count; m++) {
    const Slot slot = member(m);
    const float square = square_of(slot);
    const float weight = mean > 0.0f ? expf(-square / (mean * mean)) : 1.0f;
    keys.add(weight, LaneVector(slot.key, head_dim));
    values.add(weight, LaneVector(slot.value, head_dim));
    total += weight;
    norm += weight * slot.get(kSlotValueNorm);
    score = log_add(score, log_score(slot, policy));
    accumulated += slot.get(kSlotAccumulated);
    observations = max(observations, slot.word(kSlotObservations));
    tokens += slot.word(kSlotTokens);
  }
  keys.store(pivot.key, 1.0f / total, head_dim);
  values.store(pivot.value, 1.0f / total, head_dim);
  // All lanes have read the fields before one of them changes those.
  __syncwarp();
  if (lane_id() == 0) {
    if (observations > 0) {
      pivot.set(kSlotEma, score + ema_correction(policy, observations));
    }
    pivot.set(kSlotAccumulated, accumulated);
    pivot.set_word(kSlotObservations, observations);
    pivot.set(kSlotValueNorm, norm / total);
    pivot.set_word(kSlotTokens, tokens);
  }
  __syncwarp();
}

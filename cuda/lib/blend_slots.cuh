// Merging slots by the cosines of their keys, under a moving threshold: the
// twin of src/reference/blend_slots.ts, by one warp.
#pragma once

#include "lane_vector.cuh"

// The threshold after slots went whose mean cosine is `mean`.
__device__ inline float next_threshold(const skv_policy &policy, float past,
                                       float mean) {
  const float keep = policy.threshold_keep;
  return past == 0.0f ? mean : keep * past + (1.0f - keep) * mean;
}

// Merges `count` members into the first of them, which keeps its position, its
// score and its bias. The caller frees the others. `member(i)` returns a Slot.
// Called by a whole warp.
template <class Member>
__device__ inline void blend_slots(uint32_t count, Member member,
                                   uint32_t head_dim) {
  const Slot kept = member(0);
  const LaneVector pivot(kept.key, head_dim);
  const float inverse = pivot.inverse_norm();
  float total = expf(1.0f);
  float norm = total * kept.get(kSlotValueNorm);
  uint32_t tokens = kept.word(kSlotTokens);
  LaneSum keys, values;
  keys.add(total, pivot);
  values.add(total, LaneVector(kept.value, head_dim));
  for (uint32_t m = 1; m < count; m++) {
    const Slot slot = member(m);
    const LaneVector key(slot.key, head_dim);
    const float cosine = pivot.dot(key) * (inverse * key.inverse_norm());
    const float weight = expf(cosine);
    keys.add(weight, key);
    values.add(weight, LaneVector(slot.value, head_dim));
    total += weight;
    norm += weight * slot.get(kSlotValueNorm);
    tokens += slot.word(kSlotTokens);
  }
  keys.store(kept.key, 1.0f / total, head_dim);
  values.store(kept.value, 1.0f / total, head_dim);
  // All lanes have read the fields before one of them changes those.
  __syncwarp();
  if (lane_id() == 0) {
    kept.set(kSlotValueNorm, norm / total);
    kept.set_word(kSlotTokens, tokens);
  }
  __syncwarp();
}

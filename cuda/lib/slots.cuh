// Slots, their side fields and the head table: see SlotField and HeadWord in
// src/backends/backend.ts.
//
// All reads are ordinary loads: kernels that merge change slots while other
// warps of the block read them later on.
#pragma once

#include <stdint.h>

#include "cached.cuh"
#include "reduce.cuh"

enum HeadWord {
  kHeadOffset = 0,
  kHeadCapacity = 1,
  kHeadBudget = 2,
  kHeadRecent = 3,
  kHeadLive = 4,
  kHeadNext = 5,
  kHeadHigh = 6,
  kHeadMerged = 7,
  kHeadDropped = 8,
  kHeadDroppedTokens = 9,
  kHeadGuarded = 10,
  kHeadDivergence = 11,
  kHeadThreshold = 12,
  kHeadSpread = 13,
  kHeadWords = 16
};

enum SlotField {
  kSlotEma = 0,
  kSlotAccumulated = 1,
  kSlotObservations = 2,
  kSlotPosition = 3,
  kSlotTokens = 4,
  kSlotValueNorm = 5,
  kSlotBias = 6
};

// Fields after the vote biases: see PartnerField in src/backends/backend.ts.
enum PartnerField { kPartnerSlot = 0, kPartnerDistance = 1 };

constexpr float kFreeBias = -1e30f;
constexpr float kLogZero = -1e30f;

// Biases below this are those of free slots: ln votes are nowhere near.
constexpr float kLiveBias = -1e29f;

// Most query heads that share a KV head, and thus vote lanes.
constexpr uint32_t kMaxGroup = 16;

// Dimensions of a head that one lane holds, and the widest head.
constexpr int kLaneDims = 8;
constexpr uint32_t kMaxHeadDim = 32 * kLaneDims;

// Words of a (sequence, KV head) of the layer.
__device__ inline uint32_t *head_words(const skv_cache &cache,
                                       const skv_sizes &sizes,
                                       uint32_t sequence, uint32_t kv_head) {
  const uint32_t head =
      (cache.layer * cache.sequences + sequence) * sizes.kv_heads + kv_head;
  return cache.table + static_cast<size_t>(head) * kHeadWords;
}

// One slot of the cache or of the stage.
struct Slot {
  skv_cached *key;
  skv_cached *value;
  float *side;
  uint32_t total;

  __device__ float get(uint32_t field) const {
    return side[static_cast<size_t>(field) * total];
  }
  __device__ void set(uint32_t field, float x) const {
    side[static_cast<size_t>(field) * total] = x;
  }
  __device__ uint32_t word(uint32_t field) const {
    return __float_as_uint(get(field));
  }
  __device__ void set_word(uint32_t field, uint32_t x) const {
    set(field, __uint_as_float(x));
  }
};

// Slot `index`, counted from the first of all heads.
__device__ inline Slot slot_at(const skv_slots &slots, uint32_t index,
                               uint32_t head_dim) {
  const size_t at = static_cast<size_t>(index) * head_dim;
  return {slots.keys + at, slots.values + at, slots.side + index, slots.total};
}

// Makes a slot hold one token that nobody observed.
__device__ inline void initialise_slot(const Slot &slot, uint32_t position,
                                       uint32_t lanes) {
  slot.set(kSlotEma, kLogZero);
  slot.set(kSlotAccumulated, 0.0f);
  slot.set_word(kSlotObservations, 0);
  slot.set_word(kSlotPosition, position);
  slot.set_word(kSlotTokens, 1);
  slot.set(kSlotValueNorm, 0.0f);
  for (uint32_t lane = 0; lane < lanes; lane++) {
    slot.set(kSlotBias + lane, 0.0f);
  }
}

// One more than the index in its head of the partner that a slot remembers, or
// 0 for none.
__device__ inline uint32_t partner_word(const Slot &slot, uint32_t lanes) {
  return slot.word(kSlotBias + lanes + kPartnerSlot);
}

// How far away that is.
__device__ inline float partner_distance(const Slot &slot, uint32_t lanes) {
  return slot.get(kSlotBias + lanes + kPartnerDistance);
}

// Makes a slot remember a partner.
__device__ inline void set_partner(const Slot &slot, uint32_t lanes,
                                   uint32_t word, float distance) {
  slot.set_word(kSlotBias + lanes + kPartnerSlot, word);
  slot.set(kSlotBias + lanes + kPartnerDistance, distance);
}

__device__ inline void forget_partner(const Slot &slot, uint32_t lanes) {
  set_partner(slot, lanes, 0, 0.0f);
}

// Frees a slot.
__device__ inline void free_slot(const Slot &slot, uint32_t lanes) {
  slot.set_word(kSlotTokens, 0);
  for (uint32_t lane = 0; lane < lanes; lane++) {
    slot.set(kSlotBias + lane, kFreeBias);
  }
}

// Adding the value of a slot that goes to those of the slots after it: the twin
// of src/reference/next_values.ts.
#pragma once

#include "select_smallest.cuh"
#include "slots.cuh"

// Most positions after a slot that take its value in.
constexpr uint32_t kMaxFollowers = 256;

// Slots by their distance from the one that goes.
struct Followers {
  uint32_t at[kMaxFollowers];
  uint32_t nearest;
  uint32_t count;
};

// A slot that goes, and where it is.
struct PassedOn {
  Slot slot;
  uint32_t layer;
  uint32_t kv_head;
  uint32_t head_dim;
};

// A number in [0, 1) that depends on the seed and the place alone.
__device__ inline float draw_uniform(uint32_t seed, uint32_t layer,
                                     uint32_t kv_head, uint32_t position) {
  const uint32_t words[3] = {layer, kv_head, position};
  uint32_t hash = seed;
#pragma unroll
  for (int i = 0; i < 3; i++) {
    hash ^= words[i];
    hash = (hash ^ (hash >> 16)) * 0x7feb352du;
    hash = (hash ^ (hash >> 15)) * 0x846ca68bu;
    hash = (hash ^ (hash >> 16)) + 0x9e3779b9u;
  }
  return static_cast<float>(hash >> 8) / 16777216.0f;
}

// Passes the value of a slot on to those of `count` others in the positions
// after it; returns whether anything was. `position_of(i)` is 0 for slots that
// are not there, `slot_of(i)` the slot. The caller frees the slot that goes.
// Called by the whole block, of at least kMaxFollowers threads.
template <class PositionOf, class SlotOf>
__device__ inline bool pass_on(const skv_policy &policy, const PassedOn &gone,
                               uint32_t count, Followers &followers,
                               SelectScratch &scratch, PositionOf position_of,
                               SlotOf slot_of) {
  const uint32_t next_count = policy.next_count;
  const uint32_t position = gone.slot.word(kSlotPosition);
  __syncthreads();
  if (threadIdx.x < kMaxFollowers) followers.at[threadIdx.x] = ~0u;
  if (threadIdx.x == 0) followers.nearest = ~0u, followers.count = 0;
  __syncthreads();
  for (uint32_t i = threadIdx.x; i < count; i += blockDim.x) {
    // Nothing lies before position 0: it stands for no slot.
    const uint32_t distance = position_of(i) - position - 1;
    if (distance < next_count) followers.at[distance] = i;
  }
  __syncthreads();
  const bool follows =
      threadIdx.x < next_count && followers.at[threadIdx.x] != ~0u;
  float attention = 0.0f;
  if (follows) {
    attention = slot_of(followers.at[threadIdx.x]).get(kSlotAccumulated);
    atomicMin(&followers.nearest, threadIdx.x);
    atomicAdd(&followers.count, 1u);
  }
  const float sum = block_sum(attention, scratch);
  if (followers.count == 0) return false;
  const float mean = sum / static_cast<float>(followers.count);
  const float own = gone.slot.get(kSlotAccumulated);
  const float chance = own < mean ? own / mean : 1.0f;
  const float draw =
      draw_uniform(policy.draw_seed, gone.layer, gone.kv_head, position);
  const float mask = policy.expected_values ? chance
                     : draw < chance        ? 1.0f
                                            : 0.0f;
  if (mask == 0.0f) return false;
  const float share = mask / static_cast<float>(next_count);
  // A warp has a slot that takes the value in.
  for (uint32_t f = warp_id(); f < next_count; f += blockDim.x / 32) {
    if (followers.at[f] == ~0u) continue;
    const Slot slot = slot_of(followers.at[f]);
    for (uint32_t d = lane_id(); d < gone.head_dim; d += 32) {
      const float both =
          to_float(slot.value[d]) + share * to_float(gone.slot.value[d]);
      slot.value[d] = to_cached(both);
    }
    if (lane_id() != 0) continue;
    slot.set(kSlotValueNorm,
             slot.get(kSlotValueNorm) + share * gone.slot.get(kSlotValueNorm));
    if (f != followers.nearest) continue;
    slot.set_word(kSlotTokens,
                  slot.word(kSlotTokens) + gone.slot.word(kSlotTokens));
  }
  // Whoever frees the slot comes after.
  __syncthreads();
  return true;
}

// How much attention slots are expected to receive: see
// src/reference/expected_attention.ts.
//
// Blocks share the slots of a head. Each leaves the logits of its slots and a
// softmax state per query head; who needs the ratings adds the states up. Keys
// are read once, 16 bytes a lane, four lanes a key: one kernel per head that
// goes through the keys twice takes no memory for logits, but has one
// multiprocessor for all of them.
#pragma once

#include "scores.cuh"
#include "statistics.cuh"

constexpr uint32_t kExpectThreads = 256;
constexpr uint32_t kExpectWarps = kExpectThreads / 32;

// Slots of a block.
constexpr uint32_t kExpectSlots = 256;

__host__ __device__ inline uint32_t expect_parts(uint32_t slots) {
  return (slots + kExpectSlots - 1) / kExpectSlots;
}

// What blocks leave of a head.
struct Expectation {
  // (group, pitch): ln of the weights of slots before the softmax
  float *logits;
  // (parts, kMaxGroup): maximum and sum over the slots that are no sinks
  float2 *states;
  uint32_t pitch;
};

struct ExpectShared {
  // Of each element of a key `x`, `x (a + b x)` is its part of the logit.
  __align__(16) float2 terms[kMaxGroup][kMaxHeadDim];
  SoftmaxState states[kExpectWarps][kMaxGroup];
};

// A group of query heads whose queries are expected.
struct ExpectedGroup {
  QueryStatistics first;
  uint32_t size;
  uint32_t lanes;
  uint32_t sinks;

  __device__ QueryStatistics head(uint32_t g) const {
    const uint32_t width = first.head_dim;
    return {first.own + g * (3 * width + 1), width};
  }
};

__device__ inline ExpectedGroup expected_group(const skv_cache &cache,
                                               const skv_sizes &sizes,
                                               const skv_policy &policy,
                                               uint32_t sequence,
                                               uint32_t kv_head) {
  const uint32_t group = sizes.heads / sizes.kv_heads;
  return {statistics_of(cache, sizes, sequence, kv_head * group), group,
          cache.lanes, policy.sinks};
}

__device__ inline void load_terms(const ExpectedGroup &group,
                                  ExpectShared &shared) {
  const uint32_t width = group.first.head_dim, half = width / 2;
  const float root = rsqrtf(static_cast<float>(width));
  for (uint32_t i = threadIdx.x; i < group.size * width; i += kExpectThreads) {
    const uint32_t g = i / width, d = i % width;
    const QueryStatistics own = group.head(g);
    const float variance = own.variance()[d < half ? d : d - half];
    shared.terms[g][d] = {root * own.future()[d],
                          0.5f * root * root * variance};
  }
}

// Leaves what is expected of this block's slots among `count`; `slot_of(i)` is
// a slot, which may be free. Called by the whole block.
template <bool ALIGNED, class SlotOf>
__device__ inline void expect_slots(const ExpectedGroup &group, uint32_t count,
                                    const Expectation &out,
                                    ExpectShared &shared, SlotOf slot_of) {
  constexpr uint32_t kHeads = kMaxGroup / 4;
  const uint32_t width = group.first.head_dim;
  const uint32_t t = lane_id() % 4;
  const uint32_t begin = blockIdx.x * kExpectSlots;
  const uint32_t end = min(count, begin + kExpectSlots);
  load_terms(group, shared);
  __syncthreads();
  // Lane t has query heads t, t + 4 and so on.
  SoftmaxState states[kHeads];
#pragma unroll
  for (uint32_t j = 0; j < kHeads; j++) states[j] = init_softmax();
  for (uint32_t first = begin + 8 * warp_id(); first < end;
       first += 8 * kExpectWarps) {
    const uint32_t i = first + lane_id() / 4;
    const Slot slot = slot_of(min(i, end - 1));
    float sums[kMaxGroup] = {};
    for (uint32_t d = 8 * t; d < width; d += 32) {
      uint32_t words[4];
      load_pairs<8, ALIGNED>(words, slot.key, d, width);
#pragma unroll
      for (uint32_t j = 0; j < 4; j++) {
        const float2 x = cached_floats(words[j]);
        // Widths are even, and what is beyond them is 0.
        if (d + 2 * j >= width) continue;
#pragma unroll
        for (uint32_t g = 0; g < kMaxGroup; g++) {
          if (g >= group.size) continue;
          const float4 term =
              *reinterpret_cast<const float4 *>(&shared.terms[g][d + 2 * j]);
          sums[g] += x.x * (term.x + term.y * x.x);
          sums[g] += x.y * (term.z + term.w * x.y);
        }
      }
    }
    const bool exists = i < end && slot.word(kSlotTokens) != 0;
    const bool counts = exists && slot.word(kSlotPosition) >= group.sinks;
#pragma unroll
    for (uint32_t g = 0; g < kMaxGroup; g++) {
      if (g >= group.size) continue;
      sums[g] += __shfl_xor_sync(kAllLanes, sums[g], 1);
      sums[g] += __shfl_xor_sync(kAllLanes, sums[g], 2);
    }
#pragma unroll
    for (uint32_t j = 0; j < kHeads; j++) {
      const uint32_t g = 4 * j + t;
      if (!exists || g >= group.size) continue;
      const float sum = t == 0   ? sums[4 * j]
                        : t == 1 ? sums[4 * j + 1]
                        : t == 2 ? sums[4 * j + 2]
                                 : sums[4 * j + 3];
      const float logit = sum + vote_bias(slot, g, group.lanes);
      out.logits[static_cast<size_t>(g) * out.pitch + i] = logit;
      if (counts) add_softmax(states[j], logit);
    }
  }
#pragma unroll
  for (uint32_t j = 0; j < kHeads; j++) {
#pragma unroll
    for (int offset = 4; offset < 32; offset *= 2) {
      const SoftmaxState other = {
          __shfl_xor_sync(kAllLanes, states[j].max, offset),
          __shfl_xor_sync(kAllLanes, states[j].sum, offset)};
      states[j] = merge_softmax(states[j], other);
    }
    if (lane_id() < 4) shared.states[warp_id()][4 * j + t] = states[j];
  }
  __syncthreads();
  if (threadIdx.x >= group.size) return;
  SoftmaxState all = init_softmax();
  for (uint32_t w = 0; w < kExpectWarps; w++) {
    all = merge_softmax(all, shared.states[w][threadIdx.x]);
  }
  out.states[blockIdx.x * kMaxGroup + threadIdx.x] = {all.max, all.sum};
}

// Sets the ratings of `count` slots that blocks left their logits of: ln of the
// mean over the group of their shares. `is_there(i)` says which slots there
// are; `log_sums` is shared memory. Called by the whole block, which sees all
// ratings afterwards.
template <class IsThere>
__device__ inline void rate_by_expectation(uint32_t group, uint32_t count,
                                           const Expectation &expected,
                                           float (&log_sums)[kMaxGroup],
                                           float *ratings, IsThere is_there) {
  if (threadIdx.x < group) {
    SoftmaxState all = init_softmax();
    for (uint32_t p = 0; p < expect_parts(count); p++) {
      const float2 part = expected.states[p * kMaxGroup + threadIdx.x];
      all = merge_softmax(all, {part.x, part.y});
    }
    log_sums[threadIdx.x] = log_sum(all);
  }
  __syncthreads();
  const float heads = logf(static_cast<float>(group));
  for (uint32_t i = threadIdx.x; i < count; i += blockDim.x) {
    if (!is_there(i)) continue;
    float share = kLogZero;
    for (uint32_t g = 0; g < group; g++) {
      const float logit =
          expected.logits[static_cast<size_t>(g) * expected.pitch + i];
      share = log_add(share, logit - log_sums[g]);
    }
    ratings[i] = share - heads;
  }
  __syncthreads();
}

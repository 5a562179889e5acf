// The policy's work on a head after a decode step: scores, the victim, where it
// goes, and the merge. One block per head.
#pragma once

#include "attend_parts.cuh"
#include "key_distance.cuh"
#include "neighbour.cuh"
#include "select_smallest.cuh"

constexpr uint32_t kEvictWarps = 16;
constexpr uint32_t kEvictThreads = 32 * kEvictWarps;

struct EvictShared {
  // The victim's key, zeros beyond its end.
  __align__(16) skv_half key[kMaxHeadDim];
  float log_sums[kMaxGroup];
  uint64_t lowest_keys[kEvictWarps];
  uint32_t lowest[kEvictWarps];
  Neighbour neighbours[kEvictWarps];
  SelectScratch select;
  KeyScratch keys;
};

// One head and what was seen of it.
struct EvictJob {
  uint32_t group;
  uint32_t position;
  uint32_t high;
  uint32_t offset;
  uint32_t *words;
  // (group, max_capacity)
  const float *logits;
  // (group, head_dim)
  const float *queries;
  // (group, head_dim), where merges need it
  const float *outputs;
  // (rating_heads, max_capacity): scores that take more than a slot's own
  // fields, of this head or of all that share them
  const float *ratings;
  uint32_t rating_heads;
  // (max_capacity), where values count
  uint64_t *keys;
};

// Adds this step to the scores of all slots; `ratings` takes the head's where
// those of the layer are shared. Called by the whole block.
__device__ inline void observe_slots(const skv_merge_attend_args &args,
                                     const EvictJob &job, float *ratings,
                                     const EvictShared &shared) {
  const skv_policy &policy = args.policy;
  const uint32_t lanes = args.cache.lanes;
  const uint32_t capacity = args.cache.max_capacity;
  for (uint32_t i = threadIdx.x; i < job.high; i += kEvictThreads) {
    const Slot slot =
        slot_at(args.cache.slots, job.offset + i, args.sizes.head_dim);
    if (slot.word(kSlotTokens) == 0) continue;
    if (policy.observe) {
      Scores scores = load_scores(slot);
      observe_row(
          scores, policy, job.group, job.position,
          [&](uint32_t g) {
            return job.logits[static_cast<size_t>(g) * capacity + i];
          },
          [&](uint32_t g) { return shared.log_sums[g]; },
          [&](uint32_t g) { return vote_bias(slot, g, lanes); });
      store_scores(slot, scores);
    }
    if (ratings != nullptr && policy.score != SKV_SCORE_KEY_DISTANCE) {
      ratings[i] = own_score(slot, policy, lanes);
    }
  }
}

// What the policy's score says of slot `i`: where heads share their scores,
// their slots are the same tokens in the same order.
__device__ inline float slot_score(const skv_merge_attend_args &args,
                                   const EvictJob &job, const Slot &slot,
                                   uint32_t i) {
  if (job.ratings == nullptr) {
    return own_score(slot, args.policy, args.cache.lanes);
  }
  float sum = no_scores(args.policy);
  for (uint32_t h = 0; h < job.rating_heads; h++) {
    const size_t at = static_cast<size_t>(h) * args.cache.max_capacity + i;
    sum = add_score(sum, job.ratings[at], args.policy);
  }
  return mean_score(sum, job.rating_heads, args.policy);
}

// The same where keys are compared. Called by the whole block.
__device__ inline void rate_slots(const skv_merge_attend_args &args,
                                  const EvictJob &job, float *ratings,
                                  EvictShared &shared) {
  static_assert(kEvictWarps == kKeyWarps, "as many warps as rate keys");
  rate_by_key(
      job.high, args.sizes.head_dim, ratings, shared.keys, [&](uint32_t i) {
        return slot_at(args.cache.slots, job.offset + i, args.sizes.head_dim);
      });
}

// The slot with the lowest key over the block, or none; each thread brings its
// own.
__device__ inline uint32_t lowest_of_block(uint64_t key, uint32_t slot,
                                           EvictShared &shared) {
  const uint64_t lowest = warp_min(key);
  const uint32_t owner =
      __reduce_min_sync(kAllLanes, key == lowest ? slot : ~0u);
  __syncthreads();
  if (lane_id() == 0) {
    shared.lowest_keys[warp_id()] = lowest;
    shared.lowest[warp_id()] = owner;
  }
  __syncthreads();
  uint64_t best = kNoKey;
  uint32_t found = ~0u;
  for (uint32_t w = 0; w < kEvictWarps; w++) {
    if (shared.lowest_keys[w] >= best) continue;
    best = shared.lowest_keys[w];
    found = shared.lowest[w];
  }
  return found;
}

// The slot that goes first, or none. Called by the whole block.
__device__ inline uint32_t choose_victim(const skv_merge_attend_args &args,
                                         const EvictJob &job,
                                         EvictShared &shared) {
  const skv_policy &policy = args.policy;
  const uint32_t recent = job.words[kHeadRecent];
  const auto slot_of = [&](uint32_t i) {
    return slot_at(args.cache.slots, job.offset + i, args.sizes.head_dim);
  };
  const auto may_go = [&](const Slot &slot) {
    return slot.word(kSlotTokens) != 0 &&
           is_evictable(slot.word(kSlotPosition), policy, recent, job.position);
  };
  // Slots above this key stay by their scores alone.
  uint64_t limit = kNoKey;
  if (policy.count_values) {
    uint32_t mine = 0, evictable;
    for (uint32_t i = threadIdx.x; i < job.high; i += kEvictThreads) {
      const Slot slot = slot_of(i);
      const bool goes = may_go(slot);
      job.keys[i] =
          goes ? score_key(slot_score(args, job, slot, i), slot) : kNoKey;
      mine += goes ? 1 : 0;
    }
    block_prefix(mine, evictable, shared.select.block);
    if (evictable == 0) return ~0u;
    limit = kth_smallest(job.keys, job.high,
                         evictable - first_stage(policy, evictable - 1),
                         shared.select);
  }
  uint64_t best = kNoKey;
  uint32_t victim = ~0u;
  for (uint32_t i = threadIdx.x; i < job.high; i += kEvictThreads) {
    const Slot slot = slot_of(i);
    if (!may_go(slot)) continue;
    if (policy.count_values && job.keys[i] > limit) continue;
    const uint64_t key = rank_key(slot_score(args, job, slot, i), slot, policy);
    if (key < best) best = key, victim = i;
  }
  return lowest_of_block(best, victim, shared);
}

// The next slot to the right of the victim, or none. Called by the whole block.
__device__ inline uint32_t find_right(const skv_merge_attend_args &args,
                                      const EvictJob &job, uint32_t victim,
                                      EvictShared &shared) {
  const auto slot_of = [&](uint32_t i) {
    return slot_at(args.cache.slots, job.offset + i, args.sizes.head_dim);
  };
  const uint32_t position = slot_of(victim).word(kSlotPosition);
  uint64_t best = kNoKey;
  uint32_t nearest = ~0u;
  for (uint32_t i = threadIdx.x; i < job.high; i += kEvictThreads) {
    const Slot slot = slot_of(i);
    const uint32_t other = slot.word(kSlotPosition);
    if (slot.word(kSlotTokens) == 0 || other <= position) continue;
    if (other < best) best = other, nearest = i;
  }
  return lowest_of_block(best, nearest, shared);
}

// The slot with the key most similar to that of the victim, sinks left out.
// Four lanes share a key. Called by the whole block.
template <bool ALIGNED>
__device__ inline Neighbour find_nearest(const skv_merge_attend_args &args,
                                         const EvictJob &job, uint32_t victim,
                                         EvictShared &shared) {
  const skv_slots &slots = args.cache.slots;
  const uint32_t head_dim = args.sizes.head_dim;
  const uint32_t t = lane_id() % 4;
  const Slot gone = slot_at(slots, job.offset + victim, head_dim);
  if (threadIdx.x < kMaxHeadDim) {
    shared.key[threadIdx.x] =
        threadIdx.x < head_dim ? gone.key[threadIdx.x] : 0;
  }
  __syncthreads();
  // The length of the victim's key counts for all alike, but for the threshold.
  float own_square = 0.0f;
  for (uint32_t d = lane_id(); d < head_dim; d += 32) {
    const float x = to_float(shared.key[d]);
    own_square += x * x;
  }
  own_square = warp_sum(own_square);
  Neighbour best = kNoNeighbour;
#pragma unroll 2
  for (uint32_t first = 8 * warp_id(); first < job.high;
       first += 8 * kEvictWarps) {
    const uint32_t i = first + lane_id() / 4;
    const Slot slot =
        slot_at(slots, job.offset + min(i, job.high - 1), head_dim);
    float dot = 0.0f, square = 0.0f;
#pragma unroll 4
    for (uint32_t d = 8 * t; d < head_dim; d += 32) {
      uint32_t other[4];
      load_halves<8, ALIGNED>(other, slot.key, d, head_dim);
      const uint4 own = *reinterpret_cast<const uint4 *>(shared.key + d);
      const uint32_t mine[4] = {own.x, own.y, own.z, own.w};
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const float2 x = to_floats(mine[j]), y = to_floats(other[j]);
        dot += x.x * y.x + x.y * y.y;
        square += y.x * y.x + y.y * y.y;
      }
    }
    dot += __shfl_xor_sync(kAllLanes, dot, 1);
    dot += __shfl_xor_sync(kAllLanes, dot, 2);
    square += __shfl_xor_sync(kAllLanes, square, 1);
    square += __shfl_xor_sync(kAllLanes, square, 2);
    if (i >= job.high || i == victim || slot.word(kSlotTokens) == 0) continue;
    const float norms = sqrtf(own_square) * sqrtf(square);
    const Neighbour candidate = {norms == 0.0f ? 0.0f : dot / norms,
                                 slot.word(kSlotPosition), i};
    if (candidate.position < args.policy.sinks) continue;
    if (candidate.beats(best)) best = candidate;
  }
  best = nearest_of_lanes<16>(best);
  if (lane_id() == 0) shared.neighbours[warp_id()] = best;
  __syncthreads();
  best = kNoNeighbour;
  for (uint32_t w = 0; w < kEvictWarps; w++) {
    if (shared.neighbours[w].beats(best)) best = shared.neighbours[w];
  }
  return best;
}

// Attention weight of slot `i` for query head `g`.
__device__ inline float attention_weight(const skv_merge_attend_args &args,
                                         const EvictJob &job,
                                         const EvictShared &shared,
                                         const Slot &slot, uint32_t i,
                                         uint32_t g) {
  const float logit =
      job.logits[static_cast<size_t>(g) * args.cache.max_capacity + i];
  return expf(logit + vote_bias(slot, g, args.cache.lanes) -
              shared.log_sums[g]);
}

// Merges the value of the victim into the slot to its right: see
// src/reference/merge_values.ts. Called by one warp.
__device__ inline void merge_value(const skv_merge_attend_args &args,
                                   const EvictJob &job,
                                   const EvictShared &shared, uint32_t victim,
                                   uint32_t right) {
  const uint32_t head_dim = args.sizes.head_dim;
  const Slot gone = slot_at(args.cache.slots, job.offset + victim, head_dim);
  const Slot kept = slot_at(args.cache.slots, job.offset + right, head_dim);
  const bool exact = args.policy.exact_values != 0;
  const float own = mean_attention(gone), other = mean_attention(kept);
  const float share = own + other == 0.0f ? 0.5f : own / (own + other);
  float weights[kMaxGroup], lost = 0.0f, left = 0.0f;
#pragma unroll
  for (uint32_t g = 0; g < kMaxGroup; g++) {
    weights[g] = 0.0f;
    if (!exact || g >= job.group) continue;
    weights[g] = attention_weight(args, job, shared, gone, victim, g);
    lost += weights[g];
    left += attention_weight(args, job, shared, kept, right, g);
  }
  const float scale = fmaxf(left, lost / args.policy.ratio_cap);
  for (uint32_t d = lane_id(); d < head_dim; d += 32) {
    const float from = to_float(gone.value[d]);
    float value = to_float(kept.value[d]);
    if (exact) {
      float change = 0.0f;
#pragma unroll
      for (uint32_t g = 0; g < kMaxGroup; g++) {
        if (g >= job.group) continue;
        change += weights[g] * (from - job.outputs[g * head_dim + d]);
      }
      if (scale > 0.0f) value += change / scale;
    } else {
      value = share * from + (1.0f - share) * value;
    }
    kept.value[d] = to_half(value);
  }
  if (lane_id() != 0) return;
  kept.set_word(kSlotTokens, kept.word(kSlotTokens) + gone.word(kSlotTokens));
  if (exact) return;
  kept.set(kSlotValueNorm, share * gone.get(kSlotValueNorm) +
                               (1.0f - share) * kept.get(kSlotValueNorm));
}

// Merges the victim into a slot, or drops it where there is none. Called by one
// warp.
__device__ inline void evict(const skv_merge_attend_args &args,
                             const EvictJob &job, const EvictShared &shared,
                             uint32_t victim, uint32_t target) {
  const uint32_t head_dim = args.sizes.head_dim;
  const Slot gone = slot_at(args.cache.slots, job.offset + victim, head_dim);
  uint32_t *words = job.words;
  Merged merged = {};
  if (target != ~0u && args.policy.merge == SKV_MERGE_VOTES) {
    const Slot kept = slot_at(args.cache.slots, job.offset + target, head_dim);
    const MergeContext context = {job.queries, job.group, head_dim,
                                  args.cache.lanes};
    merged = merge_slots(
        2, [&](uint32_t i) { return i == 0 ? kept : gone; }, context,
        args.policy);
  } else if (target != ~0u) {
    merge_value(args, job, shared, victim, target);
  }
  __syncwarp();
  if (lane_id() != 0) return;
  if (target != ~0u) {
    words[kHeadMerged]++;
    words[kHeadGuarded] += merged.guarded ? 1 : 0;
    words[kHeadDivergence] = __float_as_uint(
        __uint_as_float(words[kHeadDivergence]) + merged.divergence);
  } else {
    words[kHeadDropped]++;
    words[kHeadDroppedTokens] += gone.word(kSlotTokens);
  }
  free_slot(gone, args.cache.lanes);
  words[kHeadLive]--;
  words[kHeadNext] = min(words[kHeadNext], victim);
}

// What becomes of the slot that goes after a decode step: where it is merged,
// or that it is dropped.
#pragma once

#include "blend_slots.cuh"
#include "evict_one.cuh"
#include "merge_slots.cuh"

// The next slot to the right of the victim, or none. Called by the whole block.
__device__ inline uint32_t find_right(const skv_merge_attend_args &args,
                                      const EvictJob &job, uint32_t victim,
                                      EvictShared &shared) {
  const uint32_t position = job.slot(args, victim).word(kSlotPosition);
  uint64_t best = kNoKey;
  uint32_t nearest = ~0u;
#pragma unroll 1
  for (uint32_t i = threadIdx.x; i < job.high; i += kEvictThreads) {
    const Slot slot = job.slot(args, i);
    const uint32_t other = slot.word(kSlotPosition);
    if (slot.word(kSlotTokens) == 0 || other <= position) continue;
    if (other < best) best = other, nearest = i;
  }
  return lowest_of_block(best, nearest, shared.lowest);
}

// The slot with the key most similar to that of the victim, sinks left out.
// Four lanes share a key. Called by the whole block.
template <bool ALIGNED>
__device__ inline Neighbour find_nearest(const skv_merge_attend_args &args,
                                         const EvictJob &job, uint32_t victim,
                                         EvictShared &shared) {
  const uint32_t head_dim = args.sizes.head_dim;
  const uint32_t t = lane_id() % 4;
  const Slot gone = job.slot(args, victim);
  if (threadIdx.x < kMaxHeadDim) {
    shared.key[threadIdx.x] =
        threadIdx.x < head_dim ? gone.key[threadIdx.x] : skv_cached{};
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
    const Slot slot = job.slot(args, min(i, job.high - 1));
    const uint32_t tokens = slot.word(kSlotTokens);
    const uint32_t position = slot.word(kSlotPosition);
    float dot = 0.0f, square = 0.0f;
#pragma unroll 4
    for (uint32_t d = 8 * t; d < head_dim; d += 32) {
      uint32_t other[4];
      load_pairs<8, ALIGNED>(other, slot.key, d, head_dim);
      const uint4 own = *reinterpret_cast<const uint4 *>(shared.key + d);
      const uint32_t mine[4] = {own.x, own.y, own.z, own.w};
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const float2 x = cached_floats(mine[j]), y = cached_floats(other[j]);
        dot += x.x * y.x + x.y * y.y;
        square += y.x * y.x + y.y * y.y;
      }
    }
    dot += __shfl_xor_sync(kAllLanes, dot, 1);
    dot += __shfl_xor_sync(kAllLanes, dot, 2);
    square += __shfl_xor_sync(kAllLanes, square, 1);
    square += __shfl_xor_sync(kAllLanes, square, 2);
    if (i >= job.high || i == victim || tokens == 0) continue;
    if (position < args.policy.sinks) continue;
    const float norms = sqrtf(own_square) * sqrtf(square);
    const Neighbour candidate = {norms == 0.0f ? 0.0f : dot / norms, position,
                                 i};
    if (candidate.beats(best)) best = candidate;
  }
  return nearest_of_block(best, shared);
}

// The same, as attention found it if the victim was a rider.
template <bool ALIGNED>
__device__ inline Neighbour nearest_key(const skv_merge_attend_args &args,
                                        const EvictJob &job,
                                        const RiderMemory &riders,
                                        uint32_t victim, EvictShared &shared) {
  Neighbour nearest = kNoNeighbour;
  if constexpr (ALIGNED) {
    nearest = nearest_ridden(riders, job.index, shared.ridden, victim);
  }
  if (!nearest.exists()) {
    return find_nearest<ALIGNED>(args, job, victim, shared);
  }
  const LaneVector key(job.slot(args, victim).key, args.sizes.head_dim);
  nearest.similarity *= key.inverse_norm();
  return nearest;
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
  const Slot gone = job.slot(args, victim);
  const Slot kept = job.slot(args, right);
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
    kept.value[d] = to_cached(value);
  }
  if (lane_id() != 0) return;
  kept.set_word(kSlotTokens, kept.word(kSlotTokens) + gone.word(kSlotTokens));
  if (exact) return;
  kept.set(kSlotValueNorm, share * gone.get(kSlotValueNorm) +
                               (1.0f - share) * kept.get(kSlotValueNorm));
}

// Merges two slots so that the one that stays has the mass of both. Called by
// one warp.
template <bool QUERIES>
__device__ inline Merged merge_two(const skv_merge_attend_args &args,
                                   const EvictJob &job, uint32_t stays,
                                   uint32_t goes) {
  const Slot kept = job.slot(args, stays), gone = job.slot(args, goes);
  const MergeContext context = {job.queries, job.group, args.sizes.head_dim,
                                args.cache.lanes};
  return merge_slots<QUERIES>(
      2, [&](uint32_t i) { return i == 0 ? kept : gone; }, context,
      args.policy);
}

// Frees the slot that goes, and counts what became of it. Called by one thread.
__device__ inline void remove_slot(const skv_merge_attend_args &args,
                                   const EvictJob &job, uint32_t victim,
                                   bool is_merged, const Merged &merged) {
  const Slot gone = job.slot(args, victim);
  uint32_t *words = job.words;
  if (is_merged) {
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

// Merges the victim where the policy says, or drops it. Returns the slot that
// took its key in, or none, to the first warp. Called by the whole block.
template <uint32_t MERGE, bool ALIGNED, bool QUERIES>
__device__ inline uint32_t evict(const skv_merge_attend_args &args,
                                 const EvictJob &job, const RiderMemory &riders,
                                 uint32_t victim, EvictShared &shared) {
  const skv_policy &policy = args.policy;
  uint32_t target = ~0u;
  bool is_merged = false;
  if constexpr (MERGE == SKV_MERGE_VOTES) {
    const Neighbour nearest =
        nearest_key<ALIGNED>(args, job, riders, victim, shared);
    if (nearest.similarity > policy.threshold) target = nearest.item;
  } else if constexpr (MERGE == SKV_MERGE_COSINE) {
    const Neighbour nearest =
        nearest_key<ALIGNED>(args, job, riders, victim, shared);
    if (nearest.exists() && warp_id() == 0) {
      const float past = __uint_as_float(job.words[kHeadThreshold]);
      const float threshold = next_threshold(policy, past, nearest.similarity);
      __syncwarp();
      if (lane_id() == 0) {
        job.words[kHeadThreshold] = __float_as_uint(threshold);
      }
      if (nearest.similarity >= threshold) target = nearest.item;
    }
  } else if constexpr (MERGE == SKV_MERGE_RIGHT_NEIGHBOUR) {
    target = find_right(args, job, victim, shared);
  } else if constexpr (MERGE == SKV_MERGE_NEXT_VALUES) {
    const PassedOn place = {job.slot(args, victim), args.cache.layer,
                            job.kv_head, args.sizes.head_dim};
    is_merged = pass_on(
        policy, place, job.high, shared.followers, shared.select,
        [&](uint32_t i) {
          const Slot slot = job.slot(args, i);
          return slot.word(kSlotTokens) == 0 ? 0 : slot.word(kSlotPosition);
        },
        [&](uint32_t i) { return job.slot(args, i); });
  }
  if (warp_id() != 0) return ~0u;
  Merged merged = {};
  if (target != ~0u) {
    is_merged = true;
    if constexpr (MERGE == SKV_MERGE_VOTES) {
      merged = merge_two<QUERIES>(args, job, target, victim);
    } else if constexpr (MERGE == SKV_MERGE_COSINE) {
      const Slot kept = job.slot(args, target), gone = job.slot(args, victim);
      blend_slots(
          2, [&](uint32_t i) { return i == 0 ? kept : gone; },
          args.sizes.head_dim);
    } else if constexpr (MERGE == SKV_MERGE_RIGHT_NEIGHBOUR) {
      merge_value(args, job, shared, victim, target);
    }
  }
  __syncwarp();
  if (lane_id() == 0) remove_slot(args, job, victim, is_merged, merged);
  return target;
}

// The policy's work on a head after a decode step: scores, the victim, the key
// most similar to its own, and the merge. One block per head.
#pragma once

#include "attend_parts.cuh"
#include "merge_slots.cuh"
#include "neighbour.cuh"

constexpr uint32_t kEvictWarps = 16;
constexpr uint32_t kEvictThreads = 32 * kEvictWarps;

// Widest head that kernels take.
constexpr uint32_t kMaxHeadDim = 256;

struct EvictShared {
  // The victim's key, zeros beyond its end.
  __align__(16) skv_half key[kMaxHeadDim];
  float log_sums[kMaxGroup];
  uint64_t victim_keys[kEvictWarps];
  uint32_t victims[kEvictWarps];
  Neighbour neighbours[kEvictWarps];
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
};

// Adds this step to the scores of all slots, and finds the one that goes first:
// its index, or none. Called by the whole block.
__device__ inline uint32_t update_scores(const skv_merge_attend_args &args,
                                         const EvictJob &job,
                                         EvictShared &shared) {
  const skv_policy &policy = args.policy;
  const uint32_t lanes = args.cache.lanes;
  const uint32_t capacity = args.cache.max_capacity;
  const uint32_t recent = job.words[kHeadRecent];
  uint64_t best = kNoKey;
  uint32_t victim = ~0u;
  for (uint32_t i = threadIdx.x; i < job.high; i += kEvictThreads) {
    const Slot slot =
        slot_at(args.cache.slots, job.offset + i, args.sizes.head_dim);
    if (slot.word(kSlotTokens) == 0) continue;
    if (policy.observe) {
      Scores scores = load_scores(slot);
      observe_row(
          scores, policy, job.group,
          [&](uint32_t g) {
            return job.logits[static_cast<size_t>(g) * capacity + i];
          },
          [&](uint32_t g) { return shared.log_sums[g]; },
          [&](uint32_t g) { return vote_bias(slot, g, lanes); });
      store_scores(slot, scores);
    }
    if (!is_evictable(slot.word(kSlotPosition), policy, recent, job.position)) {
      continue;
    }
    const uint64_t key = eviction_key(slot, policy, lanes);
    if (key < best) best = key, victim = i;
  }
  const uint64_t lowest = warp_min(best);
  const uint32_t owner =
      __reduce_min_sync(kAllLanes, best == lowest ? victim : ~0u);
  if (lane_id() == 0) {
    shared.victim_keys[warp_id()] = lowest;
    shared.victims[warp_id()] = owner;
  }
  __syncthreads();
  best = kNoKey;
  for (uint32_t w = 0; w < kEvictWarps; w++) {
    if (shared.victim_keys[w] >= best) continue;
    best = shared.victim_keys[w];
    victim = shared.victims[w];
  }
  return best == kNoKey ? ~0u : victim;
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

// Merges the victim into its neighbour, or drops it. Called by one warp.
__device__ inline void evict(const skv_merge_attend_args &args,
                             const EvictJob &job, uint32_t victim,
                             const Neighbour &nearest) {
  const uint32_t head_dim = args.sizes.head_dim;
  const Slot gone = slot_at(args.cache.slots, job.offset + victim, head_dim);
  uint32_t *words = job.words;
  const bool merges =
      nearest.exists() && nearest.similarity > args.policy.threshold;
  if (merges) {
    const Slot kept =
        slot_at(args.cache.slots, job.offset + nearest.item, head_dim);
    const MergeContext context = {job.queries, job.group, head_dim,
                                  args.cache.lanes};
    const Merged merged = merge_slots(
        2, [&](uint32_t i) { return i == 0 ? kept : gone; }, context,
        args.policy);
    if (lane_id() == 0) {
      words[kHeadMerged]++;
      words[kHeadGuarded] += merged.guarded ? 1 : 0;
      words[kHeadDivergence] = __float_as_uint(
          __uint_as_float(words[kHeadDivergence]) + merged.divergence);
    }
  } else if (lane_id() == 0) {
    words[kHeadDropped]++;
    words[kHeadDroppedTokens] += gone.word(kSlotTokens);
  }
  if (lane_id() == 0) {
    free_slot(gone, args.cache.lanes);
    words[kHeadLive]--;
    words[kHeadNext] = min(words[kHeadNext], victim);
  }
}

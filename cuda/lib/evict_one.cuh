// The policy's work on a head after a decode step: scores, and the slot that
// goes first. One block per head.
#pragma once

#include "evict_job.cuh"
#include "key_distance.cuh"
#include "neighbour.cuh"
#include "next_values.cuh"
#include "ridden.cuh"
#include "select_smallest.cuh"
#include "shortlist.cuh"
#include "slot_reader.cuh"

// Blocks are small: one merges while another reads.
constexpr uint32_t kEvictWarps = 8;
constexpr uint32_t kEvictThreads = 32 * kEvictWarps;

struct EvictShared {
  // The victim's key, zeros beyond its end.
  __align__(16) skv_cached key[kMaxHeadDim];
  float log_sums[kMaxGroup];
  // The same at the scale of scores.
  float score_sums[kMaxGroup];
  LowestShared<kEvictWarps> lowest;
  Neighbour neighbours[kEvictWarps];
  Ridden ridden;
  SelectScratch select;
  // What one policy has no two of.
  union {
    ListScratch list;
    Followers followers;
    Candidate lowest_of_warps[kEvictWarps][kWarpCandidates];
  };
};

// Bytes of shared memory beside that, which few policies need.
inline size_t evict_bytes(const skv_policy &policy) {
  return policy.score == SKV_SCORE_KEY_DISTANCE
             ? sizeof(KeyScratch<kEvictWarps>)
             : 0;
}

// Sums up the row's softmax at the scale of scores. The sum of the attention is
// at least its largest term, so nothing overflows. Called by the whole block.
__device__ inline void sum_gained(const skv_merge_attend_args &args,
                                  const EvictJob &job, float gain,
                                  EvictShared &shared) {
  const uint32_t lanes = args.cache.lanes;
#pragma unroll 1
  for (uint32_t g = 0; g < job.group; g++) {
    const float *logits =
        job.logits + static_cast<size_t>(g) * args.cache.max_capacity;
    const float log_sum = shared.log_sums[g];
    float sum = 0.0f;
#pragma unroll 1
    for (uint32_t i = threadIdx.x; i < job.high; i += kEvictThreads) {
      const Slot slot = job.slot(args, i);
      if (slot.word(kSlotTokens) == 0) continue;
      sum += expf(gain * (logits[i] + vote_bias(slot, g, lanes) - log_sum));
    }
    sum = block_sum(sum, shared.select);
    if (threadIdx.x == 0) shared.score_sums[g] = gain * log_sum + logf(sum);
  }
  __syncthreads();
}

// Whether a slot's own fields say which goes first.
__device__ inline bool own_fields_decide(const skv_merge_attend_args &args,
                                         const EvictJob &job) {
  return job.ratings == nullptr && !args.policy.count_values;
}

// What a thread finds among its slots: the one that goes first, and the lowest
// of those that may go in the next step, where anybody wants to know.
struct Found {
  Candidate first = kNoCandidate;
  Lowest next;
};

// Steps from this one to the last that is thought of: in the next one more slot
// is no longer recent.
template <bool RIDES>
constexpr uint32_t kAhead = RIDES ? 1 : 0;

// Looks at a slot that may go now or, where there are riders, in the next step.
template <bool RIDES>
__device__ inline void consider(const skv_merge_attend_args &args,
                                const EvictJob &job, const Slot &slot,
                                const Candidate &candidate, Found &found) {
  if constexpr (RIDES) found.next.add(candidate);
  if (candidate.key >= found.first.key) return;
  if (!RIDES || job.may_go(args, slot)) found.first = candidate;
}

// Adds this step to the scores of all slots, and passes `visit` each slot with
// its number and its scores. Where their own fields decide, returns what this
// thread found. A slot is on its way while the one before it is looked at: few
// blocks have room beside the products, and each waits for memory most of the
// time. Called by the whole block.
template <bool RIDES, class Visit>
__device__ inline Found observe_slots(const skv_merge_attend_args &args,
                                      const EvictJob &job, EvictShared &shared,
                                      Visit visit) {
  const skv_policy &policy = args.policy;
  const uint32_t lanes = args.cache.lanes;
  const float gain = score_gain(policy, job.position, job.words[kHeadBudget]);
  const bool gains = policy.observe && policy.score == SKV_SCORE_STEP_GAIN;
  if (gains) sum_gained(args, job, gain, shared);
  const float *log_sums = gains ? shared.score_sums : shared.log_sums;
  const bool ranks = job.is_over && own_fields_decide(args, job);
  const bool rates = job.own_ratings != nullptr && !takes_all_keys(policy);
  const uint32_t recent = job.words[kHeadRecent];
  const uint32_t newest = job.position + kAhead<RIDES>;
  const SlotReader reader(args, job);
  Found found;
  Seen next = {};
  if (threadIdx.x < job.high) next = reader.read(threadIdx.x, policy.observe);
#pragma unroll 1
  for (uint32_t i = threadIdx.x; i < job.high; i += kEvictThreads) {
    Seen seen = next;
    if (i + kEvictThreads < job.high) {
      next = reader.read(i + kEvictThreads, policy.observe);
    }
    if (seen.tokens == 0) continue;
    const Slot slot = job.slot(args, i);
    if (policy.observe) {
      observe_seen(args, job, i, gain, log_sums, seen);
      store_scores(slot, seen.scores);
    }
    visit(i, slot, seen.scores);
    const bool counts =
        ranks && is_evictable(seen.position, policy, recent, newest);
    if (!rates && !counts) continue;
    const float score = own_score(seen.scores, seen.position, policy, [&] {
      return lanes == 1 ? seen.bias : pooled_bias(slot, lanes);
    });
    if (rates) job.own_ratings[i] = score;
    if (!counts) continue;
    consider<RIDES>(args, job, slot, {order_key(score, seen.position), i},
                    found);
  }
  return found;
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
#pragma unroll 1
  for (uint32_t h = 0; h < job.rating_heads; h++) {
    const size_t at = static_cast<size_t>(h) * args.cache.max_capacity + i;
    sum = add_score(sum, job.ratings[at], args.policy);
  }
  return mean_score(sum, job.rating_heads, args.policy);
}

// Rates the slots where that takes all keys. Called by the whole block.
__device__ inline void rate_slots(const skv_merge_attend_args &args,
                                  const EvictJob &job, EvictShared &shared) {
  const auto slot_of = [&](uint32_t i) { return job.slot(args, i); };
  if (args.policy.score == SKV_SCORE_KEY_DISTANCE) {
    rate_by_key(
        job.high, args.sizes.head_dim, job.own_ratings,
        *reinterpret_cast<KeyScratch<kEvictWarps> *>(dynamic_shared_memory()),
        slot_of);
  } else if (args.policy.score == SKV_SCORE_EXPECTED) {
    rate_by_expectation(
        job.group, job.high, job.expected, shared.score_sums, job.own_ratings,
        [&](uint32_t i) { return slot_of(i).word(kSlotTokens) != 0; });
  }
}

// A slot with a key, in line for the next step, or none. Called by one warp.
__device__ inline Candidate next_in_line(const skv_merge_attend_args &args,
                                         const EvictJob &job, uint32_t i) {
  const Slot slot = job.slot(args, i);
  if (!job.may_go(args, slot, kAhead<true>)) return kNoCandidate;
  const float score = slot_score(args, job, slot, i);
  return {rank_key(score, slot, args.policy), i};
}

// The nearest over the block; each thread brings its own.
__device__ inline Neighbour nearest_of_block(Neighbour best,
                                             EvictShared &shared) {
  best = nearest_of_lanes<16>(best);
  if (lane_id() == 0) shared.neighbours[warp_id()] = best;
  __syncthreads();
  best = kNoNeighbour;
#pragma unroll 1
  for (uint32_t w = 0; w < kEvictWarps; w++) {
    if (shared.neighbours[w].beats(best)) best = shared.neighbours[w];
  }
  return best;
}

// Sets the keys of slots that may go by their scores; returns how many there
// are. Called by the whole block, which sees all keys after the next barrier.
__device__ inline uint32_t key_scores_of(const skv_merge_attend_args &args,
                                         const EvictJob &job,
                                         EvictShared &shared) {
  uint32_t mine = 0, evictable;
#pragma unroll 1
  for (uint32_t i = threadIdx.x; i < job.high; i += kEvictThreads) {
    const Slot slot = job.slot(args, i);
    const bool goes = job.may_go(args, slot);
    job.keys[i] =
        goes ? score_key(slot_score(args, job, slot, i), slot) : kNoKey;
    mine += goes ? 1 : 0;
  }
  block_prefix(mine, evictable, shared.select.block);
  return evictable;
}

// What this thread finds by all that scores take. Called by the whole block.
template <bool RIDES>
__device__ inline Found rank_slots(const skv_merge_attend_args &args,
                                   const EvictJob &job, EvictShared &shared) {
  const skv_policy &policy = args.policy;
  // Slots above this key stay by their scores alone.
  uint64_t limit = kNoKey;
  if (policy.count_values) {
    const uint32_t evictable = key_scores_of(args, job, shared);
    if (evictable == 0) return {};
    limit = kth_smallest(job.keys, job.high,
                         evictable - first_stage(policy, evictable - 1),
                         shared.select);
  }
  Found found;
#pragma unroll 1
  for (uint32_t i = threadIdx.x; i < job.high; i += kEvictThreads) {
    const Slot slot = job.slot(args, i);
    if (!job.may_go(args, slot, kAhead<RIDES>)) continue;
    if (policy.count_values && job.keys[i] > limit) continue;
    const uint64_t key = rank_key(slot_score(args, job, slot, i), slot, policy);
    consider<RIDES>(args, job, slot, {key, i}, found);
  }
  return found;
}

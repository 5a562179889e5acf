// The scores that rows of attention leave on slots, and the order in which
// slots are evicted: the twin of src/reference/scores.ts.
#pragma once

#include "reduce.cuh"
#include "slots.cuh"
#include "softmax_state.cuh"

// A slot's scores while rows are added to them.
struct Scores {
  float ema;
  float accumulated;
  uint32_t observations;
};

__device__ inline Scores load_scores(const Slot &slot) {
  return {slot.get(kSlotEma), slot.get(kSlotAccumulated),
          slot.word(kSlotObservations)};
}

__device__ inline void store_scores(const Slot &slot, const Scores &scores) {
  slot.set(kSlotEma, scores.ema);
  slot.set(kSlotAccumulated, scores.accumulated);
  slot.set_word(kSlotObservations, scores.observations);
}

// ln(exp(a) + exp(b)).
__device__ inline float log_add(float a, float b) {
  const float max = fmaxf(a, b);
  return max + log1pf(expf(fminf(a, b) - max));
}

// Adds one row of attention. `logit(g)` are the raw logits of the slot,
// `log_sum(g)` the ln of the row's softmax sums and `bias(g)` the vote biases.
//
// The moving sum is kept as its logarithm, because exp of a raw logit
// overflows: E ← ln(alpha exp(E) + (1 − alpha) s).
template <class Logit, class LogSum, class Bias>
__device__ inline void observe_row(Scores &scores, const skv_policy &policy,
                                   uint32_t group, Logit logit, LogSum log_sum,
                                   Bias bias) {
  const bool raw = policy.raw_scale != 0;
  float max = -INFINITY;
  for (uint32_t g = 0; g < group; g++) {
    max = fmaxf(max, raw ? logit(g) : logit(g) - log_sum(g));
  }
  float sum = 0.0f;
  float weight = 0.0f;
  for (uint32_t g = 0; g < group; g++) {
    const float share = logit(g) - log_sum(g);
    sum += expf((raw ? logit(g) : share) - max);
    weight += expf(share + bias(g));
  }
  const float count = static_cast<float>(group);
  const float score = max + logf(sum) - logf(count);
  // A moving sum without a past is its last term: ln 0 is far below any score.
  scores.ema = log_add(scores.ema + policy.log_alpha, score + policy.log_rest);
  scores.accumulated += weight / count;
  scores.observations++;
}

// ln(1 − alphaⁿ): the bias correction of a moving sum of `n` terms.
__device__ inline float ema_correction(const skv_policy &policy, uint32_t n) {
  return logf(-expm1f(static_cast<float>(n) * policy.log_alpha));
}

// ln of the corrected score; 0 if no row observed the slot yet.
__device__ inline float log_score(const Slot &slot, const skv_policy &policy) {
  const uint32_t n = slot.word(kSlotObservations);
  return n == 0 ? 0.0f : slot.get(kSlotEma) - ema_correction(policy, n);
}

// ln votes for the group: the mean over the lanes.
__device__ inline float pooled_bias(const Slot &slot, uint32_t lanes) {
  float sum = 0.0f;
  for (uint32_t lane = 0; lane < lanes; lane++) {
    sum += slot.get(kSlotBias + lane);
  }
  return sum / static_cast<float>(lanes);
}

// Vote bias for query head `g` of the group.
__device__ inline float vote_bias(const Slot &slot, uint32_t g,
                                  uint32_t lanes) {
  return slot.get(kSlotBias + (lanes == 1 ? 0 : g));
}

// What eviction sorts by: the score, ties by position. The lowest goes first.
__device__ inline uint64_t eviction_key(const Slot &slot,
                                        const skv_policy &policy,
                                        uint32_t lanes) {
  const uint32_t position = slot.word(kSlotPosition);
  if (policy.score == SKV_SCORE_POSITION) return position;
  float score;
  if (policy.score == SKV_SCORE_ACCUMULATED) {
    score = slot.get(kSlotAccumulated);
  } else {
    score = log_score(slot, policy);
    if (policy.count_votes) score += pooled_bias(slot, lanes);
  }
  return order_key(score, position);
}

// Whether a slot may be evicted: neither a sink nor a recent token.
__device__ inline bool is_evictable(uint32_t position, const skv_policy &policy,
                                    uint32_t recent, uint32_t newest) {
  return position >= policy.sinks && position + recent <= newest;
}

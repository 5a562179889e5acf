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

// Share of the mean attention that a slot needs in order to matter.
constexpr float kLeastShare = 0.999f;

// ln(exp(a) + exp(b)).
__device__ inline float log_add(float a, float b) {
  const float max = fmaxf(a, b);
  return max + __logf(1.0f + exp_fast(fminf(a, b) - max));
}

// What the logits of the row at `position` are multiplied with for its scores:
// see scoreGain of the reference.
__device__ inline float score_gain(const skv_policy &policy, uint32_t position,
                                   uint32_t budget) {
  if (policy.score != SKV_SCORE_STEP_GAIN) return 1.0f;
  const float ratio =
      static_cast<float>(position + 1) / static_cast<float>(budget);
  return sqrtf(2.0f * fmaxf(0.0f, logf(ratio)));
}

// Query heads whose logits are looked at together: all are read before any is
// used, since they may come from far.
constexpr uint32_t kRowHeads = 4;

// Adds the row at `position` of the text. At the scale that its scores have,
// `terms(first, logits, biases)` are the raw logits of the slot and its vote
// biases for kRowHeads heads, of those from `first` on that there are, and
// `log_sum(g)` the ln of the row's softmax sums.
//
// The moving sum is kept as its logarithm, because exp of a raw logit
// overflows: E ← ln(alpha exp(E) + (1 − alpha) s).
template <class Terms, class LogSum>
__device__ inline void observe_row(Scores &scores, const skv_policy &policy,
                                   uint32_t group, uint32_t position,
                                   Terms terms, LogSum log_sum) {
  const bool raw = policy.raw_scale != 0;
  float max = -INFINITY;
  float sum = 0.0f;
  float weight = 0.0f;
#pragma unroll 1
  for (uint32_t first = 0; first < group; first += kRowHeads) {
    float logits[kRowHeads], biases[kRowHeads];
    terms(first, logits, biases);
    const float before = max;
#pragma unroll
    for (uint32_t k = 0; k < kRowHeads; k++) {
      const float log_sum_of_row = log_sum(min(first + k, group - 1));
      biases[k] += logits[k] - log_sum_of_row;
      if (!raw) logits[k] -= log_sum_of_row;
      max = fmaxf(max, logits[k]);
    }
    sum *= exp_fast(before - max);
#pragma unroll
    for (uint32_t k = 0; k < kRowHeads; k++) {
      if (first + k >= group) continue;
      sum += exp_fast(logits[k] - max);
      weight += exp_fast(biases[k]);
    }
  }
  const float share = __frcp_rn(static_cast<float>(group));
  const float score = max + __logf(sum * share);
  if (policy.score == SKV_SCORE_LAST) {
    scores.accumulated = 0.0f;
    scores.observations = 0;
  }
  // A moving sum without a past is its last term: ln 0 is far below any score.
  scores.ema = log_add(scores.ema + policy.log_alpha, score + policy.log_rest);
  weight *= share;
  if (policy.score == SKV_SCORE_AGE) {
    const float tokens = static_cast<float>(position + 1);
    if (weight * tokens >= kLeastShare) scores.accumulated = tokens;
  } else {
    scores.accumulated += weight;
  }
  scores.observations++;
}

// ln(1 − alphaⁿ): the bias correction of a moving sum of `n` terms.
__device__ inline float ema_correction(const skv_policy &policy, uint32_t n) {
  const float past = static_cast<float>(n) * policy.log_alpha;
  // A difference from 1 that loses at most one bit.
  return past < -kLn2 ? __logf(1.0f - exp_fast(past)) : logf(-expm1f(past));
}

// ln of the corrected score; 0 if no row observed the slot yet.
__device__ inline float log_score(const Scores &scores,
                                  const skv_policy &policy) {
  const uint32_t n = scores.observations;
  return n == 0 ? 0.0f : scores.ema - ema_correction(policy, n);
}

__device__ inline float log_score(const Slot &slot, const skv_policy &policy) {
  return log_score(load_scores(slot), policy);
}

// ln votes for the group: the mean over the lanes.
__device__ inline float pooled_bias(const Slot &slot, uint32_t lanes) {
  float sum = 0.0f;
#pragma unroll 1
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

// Mean attention weight of the rows that observed a slot.
__device__ inline float mean_attention(const Scores &scores) {
  return scores.accumulated / static_cast<float>(max(1u, scores.observations));
}

__device__ inline float mean_attention(const Slot &slot) {
  return mean_attention(load_scores(slot));
}

// Whether a score is worked out from all keys of a head, without any row.
__host__ __device__ inline bool takes_all_keys(const skv_policy &policy) {
  return policy.score == SKV_SCORE_KEY_DISTANCE ||
         policy.score == SKV_SCORE_EXPECTED;
}

// What the policy's score says of a slot with these scores; `bias()` is its
// pooled vote bias. A position too large for a float is rounded; ties go by
// position and put it right.
template <class Bias>
__device__ inline float own_score(const Scores &scores, uint32_t position,
                                  const skv_policy &policy, Bias bias) {
  switch (policy.score) {
    case SKV_SCORE_POSITION:
      return static_cast<float>(position);
    case SKV_SCORE_EMA:
      return log_score(scores, policy) + (policy.count_votes ? bias() : 0.0f);
    case SKV_SCORE_MEAN:
    case SKV_SCORE_STEP_GAIN:
      return mean_attention(scores);
    default:
      return scores.accumulated;
  }
}

__device__ inline float own_score(const Slot &slot, const skv_policy &policy,
                                  uint32_t lanes) {
  return own_score(load_scores(slot), slot.word(kSlotPosition), policy,
                   [&] { return pooled_bias(slot, lanes); });
}

// Whether the numbers that a score says are logarithms.
__device__ inline bool is_logarithm(const skv_policy &policy) {
  return policy.score == SKV_SCORE_EMA || policy.score == SKV_SCORE_EXPECTED;
}

// Smallest norm that counts; the logarithm of less is of no use.
constexpr float kLeastNorm = 1e-30f;

// A score times the norm of the slot's value, where that counts.
__device__ inline float rank_of(float score, const Slot &slot,
                                const skv_policy &policy) {
  if (!policy.count_values) return score;
  const float norm = slot.get(kSlotValueNorm);
  const float power = static_cast<float>(policy.value_power);
  if (!is_logarithm(policy)) {
    return (score + policy.value_epsilon) *
           (policy.value_power == 2 ? norm * norm : norm);
  }
  return log_add(score, policy.log_value_epsilon) +
         power * logf(fmaxf(norm, kLeastNorm));
}

// What eviction sorts by: the rank, ties by position. The lowest goes first.
__device__ inline uint64_t rank_key(float score, const Slot &slot,
                                    const skv_policy &policy) {
  return order_key(rank_of(score, slot, policy), slot.word(kSlotPosition));
}

// What slots that stay by their scores alone are chosen by.
__device__ inline uint64_t score_key(float score, const Slot &slot) {
  return order_key(score, slot.word(kSlotPosition));
}

// Of `fitting` slots that have room, those that stay by their scores alone.
__device__ inline uint32_t first_stage(const skv_policy &policy,
                                       uint32_t fitting) {
  return static_cast<uint32_t>(policy.first_stage *
                               static_cast<float>(fitting));
}

// The sum of no scores; where they are logarithms, of what they stand for.
__device__ inline float no_scores(const skv_policy &policy) {
  return is_logarithm(policy) ? kLogZero : 0.0f;
}

__device__ inline float add_score(float sum, float score,
                                  const skv_policy &policy) {
  return is_logarithm(policy) ? log_add(sum, score) : sum + score;
}

__device__ inline float mean_score(float sum, uint32_t count,
                                   const skv_policy &policy) {
  const float terms = static_cast<float>(count);
  return is_logarithm(policy) ? sum - logf(terms) : sum / terms;
}

// Whether a slot may be evicted: neither a sink nor a recent token.
__device__ inline bool is_evictable(uint32_t position, const skv_policy &policy,
                                    uint32_t recent, uint32_t newest) {
  return position >= policy.sinks && position + recent <= newest;
}

// Merging slots: the twin of src/reference/merge_slots.ts, by one warp.
//
// Lanes share the members while votes and masses are summed, and the dimensions
// while keys and values are.
#pragma once

#include "scores.cuh"

// What a merge needs beside its members.
struct MergeContext {
  // (group, head_dim): queries of the current row.
  const float *queries;
  uint32_t group;
  uint32_t head_dim;
  uint32_t lanes;
};

struct Merged {
  // KL divergence between merge weights and vote shares.
  float divergence;
  // Whether a ZIP scale was unsafe.
  bool guarded;
};

// Share of the mean squared query added to the Gram matrix's diagonal.
constexpr double kRidge = 1e-6;

// Dot product of a query with lane-shared dimensions, in every lane.
__device__ inline float query_dot(const float *query,
                                  const float (&x)[kLaneDims],
                                  uint32_t head_dim) {
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kLaneDims; i++) {
    const uint32_t d = lane_id() + 32 * i;
    if (d < head_dim) sum += query[d] * x[i];
  }
  return warp_sum(sum);
}

// Moves a key by the smallest vector that changes the logit of every query head
// by `shift`, one in each lane. It lies in the span of the queries; its
// coordinates solve their Gram system, of which lane g holds row g.
//
// The elimination is in 64-bit floats: nearly parallel queries leave a system
// that 32 bits cannot solve.
__device__ inline void shift_key(float (&key)[kLaneDims],
                                 const MergeContext &context, float shift) {
  const uint32_t lane = lane_id();
  const uint32_t group = context.group;
  const uint32_t head_dim = context.head_dim;
  const bool mine = lane < group;
  const float *own = context.queries + (mine ? lane : 0) * head_dim;
  const double root = sqrt(static_cast<double>(head_dim));
  // In local memory: rows are short, and kept in registers they make this the
  // longest part of any kernel that merges.
  double row[kMaxGroup];
  double diagonal = 0.0;
#pragma unroll 1
  for (uint32_t j = 0; j < group; j++) {
    const float *other = context.queries + j * head_dim;
    double sum = 0.0;
#pragma unroll 4
    for (uint32_t d = 0; d < head_dim; d++) {
      sum += static_cast<double>(own[d]) * static_cast<double>(other[d]);
    }
    // Lanes beyond the group hold zeros, which take no part.
    row[j] = mine ? sum / root : 0.0;
    if (j == lane) diagonal = row[j];
  }
  double mean = diagonal;
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    mean += __shfl_xor_sync(kAllLanes, mean, offset);
  }
  mean /= group;
  if (mean == 0.0) return;
  double solution = mine ? static_cast<double>(shift) : 0.0;
  if (mine) row[lane] += kRidge * mean;
    // Gram matrices are positive definite: elimination needs no pivoting.
#pragma unroll 1
  for (uint32_t column = 0; column < group; column++) {
    const double pivot = __shfl_sync(kAllLanes, row[column], column);
    const double factor = lane == column ? 0.0 : row[column] / pivot;
#pragma unroll 1
    for (uint32_t j = column; j < group; j++) {
      row[j] -= factor * __shfl_sync(kAllLanes, row[j], column);
    }
    solution -= factor * __shfl_sync(kAllLanes, solution, column);
    if (lane == column) {
      solution /= pivot;
#pragma unroll 1
      for (uint32_t j = column; j < group; j++) row[j] /= pivot;
    }
  }
#pragma unroll 1
  for (uint32_t g = 0; g < group; g++) {
    const float weight =
        static_cast<float>(__shfl_sync(kAllLanes, solution, g));
    const float *query = context.queries + g * head_dim;
#pragma unroll
    for (int i = 0; i < kLaneDims; i++) {
      const uint32_t d = lane + 32 * i;
      if (d < head_dim) key[i] += weight * query[d];
    }
  }
}

// Merges `count` members into the first of them, which keeps its position. The
// caller frees the others. `member(i)` returns a Slot. QUERIES is false where
// merges are known not to look at the queries: with one vote lane, and any form
// of keys but the one with the smallest change. Called by a whole warp.
template <bool QUERIES, class Member>
__device__ inline Merged merge_slots(uint32_t count, Member member,
                                     const MergeContext &context,
                                     const skv_policy &policy) {
  const uint32_t lane = lane_id();
  const uint32_t lanes = context.lanes;
  const uint32_t group = context.group;
  const uint32_t head_dim = context.head_dim;

  // Merge weights a ∝ votes · ŝ, and how far they are from the vote shares.
  SoftmaxState masses = init_softmax(), ballots = init_softmax();
  for (uint32_t i = lane; i < count; i += 32) {
    const Slot slot = member(i);
    const float bias = pooled_bias(slot, lanes);
    add_softmax(masses, bias + log_score(slot, policy));
    add_softmax(ballots, bias);
  }
  const float mass = log_sum(warp_softmax(masses));
  const float votes = log_sum(warp_softmax(ballots));
  const auto weight_of = [&](const Slot &slot) {
    return expf(pooled_bias(slot, lanes) + log_score(slot, policy) - mass);
  };
  float score_sum = 0.0f, accumulated = 0.0f, norm_sum = 0.0f;
  uint32_t tokens = 0, observations = 0;
  for (uint32_t i = lane; i < count; i += 32) {
    const Slot slot = member(i);
    const float weight = weight_of(slot);
    score_sum += weight * log_score(slot, policy);
    accumulated += slot.get(kSlotAccumulated);
    norm_sum += weight * slot.get(kSlotValueNorm);
    tokens += slot.word(kSlotTokens);
    observations = max(observations, slot.word(kSlotObservations));
  }
  const float mean_score = warp_sum(score_sum);
  accumulated = warp_sum(accumulated);
  // At least the norm of the mean value, by the triangle inequality.
  const float value_norm = warp_sum(norm_sum);
  tokens = __reduce_add_sync(kAllLanes, tokens);
  observations = __reduce_max_sync(kAllLanes, observations);
  const float divergence = mean_score - (mass - votes);

  float key[kLaneDims] = {}, value[kLaneDims] = {};
  for (uint32_t first = 0; first < count; first += 32) {
    const uint32_t members = min(count - first, 32u);
    float own = 0.0f;
    if (lane < members) own = weight_of(member(first + lane));
    for (uint32_t m = 0; m < members; m++) {
      const Slot slot = member(first + m);
      const float weight = __shfl_sync(kAllLanes, own, m);
#pragma unroll
      for (int i = 0; i < kLaneDims; i++) {
        const uint32_t d = lane + 32 * i;
        if (d >= head_dim) continue;
        key[i] += weight * to_float(slot.key[d]);
        value[i] += weight * to_float(slot.value[d]);
      }
    }
  }

  // Per query head, one in each lane: ln of the members' votes, and by how much
  // the mean key overstates their mass for the current query.
  float lane_votes = votes, excess = 0.0f;
  if (QUERIES && (lanes > 1 || policy.key == SKV_KEY_MIN_NORM)) {
    const float root = rsqrtf(static_cast<float>(head_dim));
#pragma unroll 1
    for (uint32_t g = 0; g < group; g++) {
      const float *query = context.queries + g * head_dim;
      SoftmaxState exact = init_softmax(), shares = init_softmax();
      for (uint32_t m = 0; m < count; m++) {
        const Slot slot = member(m);
        float parts[kLaneDims];
#pragma unroll
        for (int i = 0; i < kLaneDims; i++) {
          const uint32_t d = lane + 32 * i;
          parts[i] = d < head_dim ? to_float(slot.key[d]) : 0.0f;
        }
        const float logit = query_dot(query, parts, head_dim) * root;
        const float bias = vote_bias(slot, g, lanes);
        add_softmax(exact, bias + logit);
        add_softmax(shares, bias);
      }
      const float current = query_dot(query, key, head_dim) * root;
      const float head_votes = log_sum(shares);
      if (lane == g) {
        lane_votes = head_votes;
        excess = current - (log_sum(exact) - head_votes);
      }
    }
  }

  float bias = lanes == 1 ? votes : lane_votes;
  const float real_votes =
      lanes == 1 ? votes - divergence : lane_votes - excess;
  bool guarded = false;
  if (policy.key == SKV_KEY_REAL_VOTES) {
    bias = real_votes;
  } else if (policy.key == SKV_KEY_ZIP) {
    const float scale = (mass - votes) / mean_score;
    guarded = !(scale >= policy.guard_low && scale <= policy.guard_high);
    if (guarded) {
      bias = real_votes;
    } else {
#pragma unroll
      for (int i = 0; i < kLaneDims; i++) key[i] *= scale;
    }
  } else if (QUERIES && policy.key == SKV_KEY_MIN_NORM) {
    shift_key(key, context, -excess);
  }

  // The merged slot's score is the one that gives its votes the members' mass.
  const float pooled =
      warp_sum(lane < lanes ? bias : 0.0f) / static_cast<float>(lanes);
  const Slot kept = member(0);
  // All lanes have read the members before any of them changes.
  __syncwarp();
#pragma unroll
  for (int i = 0; i < kLaneDims; i++) {
    const uint32_t d = lane + 32 * i;
    if (d >= head_dim) continue;
    kept.key[d] = to_cached(key[i]);
    kept.value[d] = to_cached(value[i]);
  }
  if (lane == 0) {
    if (observations > 0) {
      kept.set(kSlotEma, mass - pooled + ema_correction(policy, observations));
    }
    kept.set(kSlotAccumulated, accumulated);
    kept.set(kSlotValueNorm, value_norm);
    kept.set_word(kSlotObservations, observations);
    kept.set_word(kSlotTokens, tokens);
  }
  if (lane < lanes) kept.set(kSlotBias + lane, bias);
  __syncwarp();
  return {divergence, guarded};
}

// What many rows leave on the scores of slots: see lib/group_observe.cuh.
#pragma once

#include "scores.cuh"

// What the rows leave on a lane's two slots, g and g + 8 of its warp's.
struct ObservedSums {
  // The moving sum's terms, over 2^reference.
  float reference[2] = {-INFINITY, -INFINITY};
  float terms[2] = {};
  float weights[2] = {};

  // Adds the products of a tile of pairs.
  template <class Form>
  __device__ void add(typename Form::Logits &x,
                      const typename Form::Side &side) {
    const uint32_t t = lane_id() % 4;
    float top[2] = {reference[0], reference[1]};
#pragma unroll
    for (int n = 0; n < Form::kSums; n++) {
      const auto pick = [&](const float *all) {
        return *reinterpret_cast<const float2 *>(all + 8 * n + 2 * t);
      };
      const float2 inverse = pick(side.inverse), weight = pick(side.weight),
                   term = pick(side.term);
#pragma unroll
      for (int h = 0; h < 2; h++) {
        float &a = x[n][2 * h], &b = x[n][2 * h + 1];
        weights[h] += exp2_fast(fmaf(a, inverse.x, weight.x));
        weights[h] += exp2_fast(fmaf(b, inverse.y, weight.y));
        a = fmaf(a, inverse.x, term.x);
        b = fmaf(b, inverse.y, term.y);
        top[h] = fmaxf(top[h], fmaxf(a, b));
      }
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const float to = finite(top[h]);
      terms[h] *= exp2_fast(reference[h] - to);
      reference[h] = top[h];
#pragma unroll
      for (int n = 0; n < Form::kSums; n++) {
        terms[h] += exp2_fast(x[n][2 * h] - to);
        terms[h] += exp2_fast(x[n][2 * h + 1] - to);
      }
    }
  }

  // Adds up what the four lanes of a slot have.
  __device__ void join_lanes() {
#pragma unroll
    for (int h = 0; h < 2; h++) {
#pragma unroll
      for (int offset = 1; offset < 4; offset *= 2) {
        const float other = __shfl_xor_sync(kAllLanes, reference[h], offset);
        const float sum = __shfl_xor_sync(kAllLanes, terms[h], offset);
        const float top = fmaxf(reference[h], other), to = finite(top);
        terms[h] = terms[h] * exp2_fast(reference[h] - to) +
                   sum * exp2_fast(other - to);
        reference[h] = top;
        weights[h] += __shfl_xor_sync(kAllLanes, weights[h], offset);
      }
    }
  }

  // Adds them to the scores of the slot of row h, which `rows` rows observed.
  __device__ void store(int h, uint32_t rows, const Slot &slot, uint32_t group,
                        const skv_policy &policy) const {
    Scores scores = load_scores(slot);
    const float share = __frcp_rn(static_cast<float>(group));
    const float added = kLn2 * reference[h] + logf(terms[h] * share);
    scores.ema =
        log_add(scores.ema + static_cast<float>(rows) * policy.log_alpha,
                added + policy.log_rest);
    scores.accumulated += expf(slot.get(kSlotBias)) * weights[h] * share;
    scores.observations += rows;
    store_scores(slot, scores);
  }
};

// The slots of a head on their way to the policy, one ahead of another.
#pragma once

#include "evict_job.cuh"

// What is read of a slot that a row observes.
struct Seen {
  uint32_t tokens;
  uint32_t position;
  Scores scores;
  // The first, or only, vote bias.
  float bias;
  // Of the first query heads, where there is a row.
  float logits[kRowHeads];
};

// Reads it: of slot i of a head, by its number alone.
struct SlotReader {
  const float *ema;
  const float *accumulated;
  const float *observations;
  const float *positions;
  const float *tokens;
  const float *biases;
  const float *logits[kRowHeads];

  __device__ SlotReader(const skv_merge_attend_args &args,
                        const EvictJob &job) {
    const skv_slots &slots = args.cache.slots;
    const auto field = [&](uint32_t number) {
      return slots.side + static_cast<size_t>(number) * slots.total +
             job.offset;
    };
    ema = field(kSlotEma);
    accumulated = field(kSlotAccumulated);
    observations = field(kSlotObservations);
    positions = field(kSlotPosition);
    tokens = field(kSlotTokens);
    biases = field(kSlotBias);
#pragma unroll
    for (uint32_t k = 0; k < kRowHeads; k++) {
      logits[k] = head_logits(args, job, min(k, job.group - 1));
    }
  }

  __device__ static const float *head_logits(const skv_merge_attend_args &args,
                                             const EvictJob &job, uint32_t g) {
    return job.logits + static_cast<size_t>(g) * args.cache.max_capacity;
  }

  __device__ Seen read(uint32_t i, bool has_row) const {
    Seen seen = {__float_as_uint(tokens[i]),
                 __float_as_uint(positions[i]),
                 {ema[i], accumulated[i], __float_as_uint(observations[i])},
                 biases[i],
                 {}};
    if (has_row) {
#pragma unroll
      for (uint32_t k = 0; k < kRowHeads; k++) seen.logits[k] = logits[k][i];
    }
    return seen;
  }
};

// Adds the row to what was seen of slot i.
__device__ inline void observe_seen(const skv_merge_attend_args &args,
                                    const EvictJob &job, uint32_t i, float gain,
                                    const float *log_sums, Seen &seen) {
  const uint32_t lanes = args.cache.lanes;
  observe_row(
      seen.scores, args.policy, job.group, job.position,
      [&](uint32_t first, auto &logits, auto &biases) {
        // Nearly always this is all.
        if (first == 0 && lanes == 1) {
#pragma unroll
          for (uint32_t k = 0; k < kRowHeads; k++) {
            logits[k] = gain * seen.logits[k];
            biases[k] = gain * seen.bias;
          }
          return;
        }
#pragma unroll
        for (uint32_t k = 0; k < kRowHeads; k++) {
          const uint32_t g = min(first + k, job.group - 1);
          logits[k] = gain * SlotReader::head_logits(args, job, g)[i];
          biases[k] = gain * vote_bias(job.slot(args, i), g, lanes);
        }
      },
      [&](uint32_t g) { return log_sums[g]; });
}

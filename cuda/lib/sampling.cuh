// What sampling knows of a sequence: its options, its logits, and what the
// kernels of a step hand to each other.
#pragma once

#include "overlap.cuh"
#include "reduce.cuh"
#include "softmax_state.cuh"
#include "step.cuh"

constexpr uint32_t kSampleThreads = 512;
constexpr uint32_t kSampleWarps = kSampleThreads / 32;

enum SamplingWord {
  kTemperature = 0,
  kTopK = 1,
  kTopP = 2,
  kMinP = 3,
  kRepetitionPenalty = 4,
  kStopCount = 5,
  kStopIds = 8,
  kSamplingWords = 32
};

// A weight exp(l) ≤ 1 in units of 2^-36: sums of any number of ids are exact,
// and do not depend on the order of the threads.
constexpr float kWeightUnit = 68719476736.0f;

__device__ inline uint64_t weight_of(float scaled) {
  return static_cast<uint64_t>(expf(scaled) * kWeightUnit + 0.5f);
}

// -l in units of 2^-26: what thresholds are searched by. Smaller is likelier.
// Below -64, where weights are 0, all are alike.
__device__ inline uint32_t rank_of(float scaled) {
  const float rank = -scaled * 67108864.0f;
  return rank < 4294967040.0f ? static_cast<uint32_t>(rank) : 0xffffffffu;
}

// Ranks that are counted together, 1/32 of a natural logarithm.
constexpr uint32_t kBucketShift = 21;
constexpr uint32_t kBuckets = 1u << (32 - kBucketShift);

__device__ inline uint64_t first_of_bucket(uint32_t bucket) {
  return static_cast<uint64_t>(bucket) << kBucketShift;
}

// What is known of a row after a kernel.
struct SamplePlan {
  // The most likely id and its logit, as the options change it.
  uint32_t best;
  float max;
  // ln of the softmax sum of the raw logits.
  float log_sum;
  // Whether the id is still to be drawn, and whether thresholds are unknown.
  uint32_t draws;
  uint32_t filters;
  // Ids of the ranks between the two are listed: whether they take part is
  // decided last. Those before take part.
  uint64_t begin;
  uint64_t end;
  // Weights of all ids; those before `begin`, and how many they are.
  uint64_t weight;
  uint64_t weight_before;
  uint32_t count_before;
};

// What a block finds in its ids: the key of the best, its raw logit and the
// one that the options make of it, and the softmax state of the raw logits.
struct SamplePart {
  uint64_t key;
  float raw;
  float changed;
  float max;
  float sum;
};

// Ids that are listed; where there are more, all are looked at again.
constexpr uint32_t kMostListed = 8192;

// Memory of the kernels, by row.
struct SampleWork {
  // (rows)
  SamplePlan *plans;
  // (rows, blocks)
  SamplePart *parts;
  // (rows, kBuckets): ids of each bucket, and their weights
  uint32_t *counts;
  uint64_t *weights;
  // (rows, blocks): weights of a block's ids that take part for certain
  uint64_t *sums;
  // (rows), (rows, kMostListed): ids that are listed
  uint32_t *listed;
  uint32_t *list;
  // (rows)
  uint32_t *tickets;
  // Blocks of a row, and ids of each.
  uint32_t blocks;
  uint32_t slice;
};

// A row that is sampled: blockIdx.y of the launch.
struct SampleRow {
  bool live;
  uint32_t sequence;
  uint32_t position;
  uint32_t vocabulary;
  const float *raw;
  const uint32_t *seen;
  const uint32_t *options;
  float penalty;

  __device__ explicit SampleRow(const skv_sample_args &args) {
    const bool prefill = args.step.kind == SKV_PREFILL;
    const uint32_t end = row_end(args.step);
    Row row = {};
    if (end > 0) row = row_of(args.step, prefill ? end - 1 : blockIdx.y);
    live = row.live;
    sequence = row.sequence;
    position = row.position;
    vocabulary = args.sizes.vocabulary;
    raw = args.logits + static_cast<size_t>(blockIdx.y) * vocabulary;
    seen = args.seen + sequence * static_cast<size_t>((vocabulary + 31) / 32);
    options = args.sampling + sequence * kSamplingWords;
    penalty = option(kRepetitionPenalty);
  }

  __device__ float option(uint32_t word) const {
    return __uint_as_float(options[word]);
  }
  // Whether the likeliest ids alone take part.
  __device__ bool has_top_k() const {
    return options[kTopK] > 0 && options[kTopK] < vocabulary;
  }
  __device__ bool has_top_p() const { return option(kTopP) < 1.0f; }
  // The last rank that is likely enough beside the likeliest.
  __device__ uint32_t least_rank() const {
    const float least = option(kMinP);
    return least > 0.0f ? rank_of(logf(least)) : 0xffffffffu;
  }

  // Positive logits of ids seen before are divided, negative ones multiplied.
  __device__ float changed(uint32_t id, float logit) const {
    if ((seen[id / 32] >> id % 32 & 1) == 0) return logit;
    return logit > 0.0f ? logit / penalty : logit * penalty;
  }
  __device__ float logit(uint32_t id) const { return changed(id, raw[id]); }
};

// The logits of a row as they are drawn from.
struct ScaledLogits {
  const SampleRow &row;
  float max;
  float temperature;

  __device__ float operator()(uint32_t id) const {
    return (row.logit(id) - max) / temperature;
  }
};

// The id that a text takes, and its place among the outputs.
struct Output {
  size_t ring;
  uint32_t produced;
  // What is taken whatever the logits, if it is an id.
  uint32_t forced;

  __device__ Output(const skv_sample_args &args, const SampleRow &row) {
    produced = args.step.state[row.sequence * kStateWords + kStateProduced];
    ring = static_cast<size_t>(row.sequence) * args.ring + produced % args.ring;
    forced = args.forced[ring];
  }
};

// Writes the id and moves the sequence on. Called by one thread.
__device__ inline void finish_row(const skv_sample_args &args,
                                  const SampleRow &row, const Output &output,
                                  uint32_t id, float log_probability) {
  uint32_t *state = args.step.state + row.sequence * kStateWords;
  args.next_tokens[row.sequence] = id;
  uint32_t *entry = args.output + output.ring * 2;
  entry[0] = id;
  entry[1] = __float_as_uint(log_probability);
  bool finished = output.produced + 1 >= state[kStateLimit];
  for (uint32_t i = 0; i < row.options[kStopCount]; i++) {
    finished = finished || row.options[kStopIds + i] == id;
  }
  state[kStatePosition] = row.position + 1;
  state[kStateProduced] = output.produced + 1;
  if (finished) state[kStateFinished] = 1;
}

// Takes a ticket of the row; true for the last of its blocks, which then sees
// what the others wrote. Called by one thread that has fenced.
__device__ inline bool is_last_block(const SampleWork &work) {
  uint32_t *ticket = work.tickets + blockIdx.y;
  const bool last = atomicAdd(ticket, 1) == work.blocks - 1;
  if (last) *ticket = 0;
  __threadfence();
  return last;
}

// True in the last of a row's blocks to get here, which then sees what the
// others wrote. Called by the whole block.
__device__ inline bool is_left_alone(const SampleWork &work, bool &is_last) {
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) is_last = is_last_block(work);
  __syncthreads();
  if (is_last) __threadfence();
  return is_last;
}

// The PCG output permutation (O'Neill, 2014).
__device__ inline uint32_t permute(uint32_t value) {
  const uint32_t state = value * 747796405u + 2891336453u;
  const uint32_t word = ((state >> ((state >> 28) + 4)) ^ state) * 277803737u;
  return (word >> 22) ^ word;
}

// 24 random bits that depend on the seed and the counter alone.
__device__ inline uint32_t random_bits(const uint32_t *state) {
  const uint32_t seed =
      permute(state[kStateSeedLow] + permute(state[kStateSeedHigh]));
  return permute(state[kStateProduced] + seed) >> 8;
}

// Calls `use(id)` for this thread's ids of the block.
template <class Use>
__device__ inline void for_each_id(const SampleRow &row, const SampleWork &work,
                                   Use use) {
  const uint32_t end = min(row.vocabulary, (blockIdx.x + 1) * work.slice);
#pragma unroll 2
  for (uint32_t id = blockIdx.x * work.slice + threadIdx.x; id < end;
       id += kSampleThreads) {
    use(id);
  }
}

// What the weights of the likeliest ids have to add up to, of a sum.
__device__ inline uint64_t wanted_of(const SampleRow &row, uint64_t mass) {
  const double share = ceil(row.option(kTopP) * static_cast<double>(mass));
  return max(static_cast<uint64_t>(share), static_cast<uint64_t>(1));
}

// Blocks of a row are at most the threads of one.
constexpr uint32_t kMostBlocks = kSampleThreads;

// Decode attention of one warp over its share of the slots of a KV head.
//
// All query heads of the group ride in one tensor core tile, so that a key is
// read once for the group. Keys and values go from memory to registers in 16
// byte loads, and become operands there: the columns of keys are dealt to the
// lanes as they come (fragment_index in lib/mma.cuh), and pairs of values are
// put side by side by byte permutations.
#pragma once

#include "mma.cuh"
#include "slots.cuh"
#include "softmax_state.cuh"
#include "step.cuh"

constexpr uint32_t kAttendWarps = 8;
constexpr uint32_t kAttendThreads = 32 * kAttendWarps;

// Slots that a warp takes at a time, and that a block takes.
constexpr uint32_t kWarpSlots = 16;
constexpr uint32_t kBlockSlots = kAttendWarps * kWarpSlots;

constexpr uint32_t kMaxSplits = 64;

// One (sequence, KV head) of a step.
struct HeadJob {
  uint32_t row;
  uint32_t kv_head;
  uint32_t position;
  uint32_t group;
  // Index among the heads of the step, for `AttendParts`.
  uint32_t index;
  uint32_t *words;
  uint32_t offset;
  uint32_t capacity;
  uint32_t high;
};

__device__ inline HeadJob job_of(const skv_merge_attend_args &args,
                                 const Row &row) {
  HeadJob job;
  job.row = blockIdx.z;
  job.kv_head = blockIdx.y;
  job.position = row.position;
  job.group = args.sizes.heads / args.sizes.kv_heads;
  job.index = job.row * args.sizes.kv_heads + job.kv_head;
  job.words = head_words(args.cache, args.sizes, row.sequence, job.kv_head);
  job.offset = job.words[kHeadOffset];
  job.capacity = job.words[kHeadCapacity];
  const uint32_t used = min(job.words[kHeadNext] + 1, job.capacity);
  job.high = max(job.words[kHeadHigh], used);
  return job;
}

// Dimensions of a value that one lane loads at a time.
template <int DIM>
constexpr int kValueDims = DIM >= 64 ? 8 : 4;

// Where dimension `d` of query head `g` is among the sums of a block: in the
// order of the accumulators, so that a warp adds its own without conflicts.
template <int DIM>
__device__ inline uint32_t value_index(uint32_t g, uint32_t d) {
  constexpr uint32_t kDims = kValueDims<DIM>;
  const uint32_t chunk = d / (8 * kDims), inner = d % (8 * kDims);
  const uint32_t tile = chunk * kDims + inner % kDims;
  return (tile * kMaxGroup + g) * 8 + inner / kDims;
}

template <int DIM>
struct AttendShared {
  // Queries, and queries of sinks, as tensor core operands.
  uint4 high[2][DIM / 16 * 32];
  uint4 low[2][DIM / 16 * 32];
  float inverse[2][kMaxGroup];
  float values[kMaxGroup * DIM];
  SoftmaxState warp_states[kAttendWarps][kMaxGroup];
  SoftmaxState states[kMaxGroup];
  float log_sums[kMaxGroup];
  float factors[kMaxSplits][kMaxGroup];
  uint32_t live[kAttendWarps];
  uint32_t first_free[kAttendWarps];
  bool is_last;
};

// Attention of one warp over its share of the slots.
template <int DIM, bool ALIGNED>
struct WarpAttention {
  static constexpr int kDims = kValueDims<DIM>;
  static constexpr int kChunks = DIM / (8 * kDims);
  SoftmaxState state[2] = {init_softmax(), init_softmax()};
  float values[kChunks][kDims][4] = {};
  uint32_t live = 0;
  uint32_t first_free = ~0u;

  // Adds the slots `first .. first + 16` of the head, those before `end`.
  __device__ void add(const skv_merge_attend_args &args, const HeadJob &job,
                      const AttendShared<DIM> &shared, float *logits,
                      uint32_t first, uint32_t end) {
    const skv_slots &slots = args.cache.slots;
    const uint32_t head_dim = args.sizes.head_dim;
    const uint32_t g = lane_id() / 4, t = lane_id() % 4;
    uint32_t k[2][DIM / 32][4];
#pragma unroll
    for (int n = 0; n < 2; n++) {
      const uint32_t slot = job.offset + min(first + 8 * n + g, end - 1);
      const skv_half *key = slots.keys + static_cast<size_t>(slot) * head_dim;
#pragma unroll
      for (int c = 0; c < DIM / 32; c++) {
        load_halves<8, ALIGNED>(k[n][c], key, 32 * c + 8 * t, head_dim);
      }
    }
    // Rows 2t, 2t + 1, 2t + 8 and 2t + 9 of the values.
    uint32_t v[4][kChunks][kDims / 2];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const uint32_t inner = 2 * t + i % 2 + i / 2 * 8;
      const uint32_t slot = job.offset + min(first + inner, end - 1);
      const skv_half *value =
          slots.values + static_cast<size_t>(slot) * head_dim;
#pragma unroll
      for (int c = 0; c < kChunks; c++) {
        load_halves<kDims, ALIGNED>(v[i][c], value, (8 * c + g) * kDims,
                                    head_dim);
      }
    }
    float bias[2][4];
    load_biases(args, job, first, end, bias);
    float raw[2][4] = {};
    multiply_keys(shared, 0, k, raw);
    if (args.sink_queries != nullptr) {
      replace_sinks(args, job, shared, k, first, end, raw);
    }
    if (args.policy.observe) store_logits(args, job, logits, raw, first, end);

    // Weights, as the left operand of the product with the values.
    float x[2][4];
    float top[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int n = 0; n < 2; n++) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const bool counts = bias[n][i] > kLiveBias;
        x[n][i] = counts ? raw[n][i] + bias[n][i] : -INFINITY;
        top[i / 2] = fmaxf(top[i / 2], x[n][i]);
      }
    }
    float keep[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
      top[h] = fmaxf(top[h], __shfl_xor_sync(kAllLanes, top[h], 1));
      top[h] = fmaxf(top[h], __shfl_xor_sync(kAllLanes, top[h], 2));
      const float max = fmaxf(state[h].max, top[h] - kHeadroom);
      keep[h] = softmax_scale(state[h].max, max);
      state[h].max = max;
      state[h].sum *= keep[h];
    }
    SplitPair weights[2][2];
#pragma unroll
    for (int n = 0; n < 2; n++) {
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const float max = state[h].max;
        const float a = softmax_scale(x[n][2 * h], max);
        const float b = softmax_scale(x[n][2 * h + 1], max);
        state[h].sum += a + b;
        weights[n][h] = split_pair(a, b);
      }
    }
    const uint4 high = {weights[0][0].high, weights[0][1].high,
                        weights[1][0].high, weights[1][1].high};
    const uint4 low = {weights[0][0].low, weights[0][1].low, weights[1][0].low,
                       weights[1][1].low};
#pragma unroll
    for (int c = 0; c < kChunks; c++) {
#pragma unroll
      for (int d = 0; d < kDims; d++) {
        float(&sum)[4] = values[c][d];
        sum[0] *= keep[0], sum[1] *= keep[0];
        sum[2] *= keep[1], sum[3] *= keep[1];
        // Dimension d of two neighbouring rows, side by side.
        const uint32_t pick = d % 2 == 0 ? 0x5410 : 0x7632;
        const uint32_t b0 = __byte_perm(v[0][c][d / 2], v[1][c][d / 2], pick);
        const uint32_t b1 = __byte_perm(v[2][c][d / 2], v[3][c][d / 2], pick);
        mma(sum, low, b0, b1);
        mma(sum, high, b0, b1);
      }
    }
  }

  // Vote biases of slots 2t, 2t + 1 of both tiles for heads g and g + 8; those
  // beyond the end look free.
  __device__ void load_biases(const skv_merge_attend_args &args,
                              const HeadJob &job, uint32_t first, uint32_t end,
                              float (&bias)[2][4]) {
    const skv_slots &slots = args.cache.slots;
    const uint32_t g = lane_id() / 4, t = lane_id() % 4;
    const bool shared_votes = args.cache.lanes == 1;
#pragma unroll
    for (int n = 0; n < 2; n++) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const uint32_t slot = first + 8 * n + 2 * t + i % 2;
        const uint32_t head = g + i / 2 * 8;
        bias[n][i] = kFreeBias;
        if (slot >= end || head >= job.group) continue;
        const size_t field = kSlotBias + (shared_votes ? 0 : head);
        bias[n][i] = slots.side[field * slots.total + job.offset + slot];
        if (head != 0) continue;
        if (bias[n][i] > kLiveBias) {
          live++;
        } else {
          first_free = min(first_free, slot);
        }
      }
    }
  }

  __device__ void multiply_keys(const AttendShared<DIM> &shared, int which,
                                const uint32_t (&k)[2][DIM / 32][4],
                                float (&raw)[2][4]) {
#pragma unroll
    for (int step = 0; step < DIM / 16; step++) {
      const uint4 high = shared.high[which][step * 32 + lane_id()];
      const uint4 low = shared.low[which][step * 32 + lane_id()];
#pragma unroll
      for (int n = 0; n < 2; n++) {
        const uint32_t b0 = k[n][step / 2][step % 2 * 2];
        const uint32_t b1 = k[n][step / 2][step % 2 * 2 + 1];
        mma(raw[n], low, b0, b1);
        mma(raw[n], high, b0, b1);
      }
    }
    const uint32_t g = lane_id() / 4;
#pragma unroll
    for (int n = 0; n < 2; n++) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        raw[n][i] *= shared.inverse[which][g + i / 2 * 8];
      }
    }
  }

  // Logits of sinks are those of the queries at their cache positions.
  __device__ void replace_sinks(const skv_merge_attend_args &args,
                                const HeadJob &job,
                                const AttendShared<DIM> &shared,
                                const uint32_t (&k)[2][DIM / 32][4],
                                uint32_t first, uint32_t end,
                                float (&raw)[2][4]) {
    const skv_slots &slots = args.cache.slots;
    const float *positions = slots.side +
                             static_cast<size_t>(kSlotPosition) * slots.total +
                             job.offset;
    bool is_sink[2][2];
    bool any = false;
#pragma unroll
    for (int n = 0; n < 2; n++) {
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const uint32_t slot = first + 8 * n + 2 * (lane_id() % 4) + i;
        is_sink[n][i] =
            slot < end && __float_as_uint(positions[slot]) < args.policy.sinks;
        any = any || is_sink[n][i];
      }
    }
    if (!__any_sync(kAllLanes, any)) return;
    float other[2][4] = {};
    multiply_keys(shared, 1, k, other);
#pragma unroll
    for (int n = 0; n < 2; n++) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        if (is_sink[n][i % 2]) raw[n][i] = other[n][i];
      }
    }
  }

  __device__ void store_logits(const skv_merge_attend_args &args,
                               const HeadJob &job, float *logits,
                               const float (&raw)[2][4], uint32_t first,
                               uint32_t end) {
    const uint32_t g = lane_id() / 4, t = lane_id() % 4;
#pragma unroll
    for (int n = 0; n < 2; n++) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const uint32_t slot = first + 8 * n + 2 * t + i % 2;
        const uint32_t head = g + i / 2 * 8;
        if (slot >= end || head >= job.group) continue;
        logits[static_cast<size_t>(head) * args.cache.max_capacity + slot] =
            raw[n][i];
      }
    }
  }
};

// Splits the queries of the group into tensor core operands.
template <int DIM>
__device__ inline void load_queries(const skv_merge_attend_args &args,
                                    const HeadJob &job,
                                    AttendShared<DIM> &shared) {
  const uint32_t head_dim = args.sizes.head_dim;
  const float root = rsqrtf(static_cast<float>(head_dim));
  const uint32_t kinds = args.sink_queries == nullptr ? 1 : 2;
  for (uint32_t i = warp_id(); i < kinds * kMaxGroup; i += kAttendWarps) {
    const uint32_t kind = i / kMaxGroup, g = i % kMaxGroup;
    const float *all = kind == 0 ? args.queries : args.sink_queries;
    const size_t head = static_cast<size_t>(job.row) * args.sizes.heads +
                        job.kv_head * job.group + g;
    const float inverse =
        split_row<DIM, false>(g < job.group ? all + head * head_dim : nullptr,
                              head_dim, g, shared.high[kind], shared.low[kind]);
    if (lane_id() == 0) shared.inverse[kind][g] = inverse * root;
  }
}

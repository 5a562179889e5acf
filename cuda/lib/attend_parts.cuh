// How the parts of an attention become one: those of the warps of a block, then
// those of the blocks of a head.
#pragma once

#include "attend_slots.cuh"
#include "evidence.cuh"

// Memory between the blocks of a head.
struct AttendParts {
  // (heads, most_splits, group, DIM)
  float *values;
  // (heads, most_splits, kMaxGroup)
  float2 *states;
  // (heads, most_splits): live slots, and the first free one
  uint2 *counts;
  // (heads)
  uint32_t *tickets;
  uint32_t most_splits;
  // Splits that would fill the device.
  uint32_t wanted_splits;
};

// Splits of a head with slots up to `high`. They do not depend on the capacity:
// caches that hold the same give the same result.
__device__ inline uint32_t splits_of(const AttendParts &parts, uint32_t high) {
  const uint32_t most = (high + kBlockSlots - 1) / kBlockSlots;
  return max(1u, min(min(parts.wanted_splits, most), parts.most_splits));
}

// Adds the states of the block's warps up; values stay in the order of
// `value_index`.
template <int DIM, bool ALIGNED>
__device__ inline void merge_warps(const HeadJob &job,
                                   WarpAttention<DIM, ALIGNED> &warp,
                                   AttendShared<DIM> &shared) {
  const uint32_t g = lane_id() / 4, t = lane_id() % 4;
#pragma unroll
  for (int h = 0; h < 2; h++) {
    float &sum = warp.state[h].sum;
    sum += __shfl_xor_sync(kAllLanes, sum, 1);
    sum += __shfl_xor_sync(kAllLanes, sum, 2);
    if (t == 0) shared.warp_states[warp_id()][g + 8 * h] = warp.state[h];
  }
  warp.live = __reduce_add_sync(kAllLanes, warp.live);
  warp.first_free = __reduce_min_sync(kAllLanes, warp.first_free);
  if (lane_id() == 0) {
    shared.live[warp_id()] = warp.live;
    shared.first_free[warp_id()] = warp.first_free;
  }
  __syncthreads();
  if (threadIdx.x < kMaxGroup) {
    SoftmaxState state = init_softmax();
    for (uint32_t w = 0; w < kAttendWarps; w++) {
      state = merge_softmax(state, shared.warp_states[w][threadIdx.x]);
    }
    shared.states[threadIdx.x] = state;
  }
  for (uint32_t i = threadIdx.x; i < kMaxGroup * DIM; i += kAttendThreads) {
    shared.values[i] = 0.0f;
  }
  for (uint32_t w = 0; w < kAttendWarps; w++) {
    __syncthreads();
    // A warp without slots has nothing to add.
    if (warp_id() != w || warp.state[0].max == -INFINITY) continue;
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const uint32_t head = g + 8 * h;
      if (head >= job.group) continue;
      const float scale =
          softmax_scale(warp.state[h].max, shared.states[head].max);
#pragma unroll
      for (int c = 0; c < WarpAttention<DIM, ALIGNED>::kChunks; c++) {
#pragma unroll
        for (int d = 0; d < WarpAttention<DIM, ALIGNED>::kDims; d++) {
          const uint32_t tile = c * WarpAttention<DIM, ALIGNED>::kDims + d;
          float2 *to = reinterpret_cast<float2 *>(
              shared.values + (tile * kMaxGroup + head) * 8 + 2 * t);
          float2 sum = *to;
          sum.x += warp.values[c][d][2 * h] * scale;
          sum.y += warp.values[c][d][2 * h + 1] * scale;
          *to = sum;
        }
      }
    }
  }
  __syncthreads();
}

// Live slots and the first free one, over the block's warps.
template <int DIM>
__device__ inline uint2 block_counts(const AttendShared<DIM> &shared) {
  uint2 counts = {0, ~0u};
  for (uint32_t w = 0; w < kAttendWarps; w++) {
    counts.x += shared.live[w];
    counts.y = min(counts.y, shared.first_free[w]);
  }
  return counts;
}

// Leaves the block's part for the last one; true in that.
template <int DIM>
__device__ inline bool publish(const HeadJob &job, const AttendParts &parts,
                               uint32_t splits, AttendShared<DIM> &shared) {
  const uint32_t part = job.index * parts.most_splits + blockIdx.x;
  float *values = parts.values + static_cast<size_t>(part) * job.group * DIM;
  for (uint32_t i = threadIdx.x; i < job.group * DIM; i += kAttendThreads) {
    values[i] = shared.values[value_index<DIM>(i / DIM, i % DIM)];
  }
  if (threadIdx.x < kMaxGroup) {
    const SoftmaxState state = shared.states[threadIdx.x];
    parts.states[part * kMaxGroup + threadIdx.x] = {state.max, state.sum};
  }
  if (threadIdx.x == 0) parts.counts[part] = block_counts(shared);
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    const uint32_t ticket = atomicAdd(parts.tickets + job.index, 1);
    shared.is_last = ticket == splits - 1;
    if (shared.is_last) parts.tickets[job.index] = 0;
  }
  __syncthreads();
  if (shared.is_last) __threadfence();
  return shared.is_last;
}

// Writes one dimension of the output of a query head.
__device__ inline void store_output(const skv_merge_attend_args &args,
                                    const HeadJob &job,
                                    const Evidence &evidence, uint32_t g,
                                    uint32_t d, float x) {
  const uint32_t head_dim = args.sizes.head_dim;
  const size_t head = static_cast<size_t>(job.row) * args.sizes.heads +
                      job.kv_head * job.group + g;
  args.output[head * head_dim + d] = x;
  if (evidence.outputs == nullptr) return;
  const size_t own = static_cast<size_t>(job.index) * job.group + g;
  evidence.outputs[own * head_dim + d] = x;
}

// Adds the parts of all blocks up and writes the output. Returns the counts of
// live slots and of the first free one.
template <int DIM>
__device__ inline uint2 combine(const skv_merge_attend_args &args,
                                const HeadJob &job, const AttendParts &parts,
                                const Evidence &evidence, uint32_t splits,
                                AttendShared<DIM> &shared) {
  const uint32_t first = job.index * parts.most_splits;
  const volatile float2 *states = parts.states;
  if (threadIdx.x < job.group) {
    const uint32_t g = threadIdx.x;
    SoftmaxState all = init_softmax();
    for (uint32_t s = 0; s < splits; s++) {
      const uint32_t at = (first + s) * kMaxGroup + g;
      all = merge_softmax(all, {states[at].x, states[at].y});
    }
    for (uint32_t s = 0; s < splits; s++) {
      const float max = states[(first + s) * kMaxGroup + g].x;
      shared.factors[s][g] = softmax_scale(max, all.max) / all.sum;
    }
    shared.log_sums[g] = log_sum(all);
  }
  __syncthreads();
  const uint32_t head_dim = args.sizes.head_dim;
  for (uint32_t i = threadIdx.x; i < job.group * DIM; i += kAttendThreads) {
    const uint32_t g = i / DIM, d = i % DIM;
    if (d >= head_dim) continue;
    float sum = 0.0f;
    for (uint32_t s = 0; s < splits; s++) {
      const float *values =
          parts.values + static_cast<size_t>(first + s) * job.group * DIM;
      sum += __ldcg(values + i) * shared.factors[s][g];
    }
    store_output(args, job, evidence, g, d, sum);
  }
  uint2 counts = {0, ~0u};
  const volatile uint2 *others = parts.counts + first;
  for (uint32_t s = 0; s < splits; s++) {
    counts.x += others[s].x;
    counts.y = min(counts.y, others[s].y);
  }
  return counts;
}

// The same where the block had all slots.
template <int DIM>
__device__ inline uint2 finish_alone(const skv_merge_attend_args &args,
                                     const HeadJob &job,
                                     const Evidence &evidence,
                                     AttendShared<DIM> &shared) {
  const uint32_t head_dim = args.sizes.head_dim;
  for (uint32_t i = threadIdx.x; i < job.group * DIM; i += kAttendThreads) {
    const uint32_t g = i / DIM, d = i % DIM;
    if (d >= head_dim) continue;
    store_output(args, job, evidence, g, d,
                 shared.values[value_index<DIM>(g, d)] / shared.states[g].sum);
  }
  if (threadIdx.x < kMaxGroup) {
    shared.log_sums[threadIdx.x] = log_sum(shared.states[threadIdx.x]);
  }
  const uint2 counts = block_counts(shared);
  __syncthreads();
  return counts;
}

// Notes what the policy needs to know; `log_sums` are in shared memory.
template <int DIM>
__device__ inline void leave_evidence(const skv_merge_attend_args &args,
                                      const HeadJob &job,
                                      const Evidence &evidence, uint2 counts,
                                      const AttendShared<DIM> &shared) {
  if (threadIdx.x == 0) {
    evidence.rows[job.index] = {job.position, counts.x, min(counts.y, job.high),
                                job.high};
  }
  if (evidence.log_sums != nullptr && threadIdx.x < job.group) {
    evidence.log_sums[job.index * kMaxGroup + threadIdx.x] =
        shared.log_sums[threadIdx.x];
  }
  if (evidence.queries == nullptr) return;
  const uint32_t count = job.group * args.sizes.head_dim;
  const float *queries =
      args.queries + (static_cast<size_t>(job.row) * args.sizes.heads +
                      job.kv_head * job.group) *
                         args.sizes.head_dim;
  for (uint32_t i = threadIdx.x; i < count; i += kAttendThreads) {
    evidence.queries[static_cast<size_t>(job.index) * count + i] = queries[i];
  }
}

// The output of attention: the parts of the blocks of a head, added up by the
// last of them, or the only one's.
#pragma once

#include "attend_parts.cuh"

// Writes four dimensions of the output of a query head.
__device__ inline void store_output(const skv_merge_attend_args &args,
                                    const HeadJob &job,
                                    const Evidence &evidence, uint32_t g,
                                    uint32_t d, float4 x) {
  const uint32_t head_dim = args.sizes.head_dim;
  if (d >= head_dim) return;
  const auto store = [&](float *to) {
    if (head_dim % 4 == 0) {
      *reinterpret_cast<float4 *>(to) = x;
    } else {
      // The width is even.
      *reinterpret_cast<float2 *>(to) = {x.x, x.y};
      if (d + 2 < head_dim) *reinterpret_cast<float2 *>(to + 2) = {x.z, x.w};
    }
  };
  store(args.output + query_row(args, job, g) * head_dim + d);
  if (evidence.outputs == nullptr) return;
  const size_t own =
      static_cast<size_t>(job.index) * job.group + job.first_head + g;
  store(evidence.outputs + own * head_dim + d);
}

// Parts whose values are read at a time.
constexpr uint32_t kPartsAhead = 16;

// Adds the parts of all blocks up and writes the output. Returns the counts of
// live slots and of the first free one, in the first thread of those that have
// the first heads.
template <int DIM>
__device__ inline uint2 combine(const skv_merge_attend_args &args,
                                const HeadJob &job, const AttendParts &parts,
                                const Evidence &evidence, uint32_t splits,
                                AttendShared<DIM> &shared) {
  static_assert(kMaxSplits % 32 == 0, "lanes share the splits");
  const size_t first = static_cast<size_t>(job.index) * parts.most_splits;
  const auto load = [&](uint32_t g, uint32_t d, uint32_t begin,
                        float4(&x)[kPartsAhead]) {
#pragma unroll
    for (uint32_t i = 0; i < kPartsAhead; i++) {
      x[i] = {};
      if (begin + i >= splits || g >= job.heads) continue;
      const size_t head = (first + begin + i) * job.group + job.first_head + g;
      x[i] = __ldcg(
          reinterpret_cast<const float4 *>(parts.values + head * DIM + d));
    }
  };
  // All that is read first is on its way together.
  float4 ahead[kPartsAhead];
  load(threadIdx.x / (DIM / 4), threadIdx.x % (DIM / 4) * 4, 0, ahead);
  uint2 counts = {0, kNoSlot};
  if (warp_id() == 0 && job.first_head == 0) {
#pragma unroll 1
    for (uint32_t s = lane_id(); s < splits; s += 32) {
      const uint2 other = __ldcg(parts.counts + first + s);
      counts.x += other.x;
      counts.y = min(counts.y, other.y);
    }
    counts.x = __reduce_add_sync(kAllLanes, counts.x);
    counts.y = __reduce_min_sync(kAllLanes, counts.y);
  }
#pragma unroll 1
  for (uint32_t g = warp_id(); g < job.heads; g += kAttendWarps) {
    SoftmaxState states[kMaxSplits / 32];
    float max = -INFINITY;
#pragma unroll
    for (uint32_t k = 0; k < kMaxSplits / 32; k++) {
      const uint32_t s = lane_id() + 32 * k;
      states[k] = init_softmax();
      if (s >= splits) continue;
      const float2 state =
          __ldcg(parts.states + (first + s) * kMaxGroup + job.first_head + g);
      states[k] = {state.x, state.y};
      max = fmaxf(max, state.x);
    }
    max = warp_max(max);
    float sum = 0.0f;
#pragma unroll
    for (uint32_t k = 0; k < kMaxSplits / 32; k++) {
      sum += states[k].sum * exp2_fast(states[k].max - finite(max));
    }
    sum = warp_sum(sum);
#pragma unroll
    for (uint32_t k = 0; k < kMaxSplits / 32; k++) {
      const uint32_t s = lane_id() + 32 * k;
      if (s >= splits) continue;
      shared.factors[s][g] = exp2_fast(states[k].max - finite(max)) / sum;
    }
    if (lane_id() == 0) shared.log_sums[g] = log_sum_of_bits({max, sum});
  }
  __syncthreads();
  for_each_four<DIM>(job, [&](uint32_t g, uint32_t d) {
    float4 sum = {};
#pragma unroll 1
    for (uint32_t begin = 0; begin < splits; begin += kPartsAhead) {
      const bool is_here = begin == 0 && g * (DIM / 4) + d / 4 == threadIdx.x;
      if (!is_here) load(g, d, begin, ahead);
#pragma unroll
      for (uint32_t i = 0; i < kPartsAhead; i++) {
        if (begin + i >= splits) continue;
        const float factor = shared.factors[begin + i][g];
        sum.x += ahead[i].x * factor, sum.y += ahead[i].y * factor;
        sum.z += ahead[i].z * factor, sum.w += ahead[i].w * factor;
      }
    }
    store_output(args, job, evidence, g, d, sum);
  });
  return counts;
}

// The same where the block had all slots.
template <int DIM>
__device__ inline uint2 finish_alone(const skv_merge_attend_args &args,
                                     const HeadJob &job,
                                     const Evidence &evidence,
                                     AttendShared<DIM> &shared) {
  for_each_four<DIM>(job, [&](uint32_t g, uint32_t d) {
    const SoftmaxState state = block_state(shared, g);
    float4 x = block_values(shared, g, d, state.max);
    x.x /= state.sum, x.y /= state.sum, x.z /= state.sum, x.w /= state.sum;
    store_output(args, job, evidence, g, d, x);
  });
  if (threadIdx.x < job.heads) {
    shared.log_sums[threadIdx.x] =
        log_sum_of_bits(block_state(shared, threadIdx.x));
  }
  __syncthreads();
  return block_counts(shared);
}

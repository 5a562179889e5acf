// The first look at the logits of a sequence: the most likely id and the
// softmax sum. Ends the step where nothing is drawn.
#pragma once

#include "sampling.cuh"

// The better of two parts, and the softmax state of both.
__device__ inline void add_part(SamplePart &sum, const SamplePart &part) {
  const SoftmaxState state =
      merge_softmax({sum.max, sum.sum}, {part.max, part.sum});
  sum.max = state.max;
  sum.sum = state.sum;
  if (part.key >= sum.key) return;
  sum.key = part.key;
  sum.raw = part.raw;
  sum.changed = part.changed;
}

// The part of all lanes, in the first lane.
__device__ inline SamplePart part_of_lanes(SamplePart mine) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    SamplePart other;
    other.key = __shfl_down_sync(
        kAllLanes, static_cast<unsigned long long>(mine.key), offset);
    other.raw = __shfl_down_sync(kAllLanes, mine.raw, offset);
    other.changed = __shfl_down_sync(kAllLanes, mine.changed, offset);
    other.max = __shfl_down_sync(kAllLanes, mine.max, offset);
    other.sum = __shfl_down_sync(kAllLanes, mine.sum, offset);
    add_part(mine, other);
  }
  return mine;
}

__device__ inline SamplePart no_part() {
  return {kNoKey, 0.0f, 0.0f, -INFINITY, 0.0f};
}

// What is left to do once the most likely id is known.
__device__ inline SamplePlan plan_of(const SampleRow &row,
                                     const SamplePart &all) {
  SamplePlan plan = {};
  plan.best = static_cast<uint32_t>(all.key);
  plan.max = all.changed;
  plan.log_sum = log_sum({all.max, all.sum});
  plan.draws = 1;
  plan.filters = row.has_top_k() || row.has_top_p();
  plan.begin = plan.end = static_cast<uint64_t>(row.least_rank()) + 1;
  return plan;
}

// The most likely id, ties to the lowest, and the softmax sum of all.
__global__ void __launch_bounds__(kSampleThreads)
    survey_kernel(skv_sample_args args, SampleWork work) {
  __shared__ SamplePart warps[kSampleWarps];
  let_next_start();
  const SampleRow row(args);
  if (!row.live) {
    wait_for_previous();
    if (blockIdx.x == 0 && threadIdx.x == 0) work.plans[blockIdx.y].draws = 0;
    return;
  }
  const Output output(args, row);
  const float temperature = row.option(kTemperature);
  const bool is_forced = output.forced < row.vocabulary;
  const bool draws = !is_forced && temperature != 0.0f;
  wait_for_previous();
  SamplePart mine = no_part();
  for_each_id(row, work, [&](uint32_t id) {
    const float raw = row.raw[id];
    const float logit = row.changed(id, raw);
    add_part(mine, {order_key(-logit, id), raw, logit, raw,
                    raw == -INFINITY ? 0.0f : 1.0f});
  });
  if (draws) {
    if (blockIdx.x == 0 && threadIdx.x == 0) work.listed[blockIdx.y] = 0;
    const size_t first = static_cast<size_t>(blockIdx.y) * kBuckets;
    for (uint32_t i = blockIdx.x * kSampleThreads + threadIdx.x; i < kBuckets;
         i += gridDim.x * kSampleThreads) {
      work.counts[first + i] = 0;
      work.weights[first + i] = 0;
    }
  }
  mine = part_of_lanes(mine);
  if (lane_id() == 0) warps[warp_id()] = mine;
  __syncthreads();
  if (warp_id() != 0) return;
  mine = part_of_lanes(lane_id() < kSampleWarps ? warps[lane_id()] : no_part());
  SamplePart *parts =
      work.parts + static_cast<size_t>(blockIdx.y) * work.blocks;
  bool last = work.blocks == 1;
  if (!last) {
    if (lane_id() == 0) {
      parts[blockIdx.x] = mine;
      __threadfence();
      last = is_last_block(work);
    }
    // An exchange does not order memory: what the first lane wrote is seen by
    // the others from here on.
    __syncwarp();
    last = __shfl_sync(kAllLanes, last ? 1 : 0, 0) != 0;
    if (!last) return;
    __threadfence();
    mine = no_part();
    for (uint32_t b = lane_id(); b < work.blocks; b += 32) {
      SamplePart part;
      const auto *from = reinterpret_cast<const uint2 *>(parts + b);
      const uint2 key = __ldcg(from), logits = __ldcg(from + 1),
                  state = __ldcg(from + 2);
      part.key = static_cast<uint64_t>(key.y) << 32 | key.x;
      part.raw = __uint_as_float(logits.x);
      part.changed = __uint_as_float(logits.y);
      part.max = __uint_as_float(state.x);
      part.sum = __uint_as_float(state.y);
      add_part(mine, part);
    }
    mine = part_of_lanes(mine);
  }
  if (lane_id() != 0) return;
  SamplePlan plan = plan_of(row, mine);
  plan.draws = draws;
  work.plans[blockIdx.y] = plan;
  if (draws) return;
  const float raw = is_forced ? row.raw[output.forced] : mine.raw;
  finish_row(args, row, output, is_forced ? output.forced : plan.best,
             raw - plan.log_sum);
}

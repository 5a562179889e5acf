// The policy's work after a decode step, kernel by kernel.
#pragma once

#include "merge_one.cuh"

// What is known of a head; nothing where its row is not live.
__device__ inline bool turn_to_head(const skv_merge_attend_args &args,
                                    const Evidence &evidence, uint32_t row,
                                    uint32_t kv_head, EvictJob &job) {
  const uint32_t index = row * args.sizes.kv_heads + kv_head;
  const uint4 seen = evidence.rows[index];
  if (seen.w == 0) return false;
  const size_t capacity = args.cache.max_capacity;
  const size_t group = args.sizes.heads / args.sizes.kv_heads;
  const size_t first_query = index * group * args.sizes.head_dim;
  job.index = index;
  job.kv_head = kv_head;
  job.row = row;
  job.group = static_cast<uint32_t>(group);
  job.position = seen.x;
  job.high = seen.w;
  job.words = head_words(args.cache, args.sizes, row, kv_head);
  job.offset = job.words[kHeadOffset];
  job.is_over = seen.y > job.words[kHeadBudget];
  job.logits = evidence.logits + index * group * capacity;
  job.queries = evidence.queries + first_query;
  job.outputs = evidence.outputs + first_query;
  job.keys = evidence.keys + index * capacity;
  job.own_ratings = nullptr;
  job.ratings = nullptr;
  job.rating_heads = 1;
  if (evidence.ratings != nullptr) {
    job.own_ratings = evidence.ratings + index * capacity;
    job.ratings = job.own_ratings;
  }
  if (args.policy.layer_scope) {
    job.ratings -= kv_head * capacity;
    job.rating_heads = args.sizes.kv_heads;
  }
  const size_t parts = expect_parts(args.cache.max_capacity);
  job.expected = {evidence.expected_logits + index * group * capacity,
                  evidence.expected_states + index * parts * kMaxGroup,
                  args.cache.max_capacity};
  return true;
}

// Whether anybody looks at the scores of a head.
__device__ inline bool needs_ratings(const skv_merge_attend_args &args,
                                     const EvictJob &job) {
  return job.is_over || args.policy.layer_scope;
}

// Leaves what is expected of the slots of a head.
template <bool ALIGNED>
__global__ void __launch_bounds__(kExpectThreads)
    expect_kernel(skv_merge_attend_args args, Evidence evidence) {
  __shared__ ExpectShared shared;
  EvictJob job;
  if (!turn_to_head(args, evidence, blockIdx.z, blockIdx.y, job)) return;
  if (blockIdx.x * kExpectSlots >= job.high) return;
  if (!needs_ratings(args, job)) return;
  const ExpectedGroup group =
      expected_group(args.cache, args.sizes, args.policy, job.row, job.kv_head);
  expect_slots<ALIGNED>(group, job.high, job.expected, shared,
                        [&](uint32_t i) { return job.slot(args, i); });
}

// Takes over what attention found of the head and observes the row; evicts; or
// both in one go where no other head has a say.
template <bool ALIGNED>
__global__ void __launch_bounds__(kEvictThreads)
    evict_kernel(skv_merge_attend_args args, Evidence evidence, bool observes,
                 bool chooses) {
  __shared__ EvictShared shared;
  EvictJob job;
  if (!turn_to_head(args, evidence, blockIdx.y, blockIdx.x, job)) return;
  if (observes && threadIdx.x == 0) {
    const uint4 seen = evidence.rows[job.index];
    job.words[kHeadLive] = seen.y;
    job.words[kHeadNext] = seen.z;
    job.words[kHeadHigh] = seen.w;
  }
  if (args.policy.merge == SKV_MERGE_NEVER) return;
  if (threadIdx.x < job.group) {
    shared.log_sums[threadIdx.x] =
        evidence.log_sums[job.index * kMaxGroup + threadIdx.x];
  }
  __syncthreads();
  if (observes) {
    observe_slots(args, job, shared);
    if (needs_ratings(args, job)) rate_slots(args, job, shared);
  }
  if (!chooses || !job.is_over) return;
  const uint32_t victim = choose_victim(args, job, shared);
  if (victim != ~0u) evict<ALIGNED>(args, job, victim, shared);
}

template <bool ALIGNED>
inline cudaError_t launch_policy(const skv_merge_attend_args &args,
                                 const Evidence &evidence,
                                 const Launch &launch) {
  Launch side;
  cudaError_t status = fork(launch, &side);
  const dim3 grid(args.sizes.kv_heads, args.step.rows);
  if (status == cudaSuccess && args.policy.score == SKV_SCORE_EXPECTED) {
    const dim3 parts(expect_parts(args.cache.max_capacity), grid.x, grid.y);
    status = launch_kernel(side, expect_kernel<ALIGNED>, parts, kExpectThreads,
                           0, args, evidence);
  }
  const auto evict = [&](bool observes, bool chooses) {
    return launch_kernel(side, evict_kernel<ALIGNED>, grid, kEvictThreads, 0,
                         args, evidence, observes, chooses);
  };
  if (status != cudaSuccess) return status;
  // Where the heads of a layer choose together, all are scored first.
  if (!args.policy.layer_scope) return evict(true, true);
  status = evict(true, false);
  return status == cudaSuccess ? evict(false, true) : status;
}

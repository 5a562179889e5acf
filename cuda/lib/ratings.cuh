// Scores that take more than a slot's own fields: compared with other keys,
// pooled over neighbours, or shared by the heads of a layer; see
// src/reference/selection.ts.
#pragma once

#include "compress_work.cuh"
#include "expected_attention.cuh"
#include "key_distance.cuh"
#include "overlap.cuh"

constexpr uint32_t kRateThreads = 256;

// Whether scores take more than a slot's own fields.
__host__ __device__ inline bool is_rated(const skv_policy &policy) {
  return policy.pool != SKV_POOL_NONE || policy.layer_scope != 0 ||
         takes_all_keys(policy);
}

// Where scores that take all keys are left: in memory that pairs need later on
// where they are still to be pooled.
__device__ inline float *key_scores(const skv_policy &policy,
                                    const HeadWork &work) {
  return policy.pool == SKV_POOL_NONE ? work.scores
                                      : reinterpret_cast<float *>(work.best);
}

// Leaves what is expected of the items.
template <bool ALIGNED>
__global__ void __launch_bounds__(kExpectThreads)
    expect_items_kernel(skv_chunk_args args, CompressWork all_work) {
  __shared__ ExpectShared shared;
  begin_kernel();
  if (row_end(args.step) == 0) return;
  const ChunkHead head = chunk_head(args, blockIdx.y);
  const HeadWork work = all_work.head(blockIdx.y);
  const uint32_t items = work.counters[kItems];
  if (blockIdx.x * kExpectSlots >= items) return;
  const ExpectedGroup group =
      expected_group(args.cache, args.sizes, args.policy,
                     args.step.chunk[kChunkSequence], blockIdx.y);
  expect_slots<ALIGNED>(group, items, work.expected, shared, [&](uint32_t i) {
    return item_slot(args, head, work.items[i]);
  });
}

// Scores that take all keys of a head; one block has it.
static __global__ void __launch_bounds__(kCompressThreads)
    rate_keys_kernel(skv_chunk_args args, CompressWork all_work) {
  __shared__ KeyScratch<kCompressWarps> scratch;
  __shared__ float log_sums[kMaxGroup];
  begin_kernel();
  if (row_end(args.step) == 0) return;
  const ChunkHead head = chunk_head(args, blockIdx.x);
  const HeadWork work = all_work.head(blockIdx.x);
  if (args.policy.score == SKV_SCORE_EXPECTED) {
    rate_by_expectation(args.sizes.heads / args.sizes.kv_heads,
                        work.counters[kItems], work.expected, log_sums,
                        key_scores(args.policy, work), [&](uint32_t i) {
                          const Slot slot =
                              item_slot(args, head, work.items[i]);
                          return slot.word(kSlotTokens) != 0;
                        });
    return;
  }
  rate_by_key(work.counters[kItems], args.sizes.head_dim,
              key_scores(args.policy, work), scratch,
              [&](uint32_t i) { return item_slot(args, head, work.items[i]); });
}

__device__ inline float item_score(const skv_chunk_args &args,
                                   const ChunkHead &head, const HeadWork &work,
                                   uint32_t ordinal) {
  if (is_rated(args.policy)) return work.scores[ordinal];
  return own_score(item_slot(args, head, work.items[ordinal]), args.policy,
                   args.cache.lanes);
}

__device__ inline uint64_t item_rank(const skv_chunk_args &args,
                                     const ChunkHead &head,
                                     const HeadWork &work, uint32_t ordinal) {
  return rank_key(item_score(args, head, work, ordinal),
                  item_slot(args, head, work.items[ordinal]), args.policy);
}

constexpr uint32_t kNotPooled = ~0u;

// Each item's own score, pooled over its neighbours outside the recent window.
// A thread has an item and goes through all of them by tiles.
static __global__ void __launch_bounds__(kRateThreads)
    rate_kernel(skv_chunk_args args, CompressWork all_work) {
  __shared__ uint32_t positions[kRateThreads];
  __shared__ float scores[kRateThreads];
  begin_kernel();
  if (row_end(args.step) == 0) return;
  const ChunkHead head = chunk_head(args, blockIdx.y);
  const HeadWork work = all_work.head(blockIdx.y);
  const skv_policy &policy = args.policy;
  const uint32_t items = work.counters[kItems];
  const uint32_t first = blockIdx.x * kRateThreads;
  if (first >= items) return;
  // What other threads look at: the position, unless it takes no part.
  const auto look = [&](uint32_t i, float &score) {
    score = 0.0f;
    if (i >= items) return kNotPooled;
    const Slot slot = item_slot(args, head, work.items[i]);
    if (slot.word(kSlotTokens) == 0) return kNotPooled;
    score = takes_all_keys(policy) ? key_scores(policy, work)[i]
                                   : own_score(slot, policy, args.cache.lanes);
    const uint32_t position = slot.word(kSlotPosition);
    return position + head.words[kHeadRecent] <= head.newest ? position
                                                             : kNotPooled;
  };
  const uint32_t mine = first + threadIdx.x;
  float score;
  const uint32_t position = look(mine, score);
  if (policy.pool != SKV_POOL_NONE) {
    float sum = no_scores(policy), largest = -INFINITY;
    uint32_t count = 0;
    for (uint32_t tile = 0; tile < items; tile += kRateThreads) {
      float other;
      const uint32_t there = look(tile + threadIdx.x, other);
      __syncthreads();
      positions[threadIdx.x] = there;
      scores[threadIdx.x] = other;
      __syncthreads();
      for (uint32_t k = 0; k < kRateThreads; k++) {
        const uint32_t at = positions[k];
        const uint32_t distance = max(at, position) - min(at, position);
        if (at == kNotPooled || distance > policy.pool_reach) continue;
        sum = add_score(sum, scores[k], policy);
        largest = fmaxf(largest, scores[k]);
        count++;
      }
    }
    if (position != kNotPooled) {
      score = policy.pool == SKV_POOL_MAX ? largest
                                          : mean_score(sum, count, policy);
    }
  }
  if (mine < items) work.scores[mine] = score;
}

// The mean over the heads of the layer, whose items are the same tokens in the
// same order. A thread has an item of all heads.
static __global__ void __launch_bounds__(kRateThreads)
    share_kernel(skv_chunk_args args, CompressWork all_work) {
  begin_kernel();
  if (row_end(args.step) == 0) return;
  const uint32_t heads = args.sizes.kv_heads;
  const uint32_t i = blockIdx.x * kRateThreads + threadIdx.x;
  if (i >= all_work.head(0).counters[kItems]) return;
  float sum = no_scores(args.policy);
  for (uint32_t h = 0; h < heads; h++) {
    sum = add_score(sum, all_work.head(h).scores[i], args.policy);
  }
  const float score = mean_score(sum, heads, args.policy);
  for (uint32_t h = 0; h < heads; h++) all_work.head(h).scores[i] = score;
}

inline cudaError_t launch_ratings(const skv_chunk_args &args,
                                  const CompressWork &work,
                                  const Launch &launch) {
  if (!is_rated(args.policy)) return cudaSuccess;
  const uint32_t blocks = (work.most + kRateThreads - 1) / kRateThreads;
  const uint32_t heads = args.sizes.kv_heads;
  cudaError_t status = cudaSuccess;
  if (args.policy.score == SKV_SCORE_EXPECTED) {
    const auto kernel = args.sizes.head_dim % 8 == 0
                            ? expect_items_kernel<true>
                            : expect_items_kernel<false>;
    status = launch_kernel(launch, kernel, dim3(expect_parts(work.most), heads),
                           kExpectThreads, 0, args, work);
  }
  if (status == cudaSuccess && takes_all_keys(args.policy)) {
    status = launch_kernel(launch, rate_keys_kernel, heads, kCompressThreads, 0,
                           args, work);
  }
  const bool pools = args.policy.pool != SKV_POOL_NONE;
  if (status == cudaSuccess && (pools || !takes_all_keys(args.policy))) {
    status = launch_kernel(launch, rate_kernel, dim3(blocks, heads),
                           kRateThreads, 0, args, work);
  }
  if (status != cudaSuccess || !args.policy.layer_scope) return status;
  return launch_kernel(launch, share_kernel, blocks, kRateThreads, 0, args,
                       work);
}

// Who goes when a chunk is compressed, and who may take them.
#pragma once

#include "merge_pairs.cuh"
#include "merge_runs.cuh"
#include "ratings.cuh"
#include "search_items.cuh"
#include "select_smallest.cuh"

// Where values count, takes those out of `keys` that stay by their scores
// alone, and ranks the others. Called by the whole block.
__device__ inline void contest(const skv_chunk_args &args,
                               const ChunkHead &head, const HeadWork &work,
                               uint32_t evictable, uint32_t excess,
                               SelectScratch &scratch) {
  const uint32_t items = work.counters[kItems];
  const uint32_t stay = first_stage(args.policy, evictable - excess);
  const uint64_t last =
      kth_smallest(work.keys, items, evictable - stay, scratch);
  __syncthreads();
  for (uint32_t i = threadIdx.x; i < items; i += kCompressThreads) {
    const uint64_t key = work.keys[i];
    if (key == kNoKey) continue;
    work.keys[i] = key <= last ? item_rank(args, head, work, i) : kNoKey;
  }
  __syncthreads();
}

// Lists who goes and who may take them.
static __global__ void __launch_bounds__(kCompressThreads)
    choose_kernel(skv_chunk_args args, CompressWork all_work) {
  __shared__ SelectScratch scratch;
  begin_kernel();
  if (row_end(args.step) == 0) return;
  const ChunkHead head = chunk_head(args, blockIdx.x);
  const HeadWork work = all_work.head(blockIdx.x);
  add_divergences(head, work, work.counters[kMatched], scratch);
  const uint32_t items = work.counters[kItems];
  const uint32_t budget = head.words[kHeadBudget];
  const uint32_t left = items - work.counters[kPairs];
  uint32_t victims = 0, targets = 0;
  if (left > budget && args.policy.merge != SKV_MERGE_NEVER) {
    const bool counts = args.policy.count_values != 0;
    uint32_t evictable = 0;
    for (uint32_t i = threadIdx.x; i < items; i += kCompressThreads) {
      uint64_t key = kNoKey;
      if ((work.marks[i] & kGone) == 0 &&
          item_is_evictable(args, head, work.items[i])) {
        evictable++;
        const Slot slot = item_slot(args, head, work.items[i]);
        const float score = item_score(args, head, work, i);
        key = counts ? score_key(score, slot)
                     : rank_key(score, slot, args.policy);
      }
      work.keys[i] = key;
    }
    uint32_t total;
    block_prefix(evictable, total, scratch.block);
    const uint32_t excess = min(left - budget, total);
    if (excess > 0) {
      if (counts) contest(args, head, work, total, excess, scratch);
      const uint64_t last = kth_smallest(work.keys, items, excess, scratch);
      victims = list_if(items, work.queries, scratch, [&](uint32_t i) {
        return work.keys[i] != kNoKey && work.keys[i] <= last;
      });
      for (uint32_t v = threadIdx.x; v < victims; v += kCompressThreads) {
        work.marks[work.queries[v]] |= kVictim;
      }
      __syncthreads();
      if (merges_victims(args.policy)) {
        targets = list_if(items, work.candidates, scratch, [&](uint32_t i) {
          if ((work.marks[i] & (kGone | kVictim)) != 0) return false;
          const uint32_t item = work.items[i];
          return merges_cheapest(args.policy)
                     ? item_is_evictable(args, head, item)
                     : item_slot(args, head, item).word(kSlotPosition) >=
                           args.policy.sinks;
        });
      }
    }
  }
  if (args.policy.merge == SKV_MERGE_RIGHT_NEIGHBOUR) {
    const RunWork run = run_work(work);
    for (uint32_t i = threadIdx.x; i < items; i += kCompressThreads) {
      run.left[i] = kNoItem;
    }
  }
  // The counters that are written were read above.
  __syncthreads();
  if (threadIdx.x == 0) {
    work.counters[kQueries] = victims;
    work.counters[kCandidates] = targets;
  }
}

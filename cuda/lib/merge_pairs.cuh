// Merging pairs before anything is evicted: similar ones, or the cheapest.
//
// Taking proposals in order looks sequential, but a proposal that is the best
// of both its ends is taken whatever the others do; so rounds take all of those
// at once, and give exactly the same pairs. The alternative that lost: sorting
// proposals and one thread that goes through them.
#pragma once

#include "merge_slots.cuh"
#include "ratings.cuh"
#include "search_items.cuh"
#include "select_smallest.cuh"

__device__ inline MergeContext merge_context(const skv_chunk_args &args,
                                             const ChunkHead &head) {
  const skv_sizes &sizes = args.sizes;
  const uint32_t group = sizes.heads / sizes.kv_heads;
  const size_t query =
      static_cast<size_t>(head.rows - 1) * sizes.heads + head.kv_head * group;
  return {args.queries + query * sizes.head_dim, group, sizes.head_dim,
          args.cache.lanes};
}

// Sets 1 / |key| of an item; called by a whole warp.
__device__ inline void set_norm(const skv_chunk_args &args,
                                const ChunkHead &head, const HeadWork &work,
                                uint32_t ordinal) {
  const Slot slot = item_slot(args, head, work.items[ordinal]);
  float square = 0.0f;
  for (uint32_t d = lane_id(); d < args.sizes.head_dim; d += 32) {
    const float x = to_float(slot.key[d]);
    square += x * x;
  }
  square = warp_sum(square);
  if (lane_id() == 0) {
    work.inverse_norms[ordinal] = square == 0.0f ? 0.0f : rsqrtf(square);
  }
}

// Takes the best proposals first while both ends are free, up to
// `excess` of them, and lists who made them in `queries`. Returns their number.
__device__ inline uint32_t match_pairs(const skv_chunk_args &args,
                                       const ChunkHead &head,
                                       const CompressWork &all_work,
                                       const HeadWork &work, uint32_t excess,
                                       SelectScratch &scratch) {
  const uint32_t items = work.counters[kItems];
  const uint32_t queries = work.counters[kQueries];
  for (uint32_t i = threadIdx.x; i < items; i += kCompressThreads) {
    work.keys[i] = kNoKey;
  }
  __syncthreads();
  for (uint32_t q = threadIdx.x; q < queries; q += kCompressThreads) {
    const Neighbour nearest = nearest_of_query(args, head, all_work, work, q);
    const bool fits = args.policy.merge != SKV_MERGE_VOTES ||
                      nearest.similarity > args.policy.threshold;
    if (!nearest.exists() || !fits) continue;
    const uint32_t i = work.queries[q];
    const uint32_t position =
        item_slot(args, head, work.items[i]).word(kSlotPosition);
    work.keys[i] = order_key(-nearest.similarity, position);
    work.mates[i] = nearest.item;
  }
  auto *best = reinterpret_cast<unsigned long long *>(work.best);
  const auto is_open = [&](uint32_t i) {
    return work.keys[i] != kNoKey && (work.marks[i] & kTaken) == 0 &&
           (work.marks[work.mates[i]] & kTaken) == 0;
  };
  bool changed = true;
  while (changed) {
    for (uint32_t i = threadIdx.x; i < items; i += kCompressThreads) {
      best[i] = kNoKey;
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < items; i += kCompressThreads) {
      if (!is_open(i)) continue;
      atomicMin(best + i, static_cast<unsigned long long>(work.keys[i]));
      atomicMin(best + work.mates[i],
                static_cast<unsigned long long>(work.keys[i]));
    }
    __syncthreads();
    bool accepted = false;
    for (uint32_t i = threadIdx.x; i < items; i += kCompressThreads) {
      if (work.keys[i] == kNoKey) continue;
      // Others may mark this item as taken meanwhile, but only this thread as
      // accepted.
      if ((__ldcg(work.marks + i) & kAccepted) != 0) continue;
      const uint32_t mate = work.mates[i];
      if (__ldcg(best + i) != work.keys[i] ||
          __ldcg(best + mate) != work.keys[i]) {
        continue;
      }
      atomicOr(work.marks + i, kTaken | kAccepted);
      atomicOr(work.marks + mate, kTaken);
      accepted = true;
    }
    changed = __syncthreads_or(accepted);
  }
  for (uint32_t i = threadIdx.x; i < items; i += kCompressThreads) {
    if ((work.marks[i] & kAccepted) == 0) work.keys[i] = kNoKey;
  }
  __syncthreads();
  const auto is_accepted = [&](uint32_t i) { return work.keys[i] != kNoKey; };
  const uint32_t pairs = list_if(items, work.queries, scratch, is_accepted);
  if (pairs <= excess) return pairs;
  const uint64_t last = kth_smallest(work.keys, items, excess, scratch);
  return list_if(items, work.queries, scratch, [&](uint32_t i) {
    return is_accepted(i) && work.keys[i] <= last;
  });
}

// Merges the pairs that `queries` lists: the end that eviction ranks lower
// goes.
__device__ inline void merge_pairs(const skv_chunk_args &args,
                                   const ChunkHead &head, const HeadWork &work,
                                   uint32_t pairs, SelectScratch &scratch) {
  const MergeContext context = merge_context(args, head);
  const uint32_t lanes = args.cache.lanes;
  for (uint32_t p = warp_id(); p < pairs; p += kCompressWarps) {
    uint32_t goes = work.queries[p];
    uint32_t stays = work.mates[goes];
    Slot gone = item_slot(args, head, work.items[goes]);
    Slot kept = item_slot(args, head, work.items[stays]);
    if (item_rank(args, head, work, stays) <
        item_rank(args, head, work, goes)) {
      const uint32_t other = goes;
      goes = stays;
      stays = other;
      const Slot slot = gone;
      gone = kept;
      kept = slot;
    }
    const Merged merged = merge_slots<true>(
        2, [&](uint32_t i) { return i == 0 ? kept : gone; }, context,
        args.policy);
    if (lane_id() == 0) {
      free_slot(gone, lanes);
      work.marks[goes] |= kGone;
      work.divergences[p] = merged.divergence;
      if (merged.guarded) atomicAdd(head.words + kHeadGuarded, 1);
    }
    set_norm(args, head, work, stays);
  }
  __syncthreads();
  float divergence = 0.0f;
  for (uint32_t p = threadIdx.x; p < pairs; p += kCompressThreads) {
    divergence += work.divergences[p];
  }
  divergence = block_sum(divergence, scratch);
  if (threadIdx.x == 0) {
    head.words[kHeadMerged] += pairs;
    head.words[kHeadDivergence] = __float_as_uint(
        __uint_as_float(head.words[kHeadDivergence]) + divergence);
  }
}

// Merges pairs until the head fits its budget.
static __global__ void __launch_bounds__(kCompressThreads)
    pair_kernel(skv_chunk_args args, CompressWork all_work) {
  __shared__ SelectScratch scratch;
  begin_kernel();
  if (row_end(args.step) == 0) return;
  const ChunkHead head = chunk_head(args, blockIdx.x);
  const HeadWork work = all_work.head(blockIdx.x);
  if (work.counters[kQueries] == 0) return;
  const uint32_t excess = work.counters[kItems] - head.words[kHeadBudget];
  const uint32_t pairs =
      match_pairs(args, head, all_work, work, excess, scratch);
  merge_pairs(args, head, work, pairs, scratch);
  if (threadIdx.x == 0) work.counters[kPairs] = pairs;
}

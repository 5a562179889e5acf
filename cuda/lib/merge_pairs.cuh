// Merging pairs before anything is evicted: similar ones, or the cheapest.
//
// Taking proposals in order looks sequential, but a proposal that is the best
// of both its ends is taken whatever the others do; so rounds take all of those
// at once, and give exactly the same pairs. A round is about the proposals
// whose ends are still free, which are fewer and fewer. The alternative that
// lost: sorting proposals and one thread that goes through them.
//
// One block per head decides. Many blocks find what each item proposes and
// merge what was decided, since both wait for memory more than for anything
// else.
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

// Sets what searches take of an item: 1 / |key|, or what prices its pairs.
// Called by a whole warp.
__device__ inline void measure_item(const skv_chunk_args &args,
                                    const ChunkHead &head, const HeadWork &work,
                                    uint32_t ordinal) {
  const Slot slot = item_slot(args, head, work.items[ordinal]);
  const bool prices = merges_cheapest(args.policy);
  float key = 0.0f, value = 0.0f;
  for (uint32_t d = lane_id(); d < args.sizes.head_dim; d += 32) {
    const float x = to_float(slot.key[d]);
    const float y = prices ? to_float(slot.value[d]) : 0.0f;
    key += x * x;
    value += y * y;
  }
  key = warp_sum(key);
  if (!prices) {
    if (lane_id() == 0) {
      work.inverse_norms[ordinal] = key == 0.0f ? 0.0f : rsqrtf(key);
    }
    return;
  }
  value = warp_sum(value);
  if (lane_id() != 0) return;
  work.measures[ordinal] = {log_weight(slot, args.policy, args.cache.lanes),
                            key, value, slot.get(kSlotPosition)};
}

constexpr uint32_t kProposeThreads = 256;

// Finds what each query proposes: `keys`, the lowest first, and `mates`.
static __global__ void __launch_bounds__(kProposeThreads)
    propose_kernel(skv_chunk_args args, CompressWork all_work) {
  begin_kernel();
  if (row_end(args.step) == 0) return;
  const ChunkHead head = chunk_head(args, blockIdx.y);
  const HeadWork work = all_work.head(blockIdx.y);
  const uint32_t q = blockIdx.x * kProposeThreads + threadIdx.x;
  if (q >= work.counters[kQueries]) return;
  const Neighbour nearest = nearest_of_query(args, head, all_work, work, q);
  const bool fits = args.policy.merge != SKV_MERGE_VOTES ||
                    nearest.similarity > args.policy.threshold;
  if (!nearest.exists() || !fits) return;
  const uint32_t i = work.queries[q];
  const uint32_t position =
      item_slot(args, head, work.items[i]).word(kSlotPosition);
  work.keys[i] = order_key(-nearest.similarity, position);
  work.mates[i] = nearest.item;
}

// Takes the best proposals first while both ends are free, up to `excess` of
// them, and lists who made them in `queries`. Returns their number. Called by
// the whole block.
__device__ inline uint32_t match_pairs(const HeadWork &work, uint32_t excess,
                                       SelectScratch &scratch) {
  const uint32_t items = work.counters[kItems];
  auto *best = reinterpret_cast<unsigned long long *>(work.best);
  const auto has_key = [&](uint32_t i) { return work.keys[i] != kNoKey; };
  // Open proposals, in two lists by turns; searches are over.
  uint32_t *open = work.candidates, *next = work.nearest;
  uint32_t count = list_if(items, open, scratch, has_key);
  while (count > 0) {
    for (uint32_t i = threadIdx.x; i < items; i += kCompressThreads) {
      best[i] = kNoKey;
    }
    __syncthreads();
    for (uint32_t k = threadIdx.x; k < count; k += kCompressThreads) {
      const uint32_t i = open[k];
      const auto key = static_cast<unsigned long long>(work.keys[i]);
      atomicMin(best + i, key);
      atomicMin(best + work.mates[i], key);
    }
    __syncthreads();
    for (uint32_t k = threadIdx.x; k < count; k += kCompressThreads) {
      const uint32_t i = open[k], mate = work.mates[i];
      const uint64_t key = work.keys[i];
      if (__ldcg(best + i) != key || __ldcg(best + mate) != key) continue;
      // Nobody else has these ends.
      work.marks[i] = kTaken | kAccepted;
      work.marks[mate] = kTaken;
    }
    __syncthreads();
    count = list_if(
        count, next, scratch,
        [&](uint32_t k) {
          const uint32_t i = open[k];
          return ((work.marks[i] | work.marks[work.mates[i]]) & kTaken) == 0;
        },
        [&](uint32_t k) { return open[k]; });
    uint32_t *const old = open;
    open = next;
    next = old;
  }
  for (uint32_t i = threadIdx.x; i < items; i += kCompressThreads) {
    if ((work.marks[i] & kAccepted) == 0) work.keys[i] = kNoKey;
  }
  __syncthreads();
  const uint32_t pairs = list_if(items, work.queries, scratch, has_key);
  if (pairs <= excess) return pairs;
  const uint64_t last = kth_smallest(work.keys, items, excess, scratch);
  return list_if(items, work.queries, scratch, [&](uint32_t i) {
    return has_key(i) && work.keys[i] <= last;
  });
}

// Decides which pairs merge, until the head fits its budget.
static __global__ void __launch_bounds__(kCompressThreads)
    match_kernel(skv_chunk_args args, CompressWork all_work) {
  __shared__ SelectScratch scratch;
  begin_kernel();
  if (row_end(args.step) == 0) return;
  const ChunkHead head = chunk_head(args, blockIdx.x);
  const HeadWork work = all_work.head(blockIdx.x);
  if (work.counters[kQueries] == 0) return;
  const uint32_t merged = work.counters[kPairs];
  const uint32_t excess =
      work.counters[kItems] - merged - head.words[kHeadBudget];
  const uint32_t pairs = match_pairs(work, excess, scratch);
  if (threadIdx.x == 0) {
    work.counters[kMatched] = pairs;
    work.counters[kPairs] = merged + pairs;
    head.words[kHeadMerged] += pairs;
  }
}

constexpr uint32_t kPairWarps = 4;

// Merges the pairs that `queries` lists: the end that eviction ranks lower
// goes. A warp has a pair; no two pairs have an end in common.
static __global__ void __launch_bounds__(32 * kPairWarps)
    merge_pairs_kernel(skv_chunk_args args, CompressWork all_work) {
  begin_kernel();
  if (row_end(args.step) == 0) return;
  const ChunkHead head = chunk_head(args, blockIdx.x);
  const HeadWork work = all_work.head(blockIdx.x);
  const uint32_t pairs = work.counters[kMatched];
  const MergeContext context = merge_context(args, head);
  for (uint32_t p = blockIdx.y * kPairWarps + warp_id(); p < pairs;
       p += gridDim.y * kPairWarps) {
    uint32_t goes = work.queries[p];
    uint32_t stays = work.mates[goes];
    if (item_rank(args, head, work, stays) <
        item_rank(args, head, work, goes)) {
      const uint32_t other = goes;
      goes = stays;
      stays = other;
    }
    const Slot gone = item_slot(args, head, work.items[goes]);
    const Slot kept = item_slot(args, head, work.items[stays]);
    const Merged merged = merge_slots<true>(
        2, [&](uint32_t i) { return i == 0 ? kept : gone; }, context,
        args.policy);
    if (lane_id() == 0) {
      free_slot(gone, context.lanes);
      work.marks[goes] |= kGone;
      work.divergences[p] = merged.divergence;
      if (merged.guarded) atomicAdd(head.words + kHeadGuarded, 1);
    }
    measure_item(args, head, work, stays);
  }
}

inline cudaError_t launch_pairs(const skv_chunk_args &args,
                                const CompressWork &work,
                                const Launch &launch) {
  const uint32_t heads = args.sizes.kv_heads;
  const dim3 proposals((work.most + kProposeThreads - 1) / kProposeThreads,
                       heads);
  cudaError_t status = launch_kernel(launch, propose_kernel, proposals,
                                     kProposeThreads, 0, args, work);
  if (status == cudaSuccess) {
    status = launch_kernel(launch, match_kernel, heads, kCompressThreads, 0,
                           args, work);
  }
  if (status != cudaSuccess) return status;
  const uint32_t wanted = 8 * launch.multiprocessors / heads;
  const uint32_t most = (work.most / 2 + kPairWarps - 1) / kPairWarps;
  return launch_kernel(launch, merge_pairs_kernel,
                       dim3(heads, max(1u, min(wanted, most))), 32 * kPairWarps,
                       0, args, work);
}

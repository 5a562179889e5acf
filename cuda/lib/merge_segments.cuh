// Closing links between neighbours in the text until a chunk fits its budget:
// list_light, right_neighbours, measure_links, merge_segments.
#pragma once

#include "merge_runs.cuh"
#include "merge_segment.cuh"
#include "ratings.cuh"
#include "select_smallest.cuh"

// Lists the items that may be merged with their neighbours, if the head is over
// its budget.
static __global__ void __launch_bounds__(kCompressThreads)
    list_light_kernel(skv_chunk_args args, CompressWork all_work) {
  __shared__ SelectScratch scratch;
  begin_kernel();
  if (row_end(args.step) == 0) return;
  const ChunkHead head = chunk_head(args, blockIdx.x);
  const HeadWork work = all_work.head(blockIdx.x);
  const uint32_t items = work.counters[kItems];
  const uint32_t budget = head.words[kHeadBudget];
  uint32_t light = 0;
  if (items > budget) {
    uint32_t mine = 0, evictable;
    for (uint32_t i = threadIdx.x; i < items; i += kCompressThreads) {
      const bool goes = item_is_evictable(args, head, work.items[i]);
      work.keys[i] = goes ? score_key(item_score(args, head, work, i),
                                      item_slot(args, head, work.items[i]))
                          : kNoKey;
      work.mates[i] = kNoItem;
      mine += goes ? 1 : 0;
    }
    block_prefix(mine, evictable, scratch.block);
    if (evictable > 0) {
      const uint32_t count =
          light_slots(args.policy, evictable, items - budget);
      // None is light where all stay by their scores.
      const uint64_t last =
          count == 0 ? 0 : kth_smallest(work.keys, items, count, scratch);
      light = list_if(items, work.queries, scratch, [&](uint32_t i) {
        return work.keys[i] != kNoKey && work.keys[i] <= last;
      });
      for (uint32_t q = threadIdx.x; q < light; q += kCompressThreads) {
        work.marks[work.queries[q]] |= kTaken;
      }
    }
  }
  // The counters that are written were read above.
  __syncthreads();
  if (threadIdx.x == 0) work.counters[kQueries] = light;
}

constexpr uint32_t kLinkWarps = 8;

// Measures the link of each light item to its right neighbour: its key. There
// is none to a neighbour that is not light. A warp has a link.
static __global__ void __launch_bounds__(32 * kLinkWarps)
    measure_links_kernel(skv_chunk_args args, CompressWork all_work) {
  begin_kernel();
  if (row_end(args.step) == 0) return;
  const ChunkHead head = chunk_head(args, blockIdx.y);
  const HeadWork work = all_work.head(blockIdx.y);
  const uint32_t q = blockIdx.x * kLinkWarps + warp_id();
  if (q >= work.counters[kQueries]) return;
  const uint32_t i = work.queries[q];
  const uint32_t right = work.mates[i];
  uint64_t key = kNoKey;
  if (right != kNoItem && (work.marks[right] & kTaken) != 0) {
    const uint32_t head_dim = args.sizes.head_dim;
    const Slot slot = item_slot(args, head, work.items[i]);
    const LaneVector a(slot.key, head_dim);
    const LaneVector b(item_slot(args, head, work.items[right]).key, head_dim);
    const float cosine = a.dot(b) * (a.inverse_norm() * b.inverse_norm());
    key = order_key(-cosine, slot.word(kSlotPosition));
  }
  if (lane_id() == 0) work.best[i] = key;
}

// Merges the segment that begins at an item into its pivot; called by a whole
// warp. Returns how many slots it took away.
__device__ inline uint32_t merge_chain(const skv_chunk_args &args,
                                       const ChunkHead &head,
                                       const HeadWork &work, uint32_t first,
                                       uint64_t last) {
  const auto slot_of = [&](uint32_t i) {
    return item_slot(args, head, work.items[i]);
  };
  const auto is_closed = [&](uint32_t i) {
    return work.keys[i] != kNoKey && work.keys[i] <= last;
  };
  uint32_t count = 1, pivot = first, place = 0;
  float most = slot_of(first).get(kSlotAccumulated);
  for (uint32_t i = first; is_closed(i);) {
    i = work.mates[i];
    const float attention = slot_of(i).get(kSlotAccumulated);
    if (attention > most) most = attention, pivot = i, place = count;
    count++;
  }
  // Members in order, but for the pivot, which comes first.
  uint32_t from = 0;
  if (lane_id() == 0) from = atomicAdd(work.counters + kMembers, count);
  from = __shfl_sync(kAllLanes, from, 0);
  uint32_t *members = work.candidates + from;
  if (lane_id() == 0) {
    members[0] = pivot;
    uint32_t i = first;
    for (uint32_t m = 0; m < count; m++) {
      if (m != place) members[m < place ? m + 1 : m] = i;
      if (m + 1 < count) i = work.mates[i];
    }
  }
  __syncwarp();
  merge_segment(
      count, [&](uint32_t m) { return slot_of(members[m]); },
      args.sizes.head_dim, args.policy);
  for (uint32_t m = 1 + lane_id(); m < count; m += 32) {
    free_slot(slot_of(members[m]), args.cache.lanes);
    work.marks[members[m]] |= kGone;
  }
  return count - 1;
}

// Closes the closest links, as many as the head is over its budget, and merges
// what they connect.
static __global__ void __launch_bounds__(kCompressThreads)
    merge_segments_kernel(skv_chunk_args args, CompressWork all_work) {
  __shared__ SelectScratch scratch;
  begin_kernel();
  if (row_end(args.step) == 0) return;
  const ChunkHead head = chunk_head(args, blockIdx.x);
  const HeadWork work = all_work.head(blockIdx.x);
  const uint32_t items = work.counters[kItems];
  const uint32_t light = work.counters[kQueries];
  if (light == 0) return;
  const uint32_t excess = items - head.words[kHeadBudget];
  uint32_t mine = 0, links;
  for (uint32_t i = threadIdx.x; i < items; i += kCompressThreads) {
    work.keys[i] = kNoKey;
  }
  __syncthreads();
  for (uint32_t q = threadIdx.x; q < light; q += kCompressThreads) {
    const uint32_t i = work.queries[q];
    work.keys[i] = work.best[i];
    mine += work.keys[i] != kNoKey ? 1 : 0;
  }
  block_prefix(mine, links, scratch.block);
  uint64_t last = kNoKey;
  if (links > excess) last = kth_smallest(work.keys, items, excess, scratch);
  const auto is_closed = [&](uint32_t i) {
    return work.keys[i] != kNoKey && work.keys[i] <= last;
  };
  for (uint32_t q = threadIdx.x; q < light; q += kCompressThreads) {
    const uint32_t i = work.queries[q];
    if (is_closed(i)) atomicOr(work.marks + work.mates[i], kAccepted);
  }
  __syncthreads();
  // A segment begins where nothing is linked from the left.
  const uint32_t segments =
      list_if(items, work.nearest, scratch, [&](uint32_t i) {
        return is_closed(i) && (work.marks[i] & kAccepted) == 0;
      });
  uint32_t gone = 0;
  for (uint32_t s = warp_id(); s < segments; s += kCompressWarps) {
    gone += merge_chain(args, head, work, work.nearest[s], last);
  }
  if (gone > 0 && lane_id() == 0) {
    atomicAdd(head.words + kHeadMerged, gone);
    atomicAdd(work.counters + kPairs, gone);
  }
}

inline cudaError_t launch_segments(const skv_chunk_args &args,
                                   const CompressWork &work,
                                   const Launch &launch) {
  const uint32_t heads = args.sizes.kv_heads;
  cudaError_t status = launch_kernel(launch, list_light_kernel, heads,
                                     kCompressThreads, 0, args, work);
  if (status == cudaSuccess) {
    status = launch_right_neighbours(args, work, launch);
  }
  const dim3 links((work.most + kLinkWarps - 1) / kLinkWarps, heads);
  if (status == cudaSuccess) {
    status = launch_kernel(launch, measure_links_kernel, links, 32 * kLinkWarps,
                           0, args, work);
  }
  if (status != cudaSuccess) return status;
  return launch_kernel(launch, merge_segments_kernel, heads, kCompressThreads,
                       0, args, work);
}

// Arranging items for a search of the cheapest pairs: the heaviest first.
//
// Each pair is looked at from its lighter end, so an item is compared with
// those before it, and tiles of candidates that have none of these are left
// out: half of all. Items of about the same weight are in any order, as that is
// all that tiles take; the alternative that lost sorts them.
#pragma once

#include "compress_work.cuh"
#include "overlap.cuh"
#include "search_shares.cuh"
#include "select_smallest.cuh"

// Classes of weight, 1/32 of a factor e wide; the last has all that are
// lighter.
constexpr uint32_t kWeightClasses = 4096;
constexpr float kClassesPerFactor = 32.0f;

struct ArrangeShared {
  SelectScratch select;
  float largest[32];
  uint32_t starts[kWeightClasses];
  // Where the next item of a class goes.
  uint32_t next[kWeightClasses];
};

// The largest `x` of the block's threads.
__device__ inline float block_max(float x, float (&scratch)[32]) {
  x = warp_max(x);
  __syncthreads();
  if (lane_id() == 0) scratch[warp_id()] = x;
  __syncthreads();
  x = lane_id() < blockDim.x / 32 ? scratch[lane_id()] : -INFINITY;
  return warp_max(x);
}

// Leaves how many tiles of candidates the tiles of queries have that come
// before each; `ends(last)` is how many candidates the query `last` is compared
// with. Called by the whole block.
template <class Ends>
__device__ inline void start_rows(const HeadWork &work, uint32_t queries,
                                  SelectScratch &scratch, Ends ends) {
  const uint32_t rows = (queries + kPairTileItems - 1) / kPairTileItems;
  uint32_t before = 0;
  for (uint32_t first = 0; first < rows; first += blockDim.x) {
    const uint32_t row = first + threadIdx.x;
    uint32_t tiles = 0, all;
    if (row < rows) {
      const uint32_t last = min(queries, (row + 1) * kPairTileItems) - 1;
      tiles = max(1u, (ends(last) + kPairTileItems - 1) / kPairTileItems);
    }
    const uint32_t start = before + block_prefix(tiles, all, scratch.block);
    if (row < rows) work.row_starts[row] = start;
    before += all;
  }
  if (threadIdx.x == 0) work.counters[kPairTiles] = before;
}

__device__ inline PlacedItem placed_item(const HeadWork &work,
                                         uint32_t ordinal) {
  const float4 measures = work.measures[ordinal];
  return {work.items[ordinal],
          ordinal,
          __float_as_uint(measures.w),
          measures.x,
          {measures.y, measures.z},
          0,
          0};
}

// Puts `count` items of a list in their order. Called by the whole block.
__device__ inline void place_by_weight(const HeadWork &work,
                                       const uint32_t *list, uint32_t count,
                                       ArrangeShared &shared) {
  float largest = -INFINITY;
  for (uint32_t k = threadIdx.x; k < count; k += blockDim.x) {
    largest = fmaxf(largest, work.measures[list[k]].x);
  }
  largest = block_max(largest, shared.largest);
  const auto class_of = [&](uint32_t ordinal) {
    const float below =
        (largest - work.measures[ordinal].x) * kClassesPerFactor;
    return static_cast<uint32_t>(
        fminf(below, static_cast<float>(kWeightClasses - 1)));
  };
  for (uint32_t c = threadIdx.x; c < kWeightClasses; c += blockDim.x) {
    shared.next[c] = 0;
  }
  __syncthreads();
  for (uint32_t k = threadIdx.x; k < count; k += blockDim.x) {
    atomicAdd(shared.next + class_of(list[k]), 1);
  }
  __syncthreads();
  // A thread has a run of classes.
  const uint32_t run = kWeightClasses / blockDim.x;
  const uint32_t first = threadIdx.x * run;
  uint32_t mine = 0, all;
  for (uint32_t c = first; c < first + run; c++) mine += shared.next[c];
  uint32_t start = block_prefix(mine, all, shared.select.block);
  for (uint32_t c = first; c < first + run; c++) {
    const uint32_t own = shared.next[c];
    shared.starts[c] = shared.next[c] = start;
    start += own;
  }
  __syncthreads();
  for (uint32_t k = threadIdx.x; k < count; k += blockDim.x) {
    const uint32_t ordinal = list[k], own = class_of(ordinal);
    const uint32_t place = atomicAdd(shared.next + own, 1);
    PlacedItem item = placed_item(work, ordinal);
    item.first = shared.starts[own];
    item.end = own + 1 < kWeightClasses ? shared.starts[own + 1] : count;
    work.placed[place] = item;
    work.queries[place] = work.candidates[place] = ordinal;
  }
  __syncthreads();
}

// Arranges what may be merged in pairs, in each round; nothing where the head
// fits or where the round before, if there was one, found no pair.
static __global__ void __launch_bounds__(kCompressThreads)
    arrange_pairs_kernel(skv_chunk_args args, CompressWork all_work,
                         bool again) {
  __shared__ ArrangeShared shared;
  begin_kernel();
  if (row_end(args.step) == 0) return;
  const ChunkHead head = chunk_head(args, blockIdx.x);
  const HeadWork work = all_work.head(blockIdx.x);
  const uint32_t items = work.counters[kItems];
  const uint32_t left = items - work.counters[kPairs];
  const uint32_t matched = work.counters[kMatched];
  if (again && matched > 0) {
    add_divergences(head, work, matched, shared.select);
  }
  uint32_t count = 0;
  if (left > head.words[kHeadBudget] && (!again || matched > 0)) {
    for (uint32_t i = threadIdx.x; i < items; i += blockDim.x) {
      work.marks[i] &= kGone;
      work.keys[i] = kNoKey;
    }
    __syncthreads();
    // Parts of searches are not in use yet.
    uint32_t *const list = work.nearest;
    count = list_if(items, list, shared.select, [&](uint32_t i) {
      return (work.marks[i] & kGone) == 0 &&
             is_evictable(__float_as_uint(work.measures[i].w), args.policy,
                          head.words[kHeadRecent], head.newest);
    });
    place_by_weight(work, list, count, shared);
    start_rows(work, count, shared.select,
               [&](uint32_t last) { return work.placed[last].end; });
  }
  // The counters that are written were read above.
  __syncthreads();
  if (threadIdx.x == 0) {
    work.counters[kQueries] = work.counters[kCandidates] = count;
    if (count == 0) work.counters[kPairTiles] = 0;
    work.counters[kMatched] = 0;
  }
}

// Arranges victims and what may take them, in the order of their lists.
static __global__ void __launch_bounds__(kCompressThreads)
    arrange_victims_kernel(skv_chunk_args args, CompressWork all_work) {
  __shared__ SelectScratch scratch;
  begin_kernel();
  if (row_end(args.step) == 0) return;
  const HeadWork work = all_work.head(blockIdx.x);
  const uint32_t victims = work.counters[kQueries];
  const uint32_t targets = victims > 0 ? work.counters[kCandidates] : 0;
  for (uint32_t k = threadIdx.x; k < victims; k += blockDim.x) {
    work.placed[k] = placed_item(work, work.queries[k]);
  }
  for (uint32_t k = threadIdx.x; k < targets; k += blockDim.x) {
    work.placed[victims + k] = placed_item(work, work.candidates[k]);
  }
  start_rows(work, victims, scratch, [&](uint32_t) { return targets; });
}

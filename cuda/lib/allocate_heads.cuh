// Spreads the budget of a layer over its KV heads by the scores of the first
// chunk of a text: see src/reference/allocate_heads.ts. One block, since it
// runs once per text and its work is linear in the staged rows.
#pragma once

#include "ratings.cuh"
#include "select_smallest.cuh"

constexpr uint32_t kFloorParts = 1024;

// What a head is to get, kept in the list of its items' mates.
enum AllocationWord { kParts = 0, kFree = 1 };

// Slots of a head beside sinks and recent tokens.
__device__ inline uint32_t free_slots(const skv_chunk_args &args,
                                      const ChunkHead &head) {
  return head.words[kHeadBudget] - args.policy.sinks - head.words[kHeadRecent];
}

// Rounds the parts of all heads to `free` slots in all, and gives each head as
// many and its place in the layer. By one thread.
__device__ inline void settle_heads(const skv_chunk_args &args,
                                    const CompressWork &work, uint32_t free) {
  const uint32_t heads = args.sizes.kv_heads;
  const auto parts_of = [&](uint32_t h) { return work.head(h).mates[kParts]; };
  uint32_t up = free;
  for (uint32_t h = 0; h < heads; h++) up -= parts_of(h) / kFloorParts;
  uint32_t offset = chunk_head(args, 0).words[kHeadOffset];
  for (uint32_t h = 0; h < heads; h++) {
    const uint32_t remainder = parts_of(h) % kFloorParts;
    uint32_t before = 0;
    for (uint32_t other = 0; other < heads; other++) {
      const uint32_t theirs = parts_of(other) % kFloorParts;
      if (theirs > remainder || (theirs == remainder && other < h)) before++;
    }
    const uint32_t slots = parts_of(h) / kFloorParts + (before < up ? 1 : 0);
    const uint32_t change = slots - work.head(h).mates[kFree];
    uint32_t *words = chunk_head(args, h).words;
    words[kHeadOffset] = offset;
    words[kHeadBudget] += change;
    words[kHeadCapacity] += change;
    offset += words[kHeadCapacity];
  }
}

static __global__ void __launch_bounds__(kCompressThreads)
    allocate_heads_kernel(skv_chunk_args args, CompressWork work) {
  __shared__ SelectScratch scratch;
  begin_kernel();
  const uint32_t rows = row_end(args.step);
  if (rows == 0 || chunk_head(args, 0).words[kHeadLive] > 0) return;
  const uint32_t heads = args.sizes.kv_heads;
  // Nothing is in the slots: items are the rows. From the highest score.
  uint32_t mine = 0, free = 0, least = ~0u, candidates;
  for (uint32_t h = 0; h < heads; h++) {
    const ChunkHead head = chunk_head(args, h);
    const HeadWork own = work.head(h);
    const uint32_t slots = free_slots(args, head);
    free += slots;
    least = min(least, slots);
    for (uint32_t i = threadIdx.x; i < rows; i += kCompressThreads) {
      const bool goes = item_is_evictable(args, head, own.items[i]);
      own.keys[i] =
          goes ? order_key(-item_score(args, head, own, i), 0) : kNoKey;
      mine += goes ? 1 : 0;
    }
  }
  block_prefix(mine, candidates, scratch.block);
  if (candidates <= free) return;
  const uint64_t last = kth_smallest(
      heads * rows, free, scratch,
      [&](uint32_t i) { return work.head(i / rows).keys[i % rows]; });
  uint32_t left = free;
  const auto count_if = [&](uint32_t h, auto wanted) {
    const HeadWork own = work.head(h);
    uint32_t some = 0, all;
    for (uint32_t i = threadIdx.x; i < rows; i += kCompressThreads) {
      some += wanted(own.keys[i]) ? 1 : 0;
    }
    block_prefix(some, all, scratch.block);
    return all;
  };
  const auto is_above = [&](uint64_t key) { return key < last; };
  const auto is_tied = [&](uint64_t key) { return key == last; };
  for (uint32_t h = 0; h < heads; h++) left -= count_if(h, is_above);
  const uint32_t floor =
      max(args.policy.floor_parts, (kFloorParts + least - 1) / least);
  for (uint32_t h = 0; h < heads; h++) {
    const uint32_t above = count_if(h, is_above);
    const uint32_t tied = min(left, count_if(h, is_tied));
    left -= tied;
    if (threadIdx.x != 0) continue;
    const uint32_t slots = free_slots(args, chunk_head(args, h));
    uint32_t *words = work.head(h).mates;
    words[kParts] = (kFloorParts - floor) * (above + tied) + floor * slots;
    words[kFree] = slots;
  }
  // All threads have read what thread 0 changes.
  __syncthreads();
  if (threadIdx.x == 0) settle_heads(args, work, free);
}

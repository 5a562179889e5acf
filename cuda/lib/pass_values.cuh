// Passing the values of victims on, one by one in the order of their ranks,
// since each takes in what those before it have passed on.
//
// One block has a head: finding who takes a value in reads a position per item,
// and the elements of a value do not touch each other. The alternative that
// lost: many blocks, which would wait for each other after every victim.
#pragma once

#include "compress_work.cuh"
#include "next_values.cuh"

// Called by the whole block; the caller frees the slots.
__device__ inline void pass_values(const skv_chunk_args &args,
                                   const ChunkHead &head, const HeadWork &work,
                                   uint32_t victims, Followers &followers,
                                   SelectScratch &scratch) {
  const uint32_t items = work.counters[kItems];
  const auto slot_of = [&](uint32_t i) {
    return item_slot(args, head, work.items[i]);
  };
  // Positions of those that are still there.
  uint32_t *positions = work.mates;
  for (uint32_t i = threadIdx.x; i < items; i += kCompressThreads) {
    positions[i] = slot_of(i).word(kSlotPosition);
  }
  for (uint32_t v = threadIdx.x; v < victims; v += kCompressThreads) {
    const uint32_t i = work.queries[v];
    uint32_t place = 0;
    for (uint32_t u = 0; u < victims; u++) {
      place += work.keys[work.queries[u]] < work.keys[i] ? 1 : 0;
    }
    work.candidates[place] = i;
  }
  __syncthreads();
  for (uint32_t v = 0; v < victims; v++) {
    const uint32_t i = work.candidates[v];
    const PassedOn gone = {slot_of(i), args.cache.layer, head.kv_head,
                           args.sizes.head_dim};
    const bool is_passed = pass_on(
        args.policy, gone, items, followers, scratch,
        [&](uint32_t other) { return positions[other]; }, slot_of);
    // The next one looks at positions after a barrier, and so did all at this.
    if (threadIdx.x != 0) continue;
    positions[i] = 0;
    if (is_passed) {
      head.words[kHeadMerged]++;
    } else {
      head.words[kHeadDropped]++;
      head.words[kHeadDroppedTokens] += gone.slot.word(kSlotTokens);
    }
  }
  __syncthreads();
}

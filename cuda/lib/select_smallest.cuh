// Things that one block does with a list in global memory: choosing the
// smallest keys, listing what has a property, adding up.
#pragma once

#include "reduce.cuh"

struct SelectScratch {
  BlockScratch block;
  uint32_t histogram[256];
  uint32_t digit;
  uint32_t before;
  float sums[32];
};

// The `count`th smallest of the keys `key(0)` to `key(length - 1)`, `kNoKey`
// left out; there must be as many. Called by the whole block.
//
// One pass per byte from the top narrows the keys down to those that share a
// prefix. The alternative that lost: sorting, which does more than is asked.
template <class Key>
__device__ inline uint64_t kth_smallest(uint32_t length, uint32_t count,
                                        SelectScratch &scratch, Key key_of) {
  uint64_t prefix = 0, mask = 0;
  for (int shift = 56; shift >= 0; shift -= 8) {
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < 256; i += blockDim.x) {
      scratch.histogram[i] = 0;
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < length; i += blockDim.x) {
      const uint64_t key = key_of(i);
      if (key == kNoKey || (key & mask) != prefix) continue;
      atomicAdd(scratch.histogram + (key >> shift & 255), 1);
    }
    __syncthreads();
    if (warp_id() == 0) {
      // Eight buckets per lane.
      uint32_t mine = 0;
      for (uint32_t i = 0; i < 8; i++) {
        mine += scratch.histogram[8 * lane_id() + i];
      }
      uint32_t running = mine;
#pragma unroll
      for (int offset = 1; offset < 32; offset *= 2) {
        const uint32_t other = __shfl_up_sync(kAllLanes, running, offset);
        if (lane_id() >= static_cast<uint32_t>(offset)) running += other;
      }
      uint32_t before = running - mine;
      if (before < count && count <= running) {
        uint32_t digit = 8 * lane_id();
        while (before + scratch.histogram[digit] < count) {
          before += scratch.histogram[digit++];
        }
        scratch.digit = digit;
        scratch.before = before;
      }
    }
    __syncthreads();
    prefix |= static_cast<uint64_t>(scratch.digit) << shift;
    mask |= 255ull << shift;
    count -= scratch.before;
  }
  return prefix;
}

// The same of keys in memory.
__device__ inline uint64_t kth_smallest(const uint64_t *keys, uint32_t length,
                                        uint32_t count,
                                        SelectScratch &scratch) {
  return kth_smallest(length, count, scratch,
                      [&](uint32_t i) { return keys[i]; });
}

// Writes the numbers below `length` that `wanted` accepts to `list`, in order;
// returns how many there are. Called by the whole block.
template <class Wanted>
__device__ inline uint32_t list_if(uint32_t length, uint32_t *list,
                                   SelectScratch &scratch, Wanted wanted) {
  uint32_t listed = 0;
  for (uint32_t first = 0; first < length; first += blockDim.x) {
    const uint32_t i = first + threadIdx.x;
    const bool is_wanted = i < length && wanted(i);
    uint32_t total;
    const uint32_t before =
        block_prefix(is_wanted ? 1 : 0, total, scratch.block);
    if (is_wanted) list[listed + before] = i;
    listed += total;
  }
  __syncthreads();
  return listed;
}

// Sum of `x` over the threads of the block, always in the same order.
__device__ inline float block_sum(float x, SelectScratch &scratch) {
  x = warp_sum(x);
  __syncthreads();
  if (lane_id() == 0) scratch.sums[warp_id()] = x;
  __syncthreads();
  float sum = 0.0f;
  for (uint32_t w = 0; w < blockDim.x / 32; w++) sum += scratch.sums[w];
  return sum;
}

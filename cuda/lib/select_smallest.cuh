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

// Keys that a thread of kth_smallest reads before it looks at any.
constexpr uint32_t kKeysAhead = 4;

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
    for (uint32_t first = threadIdx.x; first < length;
         first += kKeysAhead * blockDim.x) {
      uint64_t keys[kKeysAhead];
#pragma unroll
      for (uint32_t k = 0; k < kKeysAhead; k++) {
        const uint32_t i = first + k * blockDim.x;
        keys[k] = key_of(min(i, length - 1));
        if (i >= length) keys[k] = kNoKey;
      }
#pragma unroll
      for (uint32_t k = 0; k < kKeysAhead; k++) {
        if (keys[k] == kNoKey || (keys[k] & mask) != prefix) continue;
        atomicAdd(scratch.histogram + (keys[k] >> shift & 255), 1);
      }
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

// Groups of 32 numbers that a warp of list_if asks about before it looks at any
// answer, so that what answers depend on is on its way together.
constexpr uint32_t kGroupsAhead = 8;

// Writes `value(i)` of the numbers below `length` that `wanted` accepts to
// `list`, in their order; returns how many there are. Called by the whole
// block.
//
// A warp has a run of up to 32 groups at a time, and lane k keeps which numbers
// of group k are wanted: so the block waits once for 32 numbers of each thread.
template <class Wanted, class Value>
__device__ inline uint32_t list_if(uint32_t length, uint32_t *list,
                                   SelectScratch &scratch, Wanted wanted,
                                   Value value) {
  const uint32_t warps = blockDim.x / 32, lane = lane_id();
  uint32_t listed = 0;
  for (uint32_t first = 0; first < length; first += 32 * blockDim.x) {
    const uint32_t groups = min((length - first + 31) / 32, blockDim.x);
    const uint32_t run = (groups + warps - 1) / warps;
    const uint32_t begin = first + warp_id() * run * 32 + lane;
    uint32_t mine = 0;
    for (uint32_t group = 0; group < run; group += kGroupsAhead) {
      bool answers[kGroupsAhead];
#pragma unroll
      for (uint32_t k = 0; k < kGroupsAhead; k++) {
        const uint32_t i = begin + 32 * (group + k);
        answers[k] = wanted(min(i, length - 1));
        answers[k] = answers[k] && group + k < run && i < length;
      }
#pragma unroll
      for (uint32_t k = 0; k < kGroupsAhead; k++) {
        const uint32_t ballot = __ballot_sync(kAllLanes, answers[k]);
        if (lane == group + k) mine = ballot;
      }
    }
    uint32_t total;
    const uint32_t before =
        listed + block_prefix(__popc(mine), total, scratch.block);
    for (uint32_t group = 0; group < run; group++) {
      const uint32_t ballot = __shfl_sync(kAllLanes, mine, group);
      const uint32_t at = __shfl_sync(kAllLanes, before, group);
      if ((ballot >> lane & 1) == 0) continue;
      list[at + __popc(ballot & ((1u << lane) - 1))] =
          value(begin + 32 * group);
    }
    listed += total;
  }
  __syncthreads();
  return listed;
}

// The same of the numbers themselves.
template <class Wanted>
__device__ inline uint32_t list_if(uint32_t length, uint32_t *list,
                                   SelectScratch &scratch, Wanted wanted) {
  return list_if(length, list, scratch, wanted, [](uint32_t i) { return i; });
}

// Shared memory of list_two, for up to 32 warps.
struct ListScratch {
  uint32_t counts[32][2];
};

// Writes the numbers below `length` of the first kind to `list`, in order, and
// those of the second kind after them; `kind(i)` is 0 or 1, or anything else
// for numbers that are left out. Returns how many there are of each. Called by
// the whole block.
//
// A warp has a run of numbers, counts them first and then knows their places.
template <class Kind>
__device__ inline uint2 list_two(uint32_t length, uint32_t *list,
                                 ListScratch &scratch, Kind kind) {
  const uint32_t warps = blockDim.x / 32;
  const uint32_t run = (length + 32 * warps - 1) / (32 * warps) * 32;
  const uint32_t begin = warp_id() * run, end = min(length, begin + run);
  // Calls `use` with a number and the lanes that have one of each kind.
  const auto each = [&](auto use) {
    for (uint32_t first = begin; first < end; first += 32) {
      const uint32_t i = first + lane_id();
      const uint32_t own = i < end ? kind(i) : 2;
      const uint32_t zeros = __ballot_sync(kAllLanes, own == 0);
      const uint32_t ones = __ballot_sync(kAllLanes, own == 1);
      use(i, own, zeros, ones);
    }
  };
  uint32_t counts[2] = {};
  each([&](uint32_t, uint32_t, uint32_t zeros, uint32_t ones) {
    counts[0] += __popc(zeros);
    counts[1] += __popc(ones);
  });
  __syncthreads();
  if (lane_id() < 2) {
    scratch.counts[warp_id()][lane_id()] = counts[lane_id() == 0 ? 0 : 1];
  }
  __syncthreads();
  uint32_t before[2] = {}, total[2] = {};
  for (uint32_t w = 0; w < warps; w++) {
#pragma unroll
    for (int k = 0; k < 2; k++) {
      if (w < warp_id()) before[k] += scratch.counts[w][k];
      total[k] += scratch.counts[w][k];
    }
  }
  before[1] += total[0];
  const uint32_t lower = (1u << lane_id()) - 1;
  each([&](uint32_t i, uint32_t own, uint32_t zeros, uint32_t ones) {
    if (own == 0) list[before[0] + __popc(zeros & lower)] = i;
    if (own == 1) list[before[1] + __popc(ones & lower)] = i;
    before[0] += __popc(zeros);
    before[1] += __popc(ones);
  });
  __syncthreads();
  return {total[0], total[1]};
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

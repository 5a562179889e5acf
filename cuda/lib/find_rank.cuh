// Searches over ids by one block: the rank at which a sum is reached, and the
// id at which one is.
#pragma once

#include "sampling.cuh"

// A histogram of weights: 37 bits in limbs of 12, 12 and 13, whose sums over
// 2^18 ids fit in 32 bits.
template <uint32_t BUCKETS>
struct Histogram {
  uint32_t limbs[3][BUCKETS];

  // Called by the whole block, which synchronizes afterwards.
  __device__ void clear() {
    for (uint32_t i = threadIdx.x; i < 3 * BUCKETS; i += kSampleThreads) {
      limbs[i / BUCKETS][i % BUCKETS] = 0;
    }
  }
  __device__ void add(uint32_t bucket, uint64_t weight) {
    atomicAdd(limbs[0] + bucket, static_cast<uint32_t>(weight & 4095));
    atomicAdd(limbs[1] + bucket, static_cast<uint32_t>(weight >> 12 & 4095));
    atomicAdd(limbs[2] + bucket, static_cast<uint32_t>(weight >> 24));
  }
  __device__ uint64_t get(uint32_t bucket) const {
    return limbs[0][bucket] + (static_cast<uint64_t>(limbs[1][bucket]) << 12) +
           (static_cast<uint64_t>(limbs[2][bucket]) << 24);
  }
};

struct RankScratch {
  Histogram<256> histogram;
  uint64_t sums[kSampleWarps];
  uint64_t before;
  uint32_t digit;
  uint32_t chosen;
};

// The sum over the lanes up to this one.
__device__ inline uint64_t lane_prefix(uint64_t x) {
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const uint64_t other =
        __shfl_up_sync(kAllLanes, static_cast<unsigned long long>(x), offset);
    if (lane_id() >= static_cast<uint32_t>(offset)) x += other;
  }
  return x;
}

// Sum of `x` over the threads before this one; `total` gets the sum over all.
// Every thread of the block calls it.
__device__ inline uint64_t sum_before(uint64_t x, uint64_t &total,
                                      uint64_t (&sums)[kSampleWarps]) {
  const uint64_t running = lane_prefix(x);
  __syncthreads();
  if (lane_id() == 31) sums[warp_id()] = running;
  __syncthreads();
  uint64_t before = running - x;
  total = 0;
#pragma unroll
  for (uint32_t w = 0; w < kSampleWarps; w++) {
    if (w < warp_id()) before += sums[w];
    total += sums[w];
  }
  return before;
}

// The smallest rank up to which the weights of ids, from the likeliest on, add
// up to `wanted`, at least 1; all ones where they never do. `for_each(use)`
// calls `use(rank, weight)` for this thread's share of the ids, whose ranks
// begin with the highest bits of `prefix` where `mask` is set. Called by the
// whole block.
template <class ForEach>
__device__ inline uint32_t find_rank(uint64_t wanted, uint32_t prefix,
                                     uint32_t mask, RankScratch &shared,
                                     ForEach for_each) {
  for (int shift = 24; shift >= 0; shift -= 8) {
    if ((mask >> shift & 1) != 0) continue;
    __syncthreads();
    shared.histogram.clear();
    if (threadIdx.x == 0) shared.digit = 256;
    __syncthreads();
    for_each([&](uint32_t rank, uint64_t weight) {
      if ((rank & mask) != prefix || weight == 0) return;
      shared.histogram.add(rank >> shift & 255, weight);
    });
    __syncthreads();
    if (warp_id() == 0) {
      // Eight buckets per lane.
      uint64_t mine = 0;
      for (uint32_t i = 0; i < 8; i++) {
        mine += shared.histogram.get(8 * lane_id() + i);
      }
      const uint64_t running = lane_prefix(mine);
      uint64_t before = running - mine;
      if (before < wanted && wanted <= running) {
        uint32_t digit = 8 * lane_id();
        while (before + shared.histogram.get(digit) < wanted) {
          before += shared.histogram.get(digit++);
        }
        shared.digit = digit;
        shared.before = before;
      }
    }
    __syncthreads();
    if (shared.digit == 256) return 0xffffffffu;
    prefix |= shared.digit << shift;
    mask |= 255u << shift;
    wanted -= shared.before;
  }
  return prefix;
}

// The id of those from `begin` to `end` at which the sum of weights, in the
// order of ids, exceeds `left`, which is less than the sum of all. Called by
// the whole block.
template <class Weight>
__device__ inline uint32_t find_id(uint32_t begin, uint32_t end, uint64_t left,
                                   RankScratch &shared, Weight weight) {
  // Each warp owns a run of ids.
  const uint32_t run = (end - begin + kSampleWarps - 1) / kSampleWarps;
  const uint32_t from = min(end, begin + warp_id() * run);
  const uint32_t to = min(end, from + run);
  uint64_t mine = 0;
  for (uint32_t id = from + lane_id(); id < to; id += 32) mine += weight(id);
  uint64_t total;
  uint64_t before = sum_before(mine, total, shared.sums);
  before = __shfl_sync(kAllLanes, static_cast<unsigned long long>(before), 0);
  if (left >= before && left < before + shared.sums[warp_id()]) {
    left -= before;
    for (uint32_t first = from; first < to; first += 32) {
      const uint32_t id = first + lane_id();
      const uint64_t running = lane_prefix(id < to ? weight(id) : 0);
      const uint32_t passed = __ballot_sync(kAllLanes, running > left);
      if (passed != 0) {
        if (lane_id() == 0) shared.chosen = first + __ffs(passed) - 1;
        break;
      }
      left -=
          __shfl_sync(kAllLanes, static_cast<unsigned long long>(running), 31);
    }
  }
  __syncthreads();
  return shared.chosen;
}

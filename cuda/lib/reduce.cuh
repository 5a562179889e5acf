// Sums, maxima and minima over the lanes of a warp, and order-preserving keys.
#pragma once

#include <stdint.h>

constexpr uint32_t kAllLanes = 0xffffffffu;

__device__ inline uint32_t lane_id() { return threadIdx.x & 31; }

__device__ inline uint32_t warp_id() { return threadIdx.x >> 5; }

// The sum over all lanes, in every lane; the order of additions is fixed.
__device__ inline float warp_sum(float x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    x += __shfl_xor_sync(kAllLanes, x, offset);
  }
  return x;
}

__device__ inline float warp_max(float x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, offset));
  }
  return x;
}

__device__ inline uint64_t warp_min(uint64_t x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    x = min(x, static_cast<uint64_t>(__shfl_xor_sync(
                   kAllLanes, static_cast<unsigned long long>(x), offset)));
  }
  return x;
}

// Words in the order of the floats.
__device__ inline uint32_t ordered(float x) {
  const uint32_t bits = __float_as_uint(x);
  return bits ^ ((bits >> 31) != 0 ? 0xffffffffu : 0x80000000u);
}

// Sorts by a float, then by a position.
__device__ inline uint64_t order_key(float x, uint32_t position) {
  return static_cast<uint64_t>(ordered(x)) << 32 | position;
}

constexpr uint64_t kNoKey = ~0ull;

// Shared memory of block_prefix and of block sums.
struct BlockScratch {
  uint32_t words[33];
};

// Sum of `x` over the threads before this one; `total` gets the sum over all.
// Every thread of the block calls it.
__device__ inline uint32_t block_prefix(uint32_t x, uint32_t &total,
                                        BlockScratch &scratch) {
  const uint32_t lane = lane_id(), warp = warp_id();
  const uint32_t warps = blockDim.x >> 5;
  uint32_t sum = x;
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const uint32_t before = __shfl_up_sync(kAllLanes, sum, offset);
    if (lane >= static_cast<uint32_t>(offset)) sum += before;
  }
  __syncthreads();
  if (lane == 31) scratch.words[warp] = sum;
  __syncthreads();
  if (warp == 0) {
    uint32_t mine = lane < warps ? scratch.words[lane] : 0;
    uint32_t running = mine;
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
      const uint32_t before = __shfl_up_sync(kAllLanes, running, offset);
      if (lane >= static_cast<uint32_t>(offset)) running += before;
    }
    scratch.words[lane] = running - mine;
    if (lane == 31) scratch.words[32] = running;
  }
  __syncthreads();
  total = scratch.words[32];
  return scratch.words[warp] + sum - x;
}

template <uint32_t WARPS>
struct LowestShared {
  uint64_t keys[WARPS];
  uint32_t owners[WARPS];
};

// Who has the lowest key of a block of WARPS, or ~0 if nobody has one; each
// thread brings one, the owners of the same key are told apart by their number.
template <uint32_t WARPS>
__device__ inline uint32_t lowest_of_block(uint64_t key, uint32_t owner,
                                           LowestShared<WARPS> &shared) {
  const uint64_t lowest = warp_min(key);
  owner = __reduce_min_sync(kAllLanes, key == lowest ? owner : ~0u);
  __syncthreads();
  if (lane_id() == 0) {
    shared.keys[warp_id()] = lowest;
    shared.owners[warp_id()] = owner;
  }
  __syncthreads();
  uint64_t best = kNoKey;
  uint32_t found = ~0u;
#pragma unroll 1
  for (uint32_t w = 0; w < WARPS; w++) {
    if (shared.keys[w] >= best) continue;
    best = shared.keys[w];
    found = shared.owners[w];
  }
  return found;
}

// How far the values of a head scatter: their mean squared distance from their
// mean, every slot counted once.
//
// Blocks share the slots: each leaves how many it had, their mean and the sum
// of their squared distances from that, and who needs the whole joins these. A
// sum of squares would lose what scatters little about a mean far from 0. The
// alternative that lost: one block per head, which waits for memory most of the
// time.
#pragma once

#include "select_smallest.cuh"
#include "slots.cuh"

constexpr uint32_t kSpreadThreads = 256;
constexpr uint32_t kSpreadWarps = kSpreadThreads / 32;

// Slots of a block.
constexpr uint32_t kSpreadSlots = 256;

__host__ __device__ inline uint32_t spread_parts(uint32_t slots) {
  return (slots + kSpreadSlots - 1) / kSpreadSlots;
}

// Floats that a block leaves: a count, a sum of squares, and the mean.
__host__ __device__ inline uint32_t spread_floats(uint32_t head_dim) {
  return 2 + head_dim;
}

struct SpreadShared {
  float sums[kSpreadWarps][kMaxHeadDim];
  float mean[kMaxHeadDim];
  SelectScratch select;
};

// Leaves part `part` of `count` slots; `slot_of(i)` may be free.
// Lanes have 8 elements of a value each, and warps as many values at a time as
// they have lanes for. Called by a whole block of kSpreadThreads.
template <bool ALIGNED, class SlotOf>
__device__ inline void spread_part(uint32_t part, uint32_t count,
                                   uint32_t head_dim, float *parts,
                                   SpreadShared &shared, SlotOf slot_of) {
  uint32_t row_lanes = 1;
  while (8 * row_lanes < head_dim) row_lanes *= 2;
  const uint32_t rows = 32 / row_lanes;
  const uint32_t row = lane_id() / row_lanes;
  const uint32_t d = lane_id() % row_lanes * 8;
  const uint32_t begin = part * kSpreadSlots;
  const uint32_t end = min(count, begin + kSpreadSlots);
  const uint32_t first = begin + warp_id() * rows + row;
  // Calls `add` with the elements of each value that is there.
  const auto each_value = [&](auto add) {
#pragma unroll 4
    for (uint32_t i = first; i < end; i += kSpreadWarps * rows) {
      const Slot slot = slot_of(i);
      uint32_t words[4];
      load_pairs<8, ALIGNED>(words, slot.value, d, head_dim);
      if (slot.word(kSlotTokens) == 0) continue;
      float x[8];
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const float2 pair = cached_floats(words[j]);
        x[2 * j] = pair.x, x[2 * j + 1] = pair.y;
      }
      add(x);
    }
  };
  float sums[8] = {};
  uint32_t mine = 0, held;
  each_value([&](const float(&x)[8]) {
#pragma unroll
    for (int j = 0; j < 8; j++) sums[j] += x[j];
    mine += d == 0 ? 1 : 0;
  });
#pragma unroll
  for (int j = 0; j < 8; j++) {
    for (uint32_t offset = row_lanes; offset < 32; offset *= 2) {
      sums[j] += __shfl_xor_sync(kAllLanes, sums[j], offset);
    }
    if (row == 0) shared.sums[warp_id()][d + j] = sums[j];
  }
  block_prefix(mine, held, shared.select.block);
  float *out = parts + part * spread_floats(head_dim);
  const float terms = static_cast<float>(max(1u, held));
  if (threadIdx.x < head_dim) {
    float mean = 0.0f;
    for (uint32_t w = 0; w < kSpreadWarps; w++) {
      mean += shared.sums[w][threadIdx.x];
    }
    mean /= terms;
    shared.mean[threadIdx.x] = mean;
    out[2 + threadIdx.x] = mean;
  }
  __syncthreads();
  float squares = 0.0f;
  each_value([&](const float(&x)[8]) {
#pragma unroll
    for (uint32_t j = 0; j < 8; j++) {
      if (d + j >= head_dim) continue;
      const float rest = x[j] - shared.mean[d + j];
      squares += rest * rest;
    }
  });
  squares = block_sum(squares, shared.select);
  if (threadIdx.x == 0) {
    out[0] = static_cast<float>(held);
    out[1] = squares;
  }
}

// Joins the parts of `count` slots. Called by a whole block of at least
// kMaxHeadDim threads; the same in all of them.
__device__ inline float join_spread(uint32_t count, uint32_t head_dim,
                                    const float *parts,
                                    SelectScratch &scratch) {
  const uint32_t pitch = spread_floats(head_dim);
  const uint32_t end = spread_parts(count) * pitch;
  float held = 0.0f, squares = 0.0f;
  for (uint32_t p = 0; p < end; p += pitch) {
    held += parts[p];
    squares += parts[p + 1];
  }
  if (held == 0.0f) return 0.0f;
  float between = 0.0f;
  if (threadIdx.x < head_dim) {
    const uint32_t d = 2 + threadIdx.x;
    float mean = 0.0f;
    for (uint32_t p = 0; p < end; p += pitch) {
      mean += parts[p] / held * parts[p + d];
    }
    for (uint32_t p = 0; p < end; p += pitch) {
      const float rest = parts[p + d] - mean;
      between += parts[p] * rest * rest;
    }
  }
  return (squares + block_sum(between, scratch)) / held;
}

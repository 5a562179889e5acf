// The parts of an attention: those of the warps of a block become one, which
// the block leaves for the others of the head.
#pragma once

#include "attend_slots.cuh"
#include "evidence.cuh"

// Memory between the blocks of a head.
struct AttendParts {
  // (heads, most_splits, group, DIM)
  float *values;
  // (heads, most_splits, kMaxGroup)
  float2 *states;
  // (heads, most_splits): live slots, and the first free one
  uint2 *counts;
  // (heads, head_tiles)
  uint32_t *tickets;
  uint32_t most_splits;
  // Splits that would fill the device, and those that would have a block on
  // each multiprocessor.
  uint32_t wanted_splits;
  uint32_t few_splits;
};

// From one query head to the next: lanes of different heads write to different
// banks.
template <int DIM>
constexpr int kSumPitch = DIM + 8;

template <int DIM>
struct AttendShared {
  // Tiles of slots while warps attend, then what they found.
  union {
    alignas(16)
        skv_cached tiles[kAttendWarps][kStages<DIM>][kTileElements<DIM>];
    float values[kAttendWarps][kTileHeads][kSumPitch<DIM>];
  };
  SoftmaxState states[kAttendWarps][kTileHeads];
  float factors[kMaxSplits][kTileHeads];
  float log_sums[kTileHeads];
  uint32_t live[kAttendWarps];
  uint32_t first_free[kAttendWarps];
  Neighbour nearest[kAttendWarps][kMaxRiders];
  uint32_t ticket;
};

// Slots that are worth one more block on a multiprocessor: fewer take less time
// than adding up one more part.
constexpr uint32_t kWorthSlots = 4 * kBlockSlots;

// Splits of a head with slots up to `high`. They do not depend on the capacity:
// caches that hold the same give the same result.
__device__ inline uint32_t splits_of(const AttendParts &parts, uint32_t high) {
  const uint32_t most = (high + kBlockSlots - 1) / kBlockSlots;
  const uint32_t worth = max(parts.few_splits, high / kWorthSlots);
  const uint32_t splits = min(min(parts.wanted_splits, worth), most);
  return max(1u, min(splits, parts.most_splits));
}

__device__ inline Share share_of(uint32_t high, uint32_t splits) {
  const uint32_t tiles = (high + kWarpSlots - 1) / kWarpSlots;
  const uint32_t per_split = (tiles + splits - 1) / splits * kWarpSlots;
  const uint32_t begin = blockIdx.x * per_split;
  return {begin, min(high, begin + per_split)};
}

// The sum over lanes that have the same heads.
__device__ inline float sum_of_rows(float x) {
#pragma unroll
  for (int offset = 4; offset < 32; offset *= 2) {
    x += __shfl_xor_sync(kAllLanes, x, offset);
  }
  return x;
}

// Leaves what a warp found in shared memory. Called by the whole block.
template <class Shape>
__device__ inline void gather_warps(const HeadJob &job,
                                    const WarpAttention<Shape> &warp,
                                    AttendShared<Shape::kDim> &shared) {
  const uint32_t g = lane_id() / 4, t = lane_id() % 4;
  // Of all lanes with the same head, the first.
  const uint32_t live = __reduce_add_sync(kAllLanes, t == 0 ? warp.live : 0);
  const uint32_t first_free = __reduce_min_sync(kAllLanes, warp.first_free);
  // All warps are through with their tiles.
  __syncthreads();
#pragma unroll
  for (int u = 0; u < Shape::kTiles; u++) {
    const uint32_t head = kColumnHeads * u + t;
    const float sum = sum_of_rows(warp.states[u].sum);
    if (head >= job.heads) continue;
    float *to = shared.values[warp_id()][head] + g;
#pragma unroll
    for (int n = 0; n < Shape::kDim / 16; n++) {
      const float(&x)[4] = warp.values[n][u];
      to[16 * n] = x[0] + x[1];
      to[16 * n + 8] = x[2] + x[3];
    }
    if (g == 0) shared.states[warp_id()][head] = {warp.states[u].max, sum};
  }
  if (lane_id() == 0) {
    shared.live[warp_id()] = live;
    shared.first_free[warp_id()] = first_free;
  }
  if (warp.has_riders(job)) warp.riders.gather(shared.nearest[warp_id()]);
  __syncthreads();
}

// Live slots and the first free one, over the block's warps.
template <int DIM>
__device__ inline uint2 block_counts(const AttendShared<DIM> &shared) {
  uint2 counts = {0, kNoSlot};
  for (uint32_t w = 0; w < kAttendWarps; w++) {
    counts.x += shared.live[w];
    counts.y = min(counts.y, shared.first_free[w]);
  }
  return counts;
}

// The softmax state of head g over the block's warps.
template <int DIM>
__device__ inline SoftmaxState block_state(const AttendShared<DIM> &shared,
                                           uint32_t g) {
  SoftmaxState state = init_softmax();
#pragma unroll
  for (uint32_t w = 0; w < kAttendWarps; w++) {
    state.max = fmaxf(state.max, shared.states[w][g].max);
  }
#pragma unroll
  for (uint32_t w = 0; w < kAttendWarps; w++) {
    const SoftmaxState other = shared.states[w][g];
    state.sum += other.sum * exp2_fast(other.max - finite(state.max));
  }
  return state;
}

// Four dimensions of head g over the block's warps, at the scale of `max`.
template <int DIM>
__device__ inline float4 block_values(const AttendShared<DIM> &shared,
                                      uint32_t g, uint32_t d, float max) {
  float4 sum = {};
#pragma unroll
  for (uint32_t w = 0; w < kAttendWarps; w++) {
    const float scale = exp2_fast(shared.states[w][g].max - finite(max));
    const float4 x = *reinterpret_cast<const float4 *>(shared.values[w][g] + d);
    sum.x += x.x * scale, sum.y += x.y * scale;
    sum.z += x.z * scale, sum.w += x.w * scale;
  }
  return sum;
}

// Calls `use(g, d)` for every four dimensions of the block's heads.
template <int DIM, class Use>
__device__ inline void for_each_four(const HeadJob &job, Use use) {
#pragma unroll 1
  for (uint32_t i = threadIdx.x; i < job.heads * (DIM / 4);
       i += kAttendThreads) {
    use(i / (DIM / 4), i % (DIM / 4) * 4);
  }
}

// Leaves the block's part for the last one; true in that.
template <int DIM>
__device__ inline bool publish(const HeadJob &job, const AttendParts &parts,
                               uint32_t splits, AttendShared<DIM> &shared) {
  const size_t part =
      static_cast<size_t>(job.index) * parts.most_splits + blockIdx.x;
  float *values = parts.values + (part * job.group + job.first_head) * DIM;
  for_each_four<DIM>(job, [&](uint32_t g, uint32_t d) {
    const SoftmaxState state = block_state(shared, g);
    *reinterpret_cast<float4 *>(values + g * DIM + d) =
        block_values(shared, g, d, state.max);
    if (d == 0) {
      parts.states[part * kMaxGroup + job.first_head + g] = {state.max,
                                                             state.sum};
    }
  });
  if (threadIdx.x == 0 && job.first_head == 0) {
    parts.counts[part] = block_counts(shared);
  }
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    uint32_t *tickets = parts.tickets + job.index * head_tiles(job.group) +
                        job.first_head / kTileHeads;
    shared.ticket = atomicAdd(tickets, 1);
    if (shared.ticket == splits - 1) *tickets = 0;
  }
  __syncthreads();
  if (shared.ticket != splits - 1) return false;
  __threadfence();
  return true;
}

// What a block of attention works on: some query heads of a KV head of one row,
// and some of its slots.
#pragma once

#include "slots.cuh"
#include "step.cuh"

constexpr uint32_t kAttendWarps = 4;
constexpr uint32_t kAttendThreads = 32 * kAttendWarps;

// Slots of a tile, and the fewest that are worth a block.
constexpr uint32_t kWarpSlots = 16;
constexpr uint32_t kBlockSlots = kAttendWarps * kWarpSlots;

// Query heads that a block takes. Larger groups are shared by several blocks.
constexpr uint32_t kTileHeads = 8;

constexpr uint32_t kMaxSplits = 128;

constexpr uint32_t kNoSlot = ~0u;

__host__ __device__ inline uint32_t head_tiles(uint32_t group) {
  return (group + kTileHeads - 1) / kTileHeads;
}

// Some query heads of one (sequence, KV head) of a step.
struct HeadJob {
  uint32_t row;
  uint32_t kv_head;
  uint32_t position;
  uint32_t group;
  // Query heads of this block: first of the group, and how many.
  uint32_t first_head;
  uint32_t heads;
  // Index among the (sequence, KV head) of the step.
  uint32_t index;
  uint32_t offset;
  uint32_t high;
  // The slot that the step appended, if there was room.
  uint32_t newest;
  // Whether that takes the head over its budget, so that a slot has to go.
  bool will_evict;
};

__device__ inline HeadJob job_of(const skv_merge_attend_args &args,
                                 const Row &row) {
  HeadJob job;
  job.group = args.sizes.heads / args.sizes.kv_heads;
  const uint32_t tiles = head_tiles(job.group);
  job.row = blockIdx.z;
  job.kv_head = blockIdx.y / tiles;
  job.first_head = blockIdx.y % tiles * kTileHeads;
  job.heads = min(kTileHeads, job.group - job.first_head);
  job.position = row.position;
  job.index = job.row * args.sizes.kv_heads + job.kv_head;
  const uint32_t *words =
      head_words(args.cache, args.sizes, row.sequence, job.kv_head);
  job.offset = words[kHeadOffset];
  const uint32_t next = words[kHeadNext], capacity = words[kHeadCapacity];
  job.newest = next < capacity ? next : kNoSlot;
  job.high = max(words[kHeadHigh], min(next + 1, capacity));
  job.will_evict =
      words[kHeadLive] + (next < capacity ? 1 : 0) > words[kHeadBudget];
  return job;
}

// Tiles of slots of a block: `begin`, and those after it by steps of
// kAttendWarps, up to `end`.
struct Share {
  uint32_t begin;
  // End of the block's slots.
  uint32_t end;

  __device__ uint32_t first_slot(uint32_t i) const {
    return begin + (warp_id() + i * kAttendWarps) * kWarpSlots;
  }
  __device__ bool has(uint32_t i) const { return first_slot(i) < end; }
  // Which of this warp's tiles a slot is in; kNoSlot for those of others.
  __device__ uint32_t tile_of(uint32_t slot) const {
    if (slot < begin || slot >= end) return kNoSlot;
    const uint32_t tile = (slot - begin) / kWarpSlots;
    return tile % kAttendWarps == warp_id() ? tile / kAttendWarps : kNoSlot;
  }
};

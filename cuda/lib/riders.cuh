// Riders: keys for which attention finds the most similar other key while it
// reads all keys anyway, so that a merge need not read them once more.
//
// Whose key has to be compared is known when the step's scores are, which is
// after attention. But scores change little from one step to the next: the
// policy leaves a shortlist of the slots that are next in line (see
// lib/shortlist.cuh), and the keys of those ride in the rows of the tensor core
// tile that no query head takes, two for each head that a group has less than
// eight; four are enough. Their products with all keys come with those of the
// queries. A key is what caches hold already, so it takes one row and the
// product is exact.
//
// A shortlist is a hint and no more: it may be that of another text, or memory
// that nothing was written to. The policy takes what was found for a slot if
// that is the one it evicts, and searches by itself if not, so that no choice
// hangs on the hint. A slot that cannot be compared here has no neighbour.
//
// The alternative that lost: to search when the victim is known, for each step
// of each head, which at batch 16 took a third of a step on an H200.
#pragma once

#include "attend_job.cuh"
#include "neighbour.cuh"

// Most riders of a head. Over hundreds of steps of small models the victim was
// one of the first four in 998 of a thousand and one of the first two in 97 of
// a hundred: more would ride in vain.
constexpr uint32_t kMaxRiders = 4;

// Riders beside a group of query heads, in the rows that it leaves free.
__host__ __device__ constexpr uint32_t riders_beside(uint32_t group) {
  return group >= kTileHeads                   ? 0
         : kTileHeads - group < kMaxRiders / 2 ? 2 * (kTileHeads - group)
                                               : kMaxRiders;
}

// Memory of the riders of a step; no addresses where there are none.
struct RiderMemory {
  // (heads, count): the shortlist, as the step before left it
  uint32_t *slots;
  // (heads, most_splits, count): the nearest of each split, by cosines times
  // the length of the rider's key
  Neighbour *nearest;
  // (heads): splits that left them, none where no search was expected
  uint32_t *splits;
  uint32_t count;
  uint32_t most_splits;
};

// Rows g and g + 8 of the tile, where g = lane / 4 is no query head.
template <int DIM>
struct LaneRiders {
  uint32_t slots[2] = {kNoSlot, kNoSlot};
  // What any slot beats.
  Neighbour best[2] = {{-INFINITY, ~0u, kNoItem}, {-INFINITY, ~0u, kNoItem}};
  // As left operands: see QueryOperands.
  uint4 steps[DIM / 16];

  // Whether the lane has riders beside `heads` query heads.
  __device__ static bool has_any(uint32_t heads) {
    return lane_id() / 4 >= heads;
  }
  // Which of all riders is in row g + 8 i; there may be fewer.
  __device__ static uint32_t index(uint32_t heads, uint32_t i) {
    return lane_id() / 4 - heads + i * (kTileHeads - heads);
  }

  // Reads who the riders are, which may be anything.
  __device__ void read(const RiderMemory &riders, uint32_t head,
                       uint32_t heads) {
    if (!has_any(heads)) return;
#pragma unroll
    for (uint32_t i = 0; i < 2; i++) {
      const uint32_t at = index(heads, i);
      if (at < riders.count) slots[i] = riders.slots[head * riders.count + at];
    }
  }

  // Reads their keys. All slots but the newest are as the step before left
  // them, so this need not wait for the kernel in front: see lib/overlap.cuh.
  __device__ void load(const skv_merge_attend_args &args, const HeadJob &job) {
    const uint32_t head_dim = args.sizes.head_dim;
    const skv_cached *keys[2];
#pragma unroll
    for (uint32_t i = 0; i < 2; i++) {
      if (slots[i] >= job.high || slots[i] == job.newest) slots[i] = kNoSlot;
      const uint32_t slot = slots[i] == kNoSlot ? 0 : slots[i];
      keys[i] = args.cache.slots.keys +
                static_cast<size_t>(job.offset + slot) * head_dim;
    }
    const auto pair = [&](uint32_t i, uint32_t column) -> uint32_t {
      if (slots[i] == kNoSlot || column >= head_dim) return 0;
      return *reinterpret_cast<const uint32_t *>(keys[i] + column);
    };
#pragma unroll
    for (int step = 0; step < DIM / 16; step++) {
      const uint32_t column = 16 * step + 2 * (lane_id() % 4);
      steps[step] = {pair(0, column), pair(1, column), pair(0, column + 8),
                     pair(1, column + 8)};
    }
  }

  // Compares both with a slot, if it counts, given its squared length and its
  // products with them. The same choice as by Neighbour::beats, without a
  // branch.
  __device__ void compare(bool counts, uint32_t slot, uint32_t position,
                          float square, float first, float second) {
    const float inverse = square == 0.0f ? 0.0f : rsqrtf(square);
    const float products[2] = {first, second};
#pragma unroll
    for (uint32_t i = 0; i < 2; i++) {
      const float similarity = products[i] * inverse;
      const bool is_first =
          (similarity == best[i].similarity) & (position < best[i].position);
      const bool beats = (similarity > best[i].similarity) | is_first;
      const bool takes = counts & (slot != slots[i]) & beats;
      best[i].similarity = takes ? similarity : best[i].similarity;
      best[i].position = takes ? position : best[i].position;
      best[i].item = takes ? slot : best[i].item;
    }
  }

  // Leaves the nearest of the warp, by rider.
  __device__ void gather(const HeadJob &job, Neighbour *nearest) const {
#pragma unroll
    for (uint32_t i = 0; i < 2; i++) {
      Neighbour found = best[i];
      if (slots[i] == kNoSlot) found = kNoNeighbour;
      found = nearest_of_lanes<2>(found);
      const uint32_t at = index(job.heads, i);
      if (!has_any(job.heads) || at >= kMaxRiders) continue;
      if (lane_id() % 4 == 0) nearest[at] = found;
    }
  }
};

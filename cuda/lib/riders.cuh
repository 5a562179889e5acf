// Riders: keys for which attention finds the most similar other key while it
// reads all keys anyway, so that a merge need not read them once more.
//
// Whose key has to be compared is known when the step's scores are, which is
// after attention. But scores change little from one step to the next: the
// policy leaves a shortlist of the slots that are next in line (see
// lib/shortlist.cuh), and the keys of those ride in columns of their own beside
// those of the queries. A key is what caches hold already, so it takes one
// column and the product is exact. Riders take every second of eight columns,
// so that each lane of the product has one of them.
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

// Riders of a group of query heads. With larger ones several blocks go through
// the slots of a head.
__host__ __device__ constexpr uint32_t riders_beside(uint32_t group) {
  return group <= kTileHeads ? kMaxRiders : 0;
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

// The least normal number.
constexpr float kLeastSquare = 0x1p-126f;

// Rider t = lane % 4, and all of them as operands.
template <int DIM>
struct LaneRiders {
  uint32_t slot = kNoSlot;
  // What any slot beats.
  Neighbour best = {-INFINITY, ~0u, kNoItem};
  // As right operands: see QueryOperands. Rider r is column 2r.
  uint2 steps[DIM / 16];

  // Reads who the riders are, which may be anything.
  __device__ void read(const RiderMemory &riders, uint32_t head) {
    const uint32_t t = lane_id() % 4;
    if (t < riders.count) slot = riders.slots[head * riders.count + t];
  }

  // Reads their keys. All slots but the newest are as the step before left
  // them, so this need not wait for the kernel in front: see lib/overlap.cuh.
  __device__ void load(const skv_merge_attend_args &args, const HeadJob &job) {
    static_assert(kMaxRiders == 4, "one for each lane of a row");
    const uint32_t g = lane_id() / 4, t = lane_id() % 4;
    const uint32_t head_dim = args.sizes.head_dim;
    if (slot >= job.high || slot == job.newest) slot = kNoSlot;
    const uint32_t rider = __shfl_sync(kAllLanes, slot, g / 2);
    const bool is_column = g % 2 == 0 && rider != kNoSlot;
    const skv_cached *key =
        args.cache.slots.keys +
        static_cast<size_t>(job.offset + (is_column ? rider : 0)) * head_dim;
    const auto pair = [&](uint32_t column) -> uint32_t {
      if (!is_column || column >= head_dim) return 0;
      return *reinterpret_cast<const uint32_t *>(key + column);
    };
#pragma unroll
    for (int step = 0; step < DIM / 16; step++) {
      const uint32_t column = 16 * step + 2 * t;
      steps[step] = {pair(column), pair(column + 8)};
    }
  }

  // Compares this lane's rider with a slot, if that counts, given its squared
  // length and their product. The same choice as by Neighbour::beats, without a
  // branch.
  __device__ void compare(bool counts, uint32_t other, uint32_t position,
                          float square, float product) {
    // A key that is 0 has no length, but its product is 0 as well.
    const float similarity = product * rsqrt_fast(fmaxf(square, kLeastSquare));
    const bool is_first =
        (similarity == best.similarity) & (position < best.position);
    const bool beats = (similarity > best.similarity) | is_first;
    const bool takes = counts & (other != slot) & beats;
    best.similarity = takes ? similarity : best.similarity;
    best.position = takes ? position : best.position;
    best.item = takes ? other : best.item;
  }

  // Leaves the nearest of the warp, by rider.
  __device__ void gather(Neighbour *nearest) const {
    Neighbour found = best;
    if (slot == kNoSlot) found = kNoNeighbour;
    found = nearest_of_lanes<16, 4>(found);
    if (lane_id() < kMaxRiders) nearest[lane_id()] = found;
  }
};

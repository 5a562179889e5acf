// The slot with the most similar key: how candidates are compared.
#pragma once

#include "reduce.cuh"

constexpr uint32_t kNoItem = ~0u;

// An item and the cosine of its key with the one that is looked for.
struct Neighbour {
  float similarity;
  uint32_t position;
  uint32_t item;

  __device__ bool exists() const { return item != ~0u; }

  // Ties go to the lower position, whatever order candidates come in.
  __device__ bool beats(const Neighbour &other) const {
    if (!exists() || !other.exists()) return exists();
    return similarity > other.similarity ||
           (similarity == other.similarity && position < other.position);
  }
};

constexpr Neighbour kNoNeighbour = {0.0f, 0, ~0u};

// The best of lanes that differ in the bits from LEAST to LANES.
template <int LANES, int LEAST = 1>
__device__ inline Neighbour nearest_of_lanes(Neighbour best) {
#pragma unroll
  for (int offset = LANES; offset >= LEAST; offset /= 2) {
    const Neighbour other = {
        __shfl_xor_sync(kAllLanes, best.similarity, offset),
        __shfl_xor_sync(kAllLanes, best.position, offset),
        __shfl_xor_sync(kAllLanes, best.item, offset)};
    if (other.beats(best)) best = other;
  }
  return best;
}

// The best two of all that were added.
struct BestTwo {
  Neighbour first;
  Neighbour second;

  __device__ void add(const Neighbour &other) {
    if (other.beats(first)) {
      second = first;
      first = other;
    } else if (other.beats(second)) {
      second = other;
    }
  }
  __device__ void join(const BestTwo &other) {
    add(other.first);
    add(other.second);
  }
};

constexpr BestTwo kNoneFound = {kNoNeighbour, kNoNeighbour};

// What lane `from` has; that may be another in each lane.
__device__ inline Neighbour neighbour_of_lane(const Neighbour &own,
                                              uint32_t from) {
  return {__shfl_sync(kAllLanes, own.similarity, from),
          __shfl_sync(kAllLanes, own.position, from),
          __shfl_sync(kAllLanes, own.item, from)};
}

__device__ inline BestTwo best_two_of_lane(const BestTwo &own, uint32_t from) {
  return {neighbour_of_lane(own.first, from),
          neighbour_of_lane(own.second, from)};
}

// The best two of the lanes that differ in the bits from FIRST to LAST; what
// lanes have must not overlap.
template <uint32_t FIRST, uint32_t LAST>
__device__ inline BestTwo best_two_of_lanes(BestTwo best) {
#pragma unroll
  for (uint32_t bit = FIRST; bit <= LAST; bit *= 2) {
    best.join(best_two_of_lane(best, lane_id() ^ bit));
  }
  return best;
}

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

// What lane `from` has; that may be another in each lane.
__device__ inline Neighbour neighbour_of_lane(const Neighbour &own,
                                              uint32_t from) {
  return {__shfl_sync(kAllLanes, own.similarity, from),
          __shfl_sync(kAllLanes, own.position, from),
          __shfl_sync(kAllLanes, own.item, from)};
}

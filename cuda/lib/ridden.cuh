// What attention found for the riders of a head, as the policy reads it: see
// lib/riders.cuh.
#pragma once

#include "riders.cuh"

// Who rode in this step, in shared memory: the policy tells the next step of
// others before it is through.
struct Ridden {
  uint32_t slots[kMaxRiders];
  // Splits that left neighbours.
  uint32_t splits;
};

// Called by the whole block, which sees it after the next barrier.
__device__ inline void read_ridden(const RiderMemory &riders, uint32_t head,
                                   Ridden &ridden) {
  if (threadIdx.x < riders.count) {
    ridden.slots[threadIdx.x] = riders.slots[head * riders.count + threadIdx.x];
  }
  if (threadIdx.x == 0) {
    ridden.splits = riders.splits == nullptr ? 0 : riders.splits[head];
  }
}

// What attention found for a slot, by cosines times the length of its key; none
// where that slot did not ride. The same in all lanes and warps; called by
// whole warps.
__device__ inline Neighbour nearest_ridden(const RiderMemory &riders,
                                           uint32_t head, const Ridden &ridden,
                                           uint32_t slot) {
  Neighbour best = kNoNeighbour;
  if (ridden.splits == 0) return best;
  const bool is_it =
      lane_id() < riders.count && ridden.slots[lane_id()] == slot;
  const uint32_t found = __ballot_sync(kAllLanes, is_it);
  if (found == 0) return best;
  const Neighbour *nearest =
      riders.nearest +
      static_cast<size_t>(head) * riders.most_splits * riders.count +
      (__ffs(found) - 1);
#pragma unroll 1
  for (uint32_t s = lane_id(); s < ridden.splits; s += 32) {
    const Neighbour other = nearest[s * riders.count];
    if (other.beats(best)) best = other;
  }
  return nearest_of_lanes<16>(best);
}

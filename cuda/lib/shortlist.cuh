// The slots of a head that are likely to go in the next step, left for
// attention: see lib/riders.cuh. They are those with the lowest keys after this
// step, among all that may go in the next. That the slot which took in the last
// victim is one of them is not rare: its score is a mean with that of the
// victim.
//
// It is a guess, so it need not be the exact list, which would take a round of
// the block per slot: a thread brings its two lowest, a warp keeps four,
// and one warp takes the lowest of those.
#pragma once

#include "neighbour.cuh"
#include "riders.cuh"

// A slot and what eviction sorts it by.
struct Candidate {
  uint64_t key;
  uint32_t slot;
};

constexpr Candidate kNoCandidate = {kNoKey, ~0u};

// Candidates that a warp keeps.
constexpr uint32_t kWarpCandidates = kMaxRiders;

// The two lowest of a thread.
struct Lowest {
  Candidate first = kNoCandidate;
  Candidate second = kNoCandidate;

  __device__ void add(const Candidate &other) {
    if (other.key < first.key) {
      second = first;
      first = other;
    } else if (other.key < second.key) {
      second = other;
    }
  }
  __device__ void pop() {
    first = second;
    second = kNoCandidate;
  }
  __device__ void leave_out(uint32_t slot) {
    if (second.slot == slot) second = kNoCandidate;
    if (first.slot == slot) pop();
  }
};

// Turns the candidates of a warp into the lowest of them; true in the lane that
// brought it. Called by the whole warp.
__device__ inline bool take_lowest(Candidate &candidate) {
  const uint32_t score = static_cast<uint32_t>(candidate.key >> 32);
  const uint32_t least = __reduce_min_sync(kAllLanes, score);
  const uint32_t position = static_cast<uint32_t>(candidate.key);
  const uint32_t lowest =
      __reduce_min_sync(kAllLanes, score == least ? position : ~0u);
  const bool is_mine = score == least && position == lowest;
  const uint32_t slot =
      __reduce_min_sync(kAllLanes, is_mine ? candidate.slot : ~0u);
  candidate = {static_cast<uint64_t>(least) << 32 | lowest, slot};
  return is_mine;
}

// Keeps the lowest of a warp, in order. Called by the whole warp.
__device__ inline void keep_lowest(Lowest mine, Candidate *kept) {
#pragma unroll
  for (uint32_t i = 0; i < kWarpCandidates; i++) {
    Candidate lowest = mine.first;
    if (take_lowest(lowest)) mine.pop();
    if (lane_id() == 0) kept[i] = lowest;
  }
}

// Leaves the lowest of what the warps of a block kept, and of the slot that
// took the victim in, as it is now. Called by one warp.
__device__ inline void leave_shortlist(const Candidate (*kept)[kWarpCandidates],
                                       uint32_t warps, const Candidate &merged,
                                       uint32_t *slots, uint32_t count) {
  // A lane goes through what one warp kept; the one behind them has `merged`.
  const Candidate *mine = kept[min(lane_id(), warps - 1)];
  uint32_t taken = 0;
  uint32_t slot = ~0u;
#pragma unroll 1
  for (uint32_t i = 0; i < count; i++) {
    Candidate lowest = kNoCandidate;
    if (lane_id() < warps) {
      if (taken < kWarpCandidates && mine[taken].slot == merged.slot) taken++;
      if (taken < kWarpCandidates) lowest = mine[taken];
    } else if (lane_id() == warps && taken == 0) {
      lowest = merged;
    }
    if (take_lowest(lowest)) taken++;
    if (lane_id() == i) slot = lowest.slot;
  }
  if (lane_id() < count) slots[lane_id()] = slot;
}

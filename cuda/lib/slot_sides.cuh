// Side fields of the slots of tiles.
#pragma once

#include "attend_shape.cuh"

// Those of a lane's slots, g and g + 8 of the tile.
template <int TILES>
struct TileSides {
  // Votes on behalf of head 4u + t; slots beyond the end look free.
  float bias[TILES][2];
  // Where somebody asks.
  uint32_t position[2];
};

// Where a lane finds them.
template <int TILES>
struct SlotSides {
  // Of the next tile.
  const float *biases[TILES];
  const float *positions;
  bool asks;

  // Begins with the tile whose first slot is `first`. `asks`: for positions.
  __device__ void init(const skv_merge_attend_args &args, const HeadJob &job,
                       uint32_t first, bool asks) {
    const skv_slots &slots = args.cache.slots;
    const uint32_t g = lane_id() / 4, t = lane_id() % 4;
    const float *at = slots.side + job.offset + first + g;
#pragma unroll
    for (int u = 0; u < TILES; u++) {
      const uint32_t head = min(kColumnHeads * u + t, job.heads - 1);
      const uint32_t lane = args.cache.lanes == 1 ? 0 : job.first_head + head;
      biases[u] = at + static_cast<size_t>(kSlotBias + lane) * slots.total;
    }
    positions = at + static_cast<size_t>(kSlotPosition) * slots.total;
    this->asks = asks;
  }

  __device__ TileSides<TILES> load(uint32_t first, uint32_t end) const {
    TileSides<TILES> sides;
#pragma unroll
    for (int k = 0; k < 2; k++) {
      const bool is_there = first + lane_id() / 4 + 8 * k < end;
#pragma unroll
      for (int u = 0; u < TILES; u++) {
        sides.bias[u][k] = is_there ? biases[u][8 * k] : kFreeBias;
      }
      sides.position[k] =
          is_there && asks ? __float_as_uint(positions[8 * k]) : ~0u;
    }
    return sides;
  }

  // Turns to the warp's next tile.
  __device__ void advance() {
#pragma unroll
    for (int u = 0; u < TILES; u++) biases[u] += kBlockSlots;
    positions += kBlockSlots;
  }
};

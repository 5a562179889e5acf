// The raw logits that attention leaves for the policy.
#pragma once

#include "tile_products.cuh"

// Where a lane leaves raw logits for the policy.
template <int TILES>
struct LaneLogits {
  // Of the tile, for head t.
  float *to;
  uint32_t pitch;
  // End of the slots whose logits are left for head 4u + t.
  uint32_t ends[TILES];

  __device__ LaneLogits(const skv_merge_attend_args &args, const HeadJob &job,
                        const Share &share, float *logits) {
    const uint32_t g = lane_id() / 4, t = lane_id() % 4;
    pitch = args.cache.max_capacity;
    to = logits + static_cast<size_t>(t) * pitch + share.first_slot(0) + g;
#pragma unroll
    for (int u = 0; u < TILES; u++) {
      const bool wanted =
          args.policy.observe && kColumnHeads * u + t < job.heads;
      ends[u] = wanted ? share.end : 0;
    }
  }

  __device__ void store(uint32_t first,
                        const TileProducts<TILES> &products) const {
    const uint32_t slot = first + lane_id() / 4;
#pragma unroll
    for (int u = 0; u < TILES; u++) {
      float *own = to + static_cast<size_t>(kColumnHeads * u) * pitch;
#pragma unroll
      for (int k = 0; k < 2; k++) {
        if (slot + 8 * k < ends[u]) own[8 * k] = products.logits[u][k];
      }
    }
  }

  // Turns to the warp's next tile.
  __device__ void advance() { to += kBlockSlots; }
};

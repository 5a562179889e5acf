// The tiles of a warp in shared memory.
#pragma once

#include "attend_shape.cuh"

// One of them, where a lane reads and writes it. Addresses go from tile to
// tile: what is computed from the number of the lane for each of them takes 20
// instructions of 170.
template <int DIM>
struct TileCursor {
  // Its row of left operands: slots of keys, dimensions of values.
  const skv_cached *keys;
  const skv_cached *values;
  // The first line that it copies.
  skv_cached *lines;
  uint32_t stage = 0;

  __device__ explicit TileCursor(skv_cached *tile) {
    const uint32_t lane = lane_id(), chunks = DIM / 8;
    keys = tile + lane % 16 * kLinePitch<DIM> + lane / 16 * 8;
    values = tile + (kWarpSlots + lane % 8 + lane / 16 * 8) * kLinePitch<DIM> +
             lane / 8 % 2 * 8;
    lines = tile + lane / chunks * kLinePitch<DIM> + lane % chunks * 8;
  }

  // Turns to the next tile; after the last to the first.
  __device__ void advance() {
    constexpr int kLast = kStages<DIM> - 1;
    const int by =
        stage == kLast ? -kLast * kTileElements<DIM> : kTileElements<DIM>;
    stage = stage == kLast ? 0 : stage + 1;
    keys += by;
    values += by;
    lines += by;
  }
};

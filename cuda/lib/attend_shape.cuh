// What kernels of decode attention are compiled for.
#pragma once

#include "attend_job.cuh"
#include "row_tiles.cuh"

// Query heads that eight columns of a product have room for: each has two, one
// for the high and one for the low parts of its query (lib/cached.cuh).
constexpr uint32_t kColumnHeads = 4;

// DIM: dimensions that there is room for; EXACT: heads have all of them. TILES:
// tiles of eight columns for query heads. RIDES: with riders where a head goes
// over its budget.
template <int DIM, int TILES, bool EXACT, bool RIDES>
struct AttendShape {
  static constexpr int kDim = DIM;
  static constexpr int kTiles = TILES;
  static constexpr bool kIsExact = EXACT;
  static constexpr bool kRides = RIDES;
};

// Tiles of slots that a warp has in shared memory.
template <int DIM>
constexpr int kStages = DIM >= 128 ? 2 : 4;

// Elements of a tile: keys, then values.
template <int DIM>
constexpr int kTileElements = 2 * kWarpSlots *kLinePitch<DIM>;

// Blocks that a multiprocessor runs at a time: what shared memory has room for.
template <int DIM>
constexpr int kResidentBlocks = DIM == 256 ? 1 : 3;

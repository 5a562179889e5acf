// What kernels of decode attention are compiled for.
#pragma once

#include "attend_job.cuh"
#include "row_tiles.cuh"

// Query heads that eight columns of a product have room for: each has two, one
// for the high and one for the low parts of its query (lib/cached.cuh).
constexpr uint32_t kColumnHeads = 4;

// Tiles of slots that a warp has in shared memory.
template <int DIM>
constexpr int kStages = DIM >= 128 ? 2 : 4;

// Elements of a tile: keys, then values.
template <int DIM>
constexpr int kTileElements = 2 * kWarpSlots *kLinePitch<DIM>;

// Blocks that a multiprocessor runs at a time: what shared memory and registers
// have room for.
__host__ __device__ constexpr int resident_blocks(uint32_t dim, int tiles) {
  if (dim == 256) return 1;
  return dim == 128 && tiles == 2 ? 2 : 3;
}

// DIM: dimensions that there is room for; EXACT: heads have all of them. TILES:
// tiles of eight columns for query heads. RIDES: with riders where a head goes
// over its budget.
template <int DIM, int TILES, bool EXACT, bool RIDES>
struct AttendShape {
  static constexpr int kDim = DIM;
  static constexpr int kTiles = TILES;
  static constexpr bool kIsExact = EXACT;
  static constexpr bool kRides = RIDES;
  static constexpr int kBlocks = resident_blocks(DIM, TILES);
};

// Widths that few models have take one kernel for all groups.
inline bool is_exact(uint32_t head_dim) {
  return head_dim == padded_width(head_dim);
}
inline int column_tiles(uint32_t head_dim, uint32_t group) {
  return is_exact(head_dim) && group <= kColumnHeads ? 1 : 2;
}

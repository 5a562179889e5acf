// Descriptions of matrices for the copy engines of multiprocessors, which bring
// whole tiles to shared memory by themselves: see lib/tile_copies.cuh.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "../steadykv.h"

// A description, in the device's own form.
struct alignas(64) TileMap {
  uint64_t words[16];
};

// A matrix of halves and the tiles that are taken from it: kTileColumns columns
// of some rows.
struct TiledMatrix {
  const skv_half *data;
  uint32_t rows;
  // Columns, zeros included: a multiple of 8.
  uint32_t pitch;
  uint32_t tile_rows;
};

// Columns of a tile: lines of 128 bytes.
constexpr uint32_t kTileColumns = 64;

// The driver's function that writes descriptions.
struct TileMapWriter;

// Finds it; null where the driver has none or the device no such engines.
const TileMapWriter *find_tile_maps(int compute_capability_major);

// Describes a matrix. False if the driver refuses.
bool describe_tiles(const TileMapWriter *writer, const TiledMatrix &matrix,
                    TileMap *map);

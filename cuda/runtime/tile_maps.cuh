// Descriptions of matrices for the copy engines of multiprocessors, which bring
// whole tiles to shared memory by themselves: see lib/group_instructions.cuh.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <memory>

#include "../steadykv.h"

// A description, in the device's own form.
struct alignas(64) TileMap {
  uint64_t words[16];
};

// Columns of a tile: lines of 128 bytes.
constexpr uint32_t kTileColumns = 64;

// A matrix of halves and the tiles that are taken from it: kTileColumns columns
// of some rows.
struct TiledMatrix {
  const skv_half *data;
  uint32_t rows;
  // Columns, zeros included: a multiple of 8.
  uint32_t pitch;
  uint32_t tile_rows;
};

class TileMaps {
 public:
  // Null where the driver cannot describe matrices, or where the device is not
  // made for products of such tiles.
  static std::unique_ptr<TileMaps> open(int compute_capability_major);

  // Describes a matrix. False if the driver refuses.
  bool describe(const TiledMatrix &matrix, TileMap *map) const;

 private:
  using Encode = int (*)(TileMap *map, int type, uint32_t dimensions,
                         void *data, const uint64_t *sizes,
                         const uint64_t *strides, const uint32_t *tile_sizes,
                         const uint32_t *tile_strides, int interleave,
                         int swizzle, int promotion, int fill);

  explicit TileMaps(Encode encode) : encode_(encode) {}

  const Encode encode_;
};

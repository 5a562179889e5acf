// How the blocks of a product share its tiles: each gets the same number of
// steps, give or take one, whatever the number of tiles.
//
// Whole tiles go round as long as every block gets one. The steps of the tiles
// that are left over are cut into one run of steps per block, so such a tile
// has contributions of several blocks (Osama et al., "Stream-K", 2023, section
// 4.3, arXiv 2301.03598). Where few are left over, the tiles of another round
// are shared as well: more than a few contributions cost more than they save.
#pragma once

#include <stdint.h>

struct TileShares {
  uint32_t tiles;
  // Steps of a tile.
  uint32_t steps;
  uint32_t blocks;
  // Tiles from 0 that several blocks share: less than 5 / 4 of the blocks.
  uint32_t shared_tiles;
  // Shared steps that every block has; the first `longer` ones have one more.
  uint32_t least;
  uint32_t longer;

  __device__ TileShares(uint32_t tiles, uint32_t steps, uint32_t blocks)
      : tiles(tiles), steps(steps), blocks(blocks) {
    shared_tiles = tiles % blocks;
    if (tiles > blocks && 4 * shared_tiles < blocks && shared_tiles > 0) {
      shared_tiles += blocks;
    }
    least = shared_tiles * steps / blocks;
    longer = shared_tiles * steps % blocks;
  }

  // The first shared step of a block.
  __device__ uint32_t begin(uint32_t block) const {
    return block * least + min(block, longer);
  }
  // The block that has a shared step.
  __device__ uint32_t block_of(uint32_t step) const {
    const uint32_t boundary = longer * (least + 1);
    return step < boundary ? step / (least + 1)
                           : longer + (step - boundary) / least;
  }
};

// A place on a block's way through its steps: shared ones first, then those of
// whole tiles.
struct TileCursor {
  uint32_t tile;
  uint32_t step;
  // Shared steps from here on, with this one.
  uint32_t shared;

  __device__ TileCursor(const TileShares &shares, uint32_t block) {
    const uint32_t begin = shares.begin(block);
    shared = shares.begin(block + 1) - begin;
    tile = shared > 0 ? begin / shares.steps : shares.shared_tiles + block;
    step = shared > 0 ? begin % shares.steps : 0;
  }
  // Steps of the block from here on.
  __device__ uint32_t left(const TileShares &shares) const {
    return shared +
           (shares.tiles - shares.shared_tiles) / shares.blocks * shares.steps;
  }
  // Steps of the tile from here on.
  __device__ uint32_t run(const TileShares &shares) const {
    const uint32_t rest = shares.steps - step;
    return shared > 0 ? min(rest, shared) : rest;
  }
  // Goes on by some steps of the tile, at most all.
  __device__ void advance(const TileShares &shares, uint32_t block,
                          uint32_t steps) {
    step += steps;
    if (shared > 0) {
      shared -= steps;
      if (shared == 0) {
        tile = shares.shared_tiles + block;
        step = 0;
      } else if (step == shares.steps) {
        tile++;
        step = 0;
      }
    } else if (step == shares.steps) {
      tile += shares.blocks;
      step = 0;
    }
  }
};

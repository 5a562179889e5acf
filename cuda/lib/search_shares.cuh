// How the blocks of a search share its work: tiles of queries times tiles of
// candidates, of all heads, in one row that is cut into equal shares.
//
// How many there are is known on the device alone. As many blocks as run at a
// time get a share each, so that all end together; a block that has tiles of
// several queries begins anew for each. Tiles of queries that several blocks
// have a part of keep the best of each part. The alternative that lost: a block
// for each tile of queries, of which the last few keep the device waiting.
#pragma once

#include "compress_work.cuh"

// Most parts that the candidates of a query are searched in.
constexpr uint32_t kSearchParts = 8;

class SearchShares {
 public:
  // Of this block.
  __device__ SearchShares(const CompressWork &all, uint32_t heads,
                          uint32_t query_tile, uint32_t candidate_tile)
      : all_(all),
        heads_(heads),
        query_tile_(query_tile),
        candidate_tile_(candidate_tile) {
    uint32_t total = 0, longest = 0;
    for (uint32_t h = 0; h < heads; h++) {
      const uint2 tiles = tiles_of(h);
      total += tiles.x * tiles.y;
      longest = max(longest, tiles.y);
    }
    // A row of tiles is then in kSearchParts shares at most.
    length_ =
        max(divide_up(total, gridDim.x), divide_up(longest, kSearchParts - 1));
    next_ = blockIdx.x * length_;
    end_ = min(total, next_ + length_);
  }

  // Moves on to the next tile of queries; false if there is none.
  __device__ bool next() {
    if (next_ >= end_) return false;
    uint32_t before = 0;
    uint2 tiles = tiles_of(kv_head = 0);
    while (next_ >= before + tiles.x * tiles.y) {
      before += tiles.x * tiles.y;
      tiles = tiles_of(++kv_head);
    }
    const uint32_t row = (next_ - before) / tiles.y;
    const uint32_t row_start = before + row * tiles.y;
    first_query = row * query_tile_;
    begin = next_ - row_start;
    end = min(tiles.y, end_ - row_start);
    part = blockIdx.x - row_start / length_;
    is_last = end == tiles.y;
    next_ = row_start + end;
    return true;
  }

  uint32_t kv_head;
  uint32_t first_query;
  // Tiles of candidates.
  uint32_t begin;
  uint32_t end;
  // Which part of the candidates that is, and whether it is the last.
  uint32_t part;
  bool is_last;

 private:
  __device__ static uint32_t divide_up(uint32_t x, uint32_t y) {
    return (x + y - 1) / y;
  }

  // Tiles of queries and candidates of a head; the latter are never none, so
  // that all queries are answered.
  __device__ uint2 tiles_of(uint32_t h) const {
    const uint32_t *counters = all_.head(h).counters;
    return {divide_up(counters[kQueries], query_tile_),
            max(1u, divide_up(counters[kCandidates], candidate_tile_))};
  }

  const CompressWork &all_;
  const uint32_t heads_;
  const uint32_t query_tile_;
  const uint32_t candidate_tile_;
  // Tiles of a share, and the block's that are left.
  uint32_t length_;
  uint32_t next_;
  uint32_t end_;
};

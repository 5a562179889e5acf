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
#include "neighbour.cuh"

// Most parts that the candidates of a query are searched in.
constexpr uint32_t kSearchParts = 8;

// A share of one tile of queries.
struct SearchShare {
  uint32_t kv_head;
  uint32_t first_query;
  // Tiles of candidates.
  uint32_t begin;
  uint32_t end;
  // Which part of the candidates that is, and whether it is the last.
  uint32_t part;
  bool is_last;
};

// Stores what a share has found for query `q`; `pitch` is that of the parts.
__device__ inline void store_part(const HeadWork &work,
                                  const SearchShare &share, uint32_t pitch,
                                  uint32_t q, const Neighbour &found) {
  const uint32_t end = share.is_last ? kSearchParts : share.part + 1;
  for (uint32_t part = share.part; part < end; part++) {
    const size_t at = static_cast<size_t>(part) * pitch + q;
    work.similarities[at] = found.similarity;
    work.nearest[at] = part == share.part ? found.item : kNoItem;
  }
}

// The tiles of candidates of one tile of queries, in the row of a head's.
struct TileRow {
  uint32_t number;
  uint32_t start;
  uint32_t tiles;
};

// Where all queries of a head are compared with all of its candidates.
struct EvenRows {
  const CompressWork &all;
  uint32_t queries;
  uint32_t candidates;

  __device__ static uint32_t divide_up(uint32_t x, uint32_t y) {
    return (x + y - 1) / y;
  }
  // Tiles of the longest row: never none, so that all queries are answered.
  __device__ uint32_t longest(uint32_t h) const {
    return max(1u, divide_up(all.head(h).counters[kCandidates], candidates));
  }
  // All tiles of a head.
  __device__ uint32_t tiles(uint32_t h) const {
    return divide_up(all.head(h).counters[kQueries], queries) * longest(h);
  }
  // The row that has the tile `at`.
  __device__ TileRow row_at(uint32_t h, uint32_t at) const {
    const uint32_t length = longest(h);
    return {at / length, at / length * length, length};
  }
};

template <class Rows>
class SearchShares : public SearchShare {
 public:
  // Of this block; tiles have `query_tile` queries.
  __device__ SearchShares(const Rows &rows, uint32_t heads, uint32_t query_tile)
      : rows_(rows), query_tile_(query_tile) {
    uint32_t total = 0, longest = 0;
    for (uint32_t h = 0; h < heads; h++) {
      total += rows_.tiles(h);
      longest = max(longest, rows_.longest(h));
    }
    // A row of tiles is then in kSearchParts shares at most.
    length_ = max((total + gridDim.x - 1) / gridDim.x,
                  (longest + kSearchParts - 2) / (kSearchParts - 1));
    next_ = blockIdx.x * length_;
    end_ = min(total, next_ + length_);
  }

  // Moves on to the next tile of queries; false if there is none.
  __device__ bool next() {
    if (next_ >= end_) return false;
    uint32_t before = 0;
    uint32_t tiles = rows_.tiles(kv_head = 0);
    while (next_ >= before + tiles) {
      before += tiles;
      tiles = rows_.tiles(++kv_head);
    }
    const TileRow row = rows_.row_at(kv_head, next_ - before);
    const uint32_t row_start = before + row.start;
    first_query = row.number * query_tile_;
    begin = next_ - row_start;
    end = min(row.tiles, end_ - row_start);
    part = blockIdx.x - row_start / length_;
    is_last = end == row.tiles;
    next_ = row_start + end;
    return true;
  }

 private:
  const Rows rows_;
  const uint32_t query_tile_;
  // Tiles of a share, and the block's that are left.
  uint32_t length_;
  uint32_t next_;
  uint32_t end_;
};

// What a block of the attention of a chunk works on: some rows for the query
// heads of a KV head, and tiles of the slots that these see.
#pragma once

#include "prefill_form.cuh"
#include "step.cuh"

// Where a tile of slots of the cache, or of staged rows, is.
struct TilePlace {
  const skv_slots &home;
  bool is_staged;
  // Of its first slot in `home`.
  uint32_t base;
  // Number of the first slot, and how many there are.
  uint32_t first;
  uint32_t count;
};

// Tiles are SLOTS slots. Blocks of late rows have more to do and come first.
template <uint32_t SLOTS>
struct ChunkShare {
  const skv_cache &cache;
  uint32_t kv_head;
  uint32_t group;
  // None where the chunk has no more.
  uint32_t first_row;
  uint32_t rows;
  uint32_t offset;
  uint32_t high;
  uint32_t budget;
  uint32_t slot_tiles;
  // Tiles of slots, then tiles of staged rows up to the block's last one.
  uint32_t tiles;

  // For blocks of `pairs` (row, query head) pairs.
  __device__ ChunkShare(const skv_chunk_args &args, uint32_t pairs)
      : cache(args.cache) {
    const skv_sizes &sizes = args.sizes;
    kv_head = blockIdx.x;
    group = sizes.heads / sizes.kv_heads;
    const uint32_t most_rows = pairs / group;
    first_row = (gridDim.y - 1 - blockIdx.y) * most_rows;
    const uint32_t end_row = forward_end(args.step);
    rows = first_row < end_row ? min(most_rows, end_row - first_row) : 0;
    const uint32_t *words =
        head_words(cache, sizes, args.step.chunk[kChunkSequence], kv_head);
    offset = words[kHeadOffset];
    high = words[kHeadHigh];
    budget = words[kHeadBudget];
    slot_tiles = (high + SLOTS - 1) / SLOTS;
    tiles = slot_tiles + (first_row + rows + SLOTS - 1) / SLOTS;
  }

  __device__ TilePlace place(uint32_t tile) const {
    const bool staged = tile >= slot_tiles;
    const uint32_t first = (staged ? tile - slot_tiles : tile) * SLOTS;
    const uint32_t end = staged ? first_row + rows : high;
    const uint32_t base = staged ? kv_head * cache.stage_rows : offset;
    return {staged ? cache.stage : cache.slots, staged, base + first, first,
            min(end - first, SLOTS)};
  }

  // Whether some of the block's rows come before some slots of a tile.
  __device__ bool has_later(const TilePlace &place) const {
    return place.is_staged && place.first + SLOTS > first_row + 1;
  }

  __device__ PairQueries queries(const float *all,
                                 const skv_sizes &sizes) const {
    return {all,   first_row,      kv_head,     sizes.heads,
            group, sizes.head_dim, rows * group};
  }
};

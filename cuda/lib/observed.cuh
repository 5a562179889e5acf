// Which rows of a chunk are observed, and by which slots.
#pragma once

#include "slots.cuh"
#include "step.cuh"

struct ObservedRows {
  uint32_t first;
  uint32_t end;

  __device__ explicit ObservedRows(const skv_chunk_args &args) {
    const skv_policy &policy = args.policy;
    end = row_end(args.step);
    first = 0;
    if (policy.probe == SKV_PROBE_LAST && end > policy.probe_rows) {
      first = end - policy.probe_rows;
    } else if (policy.probe == SKV_PROBE_INSTRUCTION) {
      first = end;
      end = forward_end(args.step);
    }
  }
};

// Some slots of the cache or of the stage.
struct ObservedTile {
  bool staged;
  uint32_t first;
  uint32_t count;
  // Index of slot 0 among those of the layer.
  uint32_t base;

  __device__ const skv_slots &home(const skv_cache &cache) const {
    return staged ? cache.stage : cache.slots;
  }
};

inline uint32_t observed_tiles(const skv_cache &cache, uint32_t size) {
  return (cache.max_capacity + size - 1) / size +
         (cache.stage_rows + size - 1) / size;
}

// Tile `index`, of tiles of `size` slots: those of the cache come first.
__device__ inline ObservedTile observed_tile(const skv_chunk_args &args,
                                             uint32_t kv_head, uint32_t index,
                                             uint32_t size) {
  const skv_cache &cache = args.cache;
  const uint32_t slot_tiles = (cache.max_capacity + size - 1) / size;
  ObservedTile tile;
  tile.staged = index >= slot_tiles;
  tile.first = (index - (tile.staged ? slot_tiles : 0)) * size;
  const uint32_t *words =
      head_words(cache, args.sizes, args.step.chunk[kChunkSequence], kv_head);
  const uint32_t end = tile.staged ? row_end(args.step) : words[kHeadHigh];
  tile.count = tile.first < end ? min(size, end - tile.first) : 0;
  tile.base = tile.staged ? kv_head * cache.stage_rows : words[kHeadOffset];
  return tile;
}

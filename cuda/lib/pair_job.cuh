// A head whose slots are searched for pairs.
#pragma once

#include "known_pairs.cuh"
#include "neighbour.cuh"

// Threads of blocks that merge.
constexpr uint32_t kPairThreads = 128;
constexpr uint32_t kPairWarps = kPairThreads / 32;

struct PairJob {
  uint32_t offset;
  // Slots that may go, those without a partner first: how many of both.
  const uint32_t *list;
  uint32_t count;
  uint32_t alone;
  // Those of the latter that all parts search for.
  uint32_t shared;
  // How far its values scatter.
  float spread;
  const float *weights;
  // Parts of the list that are searched, and places of each.
  uint32_t parts;
  uint32_t per_part;
  // By place in the list; by part and place, for those that are shared.
  uint2 *found;
  uint2 *part_found;
  uint32_t pitch;
  // Parts that are done.
  uint32_t *ticket;

  __device__ Slot slot(const skv_merge_attend_args &args, uint32_t i) const {
    return slot_at(args.cache.slots, offset + i, args.sizes.head_dim);
  }
  __device__ uint2 *found_by(uint32_t part) const {
    return part_found + static_cast<size_t>(part) * pitch;
  }
};

// What there is to be searched of a head, if anything.
__device__ inline bool turn_to_pairs(const skv_merge_attend_args &args,
                                     const Evidence &evidence, uint32_t row,
                                     uint32_t kv_head, PairJob &work) {
  const PairWork &pairs = evidence.pairs;
  const uint32_t index = row * args.sizes.kv_heads + kv_head;
  // All that is read is on its way before any of it is looked at.
  const uint4 header = pairs.headers[index];
  const uint32_t used = evidence.rows[index].w;
  work.offset = head_words(args.cache, args.sizes, row, kv_head)[kHeadOffset];
  if (used == 0 || header.x == 0) return false;
  const size_t first = static_cast<size_t>(index) * args.cache.max_capacity;
  work.list = pairs.lists + first;
  work.count = header.x;
  work.alone = header.y;
  work.shared = min(header.y, pairs.shared);
  work.spread = __uint_as_float(header.z);
  work.weights = pairs.weights + first;
  work.per_part = pairs.part_places(header.x);
  work.parts = (header.x + work.per_part - 1) / work.per_part;
  work.found = pairs.found + first;
  work.part_found = pairs.part_found_of(index, 0);
  work.pitch = pairs.shared;
  work.ticket = pairs.tickets + index;
  return true;
}

// What a part has found for a slot as it is stored, and back. Other blocks of
// the same kernel may have stored it.
__device__ inline void store_found(uint2 *to, const Neighbour &best) {
  *to = {__float_as_uint(best.similarity), best.item};
}

__device__ inline Neighbour load_found(const skv_merge_attend_args &args,
                                       const PairJob &work, const uint2 *from) {
  const uint2 words = __ldcg(from);
  const uint32_t item = words.y;
  const uint32_t position =
      item == kNoItem ? 0 : work.slot(args, item).word(kSlotPosition);
  return {__uint_as_float(words.x), position, item};
}

// The best that any part has found for the slot at a place in the list.
__device__ inline Neighbour best_of_parts(const skv_merge_attend_args &args,
                                          const PairJob &work, uint32_t parts,
                                          uint32_t place) {
  Neighbour best = kNoNeighbour;
  for (uint32_t part = 0; part < parts; part++) {
    const Neighbour other = load_found(args, work, work.found_by(part) + place);
    if (other.beats(best)) best = other;
  }
  return best;
}

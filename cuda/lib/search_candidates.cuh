// What the forms of a search for similar keys have in common: candidates that
// are looked at before their keys are fetched, and where answers go.
#pragma once

#include "closest_keys.cuh"
#include "row_tiles.cuh"
#include "search_shares.cuh"

// The queries and candidates of a head.
struct KeyLists {
  const skv_chunk_args &args;
  ChunkHead head;
  HeadWork work;
  uint32_t queries;
  uint32_t candidates;

  __device__ KeyLists(const skv_chunk_args &chunk, const CompressWork &all,
                      uint32_t kv_head)
      : args(chunk), head(chunk_head(chunk, kv_head)), work(all.head(kv_head)) {
    queries = work.counters[kQueries];
    candidates = work.counters[kCandidates];
  }

  __device__ Slot slot(uint32_t ordinal) const {
    return item_slot(args, head, work.items[ordinal]);
  }
  __device__ uint32_t position(uint32_t ordinal) const {
    return slot(ordinal).word(kSlotPosition);
  }
  __device__ float inverse_norm(uint32_t ordinal) const {
    return work.inverse_norms[ordinal];
  }
  // Null where there is no such query.
  __device__ const skv_cached *query_key(uint32_t q) const {
    return q < queries ? slot(work.queries[q]).key : nullptr;
  }

  // Stores what was found for the four lanes' query `q`.
  template <class Closest>
  __device__ void store(const SearchShares &share, uint32_t pitch, uint32_t q,
                        const Closest &closest, int h) const {
    const float inverse = q < queries ? inverse_norm(work.queries[q]) : 0.0f;
    const Neighbour found = closest.nearest(h, inverse, *this);
    if (lane_id() % 4 != 0 || q >= queries) return;
    const uint32_t end = share.is_last ? kSearchParts : share.part + 1;
    for (uint32_t part = share.part; part < end; part++) {
      const size_t at = static_cast<size_t>(part) * pitch + q;
      work.similarities[at] = found.similarity;
      work.nearest[at] = part == share.part ? found.item : kNoItem;
    }
  }
};

// The candidate of a thread in a tile that comes later.
template <uint32_t CANDIDATES>
struct CandidateAhead {
  const skv_cached *key = nullptr;
  float inverse_norm = 0.0f;
  uint32_t position = 0;
  uint32_t ordinal = kNoItem;

  __device__ void look(const KeyLists &lists, uint32_t tile) {
    const uint32_t c = tile * CANDIDATES + threadIdx.x;
    key = nullptr;
    ordinal = kNoItem;
    inverse_norm = not_a_number();
    if (threadIdx.x >= CANDIDATES || c >= lists.candidates) return;
    ordinal = lists.work.candidates[c];
    const Slot slot = lists.slot(ordinal);
    key = slot.key;
    position = slot.word(kSlotPosition);
    inverse_norm = lists.work.inverse_norms[ordinal];
  }

  __device__ void store(CandidateSide<CANDIDATES> &side) const {
    if (threadIdx.x >= CANDIDATES) return;
    side.keys[threadIdx.x] = key;
    side.inverse_norms[threadIdx.x] = inverse_norm;
    side.positions[threadIdx.x] = position;
    side.ordinals[threadIdx.x] = ordinal;
  }
};

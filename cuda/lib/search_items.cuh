// Searching the items of a chunk for what they are merged into.
#pragma once

#include "arrange_pairs.cuh"
#include "group_pairs.cuh"
#include "search.cuh"
#include "search_keys.cuh"

// Whether victims are merged into the most similar item that is kept, or into
// the cheapest.
__host__ __device__ inline bool merges_victims(const skv_policy &policy) {
  return policy.merge == SKV_MERGE_VOTES || policy.merge == SKV_MERGE_COSINE ||
         merges_cheapest(policy);
}

// Tiles of a part of the candidates, at least: blocks with fewer would mostly
// load queries.
constexpr uint32_t kLeastTiles = 4;

// Queries and candidates of a head, as they were arranged: see lib/search.cuh.
// The number of an item is its ordinal.
struct ItemView {
  const skv_chunk_args &args;
  ChunkHead head;
  HeadWork work;
  uint32_t pitch;
  uint32_t queries;
  uint32_t candidates;
  uint32_t part;
  uint32_t parts;

  __device__ uint32_t query(uint32_t q) const { return work.queries[q]; }
  __device__ uint32_t candidate(uint32_t c) const { return work.candidates[c]; }
  __device__ Slot slot(uint32_t ordinal) const {
    return item_slot(args, head, work.items[ordinal]);
  }
  __device__ float spread() const {
    return __uint_as_float(work.counters[kSpread]);
  }
  __device__ void store(uint32_t q, const Neighbour &best) const {
    const size_t at = static_cast<size_t>(part) * pitch + q;
    work.similarities[at] = best.similarity;
    work.nearest[at] = best.item;
  }
};

__device__ inline float weight_of(const ItemView &view, uint32_t ordinal,
                                  const Slot &, const PairSearch &) {
  return view.work.measures[ordinal].x;
}

struct ItemSource {
  skv_chunk_args args;
  CompressWork work;
  bool for_pairs;

  __device__ ItemView view() const {
    const HeadWork own = work.head(blockIdx.y);
    const uint32_t queries =
        row_end(args.step) > 0 ? own.counters[kQueries] : 0;
    const uint32_t tile = pair_query_tile(args.sizes.head_dim);
    const uint32_t end = min(queries, (blockIdx.x + 1) * tile);
    // None behind the last that is as heavy as the lightest of the queries.
    const uint32_t candidates = end <= blockIdx.x * tile ? 0
                                : for_pairs ? own.placed[end - 1].end
                                            : own.counters[kCandidates];
    const uint32_t least = kLeastTiles * kCandidateTile;
    return {args,       chunk_head(args, blockIdx.y),
            own,        work.part_pitch(),
            queries,    candidates,
            blockIdx.z, min(kSearchParts, max(1u, candidates / least))};
  }
};

// The best candidate of query `q`, over the parts.
__device__ inline Neighbour nearest_of_query(const skv_chunk_args &args,
                                             const ChunkHead &head,
                                             const CompressWork &all_work,
                                             const HeadWork &work, uint32_t q) {
  Neighbour best = kNoNeighbour;
  for (uint32_t part = 0; part < all_work.parts; part++) {
    const size_t at = static_cast<size_t>(part) * all_work.part_pitch() + q;
    Neighbour other = {work.similarities[at], 0, work.nearest[at]};
    if (!other.exists()) continue;
    other.position =
        item_slot(args, head, work.items[other.item]).word(kSlotPosition);
    if (other.beats(best)) best = other;
  }
  return best;
}

// Searches for what merges in pairs, whose queries and candidates are the same
// items, or for what takes victims. An item that merges at a cost only looks at
// what is heavier than itself where it could as well be found from the other
// end.
inline cudaError_t launch_item_search(const skv_chunk_args &args,
                                      const CompressWork &work, bool for_pairs,
                                      const Launch &launch) {
  if (!merges_cheapest(args.policy)) {
    return launch_key_search(args, work, for_pairs, launch);
  }
  return with_width(args.sizes.head_dim, [&](auto width) {
    constexpr int kWidth = decltype(width)::value;
    bool done = false;
    const cudaError_t status =
        launch_group_pairs<kWidth>(args, work, for_pairs, launch, done);
    if (status != cudaSuccess || done) return status;
    const PairSearch pairs = {args.policy, args.cache.lanes, for_pairs};
    return launch_search_width<kWidth, ItemSource>(
        {args, work, for_pairs}, pairs, args.sizes.head_dim, work.most,
        args.sizes.kv_heads, kSearchParts, launch);
  });
}

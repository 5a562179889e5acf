// Searching the items of a chunk for what they are merged into.
#pragma once

#include "compress_work.cuh"
#include "search.cuh"
#include "search_keys.cuh"

__host__ __device__ inline bool merges_cheapest(const skv_policy &policy) {
  return policy.merge == SKV_MERGE_PAIR;
}

// Whether victims are merged into the most similar item that is kept, or into
// the cheapest.
__host__ __device__ inline bool merges_victims(const skv_policy &policy) {
  return policy.merge == SKV_MERGE_VOTES || policy.merge == SKV_MERGE_COSINE ||
         merges_cheapest(policy);
}

// Queries and candidates of a head: see lib/search.cuh. The number of an item
// is its ordinal.
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

struct ItemSource {
  skv_chunk_args args;
  CompressWork work;

  __device__ ItemView view() const {
    const bool works = row_end(args.step) > 0;
    const HeadWork own = work.head(blockIdx.y);
    return {args,
            chunk_head(args, blockIdx.y),
            own,
            work.part_pitch(),
            works ? own.counters[kQueries] : 0,
            works ? own.counters[kCandidates] : 0,
            blockIdx.z,
            gridDim.z};
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
  const PairSearch pairs = {args.policy, args.cache.lanes, for_pairs};
  return launch_search<ItemSource>({args, work}, pairs, args.sizes.head_dim,
                                   work.most, args.sizes.kv_heads, work.parts,
                                   launch);
}

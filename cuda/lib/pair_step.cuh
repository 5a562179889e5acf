// The cheapest pair of a head in a decode step, and its merge: the kernel that
// observes lists the slots that may go, a search finds what each would be
// merged into, and merge_pair takes the cheapest proposal.
//
// Where slots remember partners (see src/reference/partners.ts), those that
// know none come first in the list: the blocks that have them compare them with
// the whole list, all others only compare with them, and with the slot that
// they remember. So a step takes work in proportion to the slots.
#pragma once

#include "evict_job.cuh"
#include "merge_one.cuh"
#include "search.cuh"

// Leaves how far the values of a head that is over its budget scatter.
template <bool ALIGNED>
__global__ void __launch_bounds__(kSpreadThreads)
    spread_kernel(skv_merge_attend_args args, Evidence evidence) {
  __shared__ SpreadShared shared;
  EvictJob job;
  if (!turn_to_head(args, evidence, blockIdx.z, blockIdx.y, job)) return;
  if (!job.is_over || blockIdx.x * kSpreadSlots >= job.high) return;
  spread_part<ALIGNED>(job.high, args.sizes.head_dim,
                       evidence.pairs.spreads_of(job.index), shared,
                       [&](uint32_t i) { return job.slot(args, i); });
}

// Lists the slots that may go, none if the head is within its budget. Called by
// the whole block.
__device__ inline void list_pairs(const skv_merge_attend_args &args,
                                  const EvictJob &job, const PairWork &pairs,
                                  EvictShared &shared) {
  uint2 counts = {0, 0};
  float spread = 0.0f;
  if (job.is_over) {
    const uint32_t field = kSlotBias + args.cache.lanes;
    const bool remembers = args.policy.partners != 0;
    const size_t first =
        job.index * static_cast<size_t>(args.cache.max_capacity);
    counts = list_two(job.high, pairs.lists + first, shared.list,
                      [&](uint32_t i) -> uint32_t {
                        const Slot slot = job.slot(args, i);
                        if (!job.may_go(args, slot)) return 2;
                        return remembers && slot.word(field) != 0 ? 1 : 0;
                      });
    spread = join_spread(job.high, args.sizes.head_dim,
                         pairs.spreads_of(job.index), shared.select);
  }
  if (threadIdx.x == 0) {
    pairs.headers[job.index] = {counts.x + counts.y, counts.x,
                                __float_as_uint(spread), 0};
  }
}

// Places in the list that several blocks search for: those of the tiles with
// slots that are compared with all.
__device__ inline uint32_t shared_queries(const skv_merge_attend_args &args,
                                          uint4 header) {
  const uint32_t tile = pair_query_tile(args.sizes.head_dim);
  return (header.y + tile - 1) / tile * tile;
}

// Queries and candidates of a head: see lib/search.cuh. The number of a slot is
// its index in the head.
struct PairView {
  const skv_merge_attend_args &args;
  EvictJob job;
  const PairWork &work;
  uint4 header;
  uint32_t queries;
  uint32_t part;

  __device__ size_t first() const {
    return static_cast<size_t>(job.index) * args.cache.max_capacity;
  }
  __device__ bool is_alone(uint32_t i) const { return i < header.y; }
  // A tile of slots that all have partners looks at those that have none, which
  // are too few to be shared.
  __device__ uint32_t candidates(uint32_t first_query) const {
    return is_alone(first_query) ? header.x : header.y;
  }
  __device__ uint32_t parts(uint32_t first_query) const {
    return is_alone(first_query) ? work.parts : 1;
  }
  __device__ uint32_t query(uint32_t q) const {
    return work.lists[first() + q];
  }
  __device__ uint32_t candidate(uint32_t c) const { return query(c); }
  __device__ Slot slot(uint32_t i) const { return job.slot(args, i); }
  __device__ bool is_open(uint32_t q, uint32_t c) const {
    return is_alone(q) || is_alone(c);
  }
  __device__ uint32_t remembered(uint32_t q) const {
    if (is_alone(q)) return kNoItem;
    return slot(query(q)).word(kSlotBias + args.cache.lanes) - 1;
  }
  __device__ float spread() const { return __uint_as_float(header.z); }
  __device__ void store(uint32_t q, const Neighbour &best) const {
    const size_t at = (static_cast<size_t>(job.index) * work.parts + part) *
                          args.cache.max_capacity +
                      q;
    work.similarities[at] = best.similarity;
    work.nearest[at] = best.item;
  }
};

struct PairSource {
  skv_merge_attend_args args;
  Evidence evidence;

  __device__ PairView view() const {
    const PairWork &work = evidence.pairs;
    EvictJob job = {};
    const uint32_t row = blockIdx.z / work.parts;
    const bool works = turn_to_head(args, evidence, row, blockIdx.y, job);
    const uint4 header = works ? work.headers[job.index] : uint4{};
    const uint32_t part = blockIdx.z % work.parts;
    const uint32_t queries =
        part == 0 ? header.x : min(header.x, shared_queries(args, header));
    return {args, job, work, header, queries, part};
  }
};

// Remembers the partners of all listed slots but those that are or chose `a` or
// `b`. Called by the whole block.
__device__ inline void remember_partners(const skv_merge_attend_args &args,
                                         const EvictJob &job,
                                         const uint32_t *list,
                                         const uint32_t *choices,
                                         uint32_t count, uint32_t a,
                                         uint32_t b) {
  for (uint32_t i = threadIdx.x; i < count; i += kEvictThreads) {
    const uint32_t slot = list[i], choice = choices[i];
    const bool is_changed =
        slot == a || slot == b || choice == a || choice == b;
    job.slot(args, slot)
        .set_word(kSlotBias + args.cache.lanes, is_changed ? 0 : choice + 1);
  }
}

// Merges the cheapest pair of a head.
template <bool QUERIES>
__global__ void __launch_bounds__(kEvictThreads, 2)
    merge_pair_kernel(skv_merge_attend_args args, Evidence evidence) {
  __shared__ EvictShared shared;
  const PairWork &pairs = evidence.pairs;
  EvictJob job;
  if (!turn_to_head(args, evidence, blockIdx.y, blockIdx.x, job)) return;
  const uint4 header = pairs.headers[job.index];
  const uint32_t count = header.x;
  if (count == 0) return;
  const size_t capacity = args.cache.max_capacity;
  const uint32_t lanes = args.cache.lanes;
  const uint32_t *list = pairs.lists + job.index * capacity;
  const size_t first = static_cast<size_t>(job.index) * pairs.parts * capacity;
  // What was chosen takes the place of what the first part found.
  uint32_t *choices = pairs.nearest + first;
  uint64_t best_key = kNoKey;
  uint32_t best = kNoItem;
  for (uint32_t i = threadIdx.x; i < count; i += kEvictThreads) {
    Neighbour nearest = kNoNeighbour;
    const uint32_t parts = i < shared_queries(args, header) ? pairs.parts : 1;
    for (uint32_t part = 0; part < parts; part++) {
      const size_t at = first + part * capacity + i;
      Neighbour other = {pairs.similarities[at], 0, pairs.nearest[at]};
      if (!other.exists()) continue;
      other.position = job.slot(args, other.item).word(kSlotPosition);
      if (other.beats(nearest)) nearest = other;
    }
    choices[i] = nearest.item;
    if (!nearest.exists()) continue;
    const Slot slot = job.slot(args, list[i]);
    float cost = -nearest.similarity;
    if (args.policy.partners) {
      cost = PairCosts::cost(
          log_weight(slot, args.policy, lanes),
          log_weight(job.slot(args, nearest.item), args.policy, lanes), cost);
    }
    const uint64_t key = order_key(cost, slot.word(kSlotPosition));
    if (key < best_key) best_key = key, best = i;
  }
  best = lowest_of_block(best_key, best, shared);
  // A slot that is alone has no partner, and is dropped.
  uint32_t stays = kNoItem, goes = list[0];
  if (best != kNoItem) {
    const uint32_t a = list[best], b = choices[best];
    if (args.policy.partners) {
      remember_partners(args, job, list, choices, count, a, b);
    }
    const auto rank = [&](uint32_t i) {
      const Slot slot = job.slot(args, i);
      return rank_key(slot_score(args, job, slot, i), slot, args.policy);
    };
    const bool is_lower = rank(a) < rank(b);
    stays = is_lower ? b : a;
    goes = is_lower ? a : b;
  }
  // All threads have ranked the two before one warp merges them.
  __syncthreads();
  if (warp_id() != 0) return;
  Merged merged = {};
  if (stays != kNoItem) merged = merge_two<QUERIES>(args, job, stays, goes);
  __syncwarp();
  if (lane_id() == 0) remove_slot(args, job, goes, stays != kNoItem, merged);
}

inline cudaError_t launch_pairs(const skv_merge_attend_args &args,
                                const Evidence &evidence, const Launch &side) {
  const bool remembers = args.policy.partners != 0;
  const PairSearch pairs = {args.policy, args.cache.lanes, !remembers};
  const PairSource source = {args, evidence};
  const auto search = remembers ? launch_search<Search::kNearest, PairSource>
                                : launch_search<Search::kCheapest, PairSource>;
  const cudaError_t status =
      search(source, pairs, args.sizes.head_dim, args.cache.max_capacity,
             args.sizes.kv_heads, args.step.rows * evidence.pairs.parts, side);
  if (status != cudaSuccess) return status;
  const auto merge =
      takes_queries(args) ? merge_pair_kernel<true> : merge_pair_kernel<false>;
  return launch_kernel(side, merge, dim3(args.sizes.kv_heads, args.step.rows),
                       kEvictThreads, 0, args, evidence);
}

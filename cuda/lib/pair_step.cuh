// The cheapest pair of a head in a decode step, and its merge: the kernel that
// observes lists the slots that may go, a search finds what each would be
// merged into, and merge_pair takes the cheapest proposal.
//
// Where slots remember partners (lib/partners.cuh), those that know none come
// first in the list, and a step takes work in proportion to the slots. Else all
// pairs are compared (lib/search.cuh).
#pragma once

#include "evict_job.cuh"
#include "merge_one.cuh"
#include "partners.cuh"
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

static_assert(kPairTile == kCandidateTile, "parts of a list are tiles");

// Queries and candidates of a head: see lib/search.cuh. The number of a slot is
// its index in the head.
struct PairView {
  const skv_merge_attend_args &args;
  EvictJob job;
  const PairWork &work;
  float scatter;
  uint32_t queries;
  uint32_t candidates;
  uint32_t part;
  uint32_t parts;

  __device__ uint32_t query(uint32_t q) const {
    return work
        .lists[static_cast<size_t>(job.index) * args.cache.max_capacity + q];
  }
  __device__ uint32_t candidate(uint32_t c) const { return query(c); }
  __device__ Slot slot(uint32_t i) const { return job.slot(args, i); }
  __device__ float spread() const { return scatter; }
  __device__ void store(uint32_t q, const Neighbour &best) const {
    work.found_of(job.index, part, args.cache.max_capacity)[q] =
        pack_found({best, kNoNeighbour});
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
    return {args,
            job,
            work,
            __uint_as_float(header.z),
            header.x,
            header.x,
            blockIdx.z % work.parts,
            work.parts};
  }
};

// Remembers the partners that all listed slots have found, but for `a` and `b`,
// which know none. Called by the whole block.
__device__ inline void remember_partners(const skv_merge_attend_args &args,
                                         const EvictJob &job,
                                         const uint32_t *list,
                                         const uint4 *found, uint32_t count,
                                         uint32_t a, uint32_t b) {
  const auto word_of = [&](uint32_t item) {
    return item == a || item == b ? 0 : item + 1;
  };
  for (uint32_t i = threadIdx.x; i < count; i += kEvictThreads) {
    uint32_t nearest = word_of(found[i].y), next = word_of(found[i].w);
    if (list[i] == a || list[i] == b) nearest = next = 0;
    if (nearest == 0) nearest = next, next = 0;
    set_partners(job.slot(args, list[i]), args.cache.lanes, nearest, next);
  }
}

// What was found for the slot at a place in the list, by all parts that looked.
__device__ inline BestTwo found_at(const skv_merge_attend_args &args,
                                   const EvictJob &job, const PairWork &pairs,
                                   uint4 header, uint32_t place) {
  const uint32_t per_part = pairs.part_places(header.x);
  const uint32_t parts =
      place < header.y ? (header.x + per_part - 1) / per_part : 1;
  BestTwo best = kNoneFound;
  for (uint32_t part = 0; part < parts; part++) {
    best.join(unpack_found(
        pairs.found_of(job.index, part, args.cache.max_capacity)[place],
        [&](uint32_t i) { return job.slot(args, i).word(kSlotPosition); }));
  }
  return best;
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
  const uint32_t capacity = args.cache.max_capacity;
  const uint32_t lanes = args.cache.lanes;
  const uint32_t *list =
      pairs.lists + static_cast<size_t>(job.index) * capacity;
  // What was found by all takes the place of what the first part found.
  uint4 *found = pairs.found_of(job.index, 0, capacity);
  uint64_t best_key = kNoKey;
  uint32_t best = kNoItem;
  for (uint32_t i = threadIdx.x; i < count; i += kEvictThreads) {
    const BestTwo partners = found_at(args, job, pairs, header, i);
    found[i] = pack_found(partners);
    const Neighbour &nearest = partners.first;
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
    const uint32_t a = list[best], b = found[best].y;
    if (args.policy.partners) {
      remember_partners(args, job, list, found, count, a, b);
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

// Searches for what each listed slot would be merged into.
inline cudaError_t launch_pair_search(const skv_merge_attend_args &args,
                                      const Evidence &evidence,
                                      const Launch &side) {
  if (args.policy.partners) return launch_partners(args, evidence, side);
  const PairSearch pairs = {args.policy, args.cache.lanes, true};
  const PairSource source = {args, evidence};
  return launch_search(source, pairs, args.sizes.head_dim,
                       args.cache.max_capacity, args.sizes.kv_heads,
                       args.step.rows * evidence.pairs.parts, side);
}

inline cudaError_t launch_pairs(const skv_merge_attend_args &args,
                                const Evidence &evidence, const Launch &side) {
  const cudaError_t status = launch_pair_search(args, evidence, side);
  if (status != cudaSuccess) return status;
  const auto merge =
      takes_queries(args) ? merge_pair_kernel<true> : merge_pair_kernel<false>;
  return launch_kernel(side, merge, dim3(args.sizes.kv_heads, args.step.rows),
                       kEvictThreads, 0, args, evidence);
}

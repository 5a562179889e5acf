// The cheapest pair of a head in a decode step.
//
// Where slots remember partners, the kernel that observes merges the cheapest
// of these pairs at once (lib/known_pairs.cuh). In a step in which a search is
// due it lists the slots that may go instead, those that know no partner first:
// a search brings all partners up to date, and the last block of it merges
// (lib/partners.cuh). Where no partners are remembered, all pairs are compared
// in every step (lib/search.cuh).
#pragma once

#include "evict_job.cuh"
#include "partners.cuh"
#include "search.cuh"

// Leaves how far the values of a head that is over its budget scatter, unless
// that is known.
template <bool ALIGNED>
__global__ void __launch_bounds__(kSpreadThreads)
    spread_kernel(skv_merge_attend_args args, Evidence evidence) {
  __shared__ SpreadShared shared;
  EvictJob job;
  if (!turn_to_head(args, evidence, blockIdx.z, blockIdx.y, job)) return;
  if (!job.is_over || job.words[kHeadSpread] != 0) return;
  const uint32_t parts = spread_parts(job.high);
  for (uint32_t part = blockIdx.x; part < parts; part += gridDim.x) {
    spread_part<ALIGNED>(part, job.high, args.sizes.head_dim,
                         evidence.pairs.spreads_of(job.index), shared,
                         [&](uint32_t i) { return job.slot(args, i); });
  }
}

// Notes what a slot that was observed weighs, where slots remember partners;
// returns whether this one does.
__device__ inline bool weigh_slot(const skv_merge_attend_args &args,
                                  const EvictJob &job, const PairWork &pairs,
                                  uint32_t i, const Slot &slot,
                                  const Scores &scores) {
  if (!job.is_over || args.policy.search_every == 0) return false;
  const uint32_t lanes = args.cache.lanes;
  const size_t first = static_cast<size_t>(job.index) * args.cache.max_capacity;
  pairs.weights[first + i] =
      pooled_bias(slot, lanes) + log_score(scores, args.policy);
  return partner_word(slot, lanes) != 0;
}

// Lists the slots that may go. Called by the whole block.
__device__ inline void list_pairs(const skv_merge_attend_args &args,
                                  const EvictJob &job, const PairWork &pairs,
                                  EvictShared &shared) {
  const bool remembers = args.policy.search_every != 0;
  const size_t first = static_cast<size_t>(job.index) * args.cache.max_capacity;
  uint32_t spread = job.words[kHeadSpread];
  const uint2 counts = list_two(
      job.high, pairs.lists + first, shared.list, [&](uint32_t i) -> uint32_t {
        const Slot slot = job.slot(args, i);
        if (!job.may_go(args, slot)) return 2;
        if (!remembers) return 0;
        return partner_word(slot, args.cache.lanes) != 0 ? 1 : 0;
      });
  if (spread == 0) {
    spread = __float_as_uint(join_spread(job.high, args.sizes.head_dim,
                                         pairs.spreads_of(job.index),
                                         shared.select));
  }
  if (threadIdx.x != 0) return;
  pairs.headers[job.index] = {counts.x + counts.y, counts.x, spread, 0};
  if (!remembers) return;
  job.words[kHeadSpread] = spread;
  pairs.tickets[job.index] = 0;
}

// Merges the cheapest pair of a head that is over its budget, or lists its
// slots for a search. Each thread says whether it saw a slot that `knows` a
// partner. Called by the whole block.
template <bool QUERIES>
__device__ inline void begin_pairs(const skv_merge_attend_args &args,
                                   const EvictJob &job, const PairWork &pairs,
                                   bool knows, EvictShared &shared) {
  if (threadIdx.x == 0) pairs.headers[job.index] = {};
  if (!job.is_over) return;
  const bool remembers = args.policy.search_every != 0;
  const uint32_t turn = job.position + args.cache.layer + job.kv_head;
  // After this everybody sees all weights.
  const bool anybody = __syncthreads_or(knows) != 0;
  if (!remembers || !anybody || job.words[kHeadSpread] == 0 ||
      turn % search_period(args.policy, job.words[kHeadBudget]) == 0) {
    list_pairs(args, job, pairs, shared);
    return;
  }
  const size_t first = static_cast<size_t>(job.index) * args.cache.max_capacity;
  merge_known<kEvictWarps, QUERIES>(args, job, pairs.weights + first, kNoItem,
                                    shared.lowest);
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
    store_found(work.part_found_of(job.index, part) + q, best);
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

// Merges the cheapest pair of a head whose pairs were all compared.
template <bool QUERIES>
__global__ void __launch_bounds__(kPairThreads)
    merge_pair_kernel(skv_merge_attend_args args, Evidence evidence) {
  __shared__ LowestShared<kPairWarps> shared;
  const uint32_t kv_head = blockIdx.x, row = blockIdx.y;
  PairJob work;
  if (!turn_to_pairs(args, evidence, row, kv_head, work)) return;
  EvictJob job;
  turn_to_head(args, evidence, row, kv_head, job);
  uint64_t lowest = kNoKey;
  uint32_t own = kNoItem;
  for (uint32_t i = threadIdx.x; i < work.count; i += kPairThreads) {
    const Neighbour best = best_of_parts(args, work, work.parts, i);
    if (!best.exists()) continue;
    const Slot slot = work.slot(args, work.list[i]);
    const uint64_t key = order_key(-best.similarity, slot.word(kSlotPosition));
    if (key < lowest) lowest = key, own = i;
  }
  const uint32_t place = lowest_of_block(lowest, own, shared);
  if (place != kNoItem) {
    const Neighbour other = best_of_parts(args, work, work.parts, place);
    merge_pair<kPairWarps, QUERIES>(args, job, work.list[place], other.item);
  } else if (threadIdx.x == 0) {
    // A slot that is alone has no partner, and is dropped.
    remove_slot(args, job, work.list[0], false, {});
  }
}

inline cudaError_t launch_pairs(const skv_merge_attend_args &args,
                                const Evidence &evidence, const Launch &side) {
  if (args.policy.search_every) return launch_partners(args, evidence, side);
  const PairSearch pairs = {args.policy, args.cache.lanes, true};
  const PairSource source = {args, evidence};
  const cudaError_t status = launch_search(
      source, pairs, args.sizes.head_dim, args.cache.max_capacity,
      args.sizes.kv_heads, args.step.rows * evidence.pairs.parts, side);
  if (status != cudaSuccess) return status;
  const auto merge =
      takes_queries(args) ? merge_pair_kernel<true> : merge_pair_kernel<false>;
  return launch_kernel(side, merge, dim3(args.sizes.kv_heads, args.step.rows),
                       kPairThreads, 0, args, evidence);
}

// The cheapest pair of a head in a decode step: the kernel that observes lists
// the slots that may go, and a search finds what each would be merged into.
//
// Where slots remember partners (lib/partners.cuh), those that know none come
// first in the list, a step takes work in proportion to the slots, and the last
// block that searches merges. Else all pairs are compared (lib/search.cuh).
#pragma once

#include "evict_job.cuh"
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
    pairs.tickets[job.index] = 0;
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
    store_found(work.part_found_of(job.index, part) + q, {best, kNoNeighbour});
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
  __shared__ CheapestShared shared;
  PairJob work;
  if (!turn_to_pairs(args, evidence, blockIdx.y, blockIdx.x, work)) return;
  if (work.count > 0) merge_cheapest<QUERIES>(args, work, shared);
}

inline cudaError_t launch_pairs(const skv_merge_attend_args &args,
                                const Evidence &evidence, const Launch &side) {
  if (args.policy.partners) return launch_partners(args, evidence, side);
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

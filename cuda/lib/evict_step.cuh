// The policy's work after a decode step, kernel by kernel.
#pragma once

#include "pair_step.cuh"
#include "segment_step.cuh"

// Leaves what is expected of the slots of a head.
template <bool ALIGNED>
__global__ void __launch_bounds__(kExpectThreads)
    expect_kernel(skv_merge_attend_args args, Evidence evidence) {
  __shared__ ExpectShared shared;
  EvictJob job;
  if (!turn_to_head(args, evidence, blockIdx.z, blockIdx.y, job)) return;
  if (blockIdx.x * kExpectSlots >= job.high) return;
  if (!needs_ratings(args, job)) return;
  const ExpectedGroup group =
      expected_group(args.cache, args.sizes, args.policy, job.row, job.kv_head);
  expect_slots<ALIGNED>(group, job.high, job.expected, shared,
                        [&](uint32_t i) { return job.slot(args, i); });
}

// Takes over what attention found of the head and observes the row; evicts; or
// both in one go where no other head has a say.
//
// A kernel has the code of one kind of merge: half a multiprocessor is left to
// the products beside it, and there is less code on the way.
template <uint32_t MERGE, bool ALIGNED, bool QUERIES>
__global__ void __launch_bounds__(kEvictThreads, 4)
    evict_kernel(skv_merge_attend_args args, Evidence evidence, bool observes,
                 bool chooses) {
  constexpr bool kRides =
      ALIGNED && (MERGE == SKV_MERGE_VOTES || MERGE == SKV_MERGE_COSINE);
  __shared__ EvictShared shared;
  EvictJob job;
  if (!turn_to_head(args, evidence, blockIdx.y, blockIdx.x, job)) return;
  if (observes && threadIdx.x == 0) {
    const uint4 seen = evidence.rows[job.index];
    job.words[kHeadLive] = seen.y;
    job.words[kHeadNext] = seen.z;
    job.words[kHeadHigh] = seen.w;
  }
  if constexpr (MERGE != SKV_MERGE_NEVER) {
    if (threadIdx.x < job.group) {
      shared.log_sums[threadIdx.x] =
          evidence.log_sums[job.index * kMaxGroup + threadIdx.x];
    }
    if constexpr (kRides) {
      read_ridden(evidence.riders, job.index, shared.ridden);
    }
    __syncthreads();
    Found found;
    if (observes) {
      bool knows = false;
      found = observe_slots<kRides>(
          args, job, shared,
          [&](uint32_t i, const Slot &slot, const Scores &scores) {
            if constexpr (MERGE == SKV_MERGE_PAIR) {
              knows |= weigh_slot(args, job, evidence.pairs, i, slot, scores);
            }
          });
      if (needs_ratings(args, job)) rate_slots(args, job, shared);
      if constexpr (MERGE == SKV_MERGE_PAIR) {
        begin_pairs<QUERIES>(args, job, evidence.pairs, knows, shared);
      }
      if constexpr (MERGE == SKV_MERGE_SEGMENTS) {
        choose_light(args, job, shared);
      }
    }
    if constexpr (MERGE != SKV_MERGE_PAIR) {
      if (!chooses || !job.is_over) return;
      if constexpr (MERGE == SKV_MERGE_SEGMENTS) {
        if (close_link(args, job, shared)) return;
      }
      if (!observes || !own_fields_decide(args, job)) {
        found = rank_slots<kRides>(args, job, shared);
      }
      const uint32_t victim =
          lowest_of_block(found.first.key, found.first.slot, shared.lowest);
      const bool rides = kRides && evidence.riders.slots != nullptr;
      if (rides) {
        found.next.leave_out(victim);
        keep_lowest(found.next, shared.lowest_of_warps[warp_id()]);
        __syncthreads();
      }
      uint32_t target = ~0u;
      if (victim != ~0u) {
        target = evict<MERGE, ALIGNED, QUERIES>(args, job, evidence.riders,
                                                victim, shared);
      }
      if (rides && warp_id() == 0) {
        __syncwarp();
        const Candidate merged = target == ~0u
                                     ? Candidate(kNoCandidate)
                                     : next_in_line(args, job, target);
        leave_shortlist(
            shared.lowest_of_warps, kEvictWarps, merged,
            evidence.riders.slots + job.index * evidence.riders.count,
            evidence.riders.count);
      }
    }
  }
}

using EvictKernel = void (*)(skv_merge_attend_args, Evidence, bool, bool);

template <bool ALIGNED>
inline EvictKernel evict_kernel_of(const skv_merge_attend_args &args) {
  switch (args.policy.merge) {
    case SKV_MERGE_NEVER:
      return evict_kernel<SKV_MERGE_NEVER, false, false>;
    case SKV_MERGE_VOTES:
      return takes_queries(args)
                 ? evict_kernel<SKV_MERGE_VOTES, ALIGNED, true>
                 : evict_kernel<SKV_MERGE_VOTES, ALIGNED, false>;
    case SKV_MERGE_RIGHT_NEIGHBOUR:
      return evict_kernel<SKV_MERGE_RIGHT_NEIGHBOUR, false, false>;
    case SKV_MERGE_PAIR:
      return takes_queries(args) ? evict_kernel<SKV_MERGE_PAIR, false, true>
                                 : evict_kernel<SKV_MERGE_PAIR, false, false>;
    case SKV_MERGE_COSINE:
      return evict_kernel<SKV_MERGE_COSINE, ALIGNED, false>;
    case SKV_MERGE_NEXT_VALUES:
      return evict_kernel<SKV_MERGE_NEXT_VALUES, false, false>;
    case SKV_MERGE_SEGMENTS:
      return evict_kernel<SKV_MERGE_SEGMENTS, false, false>;
    default:
      return evict_kernel<SKV_MERGE_DROP, false, false>;
  }
}

template <bool ALIGNED>
inline cudaError_t launch_policy(const skv_merge_attend_args &args,
                                 const Evidence &evidence,
                                 const Launch &launch) {
  Launch side;
  cudaError_t status = fork(launch, &side);
  const dim3 grid(args.sizes.kv_heads, args.step.rows);
  if (status == cudaSuccess && args.policy.score == SKV_SCORE_EXPECTED) {
    const dim3 parts(expect_parts(args.cache.max_capacity), grid.x, grid.y);
    status = launch_kernel(side, expect_kernel<ALIGNED>, parts, kExpectThreads,
                           0, args, evidence);
  }
  const skv_policy &policy = args.policy;
  if (status == cudaSuccess && args.policy.merge == SKV_MERGE_PAIR) {
    // Where it is measured once, few blocks find that it was.
    const uint32_t blocks =
        policy.search_every ? 1 : spread_parts(args.cache.max_capacity);
    const dim3 parts(blocks, grid.x, grid.y);
    status = launch_kernel(side, spread_kernel<ALIGNED>, parts, kSpreadThreads,
                           0, args, evidence);
  }
  // One thread takes over what attention found; nobody else has work where
  // nothing is ever evicted.
  const uint32_t threads = policy.merge == SKV_MERGE_NEVER ? 32 : kEvictThreads;
  const auto evict = [&](bool observes, bool chooses) {
    return launch_kernel(side, evict_kernel_of<ALIGNED>(args), grid, threads,
                         evict_bytes(policy), args, evidence, observes,
                         chooses);
  };
  if (status != cudaSuccess) return status;
  if (policy.merge == SKV_MERGE_PAIR) {
    status = evict(true, false);
    return status == cudaSuccess ? launch_pairs(args, evidence, side) : status;
  }
  const bool links = policy.merge == SKV_MERGE_SEGMENTS;
  // Where the heads of a layer choose together, all are scored first.
  if (!policy.layer_scope && !links) return evict(true, true);
  status = evict(true, false);
  if (status == cudaSuccess && links) {
    const dim3 parts(link_parts(args.cache.max_capacity), grid.x, grid.y);
    status = launch_kernel(side, link_kernel<ALIGNED>, parts, kLinkThreads, 0,
                           args, evidence);
  }
  return status == cudaSuccess ? evict(false, true) : status;
}

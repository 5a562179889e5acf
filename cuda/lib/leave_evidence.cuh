// What attention leaves for the policy: see lib/evidence.cuh.
#pragma once

#include "attend_parts.cuh"

// Notes what the policy needs to know; `log_sums` are in shared memory, and
// `rode` says how many splits left neighbours.
template <int DIM>
__device__ inline void leave_evidence(const HeadJob &job,
                                      const Evidence &evidence, uint2 counts,
                                      uint32_t rode,
                                      const AttendShared<DIM> &shared) {
  if (threadIdx.x == 0 && job.first_head == 0) {
    evidence.rows[job.index] = {job.position, counts.x, min(counts.y, job.high),
                                job.high};
    if (evidence.riders.splits != nullptr) {
      evidence.riders.splits[job.index] = rode;
    }
  }
  if (evidence.log_sums != nullptr && threadIdx.x < job.heads) {
    evidence.log_sums[job.index * kMaxGroup + job.first_head + threadIdx.x] =
        shared.log_sums[threadIdx.x];
  }
}

// Keeps the queries for the policy, which the next layer overwrites. Called by
// one block of each KV head.
__device__ inline void keep_queries(const skv_merge_attend_args &args,
                                    const HeadJob &job,
                                    const Evidence &evidence) {
  if (evidence.queries == nullptr) return;
  const uint32_t count = job.heads * args.sizes.head_dim;
  const float *from =
      args.queries + query_row(args, job, 0) * args.sizes.head_dim;
  const size_t own =
      static_cast<size_t>(job.index) * job.group + job.first_head;
#pragma unroll 1
  for (uint32_t i = threadIdx.x; i < count; i += kAttendThreads) {
    evidence.queries[own * args.sizes.head_dim + i] = __ldcg(from + i);
  }
}

// Leaves the nearest of a block's slots for each rider.
template <int DIM>
__device__ inline void leave_nearest(const HeadJob &job,
                                     const RiderMemory &riders,
                                     const AttendShared<DIM> &shared) {
  if (threadIdx.x >= riders.count) return;
  Neighbour best = kNoNeighbour;
#pragma unroll
  for (uint32_t w = 0; w < kAttendWarps; w++) {
    const Neighbour other = shared.nearest[w][threadIdx.x];
    if (other.beats(best)) best = other;
  }
  const size_t part =
      static_cast<size_t>(job.index) * riders.most_splits + blockIdx.x;
  riders.nearest[part * riders.count + threadIdx.x] = best;
}

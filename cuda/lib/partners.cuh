// The nearest partner of each slot that may go, where a search is due: see
// src/reference/partners.ts.
//
// Slots that know no partner, some tens as a rule, come first in the list and
// are compared with all others; these are compared with them alone. So a block
// goes through its part of the list once: a warp has eight slots, the columns
// of tensor core products whose rows are 16 of those that know no partner. A
// block is small, because those of all layers run beside the logits, which
// leave a part of each multiprocessor. It looks at as many heads of a row as a
// search is due in one of, since blocks that find nothing to do take time too.
//
// Who is nearest follows from products and squares. How far away that is, which
// is remembered, follows from differences: products lose a few bits where two
// are close.
#pragma once

#include "overlap.cuh"
#include "partner_tile.cuh"

// Blocks that fit on a multiprocessor: three beside the logits, which take half
// of its registers.
template <int DIM>
constexpr int kPartnerBlocks = DIM == 256 ? 3 : 6;

// Whether this block is the last of its head to get here; it sees what all have
// left. Called by the whole block.
__device__ inline bool is_last_part(const PairJob &work, bool &shared) {
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) shared = atomicAdd(work.ticket, 1) == work.parts - 1;
  __syncthreads();
  return shared;
}

// Leaves what a warp has found for its columns from place `first` of the list
// on, those left out that all parts search for. All lanes with the same t have
// found as much for columns 2 t and 2 t + 1.
template <int DIM, bool ALIGNED>
__device__ inline void leave_columns(const skv_merge_attend_args &args,
                                     const PairJob &work,
                                     const PairCosts &costs, uint32_t first,
                                     const PartnersShared<DIM> &shared,
                                     const Neighbour (&nearest)[2]) {
  const uint32_t g = lane_id() / 4;
  const PartnerColumn column = shared.columns[8 * warp_id() + g];
  const Neighbour even = neighbour_of_lane(nearest[0], g / 2);
  const Neighbour odd = neighbour_of_lane(nearest[1], g / 2);
  const Neighbour best = g % 2 == 0 ? even : odd;
  const bool wanted = column.number != kNoItem && first + g >= work.shared;
  const bool is_new = wanted && best.beats(column.known);
  uint2 found = {__float_as_uint(-column.known.similarity), column.known.item};
  if (__any_sync(kAllLanes, is_new)) {
    const uint32_t own = is_new ? column.number : work.list[0];
    const float distance =
        distance_of<DIM, ALIGNED>(args, costs, work.slot(args, own),
                                  work.slot(args, is_new ? best.item : own));
    if (is_new) found = {__float_as_uint(distance), best.item};
  }
  if (wanted && lane_id() % 4 == 0) work.found[first + g] = found;
}

// Looks for the partners of the slots of one part of a head's list.
template <int DIM, bool ALIGNED>
__device__ inline void search_part(const skv_merge_attend_args &args,
                                   const PairJob &work, const PairCosts &costs,
                                   uint32_t part, PartnersShared<DIM> &shared) {
  const uint32_t begin = part * work.per_part;
  const uint32_t end = min(work.count, begin + work.per_part);
  // The rows that are in shared memory.
  uint32_t fetched = kNoItem;
  for (uint32_t first = begin; first < end; first += kPartnerTile) {
    const uint32_t first_column = first + 8 * warp_id();
    const uint32_t place = first_column + lane_id();
    if (lane_id() < 8) {
      PartnerColumn column = column_of(args, work, min(place, end - 1));
      if (place >= end) column.number = kNoItem;
      shared.columns[8 * warp_id() + lane_id()] = column;
    }
    __syncwarp();
    Neighbour nearest[2] = {kNoNeighbour, kNoNeighbour};
    const bool has_own =
        max(first, work.shared) < min(first + kPartnerTile, work.alone);
    const uint32_t rows = has_own ? work.count : work.alone;
    for (uint32_t row = 0; row < rows; row += kPartnerRows) {
      if (fetched != row || has_own) {
        // Nobody reads the rows before these any more.
        __syncthreads();
        fetch_rows<DIM, ALIGNED>(args, work, row, rows, shared);
        fetched = has_own ? kNoItem : row;
      }
      __syncthreads();
#pragma unroll 1
      for (uint32_t line = 0; line < min(kPartnerRows, rows - row);
           line += kProductRows) {
        compare_rows<DIM, ALIGNED>(args, work, costs, row, line, first_column,
                                   shared, nearest);
      }
      __syncthreads();
      leave_rows(args, work, part, row, first != begin, shared);
    }
#pragma unroll
    for (int c = 0; c < 2; c++) {
      nearest[c] = nearest_of_lanes<16, 4>(nearest[c]);
    }
    leave_columns<DIM, ALIGNED>(args, work, costs, first_column, shared,
                                nearest);
    __syncwarp();
  }
}

// Joins what the parts have found for the slots that all of them search for;
// four lanes share a slot. Called by the whole block.
template <int DIM, bool ALIGNED>
__device__ inline void join_parts(const skv_merge_attend_args &args,
                                  const PairJob &work, const PairCosts &costs) {
  constexpr uint32_t kSlots = kPairThreads / 4;
  for (uint32_t first = 0; first < work.shared; first += kSlots) {
    const uint32_t place = first + threadIdx.x / 4;
    const bool exists = place < work.shared;
    Neighbour best = kNoNeighbour;
#pragma unroll
    for (uint32_t k = 0; k < kMaxPairParts / 4; k++) {
      const uint32_t part = 4 * k + lane_id() % 4;
      if (!exists || part >= work.parts) continue;
      const Neighbour other =
          load_found(args, work, work.found_by(part) + place);
      if (other.beats(best)) best = other;
    }
    best = nearest_of_lanes<2>(best);
    const uint32_t own = work.list[exists ? place : 0];
    const float distance = distance_of<DIM, ALIGNED>(
        args, costs, work.slot(args, own),
        work.slot(args, best.exists() ? best.item : own));
    if (exists && threadIdx.x % 4 == 0) {
      work.found[place] = {__float_as_uint(distance), best.item};
    }
  }
}

// Makes slots remember what was found for them. Called by the whole block.
__device__ inline void remember_found(const skv_merge_attend_args &args,
                                      const PairJob &work) {
  constexpr uint32_t kReads = 4;
  for (uint32_t first = threadIdx.x; first < work.count;
       first += kReads * kPairThreads) {
    // All are read before any slot is written.
    uint2 found[kReads];
    uint32_t numbers[kReads];
#pragma unroll
    for (uint32_t k = 0; k < kReads; k++) {
      const uint32_t i = min(first + k * kPairThreads, work.count - 1);
      found[k] = __ldcg(work.found + i);
      numbers[k] = work.list[i];
    }
#pragma unroll
    for (uint32_t k = 0; k < kReads; k++) {
      if (first + k * kPairThreads >= work.count) continue;
      const bool exists = found[k].y != kNoItem;
      set_partner(work.slot(args, numbers[k]), args.cache.lanes,
                  exists ? found[k].y + 1 : 0,
                  exists ? __uint_as_float(found[k].x) : 0.0f);
    }
  }
}

// Looks for partners where a search is due; the last part of a head merges.
template <int DIM, bool ALIGNED, bool QUERIES>
__global__ void __launch_bounds__(kPairThreads, kPartnerBlocks<DIM>)
    partners_kernel(skv_merge_attend_args args, Evidence evidence) {
  __shared__ PartnersShared<DIM> shared;
  begin_kernel();
  const uint32_t part = blockIdx.x, row = blockIdx.z;
  const uint32_t heads = group_heads(args);
  const uint32_t own_head = blockIdx.y * heads + lane_id();
  const bool is_due =
      lane_id() < heads && own_head < args.sizes.kv_heads &&
      evidence.pairs.headers[row * args.sizes.kv_heads + own_head].x != 0;
  uint32_t due = __ballot_sync(kAllLanes, is_due);
  for (; due != 0; due &= due - 1) {
    const uint32_t kv_head = blockIdx.y * heads + __ffs(due) - 1;
    PairJob work;
    if (!turn_to_pairs(args, evidence, row, kv_head, work)) continue;
    if (part >= work.parts) continue;
    const PairCosts costs(args.policy, work.spread);
    search_part<DIM, ALIGNED>(args, work, costs, part, shared);
    if (!is_last_part(work, shared.is_last)) continue;
    join_parts<DIM, ALIGNED>(args, work, costs);
    __syncthreads();
    remember_found(args, work);
    __syncthreads();
    EvictJob job;
    turn_to_head(args, evidence, row, kv_head, job);
    merge_known<kPairWarps, QUERIES>(args, job, work.weights, work.list[0],
                                     shared.lowest);
  }
}

template <int DIM>
inline cudaError_t launch_partners_width(const skv_merge_attend_args &args,
                                         const Evidence &evidence,
                                         const Launch &launch) {
  const bool queries = takes_queries(args);
  const auto kernel = args.sizes.head_dim % 8 == 0
                          ? queries ? partners_kernel<DIM, true, true>
                                    : partners_kernel<DIM, true, false>
                      : queries ? partners_kernel<DIM, false, true>
                                : partners_kernel<DIM, false, false>;
  const dim3 grid(evidence.pairs.parts, head_groups(args), args.step.rows);
  return launch_kernel(launch, kernel, grid, kPairThreads, 0, args, evidence);
}

inline cudaError_t launch_partners(const skv_merge_attend_args &args,
                                   const Evidence &evidence,
                                   const Launch &launch) {
  return with_width(args.sizes.head_dim, [&](auto width) {
    return launch_partners_width<decltype(width)::value>(args, evidence,
                                                         launch);
  });
}

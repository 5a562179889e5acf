// The two nearest partners of each slot that may go in a decode step: see
// src/reference/partners.ts.
//
// Slots that know no partner, a few as a rule, come first in the list and are
// compared with all others; these are compared with what they remember as well.
// So a block goes through its part of the list once: a warp has eight slots,
// the columns of tensor core products whose rows are 16 of those that know no
// partner. A block is small, because those of all layers run beside the logits,
// which leave a part of each multiprocessor.
//
// Squared distances come from products and squares, those from what a slot
// remembers from differences, which lose nothing where two are close.
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

// Looks for the partners of the slots of one part of each head's list; the last
// part of a head merges.
template <int DIM, bool ALIGNED, bool QUERIES>
__global__ void __launch_bounds__(kPairThreads, kPartnerBlocks<DIM>)
    partners_kernel(skv_merge_attend_args args, Evidence evidence) {
  __shared__ PartnersShared<DIM> shared;
  begin_kernel();
  PairJob work;
  if (!turn_to_pairs(args, evidence, blockIdx.z, blockIdx.y, work)) return;
  if (blockIdx.x >= work.parts) return;
  const PairCosts costs(args.policy, work.spread);
  const uint32_t begin = blockIdx.x * work.per_part;
  const uint32_t end = min(work.count, begin + work.per_part);
  const uint32_t g = lane_id() / 4, t = lane_id() % 4;
  // The rows that are in shared memory.
  uint32_t fetched = kNoItem;
  for (uint32_t first = begin; first < end; first += kPartnerTile) {
    const uint32_t place = first + 8 * warp_id() + g;
    PartnerColumn column =
        column_of<DIM, ALIGNED>(args, work, costs, min(place, end - 1));
    if (place >= end) column.number = kNoItem;
    if (t == 0) shared.columns[8 * warp_id() + g] = column;
    __syncwarp();
    BestTwo nearest[2] = {kNoneFound, kNoneFound};
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
      compare_rows<DIM, ALIGNED>(args, work, costs, row, first + 8 * warp_id(),
                                 shared, nearest);
      __syncthreads();
      leave_rows(args, work, row, first != begin, shared);
    }
#pragma unroll
    for (int c = 0; c < 2; c++) {
      nearest[c] = best_two_of_lanes<4, 16>(nearest[c]);
    }
    // All lanes with the same t have found as much for columns 2 t and 2 t + 1:
    // one of them stores each.
    const uint32_t c = 8 * warp_id() + 2 * t + g;
    if (g < 2 && shared.columns[c].number != kNoItem &&
        first + c >= work.shared) {
      BestTwo best = shared.columns[c].known;
      if (g == 0) best.join(nearest[0]);
      if (g == 1) best.join(nearest[1]);
      store_found(work.found + first + c, best);
    }
    __syncwarp();
  }
  if (!is_last_part(work, shared.is_last)) return;
  merge_cheapest<QUERIES>(args, work, shared.cheapest);
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
  const dim3 grid(evidence.pairs.parts, args.sizes.kv_heads, args.step.rows);
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

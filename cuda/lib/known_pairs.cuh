// Merging the cheapest of the pairs that slots remember: see
// src/reference/partners.ts.
//
// A block goes through the fields of the head's slots: what each remembers, how
// far away that is, and what both weigh, 16 bytes and a word from somewhere
// else. Weights were left by whoever observed the slots; keys and values are
// not looked at but for the two that merge.
#pragma once

#include "merge_one.cuh"
#include "pair_costs.cuh"

// Makes slots forget the one that goes, and that and the one that stays what
// they know. Called by all warps of a block of WARPS but the first.
template <uint32_t WARPS>
__device__ inline void forget_pair(const skv_merge_attend_args &args,
                                   const EvictJob &job, uint32_t stays,
                                   uint32_t goes) {
  const uint32_t lanes = args.cache.lanes;
#pragma unroll 4
  for (uint32_t i = threadIdx.x - 32; i < job.high; i += 32 * (WARPS - 1)) {
    const Slot slot = job.slot(args, i);
    if (partner_word(slot, lanes) == goes + 1 || i == stays || i == goes) {
      forget_partner(slot, lanes);
    }
  }
}

// Merges two slots of a head, of which the one with the lower rank goes. Called
// by a whole block of WARPS.
template <uint32_t WARPS, bool QUERIES>
__device__ inline void merge_pair(const skv_merge_attend_args &args,
                                  const EvictJob &job, uint32_t a, uint32_t b) {
  const auto rank = [&](uint32_t i) {
    const Slot slot = job.slot(args, i);
    return rank_key(slot_score(args, job, slot, i), slot, args.policy);
  };
  const bool is_lower = rank(a) < rank(b);
  const uint32_t stays = is_lower ? b : a, goes = is_lower ? a : b;
  // All threads have ranked the two before one warp merges them.
  __syncthreads();
  if (warp_id() != 0) {
    if (args.policy.search_every) {
      forget_pair<WARPS>(args, job, stays, goes);
    }
    return;
  }
  const Merged merged = merge_two<QUERIES>(args, job, stays, goes);
  __syncwarp();
  if (lane_id() == 0) remove_slot(args, job, goes, true, merged);
}

// Merges the cheapest pair, or drops the slot `lone` where nobody knows a
// partner. Called by a whole block of WARPS.
template <uint32_t WARPS, bool QUERIES>
__device__ inline void merge_known(const skv_merge_attend_args &args,
                                   const EvictJob &job, const float *weights,
                                   uint32_t lone, LowestShared<WARPS> &shared) {
  const uint32_t lanes = args.cache.lanes;
  uint64_t lowest = kNoKey;
  uint32_t own = ~0u;
#pragma unroll 4
  for (uint32_t i = threadIdx.x; i < job.high; i += 32 * WARPS) {
    const Slot slot = job.slot(args, i);
    const uint32_t word = partner_word(slot, lanes);
    const float cost =
        PairCosts::cost(weights[i], weights[word == 0 ? i : word - 1],
                        partner_distance(slot, lanes));
    const uint64_t key = order_key(cost, slot.word(kSlotPosition));
    if (word != 0 && key < lowest) lowest = key, own = i;
  }
  const uint32_t a = lowest_of_block(lowest, own, shared);
  if (a != ~0u) {
    const uint32_t b = partner_word(job.slot(args, a), lanes) - 1;
    merge_pair<WARPS, QUERIES>(args, job, a, b);
  } else if (threadIdx.x == 0) {
    remove_slot(args, job, lone, false, {});
  }
}

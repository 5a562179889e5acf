// What was found for the slots of a list, and the merge of the cheapest pair.
#pragma once

#include "merge_one.cuh"
#include "neighbour.cuh"
#include "pair_costs.cuh"

// Threads of blocks that merge.
constexpr uint32_t kPairThreads = 128;
constexpr uint32_t kPairWarps = kPairThreads / 32;

// A head whose cheapest pair is looked for.
struct PairJob {
  EvictJob job;
  // Slots that may go, those without a partner first: how many of both.
  const uint32_t *list;
  uint32_t count;
  uint32_t alone;
  // Those of the latter that all parts search for.
  uint32_t shared;
  // How far its values scatter.
  float spread;
  // Parts of the list that are searched, and places of each.
  uint32_t parts;
  uint32_t per_part;
  // By place in the list; by part and place, for those that are shared.
  uint4 *found;
  uint4 *part_found;
  uint32_t pitch;
  // Parts that are done.
  uint32_t *ticket;

  __device__ Slot slot(const skv_merge_attend_args &args, uint32_t i) const {
    return job.slot(args, i);
  }
  __device__ uint4 *found_by(uint32_t part) const {
    return part_found + static_cast<size_t>(part) * pitch;
  }
};

// The same as turn_to_head, with the list that was left of it.
__device__ inline bool turn_to_pairs(const skv_merge_attend_args &args,
                                     const Evidence &evidence, uint32_t row,
                                     uint32_t kv_head, PairJob &work) {
  const PairWork &pairs = evidence.pairs;
  const uint32_t index = row * args.sizes.kv_heads + kv_head;
  const uint4 header = pairs.headers[index];
  if (!turn_to_head(args, evidence, row, kv_head, work.job)) return false;
  const size_t first = static_cast<size_t>(index) * args.cache.max_capacity;
  work.list = pairs.lists + first;
  work.count = header.x;
  work.alone = header.y;
  work.shared = min(header.y, pairs.shared);
  work.spread = __uint_as_float(header.z);
  work.per_part = pairs.part_places(header.x);
  work.parts =
      header.x == 0 ? 0 : (header.x + work.per_part - 1) / work.per_part;
  work.found = pairs.found + first;
  work.part_found = pairs.part_found_of(index, 0);
  work.pitch = pairs.shared;
  work.ticket = pairs.tickets + index;
  return true;
}

// What was found for a slot as it is stored, and back. Other blocks of the same
// kernel may have stored it.
__device__ inline void store_found(uint4 *to, const BestTwo &best) {
  *to = {__float_as_uint(best.first.similarity), best.first.item,
         __float_as_uint(best.second.similarity), best.second.item};
}

__device__ inline BestTwo load_found(const skv_merge_attend_args &args,
                                     const PairJob &work, const uint4 *from) {
  const uint4 words = __ldcg(from);
  BestTwo best = {{__uint_as_float(words.x), 0, words.y},
                  {__uint_as_float(words.z), 0, words.w}};
  const auto position_of = [&](const Neighbour &slot) {
    return slot.exists() ? work.slot(args, slot.item).word(kSlotPosition) : 0;
  };
  best.first.position = position_of(best.first);
  best.second.position = position_of(best.second);
  return best;
}

// Remembers the partners that all listed slots have found, but for `a` and `b`,
// which know none. Called by the whole block.
__device__ inline void remember_partners(const skv_merge_attend_args &args,
                                         const PairJob &work, uint32_t a,
                                         uint32_t b) {
  const auto word_of = [&](uint32_t item) {
    return item == a || item == b ? 0 : item + 1;
  };
  for (uint32_t i = threadIdx.x; i < work.count; i += kPairThreads) {
    const uint4 found = __ldcg(work.found + i);
    uint32_t nearest = word_of(found.y), next = word_of(found.w);
    if (work.list[i] == a || work.list[i] == b) nearest = next = 0;
    if (nearest == 0) nearest = next, next = 0;
    set_partners(work.slot(args, work.list[i]), args.cache.lanes, nearest,
                 next);
  }
}

struct CheapestShared {
  uint64_t keys[kPairWarps];
  uint32_t places[kPairWarps];
};

// The place in the list of the slot whose pair costs least, or none if nobody
// has found a partner. Joins what the parts have found. Called by the whole
// block.
__device__ inline uint32_t cheapest_place(const skv_merge_attend_args &args,
                                          const PairJob &work,
                                          CheapestShared &shared) {
  const uint32_t lanes = args.cache.lanes;
  uint64_t lowest = kNoKey;
  uint32_t place = kNoItem;
  for (uint32_t i = threadIdx.x; i < work.count; i += kPairThreads) {
    BestTwo best = kNoneFound;
    if (i < work.shared) {
      for (uint32_t part = 0; part < work.parts; part++) {
        best.join(load_found(args, work, work.found_by(part) + i));
      }
      store_found(work.found + i, best);
    } else {
      best = load_found(args, work, work.found + i);
    }
    if (!best.first.exists()) continue;
    const Slot slot = work.slot(args, work.list[i]);
    float cost = -best.first.similarity;
    if (args.policy.partners) {
      cost = PairCosts::cost(
          log_weight(slot, args.policy, lanes),
          log_weight(work.slot(args, best.first.item), args.policy, lanes),
          cost);
    }
    const uint64_t key = order_key(cost, slot.word(kSlotPosition));
    if (key < lowest) lowest = key, place = i;
  }
  const uint64_t key = warp_min(lowest);
  place = __reduce_min_sync(kAllLanes, lowest == key ? place : kNoItem);
  if (lane_id() == 0) {
    shared.keys[warp_id()] = key;
    shared.places[warp_id()] = place;
  }
  __syncthreads();
  uint32_t best = 0;
  for (uint32_t warp = 1; warp < kPairWarps; warp++) {
    if (shared.keys[warp] < shared.keys[best]) best = warp;
  }
  return shared.places[best];
}

// Merges the cheapest pair. Called by the whole block.
template <bool QUERIES>
__device__ inline void merge_cheapest(const skv_merge_attend_args &args,
                                      const PairJob &work,
                                      CheapestShared &shared) {
  const EvictJob &job = work.job;
  const uint32_t place = cheapest_place(args, work, shared);
  // A slot that is alone has no partner, and is dropped.
  uint32_t stays = kNoItem, goes = work.list[0];
  if (place != kNoItem) {
    const uint32_t a = work.list[place], b = __ldcg(work.found + place).y;
    if (args.policy.partners) remember_partners(args, work, a, b);
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

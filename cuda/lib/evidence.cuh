// What attention leaves for the policy, and what the kernels of the policy hand
// to each other.
#pragma once

#include "../runtime/launch.cuh"
#include "expected_attention.cuh"
#include "riders.cuh"
#include "value_spread.cuh"

// Slots of a block that looks for links between neighbours.
constexpr uint32_t kLinkThreads = 256;

__host__ __device__ inline uint32_t link_parts(uint32_t slots) {
  return (slots + kLinkThreads - 1) / kLinkThreads;
}

// Splits of the list that is searched, at most, and places in it that a block
// has at a time: where all pairs are compared, and where partners are
// remembered.
constexpr uint32_t kMaxPairParts = 16;
constexpr uint32_t kPairTile = 64;
constexpr uint32_t kPartnerTile = 32;

// Slots without a partner that several blocks search for: what each finds has a
// place of its own. More than these are rare, and searched for by one block
// each.
constexpr uint32_t kSharedAlone = 64;

// What a step keeps of the pairs of its heads.
struct PairWork {
  // (heads, max_capacity): ln of what slots weigh, where they remember partners
  float *weights;
  // (heads, max_capacity): slots that may go, those without a partner first
  uint32_t *lists;
  // (heads): how many these are, none where nothing is searched for; how many
  // have no partner; and how far the values of the head scatter
  uint4 *headers;
  // (heads): parts that were searched, where the last of them merges
  uint32_t *tickets;
  // (heads, max_capacity): by place in the list, the slot that was found, after
  // how far away it is
  uint2 *found;
  // (heads, parts, shared): by parts of the list, for places that several
  // blocks search for: the same after how similar it is
  uint2 *part_found;
  uint32_t parts;
  uint32_t shared;
  uint32_t tile;
  // (heads, spread_parts, spread_floats): see lib/value_spread.cuh
  float *spreads;
  uint32_t spread_pitch;

  // Places of each part of a list.
  __device__ uint32_t part_places(uint32_t count) const {
    const uint32_t tiles = (count + tile - 1) / tile;
    return (tiles + parts - 1) / parts * tile;
  }
  __device__ uint2 *part_found_of(uint32_t head, uint32_t part) const {
    return part_found + (static_cast<size_t>(head) * parts + part) * shared;
  }
  __device__ float *spreads_of(uint32_t head) const {
    return spreads + static_cast<size_t>(head) * spread_pitch;
  }
};

// The policy goes on when all layers have been at work already. Attention
// itself changes no word of a head: blocks that come late, to find that there
// are no slots for them, still read those.
struct Evidence {
  // (heads, group, max_capacity): raw logits
  float *logits;
  // (heads, kMaxGroup): ln of the softmax sums
  float *log_sums;
  // (heads, group, head_dim), where merges need them
  float *queries;
  // (heads, group, head_dim): the output, where merges need it
  float *outputs;
  // (heads, max_capacity): scores that take more than a slot's own fields
  float *ratings;
  // (heads, max_capacity): what slots stay by, where that is compared first
  uint64_t *keys;
  // (heads) and (heads, link_parts), where neighbours are merged: see
  // lib/segment_step.cuh
  uint64_t *limits;
  uint4 *links;
  // Where the most similar key is looked for and groups are not too large.
  RiderMemory riders;
  // Where the cheapest pair is merged.
  PairWork pairs;
  // (heads, group, max_capacity) and (heads, parts, kMaxGroup): see Expectation
  float *expected_logits;
  float2 *expected_states;
  // (heads): the row's position, live slots, the first free one, and how far
  // slots are used; 0 of them for rows that are not live
  uint4 *rows;
};

// Steps from one search for partners of a head with some budget to the next.
__host__ __device__ inline uint32_t search_period(const skv_policy &policy,
                                                  uint32_t budget) {
  return max(1u, min(policy.search_every, budget / policy.search_slots));
}

// Heads that a block looks at for one to search: a search of the largest is due
// in one of them. And blocks that look at all heads of a row.
__host__ __device__ inline uint32_t group_heads(
    const skv_merge_attend_args &args) {
  return min(32u, search_period(args.policy, args.cache.max_capacity));
}

inline uint32_t head_groups(const skv_merge_attend_args &args) {
  const uint32_t heads = group_heads(args);
  return (args.sizes.kv_heads + heads - 1) / heads;
}

// Takes the memory of a step.
inline PairWork take_pairs(const skv_merge_attend_args &args,
                           uint32_t multiprocessors, Scratch *scratch) {
  const uint32_t heads = args.step.rows * args.sizes.kv_heads;
  const size_t capacity = args.cache.max_capacity;
  const bool remembers = args.policy.search_every != 0;
  PairWork pairs = {};
  pairs.tile = remembers ? kPartnerTile : kPairTile;
  const uint32_t tiles =
      (args.cache.max_capacity + pairs.tile - 1) / pairs.tile;
  // Who looks at all candidates: the slots that go through them together.
  const uint32_t searches =
      remembers ? args.step.rows * head_groups(args) : heads * tiles;
  pairs.parts =
      max(1u, min(min(kMaxPairParts, tiles), 2 * multiprocessors / searches));
  if (remembers) pairs.weights = scratch->take<float>(heads * capacity);
  pairs.lists = scratch->take<uint32_t>(heads * capacity);
  pairs.headers = scratch->take<uint4>(heads);
  pairs.shared = remembers ? min(kSharedAlone, args.cache.max_capacity)
                           : args.cache.max_capacity;
  if (remembers) {
    pairs.tickets = scratch->take<uint32_t>(heads);
    pairs.found = scratch->take<uint2>(heads * capacity);
  }
  pairs.part_found = scratch->take<uint2>(static_cast<size_t>(heads) *
                                          pairs.parts * pairs.shared);
  pairs.spread_pitch = spread_parts(args.cache.max_capacity) *
                       spread_floats(args.sizes.head_dim);
  pairs.spreads =
      scratch->take<float>(static_cast<size_t>(heads) * pairs.spread_pitch);
  return pairs;
}

// Whether merges look at the queries of the row.
inline bool takes_queries(const skv_merge_attend_args &args) {
  const skv_policy &policy = args.policy;
  const bool votes =
      policy.merge == SKV_MERGE_VOTES || policy.merge == SKV_MERGE_PAIR;
  return votes && (policy.key == SKV_KEY_MIN_NORM || args.cache.lanes > 1);
}

// Widest head with riders: with wider ones attention has no registers left. And
// heads whose rows are not aligned are not worth a kernel of their own.
constexpr uint32_t kMaxRiderWidth = 128;

// Riders of each head: none where no merge asks for them.
inline uint32_t riders_of(const skv_merge_attend_args &args) {
  const uint32_t merge = args.policy.merge, head_dim = args.sizes.head_dim;
  const bool asks = merge == SKV_MERGE_VOTES || merge == SKV_MERGE_COSINE;
  if (!asks || head_dim % 8 != 0 || head_dim > kMaxRiderWidth) return 0;
  return riders_beside(args.sizes.heads / args.sizes.kv_heads);
}

// Takes it from the memory of the call; returns how much that is. The slots of
// a head are in `most_splits` parts, at most.
inline size_t take_evidence(const skv_merge_attend_args &args,
                            uint32_t multiprocessors, uint32_t most_splits,
                            char *memory, Evidence *evidence) {
  const skv_policy &policy = args.policy;
  const size_t heads =
      static_cast<size_t>(args.step.rows) * args.sizes.kv_heads;
  const size_t group = args.sizes.heads / args.sizes.kv_heads;
  const size_t slots = heads * args.cache.max_capacity;
  const size_t vectors = heads * group * args.sizes.head_dim;
  *evidence = {};
  Scratch scratch(memory);
  evidence->rows = scratch.take<uint4>(heads);
  if (policy.merge == SKV_MERGE_NEVER) return scratch.taken(memory);
  evidence->log_sums = scratch.take<float>(heads * kMaxGroup);
  if (policy.observe) evidence->logits = scratch.take<float>(group * slots);
  if (takes_queries(args)) evidence->queries = scratch.take<float>(vectors);
  if (policy.exact_values) evidence->outputs = scratch.take<float>(vectors);
  if (policy.layer_scope || takes_all_keys(policy)) {
    evidence->ratings = scratch.take<float>(slots);
  }
  const bool links = policy.merge == SKV_MERGE_SEGMENTS;
  if (policy.count_values || links) {
    evidence->keys = scratch.take<uint64_t>(slots);
  }
  if (links) {
    evidence->limits = scratch.take<uint64_t>(heads);
    evidence->links =
        scratch.take<uint4>(heads * link_parts(args.cache.max_capacity));
  }
  if (const uint32_t count = riders_of(args); count > 0) {
    RiderMemory &riders = evidence->riders;
    riders.slots = scratch.take<uint32_t>(heads * count);
    riders.nearest = scratch.take<Neighbour>(heads * most_splits * count);
    riders.splits = scratch.take<uint32_t>(heads);
    riders.count = count;
    riders.most_splits = most_splits;
  }
  if (policy.merge == SKV_MERGE_PAIR) {
    evidence->pairs = take_pairs(args, multiprocessors, &scratch);
  }
  if (policy.score == SKV_SCORE_EXPECTED) {
    evidence->expected_logits = scratch.take<float>(group * slots);
    evidence->expected_states = scratch.take<float2>(
        heads * expect_parts(args.cache.max_capacity) * kMaxGroup);
  }
  return scratch.taken(memory);
}

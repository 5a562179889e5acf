// What attention leaves for the policy, and what the kernels of the policy hand
// to each other.
#pragma once

#include "../runtime/launch.cuh"
#include "expected_attention.cuh"

// The policy goes on when the next layers are at work already. Attention itself
// changes no word of a head: blocks that come late, to find that there are no
// slots for them, still read those.
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
  // (heads, group, max_capacity) and (heads, parts, kMaxGroup): see Expectation
  float *expected_logits;
  float2 *expected_states;
  // (heads): the row's position, live slots, the first free one, and how far
  // slots are used; 0 of them for rows that are not live
  uint4 *rows;
};

// Takes it from the memory of the call; returns how much that is.
inline size_t take_evidence(const skv_merge_attend_args &args, char *memory,
                            Evidence *evidence) {
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
  const bool votes =
      policy.merge == SKV_MERGE_VOTES || policy.merge == SKV_MERGE_PAIR;
  if (votes && (policy.key == SKV_KEY_MIN_NORM || args.cache.lanes > 1)) {
    evidence->queries = scratch.take<float>(vectors);
  }
  if (policy.exact_values) evidence->outputs = scratch.take<float>(vectors);
  if (policy.layer_scope || takes_all_keys(policy)) {
    evidence->ratings = scratch.take<float>(slots);
  }
  if (policy.count_values) evidence->keys = scratch.take<uint64_t>(slots);
  if (policy.score == SKV_SCORE_EXPECTED) {
    evidence->expected_logits = scratch.take<float>(group * slots);
    evidence->expected_states = scratch.take<float2>(
        heads * expect_parts(args.cache.max_capacity) * kMaxGroup);
  }
  return scratch.taken(memory);
}

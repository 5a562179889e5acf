// One head of a decode step, as the kernels of the policy see it.
#pragma once

#include "evidence.cuh"

// One head and what was seen of it.
struct EvictJob {
  uint32_t row;
  uint32_t kv_head;
  // Index among the heads of the step.
  uint32_t index;
  uint32_t group;
  uint32_t position;
  uint32_t high;
  uint32_t offset;
  uint32_t *words;
  // Whether the head holds more than its budget.
  bool is_over;
  // (group, max_capacity)
  const float *logits;
  // (group, head_dim)
  const float *queries;
  // (group, head_dim), where merges need it
  const float *outputs;
  // (max_capacity): scores that take more than a slot's own fields, or null
  float *own_ratings;
  // (rating_heads, max_capacity): the same of this head or of all that share
  // them
  const float *ratings;
  uint32_t rating_heads;
  // (max_capacity), where that is compared first, and the largest of those that
  // count
  uint64_t *keys;
  uint64_t *limit;
  // (link_parts): see lib/segment_step.cuh
  uint4 *links;
  Expectation expected;

  __device__ Slot slot(const skv_merge_attend_args &args, uint32_t i) const {
    return slot_at(args.cache.slots, offset + i, args.sizes.head_dim);
  }
  // Whether a slot holds a token that may be evicted, `ahead` steps after this
  // one.
  __device__ bool may_go(const skv_merge_attend_args &args, const Slot &slot,
                         uint32_t ahead = 0) const {
    return slot.word(kSlotTokens) != 0 &&
           is_evictable(slot.word(kSlotPosition), args.policy,
                        words[kHeadRecent], position + ahead);
  }
};

// What is known of a head; nothing where its row is not live.
__device__ inline bool turn_to_head(const skv_merge_attend_args &args,
                                    const Evidence &evidence, uint32_t row,
                                    uint32_t kv_head, EvictJob &job) {
  const uint32_t index = row * args.sizes.kv_heads + kv_head;
  // All that is read is on its way before any of it is looked at.
  uint32_t *words = head_words(args.cache, args.sizes, row, kv_head);
  const uint4 seen = evidence.rows[index];
  const uint32_t offset = words[kHeadOffset], budget = words[kHeadBudget];
  if (seen.w == 0) return false;
  const size_t capacity = args.cache.max_capacity;
  const size_t group = args.sizes.heads / args.sizes.kv_heads;
  const size_t first_query = index * group * args.sizes.head_dim;
  job.index = index;
  job.kv_head = kv_head;
  job.row = row;
  job.group = static_cast<uint32_t>(group);
  job.position = seen.x;
  job.high = seen.w;
  job.words = words;
  job.offset = offset;
  job.is_over = seen.y > budget;
  job.logits = evidence.logits + index * group * capacity;
  job.queries = evidence.queries + first_query;
  job.outputs = evidence.outputs + first_query;
  job.keys = evidence.keys + index * capacity;
  job.limit = evidence.limits + index;
  job.links = evidence.links + index * link_parts(args.cache.max_capacity);
  job.own_ratings = nullptr;
  job.ratings = nullptr;
  job.rating_heads = 1;
  if (evidence.ratings != nullptr) {
    job.own_ratings = evidence.ratings + index * capacity;
    job.ratings = job.own_ratings;
  }
  if (args.policy.layer_scope) {
    job.ratings -= kv_head * capacity;
    job.rating_heads = args.sizes.kv_heads;
  }
  const size_t parts = expect_parts(args.cache.max_capacity);
  job.expected = {evidence.expected_logits + index * group * capacity,
                  evidence.expected_states + index * parts * kMaxGroup,
                  args.cache.max_capacity};
  return true;
}

// Whether anybody looks at the scores of a head.
__device__ inline bool needs_ratings(const skv_merge_attend_args &args,
                                     const EvictJob &job) {
  return job.is_over || args.policy.layer_scope;
}

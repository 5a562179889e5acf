// The link between neighbours in the text that a decode step closes.
//
// Blocks share the slots of a head: finding neighbours compares all positions,
// a slot a thread, and a link takes two keys. The alternative that lost: one
// block per head, as for the rest of the policy's work, whose time grows with
// the square of the slots.
#pragma once

#include "merge_one.cuh"
#include "merge_segment.cuh"

// Finds the score up to which slots may be merged with their neighbours; the
// keys of the others and `limit` tell who. Called by the whole block.
__device__ inline void choose_light(const skv_merge_attend_args &args,
                                    const EvictJob &job, EvictShared &shared) {
  if (!job.is_over) return;
  const uint32_t evictable = key_scores_of(args, job, shared);
  uint64_t limit = 0;
  if (evictable > 0) {
    limit = kth_smallest(job.keys, job.high,
                         light_slots(args.policy, evictable, 1), shared.select);
  }
  if (threadIdx.x == 0) *job.limit = limit;
}

// Cosines of the keys of pairs of slots, one pair in each lane of the warp, or
// none. Four lanes share a pair at a time.
template <bool ALIGNED>
__device__ inline float link_cosines(const skv_merge_attend_args &args,
                                     const EvictJob &job, uint32_t left,
                                     uint32_t right, bool exists) {
  const uint32_t head_dim = args.sizes.head_dim;
  const uint32_t t = lane_id() % 4;
  float cosine = 0.0f;
  for (uint32_t first = 0; first < 32; first += 8) {
    const uint32_t owner = first + lane_id() / 4;
    const uint32_t a = __shfl_sync(kAllLanes, left, owner);
    const uint32_t b = __shfl_sync(kAllLanes, right, owner);
    const bool is_link = __shfl_sync(kAllLanes, exists ? 1 : 0, owner) != 0;
    if (!__any_sync(kAllLanes, is_link)) continue;
    float product = 0.0f, squares[2] = {};
    for (uint32_t d = 8 * t; is_link && d < head_dim; d += 32) {
      uint32_t x[4], y[4];
      load_pairs<8, ALIGNED>(x, job.slot(args, a).key, d, head_dim);
      load_pairs<8, ALIGNED>(y, job.slot(args, b).key, d, head_dim);
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const float2 p = cached_floats(x[j]), q = cached_floats(y[j]);
        product += p.x * q.x + p.y * q.y;
        squares[0] += p.x * p.x + p.y * p.y;
        squares[1] += q.x * q.x + q.y * q.y;
      }
    }
#pragma unroll
    for (int offset = 1; offset < 4; offset *= 2) {
      product += __shfl_xor_sync(kAllLanes, product, offset);
      squares[0] += __shfl_xor_sync(kAllLanes, squares[0], offset);
      squares[1] += __shfl_xor_sync(kAllLanes, squares[1], offset);
    }
    const float norms = sqrtf(squares[0]) * sqrtf(squares[1]);
    const float found = norms == 0.0f ? 0.0f : product / norms;
    const float theirs =
        __shfl_sync(kAllLanes, found, (lane_id() - first) * 4 & 31);
    if (lane_id() - first < 8) cosine = theirs;
  }
  return cosine;
}

// Leaves the closest link of each block's slots to their right neighbours.
template <bool ALIGNED>
__global__ void __launch_bounds__(kLinkThreads)
    link_kernel(skv_merge_attend_args args, Evidence evidence) {
  __shared__ uint32_t positions[kLinkThreads];
  __shared__ Neighbour nearest[kLinkThreads / 32];
  __shared__ uint32_t rights[kLinkThreads / 32];
  EvictJob job;
  if (!turn_to_head(args, evidence, blockIdx.z, blockIdx.y, job)) return;
  const uint32_t first = blockIdx.x * kLinkThreads;
  if (!job.is_over || first >= job.high) return;
  const uint64_t limit = *job.limit;
  const auto is_light = [&](uint32_t i) {
    return job.keys[i] != kNoKey && job.keys[i] <= limit;
  };
  const uint32_t mine = first + threadIdx.x;
  const bool may_link = mine < job.high && is_light(mine);
  const uint32_t position =
      may_link ? job.slot(args, mine).word(kSlotPosition) : ~0u;
  uint32_t right = ~0u, right_position = ~0u;
  for (uint32_t tile = 0; tile < job.high; tile += kLinkThreads) {
    const uint32_t i = tile + threadIdx.x;
    // Nothing lies to the left of position 0: it stands for no slot.
    uint32_t there = 0;
    if (i < job.high) {
      const Slot slot = job.slot(args, i);
      if (slot.word(kSlotTokens) != 0) there = slot.word(kSlotPosition);
    }
    __syncthreads();
    positions[threadIdx.x] = there;
    __syncthreads();
#pragma unroll 8
    for (uint32_t k = 0; k < kLinkThreads; k++) {
      const uint32_t other = positions[k];
      if (other <= position || other >= right_position) continue;
      right_position = other;
      right = tile + k;
    }
  }
  const bool is_link = may_link && right != ~0u && is_light(right);
  const float cosine = link_cosines<ALIGNED>(args, job, is_link ? mine : 0,
                                             is_link ? right : 0, is_link);
  Neighbour best = kNoNeighbour;
  if (is_link) best = {cosine, position, mine};
  const Neighbour closest = nearest_of_lanes<16>(best);
  if (is_link && closest.item == mine) rights[warp_id()] = right;
  if (lane_id() == 0) nearest[warp_id()] = closest;
  __syncthreads();
  if (threadIdx.x != 0) return;
  uint4 link = {0, 0, ~0u, ~0u};
  best = kNoNeighbour;
  for (uint32_t w = 0; w < kLinkThreads / 32; w++) {
    if (!nearest[w].beats(best)) continue;
    best = nearest[w];
    link = {__float_as_uint(best.similarity), best.position, best.item,
            rights[w]};
  }
  job.links[blockIdx.x] = link;
}

// Closes the closest link of a head that is over its budget; false if it has
// none. Called by the whole block.
__device__ inline bool close_link(const skv_merge_attend_args &args,
                                  const EvictJob &job, EvictShared &shared) {
  Neighbour best = kNoNeighbour;
  for (uint32_t p = threadIdx.x; p < link_parts(job.high); p += kEvictThreads) {
    const uint4 link = job.links[p];
    if (link.z == ~0u) continue;
    const Neighbour other = {__uint_as_float(link.x), link.y, p};
    if (other.beats(best)) best = other;
  }
  best = nearest_of_block(best, shared);
  if (!best.exists()) return false;
  if (warp_id() != 0) return true;
  const uint4 link = job.links[best.item];
  const Slot left = job.slot(args, link.z), right = job.slot(args, link.w);
  const bool is_right =
      right.get(kSlotAccumulated) > left.get(kSlotAccumulated);
  const Slot stays = is_right ? right : left, goes = is_right ? left : right;
  merge_segment(
      2, [&](uint32_t i) { return i == 0 ? stays : goes; }, args.sizes.head_dim,
      args.policy);
  if (lane_id() == 0) {
    remove_slot(args, job, is_right ? link.z : link.w, true, Merged{});
  }
  return true;
}

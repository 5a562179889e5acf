// Merging what has to go into the most similar of what is kept.
#pragma once

#include "blend_slots.cuh"
#include "merge_pairs.cuh"

// Moves the threshold of the head and takes their targets from those victims
// that are not similar enough: `mates` and `similarities` by victim. Called by
// the whole block.
__device__ inline void move_threshold(const skv_chunk_args &args,
                                      const ChunkHead &head,
                                      const HeadWork &work, uint32_t victims,
                                      SelectScratch &scratch) {
  float cosines = 0.0f;
  uint32_t mine = 0, count;
  for (uint32_t v = threadIdx.x; v < victims; v += kCompressThreads) {
    if (work.mates[v] == ~0u) continue;
    cosines += work.similarities[v];
    mine++;
  }
  cosines = block_sum(cosines, scratch);
  block_prefix(mine, count, scratch.block);
  if (count == 0) return;
  const float threshold =
      next_threshold(args.policy, __uint_as_float(head.words[kHeadThreshold]),
                     cosines / static_cast<float>(count));
  for (uint32_t v = threadIdx.x; v < victims; v += kCompressThreads) {
    if (work.similarities[v] < threshold) work.mates[v] = ~0u;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    head.words[kHeadThreshold] = __float_as_uint(threshold);
  }
}

// Finds the target of each victim: `mates`, by victim. Called by the whole
// block.
__device__ inline void find_targets(const skv_chunk_args &args,
                                    const ChunkHead &head,
                                    const CompressWork &all_work,
                                    const HeadWork &work, uint32_t victims,
                                    SelectScratch &scratch) {
  const skv_policy &policy = args.policy;
  const bool merges = merges_victims(policy);
  for (uint32_t v = threadIdx.x; v < victims; v += kCompressThreads) {
    const Neighbour nearest =
        merges ? nearest_of_query(args, head, all_work, work, v) : kNoNeighbour;
    const bool fits =
        nearest.exists() && (policy.merge != SKV_MERGE_VOTES ||
                             nearest.similarity > policy.threshold);
    work.mates[v] = fits ? nearest.item : ~0u;
    // The best of all parts takes the place of the first part's.
    if (merges) work.similarities[v] = nearest.similarity;
    work.divergences[v] = 0.0f;
  }
  __syncthreads();
  if (policy.merge == SKV_MERGE_COSINE) {
    move_threshold(args, head, work, victims, scratch);
  }
  for (uint32_t v = threadIdx.x; v < victims; v += kCompressThreads) {
    if (work.mates[v] != ~0u) continue;
    const uint32_t item = work.items[work.queries[v]];
    atomicAdd(head.words + kHeadDropped, 1);
    atomicAdd(head.words + kHeadDroppedTokens,
              item_slot(args, head, item).word(kSlotTokens));
  }
  __syncthreads();
}

// Finds the targets of a head.
static __global__ void __launch_bounds__(kCompressThreads)
    find_targets_kernel(skv_chunk_args args, CompressWork all_work) {
  __shared__ SelectScratch scratch;
  begin_kernel();
  if (row_end(args.step) == 0) return;
  const HeadWork work = all_work.head(blockIdx.x);
  const uint32_t victims = work.counters[kQueries];
  if (victims == 0) return;
  find_targets(args, chunk_head(args, blockIdx.x), all_work, work, victims,
               scratch);
}

constexpr uint32_t kMergeWarps = 4;

// Merges each victim into its target, all of a target together. A warp has a
// target; merges wait for memory more than for anything else, so many blocks
// share those of a head.
static __global__ void __launch_bounds__(32 * kMergeWarps)
    merge_victims_kernel(skv_chunk_args args, CompressWork all_work) {
  begin_kernel();
  if (row_end(args.step) == 0) return;
  const ChunkHead head = chunk_head(args, blockIdx.x);
  const HeadWork work = all_work.head(blockIdx.x);
  const uint32_t victims = work.counters[kQueries];
  const MergeContext context = merge_context(args, head);
  uint32_t merged_slots = 0;
  for (uint32_t v = blockIdx.y * kMergeWarps + warp_id(); v < victims;
       v += gridDim.y * kMergeWarps) {
    const uint32_t target = work.mates[v];
    if (target == ~0u) continue;
    // The first victim of a target merges all of them.
    bool is_first = true;
    for (uint32_t u = lane_id(); u < v; u += 32) {
      if (work.mates[u] == target) is_first = false;
    }
    if (!__all_sync(kAllLanes, is_first)) continue;
    uint32_t count = 0;
    for (uint32_t u = v + lane_id(); u < victims; u += 32) {
      count += work.mates[u] == target ? 1 : 0;
    }
    count = __reduce_add_sync(kAllLanes, count);
    // Candidates are not needed any more: their list takes the members.
    uint32_t first = 0;
    if (lane_id() == 0) first = atomicAdd(work.counters + kMembers, count);
    first = __shfl_sync(kAllLanes, first, 0);
    uint32_t *members = work.candidates + first;
    for (uint32_t u = v; u < victims; u += 32) {
      const bool is_member =
          u + lane_id() < victims && work.mates[u + lane_id()] == target;
      const uint32_t ballot = __ballot_sync(kAllLanes, is_member);
      if (is_member) {
        members[__popc(ballot & ((1u << lane_id()) - 1))] =
            work.queries[u + lane_id()];
      }
      members += __popc(ballot);
    }
    members = work.candidates + first;
    __syncwarp();
    const auto member = [&](uint32_t i) {
      const uint32_t ordinal = i == 0 ? target : members[i - 1];
      return item_slot(args, head, work.items[ordinal]);
    };
    Merged merged = {};
    if (args.policy.merge == SKV_MERGE_COSINE) {
      blend_slots(count + 1, member, args.sizes.head_dim);
    } else {
      merged = merge_slots<true>(count + 1, member, context, args.policy);
    }
    if (lane_id() == 0) {
      work.divergences[v] = merged.divergence;
      merged_slots += count;
      if (merged.guarded) atomicAdd(head.words + kHeadGuarded, 1);
    }
  }
  if (merged_slots > 0) atomicAdd(head.words + kHeadMerged, merged_slots);
}

inline cudaError_t launch_merges(const skv_chunk_args &args,
                                 const CompressWork &work,
                                 const Launch &launch) {
  const uint32_t heads = args.sizes.kv_heads;
  const cudaError_t status = launch_kernel(launch, find_targets_kernel, heads,
                                           kCompressThreads, 0, args, work);
  if (status != cudaSuccess) return status;
  const uint32_t wanted = 4 * launch.multiprocessors / heads;
  const uint32_t most = (work.most + kMergeWarps - 1) / kMergeWarps;
  return launch_kernel(launch, merge_victims_kernel,
                       dim3(heads, max(1u, min(wanted, most))),
                       32 * kMergeWarps, 0, args, work);
}

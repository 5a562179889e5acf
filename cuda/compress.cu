// Takes the live slots and the staged rows of a chunk down to each head's
// budget, and moves the staged rows that are left into free slots.
//
// With merge_first, similar pairs are merged before anything is evicted: every
// evictable item proposes to the most similar one, and proposals are taken in
// order of similarity while both ends are free. Then the items with the lowest
// scores go: each is merged into the most similar one that is kept, all that
// chose the same one together, or is dropped.
//
// Searching reads every key once per 64 of the others; the rest is one block
// per head that reads side fields and writes what it changes. In order:
// list_items, norms, nearest_keys, choose, nearest_keys, settle; policies that
// only drop skip the searches.
//
// Taking proposals in order looks sequential, but a proposal that is the best
// of both its ends is taken whatever the others do; so rounds take all of those
// at once, and give exactly the same pairs. The alternative that lost: sorting
// proposals and one thread that goes through them.
#include "lib/merge_slots.cuh"
#include "lib/nearest_keys.cuh"
#include "lib/select_smallest.cuh"

namespace {

constexpr uint32_t kThreads = 512;
constexpr uint32_t kWarps = kThreads / 32;

__device__ inline bool merges_pairs(const skv_policy &policy) {
  return policy.merge == SKV_MERGE_VOTES && policy.merge_first != 0;
}

__device__ inline MergeContext merge_context(const skv_chunk_args &args,
                                             const ChunkHead &head) {
  const skv_sizes &sizes = args.sizes;
  const uint32_t group = sizes.heads / sizes.kv_heads;
  const size_t query =
      static_cast<size_t>(head.rows - 1) * sizes.heads + head.kv_head * group;
  return {args.queries + query * sizes.head_dim, group, sizes.head_dim,
          args.cache.lanes};
}

__device__ inline bool item_is_evictable(const skv_chunk_args &args,
                                         const ChunkHead &head, uint32_t item) {
  return is_evictable(item_slot(args, head, item).word(kSlotPosition),
                      args.policy, head.words[kHeadRecent], head.newest);
}

// Lists live slots and staged rows, and what may be merged in pairs.
__global__ void __launch_bounds__(kThreads)
    list_items_kernel(skv_chunk_args args, CompressWork all_work) {
  __shared__ SelectScratch scratch;
  begin_kernel();
  if (row_end(args.step) == 0) return;
  const ChunkHead head = chunk_head(args, blockIdx.x);
  const HeadWork work = all_work.head(blockIdx.x);
  const uint32_t slots =
      list_if(head.words[kHeadHigh], work.items, scratch, [&](uint32_t i) {
        return item_slot(args, head, i).word(kSlotTokens) != 0;
      });
  const uint32_t items = slots + head.rows;
  for (uint32_t r = threadIdx.x; r < head.rows; r += kThreads) {
    work.items[slots + r] = kStaged | r;
  }
  for (uint32_t i = threadIdx.x; i < items; i += kThreads) work.marks[i] = 0;
  __syncthreads();
  uint32_t queries = 0;
  if (merges_pairs(args.policy) && items > head.words[kHeadBudget]) {
    queries = list_if(items, work.queries, scratch, [&](uint32_t i) {
      return item_is_evictable(args, head, work.items[i]);
    });
    for (uint32_t i = threadIdx.x; i < queries; i += kThreads) {
      work.candidates[i] = work.queries[i];
    }
  }
  if (threadIdx.x == 0) {
    work.counters[kItems] = items;
    work.counters[kQueries] = queries;
    work.counters[kCandidates] = queries;
    work.counters[kMembers] = 0;
  }
}

// Sets 1 / |key| of an item; called by a whole warp.
__device__ inline void set_norm(const skv_chunk_args &args,
                                const ChunkHead &head, const HeadWork &work,
                                uint32_t ordinal) {
  const Slot slot = item_slot(args, head, work.items[ordinal]);
  float square = 0.0f;
  for (uint32_t d = lane_id(); d < args.sizes.head_dim; d += 32) {
    const float x = to_float(slot.key[d]);
    square += x * x;
  }
  square = warp_sum(square);
  if (lane_id() == 0) {
    work.inverse_norms[ordinal] = square == 0.0f ? 0.0f : rsqrtf(square);
  }
}

constexpr uint32_t kNormThreads = 256;

// One warp per item.
__global__ void __launch_bounds__(kNormThreads)
    norms_kernel(skv_chunk_args args, CompressWork all_work) {
  begin_kernel();
  if (row_end(args.step) == 0) return;
  const ChunkHead head = chunk_head(args, blockIdx.y);
  const HeadWork work = all_work.head(blockIdx.y);
  const uint32_t i = blockIdx.x * (kNormThreads / 32) + warp_id();
  if (i < work.counters[kItems]) set_norm(args, head, work, i);
}

// Takes proposals in order of similarity while both ends are free, up to
// `excess` of them, and lists who made them in `queries`. Returns their number.
__device__ inline uint32_t match_pairs(const skv_chunk_args &args,
                                       const ChunkHead &head,
                                       const CompressWork &all_work,
                                       const HeadWork &work, uint32_t excess,
                                       SelectScratch &scratch) {
  const uint32_t items = work.counters[kItems];
  const uint32_t queries = work.counters[kQueries];
  for (uint32_t i = threadIdx.x; i < items; i += kThreads) {
    work.keys[i] = kNoKey;
  }
  __syncthreads();
  for (uint32_t q = threadIdx.x; q < queries; q += kThreads) {
    const Neighbour nearest = nearest_of_query(args, head, all_work, work, q);
    if (!nearest.exists() || !(nearest.similarity > args.policy.threshold)) {
      continue;
    }
    const uint32_t i = work.queries[q];
    const uint32_t position =
        item_slot(args, head, work.items[i]).word(kSlotPosition);
    work.keys[i] = order_key(-nearest.similarity, position);
    work.mates[i] = nearest.item;
  }
  auto *best = reinterpret_cast<unsigned long long *>(work.best);
  const auto is_open = [&](uint32_t i) {
    return work.keys[i] != kNoKey && (work.marks[i] & kTaken) == 0 &&
           (work.marks[work.mates[i]] & kTaken) == 0;
  };
  bool changed = true;
  while (changed) {
    for (uint32_t i = threadIdx.x; i < items; i += kThreads) {
      best[i] = kNoKey;
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < items; i += kThreads) {
      if (!is_open(i)) continue;
      atomicMin(best + i, static_cast<unsigned long long>(work.keys[i]));
      atomicMin(best + work.mates[i],
                static_cast<unsigned long long>(work.keys[i]));
    }
    __syncthreads();
    bool accepted = false;
    for (uint32_t i = threadIdx.x; i < items; i += kThreads) {
      if (work.keys[i] == kNoKey) continue;
      // Others may mark this item as taken meanwhile, but only this thread as
      // accepted.
      if ((__ldcg(work.marks + i) & kAccepted) != 0) continue;
      const uint32_t mate = work.mates[i];
      if (__ldcg(best + i) != work.keys[i] ||
          __ldcg(best + mate) != work.keys[i]) {
        continue;
      }
      atomicOr(work.marks + i, kTaken | kAccepted);
      atomicOr(work.marks + mate, kTaken);
      accepted = true;
    }
    changed = __syncthreads_or(accepted);
  }
  for (uint32_t i = threadIdx.x; i < items; i += kThreads) {
    if ((work.marks[i] & kAccepted) == 0) work.keys[i] = kNoKey;
  }
  __syncthreads();
  const auto is_accepted = [&](uint32_t i) { return work.keys[i] != kNoKey; };
  const uint32_t pairs = list_if(items, work.queries, scratch, is_accepted);
  if (pairs <= excess) return pairs;
  const uint64_t last = kth_smallest(work.keys, items, excess, scratch);
  return list_if(items, work.queries, scratch, [&](uint32_t i) {
    return is_accepted(i) && work.keys[i] <= last;
  });
}

// Merges the pairs that `queries` lists: the end that eviction ranks lower
// goes.
__device__ inline void merge_pairs(const skv_chunk_args &args,
                                   const ChunkHead &head, const HeadWork &work,
                                   uint32_t pairs, SelectScratch &scratch) {
  const MergeContext context = merge_context(args, head);
  const uint32_t lanes = args.cache.lanes;
  for (uint32_t p = warp_id(); p < pairs; p += kWarps) {
    uint32_t goes = work.queries[p];
    uint32_t stays = work.mates[goes];
    Slot gone = item_slot(args, head, work.items[goes]);
    Slot kept = item_slot(args, head, work.items[stays]);
    if (eviction_key(kept, args.policy, lanes) <
        eviction_key(gone, args.policy, lanes)) {
      const uint32_t other = goes;
      goes = stays;
      stays = other;
      const Slot slot = gone;
      gone = kept;
      kept = slot;
    }
    const Merged merged = merge_slots(
        2, [&](uint32_t i) { return i == 0 ? kept : gone; }, context,
        args.policy);
    if (lane_id() == 0) {
      free_slot(gone, lanes);
      work.marks[goes] |= kGone;
      work.divergences[p] = merged.divergence;
      if (merged.guarded) atomicAdd(head.words + kHeadGuarded, 1);
    }
    set_norm(args, head, work, stays);
  }
  __syncthreads();
  float divergence = 0.0f;
  for (uint32_t p = threadIdx.x; p < pairs; p += kThreads) {
    divergence += work.divergences[p];
  }
  divergence = block_sum(divergence, scratch);
  if (threadIdx.x == 0) {
    head.words[kHeadMerged] += pairs;
    head.words[kHeadDivergence] = __float_as_uint(
        __uint_as_float(head.words[kHeadDivergence]) + divergence);
  }
}

// Merges pairs, and lists who goes and who may take them.
__global__ void __launch_bounds__(kThreads)
    choose_kernel(skv_chunk_args args, CompressWork all_work) {
  __shared__ SelectScratch scratch;
  begin_kernel();
  if (row_end(args.step) == 0) return;
  const ChunkHead head = chunk_head(args, blockIdx.x);
  const HeadWork work = all_work.head(blockIdx.x);
  const uint32_t items = work.counters[kItems];
  const uint32_t budget = head.words[kHeadBudget];
  uint32_t left = items;
  if (work.counters[kQueries] > 0) {
    const uint32_t pairs =
        match_pairs(args, head, all_work, work, items - budget, scratch);
    merge_pairs(args, head, work, pairs, scratch);
    left -= pairs;
  }
  uint32_t victims = 0, targets = 0;
  if (left > budget && args.policy.merge != SKV_MERGE_NEVER) {
    uint32_t evictable = 0;
    for (uint32_t i = threadIdx.x; i < items; i += kThreads) {
      const bool goes = (work.marks[i] & kGone) == 0 &&
                        item_is_evictable(args, head, work.items[i]);
      work.keys[i] = goes ? eviction_key(item_slot(args, head, work.items[i]),
                                         args.policy, args.cache.lanes)
                          : kNoKey;
      evictable += goes ? 1 : 0;
    }
    uint32_t total;
    block_prefix(evictable, total, scratch.block);
    const uint32_t excess = min(left - budget, total);
    if (excess > 0) {
      const uint64_t last = kth_smallest(work.keys, items, excess, scratch);
      victims = list_if(items, work.queries, scratch, [&](uint32_t i) {
        return work.keys[i] != kNoKey && work.keys[i] <= last;
      });
      for (uint32_t v = threadIdx.x; v < victims; v += kThreads) {
        work.marks[work.queries[v]] |= kVictim;
      }
      __syncthreads();
      if (args.policy.merge == SKV_MERGE_VOTES) {
        targets = list_if(items, work.candidates, scratch, [&](uint32_t i) {
          return (work.marks[i] & (kGone | kVictim)) == 0 &&
                 item_slot(args, head, work.items[i]).word(kSlotPosition) >=
                     args.policy.sinks;
        });
      }
    }
  }
  // The counters that are written were read above.
  __syncthreads();
  if (threadIdx.x == 0) {
    work.counters[kQueries] = victims;
    work.counters[kCandidates] = targets;
  }
}

// Merges each victim into its nearest target, all of a target together, or
// drops it.
__device__ inline void merge_victims(const skv_chunk_args &args,
                                     const ChunkHead &head,
                                     const CompressWork &all_work,
                                     const HeadWork &work, uint32_t victims,
                                     SelectScratch &scratch) {
  const bool merges = args.policy.merge == SKV_MERGE_VOTES;
  for (uint32_t v = threadIdx.x; v < victims; v += kThreads) {
    const Neighbour nearest =
        merges ? nearest_of_query(args, head, all_work, work, v) : kNoNeighbour;
    const bool fits =
        nearest.exists() && nearest.similarity > args.policy.threshold;
    work.mates[v] = fits ? nearest.item : ~0u;
    work.divergences[v] = 0.0f;
    if (fits) continue;
    const uint32_t item = work.items[work.queries[v]];
    atomicAdd(head.words + kHeadDropped, 1);
    atomicAdd(head.words + kHeadDroppedTokens,
              item_slot(args, head, item).word(kSlotTokens));
  }
  __syncthreads();
  if (!merges) return;
  const MergeContext context = merge_context(args, head);
  uint32_t merged_slots = 0;
  for (uint32_t v = warp_id(); v < victims; v += kWarps) {
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
    const Merged merged = merge_slots(
        count + 1,
        [&](uint32_t i) {
          const uint32_t ordinal = i == 0 ? target : members[i - 1];
          return item_slot(args, head, work.items[ordinal]);
        },
        context, args.policy);
    if (lane_id() == 0) {
      work.divergences[v] = merged.divergence;
      merged_slots += count;
      if (merged.guarded) atomicAdd(head.words + kHeadGuarded, 1);
    }
  }
  if (merged_slots > 0) atomicAdd(head.words + kHeadMerged, merged_slots);
  __syncthreads();
  float divergence = 0.0f;
  for (uint32_t v = threadIdx.x; v < victims; v += kThreads) {
    divergence += work.divergences[v];
  }
  divergence = block_sum(divergence, scratch);
  if (threadIdx.x == 0) {
    head.words[kHeadDivergence] = __float_as_uint(
        __uint_as_float(head.words[kHeadDivergence]) + divergence);
  }
}

// Copies key, value and all fields of a slot; called by a whole warp.
__device__ inline void copy_slot(const Slot &from, const Slot &to,
                                 uint32_t head_dim, uint32_t lanes) {
  for (uint32_t d = lane_id(); d < head_dim; d += 32) {
    to.key[d] = from.key[d];
    to.value[d] = from.value[d];
  }
  if (lane_id() < kSlotBias + lanes) {
    to.set(lane_id(), from.get(lane_id()));
  }
}

// Merges or drops victims, and moves the staged rows that are left.
__global__ void __launch_bounds__(kThreads)
    settle_kernel(skv_chunk_args args, CompressWork all_work) {
  __shared__ SelectScratch scratch;
  begin_kernel();
  if (row_end(args.step) == 0) return;
  const ChunkHead head = chunk_head(args, blockIdx.x);
  const HeadWork work = all_work.head(blockIdx.x);
  const uint32_t items = work.counters[kItems];
  const uint32_t victims = work.counters[kQueries];
  const uint32_t lanes = args.cache.lanes;
  if (victims > 0) {
    merge_victims(args, head, all_work, work, victims, scratch);
    __syncthreads();
    for (uint32_t v = threadIdx.x; v < victims; v += kThreads) {
      free_slot(item_slot(args, head, work.items[work.queries[v]]), lanes);
    }
    __syncthreads();
  }
  const uint32_t kept = list_if(items, work.queries, scratch, [&](uint32_t i) {
    return (work.items[i] & kStaged) != 0 &&
           (work.marks[i] & (kGone | kVictim)) == 0;
  });
  const uint32_t capacity = head.words[kHeadCapacity];
  const uint32_t free =
      list_if(capacity, work.candidates, scratch, [&](uint32_t i) {
        return item_slot(args, head, i).word(kSlotTokens) == 0;
      });
  const uint32_t moved = min(kept, free);
  for (uint32_t i = warp_id(); i < moved; i += kWarps) {
    copy_slot(item_slot(args, head, work.items[work.queries[i]]),
              item_slot(args, head, work.candidates[i]), args.sizes.head_dim,
              lanes);
  }
  if (threadIdx.x == 0) {
    uint32_t *words = head.words;
    if (moved > 0) {
      words[kHeadHigh] = max(words[kHeadHigh], work.candidates[moved - 1] + 1);
    }
    words[kHeadLive] = capacity - free + moved;
    words[kHeadNext] = moved < free ? work.candidates[moved] : capacity;
  }
}

CompressWork work_of(const skv_chunk_args &args, uint32_t multiprocessors,
                     char *memory) {
  CompressWork work;
  work.memory = memory;
  work.most = args.cache.max_capacity + args.cache.stage_rows;
  const uint32_t blocks = (args.cache.stage_rows + kSearchTile - 1) /
                          kSearchTile * args.sizes.kv_heads;
  work.parts = args.policy.merge != SKV_MERGE_VOTES
                   ? 1
                   : max(1u, min(16u, 2 * multiprocessors / blocks));
  work.head_bytes = CompressWork::bytes(work.most, work.parts);
  return work;
}

}  // namespace

Needs compress_needs(const skv_chunk_args &args, uint32_t multiprocessors) {
  const CompressWork work = work_of(args, multiprocessors, nullptr);
  return {work.head_bytes * args.sizes.kv_heads};
}

cudaError_t launch_compress(const skv_chunk_args &args, const Launch &launch) {
  const CompressWork work =
      work_of(args, launch.multiprocessors, launch.scratch);
  const uint32_t heads = args.sizes.kv_heads;
  const bool votes = args.policy.merge == SKV_MERGE_VOTES;
  const auto per_head = [&](auto kernel) {
    return launch_kernel(launch, kernel, heads, kThreads, 0, args, work);
  };
  cudaError_t status = per_head(list_items_kernel);
  if (status == cudaSuccess && votes) {
    const dim3 grid((work.most + kNormThreads / 32 - 1) / (kNormThreads / 32),
                    heads);
    status =
        launch_kernel(launch, norms_kernel, grid, kNormThreads, 0, args, work);
  }
  if (status == cudaSuccess && votes && args.policy.merge_first) {
    status = launch_nearest_keys(args, work, launch);
  }
  if (status == cudaSuccess) status = per_head(choose_kernel);
  if (status == cudaSuccess && votes) {
    status = launch_nearest_keys(args, work, launch);
  }
  if (status == cudaSuccess) status = per_head(settle_kernel);
  return status;
}

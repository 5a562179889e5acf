// Takes the live slots and the staged rows of a chunk down to each head's
// budget, and moves the staged rows that are left into free slots.
//
// With merge_first, similar pairs are merged before anything is evicted: every
// evictable item proposes to the most similar one, and proposals are taken in
// order of similarity while both ends are free. Then the items with the lowest
// scores go: each is merged into the most similar one that is kept, all that
// chose the same one together, or is dropped.
//
// Where values go to the right neighbour, a run of slots that go is merged into
// the kept slot after it. Adaptive heads first get their budgets.
//
// Searching reads every key once per 64 of the others; the rest is one block
// per head that reads side fields and writes what it changes. In order:
// list_items, [allocate_heads, list_items], norms, nearest_keys, pair, choose,
// nearest_keys or right_neighbours, settle; policies that only drop skip the
// searches. Where scores are not the slots' own they are rated before each step
// that compares them: see lib/ratings.cuh.
#include "lib/allocate_heads.cuh"
#include "lib/merge_runs.cuh"
#include "lib/merge_victims.cuh"
#include "lib/pass_values.cuh"

namespace {

__device__ inline bool merges_pairs(const skv_policy &policy) {
  return policy.merge == SKV_MERGE_VOTES && policy.merge_first != 0;
}

// Lists live slots and staged rows, and what may be merged in pairs.
__global__ void __launch_bounds__(kCompressThreads)
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
  for (uint32_t r = threadIdx.x; r < head.rows; r += kCompressThreads) {
    work.items[slots + r] = kStaged | r;
  }
  for (uint32_t i = threadIdx.x; i < items; i += kCompressThreads)
    work.marks[i] = 0;
  __syncthreads();
  uint32_t queries = 0;
  if (merges_pairs(args.policy) && items > head.words[kHeadBudget]) {
    queries = list_if(items, work.queries, scratch, [&](uint32_t i) {
      return item_is_evictable(args, head, work.items[i]);
    });
    for (uint32_t i = threadIdx.x; i < queries; i += kCompressThreads) {
      work.candidates[i] = work.queries[i];
    }
  }
  if (threadIdx.x == 0) {
    work.counters[kItems] = items;
    work.counters[kQueries] = queries;
    work.counters[kCandidates] = queries;
    work.counters[kMembers] = 0;
    work.counters[kPairs] = 0;
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

// Where values count, takes those out of `keys` that stay by their scores
// alone, and ranks the others. Called by the whole block.
__device__ inline void contest(const skv_chunk_args &args,
                               const ChunkHead &head, const HeadWork &work,
                               uint32_t evictable, uint32_t excess,
                               SelectScratch &scratch) {
  const uint32_t items = work.counters[kItems];
  const uint32_t stay = first_stage(args.policy, evictable - excess);
  const uint64_t last =
      kth_smallest(work.keys, items, evictable - stay, scratch);
  __syncthreads();
  for (uint32_t i = threadIdx.x; i < items; i += kCompressThreads) {
    const uint64_t key = work.keys[i];
    if (key == kNoKey) continue;
    work.keys[i] = key <= last ? item_rank(args, head, work, i) : kNoKey;
  }
  __syncthreads();
}

// Lists who goes and who may take them.
__global__ void __launch_bounds__(kCompressThreads)
    choose_kernel(skv_chunk_args args, CompressWork all_work) {
  __shared__ SelectScratch scratch;
  begin_kernel();
  if (row_end(args.step) == 0) return;
  const ChunkHead head = chunk_head(args, blockIdx.x);
  const HeadWork work = all_work.head(blockIdx.x);
  const uint32_t items = work.counters[kItems];
  const uint32_t budget = head.words[kHeadBudget];
  const uint32_t left = items - work.counters[kPairs];
  uint32_t victims = 0, targets = 0;
  if (left > budget && args.policy.merge != SKV_MERGE_NEVER) {
    const bool counts = args.policy.count_values != 0;
    uint32_t evictable = 0;
    for (uint32_t i = threadIdx.x; i < items; i += kCompressThreads) {
      uint64_t key = kNoKey;
      if ((work.marks[i] & kGone) == 0 &&
          item_is_evictable(args, head, work.items[i])) {
        evictable++;
        const Slot slot = item_slot(args, head, work.items[i]);
        const float score = item_score(args, head, work, i);
        key = counts ? score_key(score, slot)
                     : rank_key(score, slot, args.policy);
      }
      work.keys[i] = key;
    }
    uint32_t total;
    block_prefix(evictable, total, scratch.block);
    const uint32_t excess = min(left - budget, total);
    if (excess > 0) {
      if (counts) contest(args, head, work, total, excess, scratch);
      const uint64_t last = kth_smallest(work.keys, items, excess, scratch);
      victims = list_if(items, work.queries, scratch, [&](uint32_t i) {
        return work.keys[i] != kNoKey && work.keys[i] <= last;
      });
      for (uint32_t v = threadIdx.x; v < victims; v += kCompressThreads) {
        work.marks[work.queries[v]] |= kVictim;
      }
      __syncthreads();
      if (merges_victims(args.policy)) {
        targets = list_if(items, work.candidates, scratch, [&](uint32_t i) {
          return (work.marks[i] & (kGone | kVictim)) == 0 &&
                 item_slot(args, head, work.items[i]).word(kSlotPosition) >=
                     args.policy.sinks;
        });
      }
    }
  }
  if (args.policy.merge == SKV_MERGE_RIGHT_NEIGHBOUR) {
    const RunWork run = run_work(work);
    for (uint32_t i = threadIdx.x; i < items; i += kCompressThreads) {
      run.left[i] = kNoItem;
    }
  }
  // The counters that are written were read above.
  __syncthreads();
  if (threadIdx.x == 0) {
    work.counters[kQueries] = victims;
    work.counters[kCandidates] = targets;
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
__global__ void __launch_bounds__(kCompressThreads)
    settle_kernel(skv_chunk_args args, CompressWork all_work) {
  __shared__ SelectScratch scratch;
  __shared__ Followers followers;
  begin_kernel();
  if (row_end(args.step) == 0) return;
  const ChunkHead head = chunk_head(args, blockIdx.x);
  const HeadWork work = all_work.head(blockIdx.x);
  const uint32_t items = work.counters[kItems];
  const uint32_t victims = work.counters[kQueries];
  const uint32_t lanes = args.cache.lanes;
  if (victims > 0) {
    if (args.policy.merge == SKV_MERGE_RIGHT_NEIGHBOUR) {
      merge_runs(args, head, work, victims);
    } else if (args.policy.merge == SKV_MERGE_NEXT_VALUES) {
      pass_values(args, head, work, victims, followers, scratch);
    } else {
      merge_victims(args, head, all_work, work, victims, scratch);
    }
    __syncthreads();
    for (uint32_t v = threadIdx.x; v < victims; v += kCompressThreads) {
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
  for (uint32_t i = warp_id(); i < moved; i += kCompressWarps) {
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
  work.parts = !merges_victims(args.policy)
                   ? 1
                   : max(1u, min(16u, 2 * multiprocessors / blocks));
  work.expected_heads = args.policy.score == SKV_SCORE_EXPECTED
                            ? args.sizes.heads / args.sizes.kv_heads
                            : 0;
  work.head_bytes = work.bytes();
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
  const bool searches = merges_victims(args.policy);
  const auto per_head = [&](auto kernel) {
    return launch_kernel(launch, kernel, heads, kCompressThreads, 0, args,
                         work);
  };
  const auto search = [&] { return launch_nearest_keys(args, work, launch); };
  const auto rate = [&] { return launch_ratings(args, work, launch); };
  cudaError_t status = per_head(list_items_kernel);
  if (status == cudaSuccess && args.policy.adaptive) {
    status = rate();
    if (status == cudaSuccess) {
      status = launch_kernel(launch, allocate_heads_kernel, 1, kCompressThreads,
                             0, args, work);
    }
    // What may be merged in pairs depends on the budget.
    if (status == cudaSuccess) status = per_head(list_items_kernel);
  }
  if (status == cudaSuccess && searches) {
    const dim3 grid((work.most + kNormThreads / 32 - 1) / (kNormThreads / 32),
                    heads);
    status =
        launch_kernel(launch, norms_kernel, grid, kNormThreads, 0, args, work);
  }
  const bool merges_pairs =
      args.policy.merge == SKV_MERGE_VOTES && args.policy.merge_first;
  if (status == cudaSuccess && merges_pairs) {
    status = search();
    if (status == cudaSuccess) status = rate();
    if (status == cudaSuccess) status = per_head(pair_kernel);
  }
  // Nothing has changed since heads were allocated, unless pairs merged.
  if (status == cudaSuccess && (!args.policy.adaptive || merges_pairs)) {
    status = rate();
  }
  if (status == cudaSuccess) status = per_head(choose_kernel);
  if (status == cudaSuccess && searches) status = search();
  if (status == cudaSuccess && args.policy.merge == SKV_MERGE_RIGHT_NEIGHBOUR) {
    status = launch_right_neighbours(args, work, launch);
  }
  if (status == cudaSuccess) status = per_head(settle_kernel);
  return status;
}

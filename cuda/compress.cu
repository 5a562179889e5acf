// Takes the live slots and the staged rows of a chunk down to each head's
// budget, and moves the staged rows that are left into free slots.
//
// With merge_first, similar pairs are merged before anything is evicted: every
// evictable item proposes to the most similar one, and proposals are taken in
// order of similarity while both ends are free. Where the cheapest pairs are
// merged, the same happens for some rounds. Then the items with the lowest
// scores go: each is merged into the most similar or the cheapest one that is
// kept, all that chose the same one together, or is dropped.
//
// Where values go to the right neighbour, a run of slots that go is merged into
// the kept slot after it; or they are added to those of the slots after them,
// one by one. Where neighbours are merged, that comes first, and what it leaves
// over the budget is dropped. Adaptive heads first get their budgets.
//
// Searching reads every key once per 64 or 128 of the others, and every value
// where pairs are priced; slots are merged, and rows moved, by many blocks; the
// rest is one block per head that reads side fields and writes what it changes.
// In order: list_items, [allocate_heads, list_items], spread, measure, once per
// round [arrange, search, propose, match, merge_pairs], or the kernels of
// lib/merge_segments.cuh, choose, then [arrange,] search, find_targets and
// merge_victims or right_neighbours, settle, move; policies that only drop skip
// the searches. Where scores are not the slots' own they are rated before each
// step that compares them: see lib/ratings.cuh.
#include "lib/allocate_heads.cuh"
#include "lib/choose_victims.cuh"
#include "lib/merge_runs.cuh"
#include "lib/merge_segments.cuh"
#include "lib/settle_chunk.cuh"

namespace {

__host__ __device__ inline bool merges_pairs(const skv_policy &policy) {
  return (policy.merge == SKV_MERGE_VOTES && policy.merge_first != 0) ||
         (merges_cheapest(policy) && policy.rounds > 0);
}

// Lists live slots and staged rows that hold tokens, and what may be merged by
// similarity.
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
  const uint32_t rows =
      list_if(head.rows, work.items + slots, scratch, [&](uint32_t r) {
        return item_slot(args, head, kStaged | r).word(kSlotTokens) != 0;
      });
  const uint32_t items = slots + rows;
  for (uint32_t i = slots + threadIdx.x; i < items; i += kCompressThreads) {
    work.items[i] |= kStaged;
  }
  for (uint32_t i = threadIdx.x; i < items; i += kCompressThreads) {
    work.marks[i] = 0;
    work.keys[i] = kNoKey;
  }
  __syncthreads();
  uint32_t queries = 0;
  if (merges_pairs(args.policy) && !merges_cheapest(args.policy) &&
      items > head.words[kHeadBudget]) {
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
    work.counters[kMatched] = 0;
  }
}

constexpr uint32_t kMeasureThreads = 256;

// One warp per item.
__global__ void __launch_bounds__(kMeasureThreads)
    measure_kernel(skv_chunk_args args, CompressWork all_work) {
  begin_kernel();
  if (row_end(args.step) == 0) return;
  const ChunkHead head = chunk_head(args, blockIdx.y);
  const HeadWork work = all_work.head(blockIdx.y);
  const uint32_t i = blockIdx.x * (kMeasureThreads / 32) + warp_id();
  if (i < work.counters[kItems]) measure_item(args, head, work, i);
}

// How far the values of a head scatter, before anything is merged: in parts.
template <bool ALIGNED>
__global__ void __launch_bounds__(kSpreadThreads)
    spread_items_kernel(skv_chunk_args args, CompressWork all_work) {
  __shared__ SpreadShared shared;
  begin_kernel();
  if (row_end(args.step) == 0) return;
  const ChunkHead head = chunk_head(args, blockIdx.y);
  const HeadWork work = all_work.head(blockIdx.y);
  const uint32_t items = work.counters[kItems];
  if (blockIdx.x * kSpreadSlots >= items) return;
  spread_part<ALIGNED>(
      blockIdx.x, items, args.sizes.head_dim, work.spreads, shared,
      [&](uint32_t i) { return item_slot(args, head, work.items[i]); });
}

__global__ void __launch_bounds__(kCompressThreads)
    join_spread_kernel(skv_chunk_args args, CompressWork all_work) {
  __shared__ SelectScratch scratch;
  begin_kernel();
  if (row_end(args.step) == 0) return;
  const HeadWork work = all_work.head(blockIdx.x);
  const float spread = join_spread(work.counters[kItems], args.sizes.head_dim,
                                   work.spreads, scratch);
  if (threadIdx.x == 0) work.counters[kSpread] = __float_as_uint(spread);
}

CompressWork work_of(const skv_chunk_args &args, char *memory) {
  CompressWork work;
  work.memory = memory;
  work.most = args.cache.max_capacity + args.cache.stage_rows;
  work.parts = merges_victims(args.policy) ? kSearchParts : 1;
  work.most_priced = merges_cheapest(args.policy) ? work.most : 0;
  work.expected_heads = args.policy.score == SKV_SCORE_EXPECTED
                            ? args.sizes.heads / args.sizes.kv_heads
                            : 0;
  work.spread_words =
      merges_cheapest(args.policy)
          ? spread_parts(work.most) * spread_floats(args.sizes.head_dim)
          : 0;
  work.head_bytes = work.bytes();
  return work;
}

}  // namespace

Needs compress_needs(const skv_chunk_args &args, uint32_t) {
  const CompressWork work = work_of(args, nullptr);
  return {work.head_bytes * args.sizes.kv_heads};
}

cudaError_t launch_compress(const skv_chunk_args &args, const Launch &launch) {
  const CompressWork work = work_of(args, launch.scratch);
  const uint32_t heads = args.sizes.kv_heads;
  const bool searches = merges_victims(args.policy);
  const auto per_head = [&](auto kernel) {
    return launch_kernel(launch, kernel, heads, kCompressThreads, 0, args,
                         work);
  };
  const auto search = [&](bool for_pairs) {
    return launch_item_search(args, work, for_pairs, launch);
  };
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
  if (status == cudaSuccess && merges_cheapest(args.policy)) {
    const auto kernel = args.sizes.head_dim % 8 == 0
                            ? spread_items_kernel<true>
                            : spread_items_kernel<false>;
    status = launch_kernel(launch, kernel, dim3(spread_parts(work.most), heads),
                           kSpreadThreads, 0, args, work);
    if (status == cudaSuccess) status = per_head(join_spread_kernel);
  }
  if (status == cudaSuccess && searches) {
    constexpr uint32_t kWarps = kMeasureThreads / 32;
    status = launch_kernel(launch, measure_kernel,
                           dim3((work.most + kWarps - 1) / kWarps, heads),
                           kMeasureThreads, 0, args, work);
  }
  const bool pairs = merges_pairs(args.policy);
  const uint32_t rounds = merges_cheapest(args.policy) ? args.policy.rounds : 1;
  for (uint32_t round = 0; pairs && round < rounds; round++) {
    if (status == cudaSuccess && merges_cheapest(args.policy)) {
      status = launch_kernel(launch, arrange_pairs_kernel, heads,
                             kCompressThreads, 0, args, work, round > 0);
    }
    if (status == cudaSuccess) status = search(true);
    if (status == cudaSuccess) status = rate();
    if (status == cudaSuccess) status = launch_pairs(args, work, launch);
  }
  const bool segments = args.policy.merge == SKV_MERGE_SEGMENTS;
  if (segments) {
    if (status == cudaSuccess && !args.policy.adaptive) status = rate();
    if (status == cudaSuccess) status = launch_segments(args, work, launch);
  }
  // Nothing has changed since heads were allocated, unless pairs merged.
  if (status == cudaSuccess && (!args.policy.adaptive || pairs || segments)) {
    status = rate();
  }
  if (status == cudaSuccess) status = per_head(choose_kernel);
  if (status == cudaSuccess && searches) {
    if (merges_cheapest(args.policy)) status = per_head(arrange_victims_kernel);
    if (status == cudaSuccess) status = search(false);
    if (status == cudaSuccess) status = launch_merges(args, work, launch);
  }
  if (status == cudaSuccess && args.policy.merge == SKV_MERGE_RIGHT_NEIGHBOUR) {
    status = launch_right_neighbours(args, work, launch);
  }
  return status == cudaSuccess ? launch_settle(args, work, launch) : status;
}

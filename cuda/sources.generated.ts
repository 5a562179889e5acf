// Generated from cuda by `deno task embed-sources`: edit there

/** Files of `cuda` by their path below it. */
export const cudaSources: Readonly<Record<string, string>> = {
  "compress.cu": `// Takes the live slots and the staged rows of a chunk down to each head's
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
`,
  "embed.cu": `// Looks up the embedding row of each live token and sets its bit among the ids
// that the sequence has seen.
//
// Reads 2 and writes 4 bytes per element of a row, eight elements per thread.
// The alternative that lost: doing it at the start of the first
// qkv_rope_append, whose blocks would each repeat it.
#include "lib/half.cuh"
#include "lib/overlap.cuh"
#include "lib/step.cuh"
#include "runtime/launch.cuh"

namespace {

constexpr uint32_t kThreads = 128;

// Elements of a thread.
constexpr uint32_t kElements = 8;

__global__ void __launch_bounds__(kThreads) embed_kernel(skv_embed_args args) {
  begin_kernel();
  const Row row = row_of(args.step, blockIdx.y);
  if (!row.forwarded) return;
  const uint32_t id = args.step.tokens[blockIdx.y];
  if (id >= args.embedding.rows) return;
  const uint32_t width = args.sizes.hidden;
  const uint32_t first = (blockIdx.x * kThreads + threadIdx.x) * kElements;
  if (first < width) {
    // Rows of matrices are aligned, and zero beyond their end.
    const uint4 halves =
        load_weights(args.embedding.data +
                     static_cast<size_t>(id) * args.embedding.pitch + first);
    const uint32_t pairs[kElements / 2] = {halves.x, halves.y, halves.z,
                                           halves.w};
    float *to = args.hidden + static_cast<size_t>(blockIdx.y) * width + first;
    float x[kElements];
#pragma unroll
    for (uint32_t i = 0; i < kElements; i += 2) {
      const float2 pair = to_floats(pairs[i / 2]);
      x[i] = pair.x, x[i + 1] = pair.y;
    }
    if (width % kElements == 0) {
      float4 *words = reinterpret_cast<float4 *>(to);
      words[0] = {x[0], x[1], x[2], x[3]};
      words[1] = {x[4], x[5], x[6], x[7]};
    } else {
#pragma unroll
      for (uint32_t i = 0; i < kElements; i++) {
        if (first + i < width) to[i] = x[i];
      }
    }
  }
  if (first == 0 && row.live) {
    const uint32_t words = (args.sizes.vocabulary + 31) / 32;
    atomicOr(args.seen + static_cast<size_t>(row.sequence) * words + id / 32,
             1u << id % 32);
  }
}

}  // namespace

Needs embed_needs(const skv_embed_args &, uint32_t) { return {}; }

cudaError_t launch_embed(const skv_embed_args &args, const Launch &launch) {
  const uint32_t per_block = kThreads * kElements;
  const dim3 grid((args.sizes.hidden + per_block - 1) / per_block,
                  args.step.rows);
  return launch_kernel(launch, embed_kernel, grid, kThreads, 0, args);
}
`,
  "gate_up.cu": `// RMS norm, then silu(gate) * up. Gate and up rows of the weight alternate, so
// that both products of an output are in the same place.
//
// Streams the weight once, 2 bytes per element, where there are few rows: see
// lib/product.cuh. The alternative that lost: two products and a kernel that
// joins them, which writes and reads both again.
#include "lib/product.cuh"

namespace {

struct GatePairs {
  float *outputs;
  const float *bias;
  uint32_t ffn;

  __device__ uint32_t output(uint32_t pair, uint32_t end) const {
    return 2 * pair + end;
  }
  static bool has_tiles(uint32_t outputs) { return outputs % 2 == 0; }
  struct Held {
    float *output;
    float gate_bias, up_bias;
  };
  __device__ Held hold(uint32_t row, uint32_t pair) const {
    return {outputs + static_cast<size_t>(row) * ffn + pair,
            bias == nullptr ? 0.0f : bias[2 * pair],
            bias == nullptr ? 0.0f : bias[2 * pair + 1]};
  }
  __device__ static void finish(const Held &held, float gate, float up) {
    gate += held.gate_bias, up += held.up_bias;
    *held.output = gate / (1.0f + expf(-gate)) * up;
  }
};

Product product_of(const skv_gate_up_args &args) {
  return {args.weight, args.hidden,    args.norm, args.sizes.norm_epsilon,
          args.step,   args.step.rows, false};
}

}  // namespace

Needs gate_up_needs(const skv_gate_up_args &args, uint32_t multiprocessors) {
  return product_needs(product_of(args), multiprocessors);
}

cudaError_t launch_gate_up(const skv_gate_up_args &args, const Launch &launch) {
  const GatePairs pairs = {args.output, args.bias, args.sizes.ffn};
  return multiply(product_of(args), pairs, Scratch(launch.scratch), launch);
}
`,
  "lib/allocate_heads.cuh": `// Spreads the budget of a layer over its KV heads by the scores of the first
// chunk of a text: see src/reference/allocate_heads.ts. One block, since it
// runs once per text and its work is linear in the staged rows.
#pragma once

#include "ratings.cuh"
#include "select_smallest.cuh"

constexpr uint32_t kFloorParts = 1024;

// What a head is to get, kept in the list of its items' mates.
enum AllocationWord { kParts = 0, kFree = 1 };

// Slots of a head beside sinks and recent tokens.
__device__ inline uint32_t free_slots(const skv_chunk_args &args,
                                      const ChunkHead &head) {
  return head.words[kHeadBudget] - args.policy.sinks - head.words[kHeadRecent];
}

// Rounds the parts of all heads to \`free\` slots in all, and gives each head as
// many and its place in the layer. By one thread.
__device__ inline void settle_heads(const skv_chunk_args &args,
                                    const CompressWork &work, uint32_t free) {
  const uint32_t heads = args.sizes.kv_heads;
  const auto parts_of = [&](uint32_t h) { return work.head(h).mates[kParts]; };
  uint32_t up = free;
  for (uint32_t h = 0; h < heads; h++) up -= parts_of(h) / kFloorParts;
  uint32_t offset = chunk_head(args, 0).words[kHeadOffset];
  for (uint32_t h = 0; h < heads; h++) {
    const uint32_t remainder = parts_of(h) % kFloorParts;
    uint32_t before = 0;
    for (uint32_t other = 0; other < heads; other++) {
      const uint32_t theirs = parts_of(other) % kFloorParts;
      if (theirs > remainder || (theirs == remainder && other < h)) before++;
    }
    const uint32_t slots = parts_of(h) / kFloorParts + (before < up ? 1 : 0);
    const uint32_t change = slots - work.head(h).mates[kFree];
    uint32_t *words = chunk_head(args, h).words;
    words[kHeadOffset] = offset;
    words[kHeadBudget] += change;
    words[kHeadCapacity] += change;
    offset += words[kHeadCapacity];
  }
}

static __global__ void __launch_bounds__(kCompressThreads)
    allocate_heads_kernel(skv_chunk_args args, CompressWork work) {
  __shared__ SelectScratch scratch;
  begin_kernel();
  const uint32_t rows = row_end(args.step);
  if (rows == 0 || chunk_head(args, 0).words[kHeadLive] > 0) return;
  const uint32_t heads = args.sizes.kv_heads;
  // Nothing is in the slots: items are the rows. From the highest score.
  uint32_t mine = 0, free = 0, least = ~0u, candidates;
  for (uint32_t h = 0; h < heads; h++) {
    const ChunkHead head = chunk_head(args, h);
    const HeadWork own = work.head(h);
    const uint32_t slots = free_slots(args, head);
    free += slots;
    least = min(least, slots);
    for (uint32_t i = threadIdx.x; i < rows; i += kCompressThreads) {
      const bool goes = item_is_evictable(args, head, own.items[i]);
      own.keys[i] =
          goes ? order_key(-item_score(args, head, own, i), 0) : kNoKey;
      mine += goes ? 1 : 0;
    }
  }
  block_prefix(mine, candidates, scratch.block);
  if (candidates <= free) return;
  const uint64_t last = kth_smallest(
      heads * rows, free, scratch,
      [&](uint32_t i) { return work.head(i / rows).keys[i % rows]; });
  uint32_t left = free;
  const auto count_if = [&](uint32_t h, auto wanted) {
    const HeadWork own = work.head(h);
    uint32_t some = 0, all;
    for (uint32_t i = threadIdx.x; i < rows; i += kCompressThreads) {
      some += wanted(own.keys[i]) ? 1 : 0;
    }
    block_prefix(some, all, scratch.block);
    return all;
  };
  const auto is_above = [&](uint64_t key) { return key < last; };
  const auto is_tied = [&](uint64_t key) { return key == last; };
  for (uint32_t h = 0; h < heads; h++) left -= count_if(h, is_above);
  const uint32_t floor =
      max(args.policy.floor_parts, (kFloorParts + least - 1) / least);
  for (uint32_t h = 0; h < heads; h++) {
    const uint32_t above = count_if(h, is_above);
    const uint32_t tied = min(left, count_if(h, is_tied));
    left -= tied;
    if (threadIdx.x != 0) continue;
    const uint32_t slots = free_slots(args, chunk_head(args, h));
    uint32_t *words = work.head(h).mates;
    words[kParts] = (kFloorParts - floor) * (above + tied) + floor * slots;
    words[kFree] = slots;
  }
  // All threads have read what thread 0 changes.
  __syncthreads();
  if (threadIdx.x == 0) settle_heads(args, work, free);
}
`,
  "lib/arrange_pairs.cuh": `// Arranging items for a search of the cheapest pairs: the heaviest first.
//
// Each pair is looked at from its lighter end, so an item is compared with
// those before it, and tiles of candidates that have none of these are left
// out: half of all. Items of about the same weight are in any order, as that is
// all that tiles take; the alternative that lost sorts them.
#pragma once

#include "compress_work.cuh"
#include "overlap.cuh"
#include "search_shares.cuh"
#include "select_smallest.cuh"

// Classes of weight, 1/32 of a factor e wide; the last has all that are
// lighter.
constexpr uint32_t kWeightClasses = 4096;
constexpr float kClassesPerFactor = 32.0f;

struct ArrangeShared {
  SelectScratch select;
  float largest[32];
  uint32_t starts[kWeightClasses];
  // Where the next item of a class goes.
  uint32_t next[kWeightClasses];
};

// The largest \`x\` of the block's threads.
__device__ inline float block_max(float x, float (&scratch)[32]) {
  x = warp_max(x);
  __syncthreads();
  if (lane_id() == 0) scratch[warp_id()] = x;
  __syncthreads();
  x = lane_id() < blockDim.x / 32 ? scratch[lane_id()] : -INFINITY;
  return warp_max(x);
}

// Leaves how many tiles of candidates the tiles of queries have that come
// before each; \`ends(last)\` is how many candidates the query \`last\` is compared
// with. Called by the whole block.
template <class Ends>
__device__ inline void start_rows(const HeadWork &work, uint32_t queries,
                                  SelectScratch &scratch, Ends ends) {
  const uint32_t rows = (queries + kPairTileItems - 1) / kPairTileItems;
  uint32_t before = 0;
  for (uint32_t first = 0; first < rows; first += blockDim.x) {
    const uint32_t row = first + threadIdx.x;
    uint32_t tiles = 0, all;
    if (row < rows) {
      const uint32_t last = min(queries, (row + 1) * kPairTileItems) - 1;
      tiles = max(1u, (ends(last) + kPairTileItems - 1) / kPairTileItems);
    }
    const uint32_t start = before + block_prefix(tiles, all, scratch.block);
    if (row < rows) work.row_starts[row] = start;
    before += all;
  }
  if (threadIdx.x == 0) work.counters[kPairTiles] = before;
}

__device__ inline PlacedItem placed_item(const HeadWork &work,
                                         uint32_t ordinal) {
  const float4 measures = work.measures[ordinal];
  return {work.items[ordinal],
          ordinal,
          __float_as_uint(measures.w),
          measures.x,
          {measures.y, measures.z},
          0,
          0};
}

// Puts \`count\` items of a list in their order. Called by the whole block.
__device__ inline void place_by_weight(const HeadWork &work,
                                       const uint32_t *list, uint32_t count,
                                       ArrangeShared &shared) {
  float largest = -INFINITY;
  for (uint32_t k = threadIdx.x; k < count; k += blockDim.x) {
    largest = fmaxf(largest, work.measures[list[k]].x);
  }
  largest = block_max(largest, shared.largest);
  const auto class_of = [&](uint32_t ordinal) {
    const float below =
        (largest - work.measures[ordinal].x) * kClassesPerFactor;
    return static_cast<uint32_t>(
        fminf(below, static_cast<float>(kWeightClasses - 1)));
  };
  for (uint32_t c = threadIdx.x; c < kWeightClasses; c += blockDim.x) {
    shared.next[c] = 0;
  }
  __syncthreads();
  for (uint32_t k = threadIdx.x; k < count; k += blockDim.x) {
    atomicAdd(shared.next + class_of(list[k]), 1);
  }
  __syncthreads();
  // A thread has a run of classes.
  const uint32_t run = kWeightClasses / blockDim.x;
  const uint32_t first = threadIdx.x * run;
  uint32_t mine = 0, all;
  for (uint32_t c = first; c < first + run; c++) mine += shared.next[c];
  uint32_t start = block_prefix(mine, all, shared.select.block);
  for (uint32_t c = first; c < first + run; c++) {
    const uint32_t own = shared.next[c];
    shared.starts[c] = shared.next[c] = start;
    start += own;
  }
  __syncthreads();
  for (uint32_t k = threadIdx.x; k < count; k += blockDim.x) {
    const uint32_t ordinal = list[k], own = class_of(ordinal);
    const uint32_t place = atomicAdd(shared.next + own, 1);
    PlacedItem item = placed_item(work, ordinal);
    item.first = shared.starts[own];
    item.end = own + 1 < kWeightClasses ? shared.starts[own + 1] : count;
    work.placed[place] = item;
    work.queries[place] = work.candidates[place] = ordinal;
  }
  __syncthreads();
}

// Arranges what may be merged in pairs, in each round; nothing where the head
// fits or where the round before, if there was one, found no pair.
static __global__ void __launch_bounds__(kCompressThreads)
    arrange_pairs_kernel(skv_chunk_args args, CompressWork all_work,
                         bool again) {
  __shared__ ArrangeShared shared;
  begin_kernel();
  if (row_end(args.step) == 0) return;
  const ChunkHead head = chunk_head(args, blockIdx.x);
  const HeadWork work = all_work.head(blockIdx.x);
  const uint32_t items = work.counters[kItems];
  const uint32_t left = items - work.counters[kPairs];
  const uint32_t matched = work.counters[kMatched];
  if (again && matched > 0) {
    add_divergences(head, work, matched, shared.select);
  }
  uint32_t count = 0;
  if (left > head.words[kHeadBudget] && (!again || matched > 0)) {
    for (uint32_t i = threadIdx.x; i < items; i += blockDim.x) {
      work.marks[i] &= kGone;
      work.keys[i] = kNoKey;
    }
    __syncthreads();
    // Parts of searches are not in use yet.
    uint32_t *const list = work.nearest;
    count = list_if(items, list, shared.select, [&](uint32_t i) {
      return (work.marks[i] & kGone) == 0 &&
             is_evictable(__float_as_uint(work.measures[i].w), args.policy,
                          head.words[kHeadRecent], head.newest);
    });
    place_by_weight(work, list, count, shared);
    start_rows(work, count, shared.select,
               [&](uint32_t last) { return work.placed[last].end; });
  }
  // The counters that are written were read above.
  __syncthreads();
  if (threadIdx.x == 0) {
    work.counters[kQueries] = work.counters[kCandidates] = count;
    if (count == 0) work.counters[kPairTiles] = 0;
    work.counters[kMatched] = 0;
  }
}

// Arranges victims and what may take them, in the order of their lists.
static __global__ void __launch_bounds__(kCompressThreads)
    arrange_victims_kernel(skv_chunk_args args, CompressWork all_work) {
  __shared__ SelectScratch scratch;
  begin_kernel();
  if (row_end(args.step) == 0) return;
  const HeadWork work = all_work.head(blockIdx.x);
  const uint32_t victims = work.counters[kQueries];
  const uint32_t targets = victims > 0 ? work.counters[kCandidates] : 0;
  for (uint32_t k = threadIdx.x; k < victims; k += blockDim.x) {
    work.placed[k] = placed_item(work, work.queries[k]);
  }
  for (uint32_t k = threadIdx.x; k < targets; k += blockDim.x) {
    work.placed[victims + k] = placed_item(work, work.candidates[k]);
  }
  start_rows(work, victims, scratch, [&](uint32_t) { return targets; });
}
`,
  "lib/attend_job.cuh": `// What a block of attention works on: some query heads of a KV head of one row,
// and some of its slots.
#pragma once

#include "slots.cuh"
#include "step.cuh"

constexpr uint32_t kAttendWarps = 4;
constexpr uint32_t kAttendThreads = 32 * kAttendWarps;

// Slots of a tile, and the fewest that are worth a block.
constexpr uint32_t kWarpSlots = 16;
constexpr uint32_t kBlockSlots = kAttendWarps * kWarpSlots;

// Query heads that a block takes. Larger groups are shared by several blocks.
constexpr uint32_t kTileHeads = 8;

constexpr uint32_t kMaxSplits = 128;

constexpr uint32_t kNoSlot = ~0u;

__host__ __device__ inline uint32_t head_tiles(uint32_t group) {
  return (group + kTileHeads - 1) / kTileHeads;
}

// Some query heads of one (sequence, KV head) of a step.
struct HeadJob {
  uint32_t row;
  uint32_t kv_head;
  uint32_t position;
  uint32_t group;
  // Query heads of this block: first of the group, and how many.
  uint32_t first_head;
  uint32_t heads;
  // Index among the (sequence, KV head) of the step.
  uint32_t index;
  uint32_t offset;
  uint32_t high;
  // The slot that the step appended, if there was room.
  uint32_t newest;
  // Whether that takes the head over its budget, so that a slot has to go.
  bool will_evict;
};

__device__ inline HeadJob job_of(const skv_merge_attend_args &args,
                                 const Row &row) {
  HeadJob job;
  job.group = args.sizes.heads / args.sizes.kv_heads;
  const uint32_t tiles = head_tiles(job.group);
  job.row = blockIdx.z;
  job.kv_head = blockIdx.y / tiles;
  job.first_head = blockIdx.y % tiles * kTileHeads;
  job.heads = min(kTileHeads, job.group - job.first_head);
  job.position = row.position;
  job.index = job.row * args.sizes.kv_heads + job.kv_head;
  const uint32_t *words =
      head_words(args.cache, args.sizes, row.sequence, job.kv_head);
  job.offset = words[kHeadOffset];
  const uint32_t next = words[kHeadNext], capacity = words[kHeadCapacity];
  job.newest = next < capacity ? next : kNoSlot;
  job.high = max(words[kHeadHigh], min(next + 1, capacity));
  job.will_evict =
      words[kHeadLive] + (next < capacity ? 1 : 0) > words[kHeadBudget];
  return job;
}

// Tiles of slots of a block: \`begin\`, and those after it by steps of
// kAttendWarps, up to \`end\`.
struct Share {
  uint32_t begin;
  // End of the block's slots.
  uint32_t end;

  __device__ uint32_t first_slot(uint32_t i) const {
    return begin + (warp_id() + i * kAttendWarps) * kWarpSlots;
  }
  __device__ bool has(uint32_t i) const { return first_slot(i) < end; }
  // Which of this warp's tiles a slot is in; kNoSlot for those of others.
  __device__ uint32_t tile_of(uint32_t slot) const {
    if (slot < begin || slot >= end) return kNoSlot;
    const uint32_t tile = (slot - begin) / kWarpSlots;
    return tile % kAttendWarps == warp_id() ? tile / kAttendWarps : kNoSlot;
  }
};
`,
  "lib/attend_output.cuh": `// The output of attention: the parts of the blocks of a head, added up by the
// last of them, or the only one's.
#pragma once

#include "attend_parts.cuh"

// Writes four dimensions of the output of a query head.
__device__ inline void store_output(const skv_merge_attend_args &args,
                                    const HeadJob &job,
                                    const Evidence &evidence, uint32_t g,
                                    uint32_t d, float4 x) {
  const uint32_t head_dim = args.sizes.head_dim;
  if (d >= head_dim) return;
  const auto store = [&](float *to) {
    if (head_dim % 4 == 0) {
      *reinterpret_cast<float4 *>(to) = x;
    } else {
      // The width is even.
      *reinterpret_cast<float2 *>(to) = {x.x, x.y};
      if (d + 2 < head_dim) *reinterpret_cast<float2 *>(to + 2) = {x.z, x.w};
    }
  };
  store(args.output + query_row(args, job, g) * head_dim + d);
  if (evidence.outputs == nullptr) return;
  const size_t own =
      static_cast<size_t>(job.index) * job.group + job.first_head + g;
  store(evidence.outputs + own * head_dim + d);
}

// Parts whose values are read at a time.
constexpr uint32_t kPartsAhead = 16;

// Adds the parts of all blocks up and writes the output. Returns the counts of
// live slots and of the first free one, in the first thread of those that have
// the first heads.
template <int DIM>
__device__ inline uint2 combine(const skv_merge_attend_args &args,
                                const HeadJob &job, const AttendParts &parts,
                                const Evidence &evidence, uint32_t splits,
                                AttendShared<DIM> &shared) {
  static_assert(kMaxSplits % 32 == 0, "lanes share the splits");
  const size_t first = static_cast<size_t>(job.index) * parts.most_splits;
  const auto load = [&](uint32_t g, uint32_t d, uint32_t begin,
                        float4(&x)[kPartsAhead]) {
#pragma unroll
    for (uint32_t i = 0; i < kPartsAhead; i++) {
      x[i] = {};
      if (begin + i >= splits || g >= job.heads) continue;
      const size_t head = (first + begin + i) * job.group + job.first_head + g;
      x[i] = __ldcg(
          reinterpret_cast<const float4 *>(parts.values + head * DIM + d));
    }
  };
  // All that is read first is on its way together.
  float4 ahead[kPartsAhead];
  load(threadIdx.x / (DIM / 4), threadIdx.x % (DIM / 4) * 4, 0, ahead);
  uint2 counts = {0, kNoSlot};
  if (warp_id() == 0 && job.first_head == 0) {
#pragma unroll 1
    for (uint32_t s = lane_id(); s < splits; s += 32) {
      const uint2 other = __ldcg(parts.counts + first + s);
      counts.x += other.x;
      counts.y = min(counts.y, other.y);
    }
    counts.x = __reduce_add_sync(kAllLanes, counts.x);
    counts.y = __reduce_min_sync(kAllLanes, counts.y);
  }
#pragma unroll 1
  for (uint32_t g = warp_id(); g < job.heads; g += kAttendWarps) {
    SoftmaxState states[kMaxSplits / 32];
    float max = -INFINITY;
#pragma unroll
    for (uint32_t k = 0; k < kMaxSplits / 32; k++) {
      const uint32_t s = lane_id() + 32 * k;
      states[k] = init_softmax();
      if (s >= splits) continue;
      const float2 state =
          __ldcg(parts.states + (first + s) * kMaxGroup + job.first_head + g);
      states[k] = {state.x, state.y};
      max = fmaxf(max, state.x);
    }
    max = warp_max(max);
    float sum = 0.0f;
#pragma unroll
    for (uint32_t k = 0; k < kMaxSplits / 32; k++) {
      sum += states[k].sum * exp2_fast(states[k].max - finite(max));
    }
    sum = warp_sum(sum);
#pragma unroll
    for (uint32_t k = 0; k < kMaxSplits / 32; k++) {
      const uint32_t s = lane_id() + 32 * k;
      if (s >= splits) continue;
      shared.factors[s][g] = exp2_fast(states[k].max - finite(max)) / sum;
    }
    if (lane_id() == 0) shared.log_sums[g] = log_sum_of_bits({max, sum});
  }
  __syncthreads();
  for_each_four<DIM>(job, [&](uint32_t g, uint32_t d) {
    float4 sum = {};
#pragma unroll 1
    for (uint32_t begin = 0; begin < splits; begin += kPartsAhead) {
      const bool is_here = begin == 0 && g * (DIM / 4) + d / 4 == threadIdx.x;
      if (!is_here) load(g, d, begin, ahead);
#pragma unroll
      for (uint32_t i = 0; i < kPartsAhead; i++) {
        if (begin + i >= splits) continue;
        const float factor = shared.factors[begin + i][g];
        sum.x += ahead[i].x * factor, sum.y += ahead[i].y * factor;
        sum.z += ahead[i].z * factor, sum.w += ahead[i].w * factor;
      }
    }
    store_output(args, job, evidence, g, d, sum);
  });
  return counts;
}

// The same where the block had all slots.
template <int DIM>
__device__ inline uint2 finish_alone(const skv_merge_attend_args &args,
                                     const HeadJob &job,
                                     const Evidence &evidence,
                                     AttendShared<DIM> &shared) {
  for_each_four<DIM>(job, [&](uint32_t g, uint32_t d) {
    const SoftmaxState state = block_state(shared, g);
    float4 x = block_values(shared, g, d, state.max);
    x.x /= state.sum, x.y /= state.sum, x.z /= state.sum, x.w /= state.sum;
    store_output(args, job, evidence, g, d, x);
  });
  if (threadIdx.x < job.heads) {
    shared.log_sums[threadIdx.x] =
        log_sum_of_bits(block_state(shared, threadIdx.x));
  }
  __syncthreads();
  return block_counts(shared);
}
`,
  "lib/attend_parts.cuh": `// The parts of an attention: those of the warps of a block become one, which
// the block leaves for the others of the head.
#pragma once

#include "attend_slots.cuh"
#include "evidence.cuh"

// Memory between the blocks of a head.
struct AttendParts {
  // (heads, most_splits, group, DIM)
  float *values;
  // (heads, most_splits, kMaxGroup)
  float2 *states;
  // (heads, most_splits): live slots, and the first free one
  uint2 *counts;
  // (heads, head_tiles)
  uint32_t *tickets;
  uint32_t most_splits;
  // Splits that would fill the device, and those that would have a block on
  // each multiprocessor.
  uint32_t wanted_splits;
  uint32_t few_splits;
};

// From one query head to the next: lanes of different heads write to different
// banks.
template <int DIM>
constexpr int kSumPitch = DIM + 8;

template <int DIM>
struct AttendShared {
  // Tiles of slots while warps attend, then what they found.
  union {
    alignas(16)
        skv_cached tiles[kAttendWarps][kStages<DIM>][kTileElements<DIM>];
    float values[kAttendWarps][kTileHeads][kSumPitch<DIM>];
  };
  SoftmaxState states[kAttendWarps][kTileHeads];
  float factors[kMaxSplits][kTileHeads];
  float log_sums[kTileHeads];
  uint32_t live[kAttendWarps];
  uint32_t first_free[kAttendWarps];
  Neighbour nearest[kAttendWarps][kMaxRiders];
  uint32_t ticket;
};

// Slots that are worth one more block on a multiprocessor: fewer take less time
// than adding up one more part.
constexpr uint32_t kWorthSlots = 4 * kBlockSlots;

// Splits of a head with slots up to \`high\`. They do not depend on the capacity:
// caches that hold the same give the same result.
__device__ inline uint32_t splits_of(const AttendParts &parts, uint32_t high) {
  const uint32_t most = (high + kBlockSlots - 1) / kBlockSlots;
  const uint32_t worth = max(parts.few_splits, high / kWorthSlots);
  const uint32_t splits = min(min(parts.wanted_splits, worth), most);
  return max(1u, min(splits, parts.most_splits));
}

__device__ inline Share share_of(uint32_t high, uint32_t splits) {
  const uint32_t tiles = (high + kWarpSlots - 1) / kWarpSlots;
  const uint32_t per_split = (tiles + splits - 1) / splits * kWarpSlots;
  const uint32_t begin = blockIdx.x * per_split;
  return {begin, min(high, begin + per_split)};
}

// The sum over lanes that have the same heads.
__device__ inline float sum_of_rows(float x) {
#pragma unroll
  for (int offset = 4; offset < 32; offset *= 2) {
    x += __shfl_xor_sync(kAllLanes, x, offset);
  }
  return x;
}

// Leaves what a warp found in shared memory. Called by the whole block.
template <class Shape>
__device__ inline void gather_warps(const HeadJob &job,
                                    const WarpAttention<Shape> &warp,
                                    AttendShared<Shape::kDim> &shared) {
  const uint32_t g = lane_id() / 4, t = lane_id() % 4;
  // Of all lanes with the same head, the first.
  const uint32_t live = __reduce_add_sync(kAllLanes, t == 0 ? warp.live : 0);
  const uint32_t first_free = __reduce_min_sync(kAllLanes, warp.first_free);
  // All warps are through with their tiles.
  __syncthreads();
#pragma unroll
  for (int u = 0; u < Shape::kTiles; u++) {
    const uint32_t head = kColumnHeads * u + t;
    const float sum = sum_of_rows(warp.states[u].sum);
    if (head >= job.heads) continue;
    float *to = shared.values[warp_id()][head] + g;
#pragma unroll
    for (int n = 0; n < Shape::kDim / 16; n++) {
      const float(&x)[4] = warp.values[n][u];
      to[16 * n] = x[0] + x[1];
      to[16 * n + 8] = x[2] + x[3];
    }
    if (g == 0) shared.states[warp_id()][head] = {warp.states[u].max, sum};
  }
  if (lane_id() == 0) {
    shared.live[warp_id()] = live;
    shared.first_free[warp_id()] = first_free;
  }
  if (warp.has_riders(job)) warp.riders.gather(shared.nearest[warp_id()]);
  __syncthreads();
}

// Live slots and the first free one, over the block's warps.
template <int DIM>
__device__ inline uint2 block_counts(const AttendShared<DIM> &shared) {
  uint2 counts = {0, kNoSlot};
  for (uint32_t w = 0; w < kAttendWarps; w++) {
    counts.x += shared.live[w];
    counts.y = min(counts.y, shared.first_free[w]);
  }
  return counts;
}

// The softmax state of head g over the block's warps.
template <int DIM>
__device__ inline SoftmaxState block_state(const AttendShared<DIM> &shared,
                                           uint32_t g) {
  SoftmaxState state = init_softmax();
#pragma unroll
  for (uint32_t w = 0; w < kAttendWarps; w++) {
    state.max = fmaxf(state.max, shared.states[w][g].max);
  }
#pragma unroll
  for (uint32_t w = 0; w < kAttendWarps; w++) {
    const SoftmaxState other = shared.states[w][g];
    state.sum += other.sum * exp2_fast(other.max - finite(state.max));
  }
  return state;
}

// Four dimensions of head g over the block's warps, at the scale of \`max\`.
template <int DIM>
__device__ inline float4 block_values(const AttendShared<DIM> &shared,
                                      uint32_t g, uint32_t d, float max) {
  float4 sum = {};
#pragma unroll
  for (uint32_t w = 0; w < kAttendWarps; w++) {
    const float scale = exp2_fast(shared.states[w][g].max - finite(max));
    const float4 x = *reinterpret_cast<const float4 *>(shared.values[w][g] + d);
    sum.x += x.x * scale, sum.y += x.y * scale;
    sum.z += x.z * scale, sum.w += x.w * scale;
  }
  return sum;
}

// Calls \`use(g, d)\` for every four dimensions of the block's heads.
template <int DIM, class Use>
__device__ inline void for_each_four(const HeadJob &job, Use use) {
#pragma unroll 1
  for (uint32_t i = threadIdx.x; i < job.heads * (DIM / 4);
       i += kAttendThreads) {
    use(i / (DIM / 4), i % (DIM / 4) * 4);
  }
}

// Leaves the block's part for the last one; true in that.
template <int DIM>
__device__ inline bool publish(const HeadJob &job, const AttendParts &parts,
                               uint32_t splits, AttendShared<DIM> &shared) {
  const size_t part =
      static_cast<size_t>(job.index) * parts.most_splits + blockIdx.x;
  float *values = parts.values + (part * job.group + job.first_head) * DIM;
  for_each_four<DIM>(job, [&](uint32_t g, uint32_t d) {
    const SoftmaxState state = block_state(shared, g);
    *reinterpret_cast<float4 *>(values + g * DIM + d) =
        block_values(shared, g, d, state.max);
    if (d == 0) {
      parts.states[part * kMaxGroup + job.first_head + g] = {state.max,
                                                             state.sum};
    }
  });
  if (threadIdx.x == 0 && job.first_head == 0) {
    parts.counts[part] = block_counts(shared);
  }
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    uint32_t *tickets = parts.tickets + job.index * head_tiles(job.group) +
                        job.first_head / kTileHeads;
    shared.ticket = atomicAdd(tickets, 1);
    if (shared.ticket == splits - 1) *tickets = 0;
  }
  __syncthreads();
  if (shared.ticket != splits - 1) return false;
  __threadfence();
  return true;
}
`,
  "lib/attend_shape.cuh": `// What kernels of decode attention are compiled for.
#pragma once

#include "attend_job.cuh"
#include "row_tiles.cuh"

// Query heads that eight columns of a product have room for: each has two, one
// for the high and one for the low parts of its query (lib/cached.cuh).
constexpr uint32_t kColumnHeads = 4;

// Tiles of slots that a warp has in shared memory.
template <int DIM>
constexpr int kStages = DIM >= 128 ? 2 : 4;

// Elements of a tile: keys, then values.
template <int DIM>
constexpr int kTileElements = 2 * kWarpSlots *kLinePitch<DIM>;

// Blocks that a multiprocessor runs at a time: what shared memory and registers
// have room for.
__host__ __device__ constexpr int resident_blocks(uint32_t dim, int tiles) {
  if (dim == 256) return 1;
  return dim == 128 && tiles == 2 ? 2 : 3;
}

// DIM: dimensions that there is room for; EXACT: heads have all of them. TILES:
// tiles of eight columns for query heads. RIDES: with riders where a head goes
// over its budget.
template <int DIM, int TILES, bool EXACT, bool RIDES>
struct AttendShape {
  static constexpr int kDim = DIM;
  static constexpr int kTiles = TILES;
  static constexpr bool kIsExact = EXACT;
  static constexpr bool kRides = RIDES;
  static constexpr int kBlocks = resident_blocks(DIM, TILES);
};

// Widths that few models have take one kernel for all groups.
inline bool is_exact(uint32_t head_dim) {
  return head_dim == padded_width(head_dim);
}
inline int column_tiles(uint32_t head_dim, uint32_t group) {
  return is_exact(head_dim) && group <= kColumnHeads ? 1 : 2;
}
`,
  "lib/attend_slots.cuh": `// Decode attention of one warp over its share of the slots of a KV head.
//
// Slots are the rows of tensor core products and query heads of the group the
// columns, so that a key is read once for all of them: see
// lib/query_operands.cuh. Weights have two columns per head as well, one for
// their high and one for their low parts, so that products have nearly 32-bit
// precision.
//
// A warp has tiles of slots of its own in shared memory, which asynchronous
// copies fill ahead: warps wait for nobody until they are through. The first
// tiles are on their way before the kernel in front has ended: only the newest
// slot is written by it (see lib/overlap.cuh).
//
// The alternative that lost: keys and values straight to registers. Loads then
// have to wait for the arithmetic in front of them.
#pragma once

#include "lane_logits.cuh"
#include "overlap.cuh"
#include "slot_copies.cuh"
#include "slot_sides.cuh"
#include "softmax_state.cuh"
#include "tile_cursor.cuh"

// A reference is replaced where weights would exceed 2^kMostBits: halves reach
// nearly 2^16.
constexpr float kMostBits = kHeadroomBits + 1.0f;

// Lower than that of any logit, but a number, so that what is free has a weight
// of 0 at it, too.
constexpr float kNoReference = -1e30f;

// Attention of one warp over its tiles of a share.
template <class Shape>
struct WarpAttention {
  static constexpr int kDim = Shape::kDim;
  static constexpr int kTiles = Shape::kTiles;

  QueryOperands<kDim, kTiles> queries;
  LaneRiders<kDim> riders;
  // Of head 4u + t, in units of ln 2. References are whole numbers: weights at
  // an old one are those at a new one times a power of two. The sum is that of
  // this lane's slots.
  SoftmaxState states[kTiles];
  // Dimensions 16n + g and 16n + g + 8 of head 4u + t, by high and by low
  // parts.
  float values[kDim / 16][kTiles][4] = {};
  uint32_t live = 0;
  uint32_t first_free = kNoSlot;

  __device__ WarpAttention() {
#pragma unroll
    for (int u = 0; u < kTiles; u++) states[u] = {kNoReference, 0.0f};
  }

  __device__ static bool has_riders(const HeadJob &job) {
    return Shape::kRides && job.will_evict;
  }

  // Adds a tile of slots, which is in shared memory.
  __device__ void add(const skv_merge_attend_args &args, const HeadJob &job,
                      uint32_t first, uint32_t end,
                      const TileCursor<kDim> &tile,
                      const TileSides<kTiles> &sides,
                      const LaneLogits<kTiles> &logits) {
    TileProducts<kTiles> products =
        has_riders(job)
            ? multiply_keys<Shape::kRides>(tile.keys, queries, riders)
            : multiply_keys<false>(tile.keys, queries, riders);
    if (args.sink_queries != nullptr) {
      replace_sinks(args, job, tile.keys, sides, products);
    }
    logits.store(first, products);
    if (has_riders(job)) {
      compare_riders(first, args.policy.sinks, products, sides);
    }
    weigh(first, end, sides, products);
    uint2 weights[kTiles];
#pragma unroll
    for (int u = 0; u < kTiles; u++) {
      const float(&x)[2] = products.logits[u];
      states[u].sum += x[0] + x[1];
      // From two columns of a slot to two slots of a column.
      const PartPairs parts = parts_of(x[0], x[1]);
      weights[u] = {transpose_matrix(parts.x), transpose_matrix(parts.y)};
    }
#pragma unroll
    for (int n = 0; n < kDim / 16; n++) {
      const uint4 v = load_transposed(tile.values + 16 * n);
#pragma unroll
      for (int u = 0; u < kTiles; u++) {
        mma_cached(values[n][u], v, weights[u].x, weights[u].y);
      }
    }
  }

  // Turns logits into weights, in place.
  __device__ void weigh(uint32_t first, uint32_t end,
                        const TileSides<kTiles> &sides,
                        TileProducts<kTiles> &products) {
    bool is_plain = true;
    // Of the weights, in units of ln 2.
    float bits[kTiles][2];
#pragma unroll
    for (int u = 0; u < kTiles; u++) {
#pragma unroll
      for (int k = 0; k < 2; k++) {
        products.logits[u][k] += sides.bias[u][k];
        bits[u][k] = fmaf(products.logits[u][k], kLog2E, -states[u].max);
        is_plain &= sides.bias[u][k] > kLiveBias & !(bits[u][k] > kMostBits);
      }
    }
    // So are nearly all tiles.
    if (__all_sync(kAllLanes, is_plain)) {
      live += 2;
    } else {
      count(first, end, sides);
      settle(sides, products, bits);
    }
#pragma unroll
    for (int u = 0; u < kTiles; u++) {
#pragma unroll
      for (int k = 0; k < 2; k++) {
        products.logits[u][k] = exp2_fast(bits[u][k]);
      }
    }
  }

  // Counts the slots of a tile that may have free ones.
  __device__ void count(uint32_t first, uint32_t end,
                        const TileSides<kTiles> &sides) {
#pragma unroll
    for (int k = 0; k < 2; k++) {
      const uint32_t slot = first + lane_id() / 4 + 8 * k;
      const bool is_live = sides.bias[0][k] > kLiveBias;
      live += is_live ? 1 : 0;
      if (!is_live && slot < end) first_free = min(first_free, slot);
    }
  }

  // Leaves free slots out, and finds references that logits are not too large
  // for.
  __device__ void settle(const TileSides<kTiles> &sides,
                         const TileProducts<kTiles> &products,
                         float (&bits)[kTiles][2]) {
#pragma unroll
    for (int u = 0; u < kTiles; u++) {
      float x[2];
      float top = -INFINITY;
#pragma unroll
      for (int k = 0; k < 2; k++) {
        const bool is_live = sides.bias[u][k] > kLiveBias;
        x[k] = is_live ? products.logits[u][k] : -INFINITY;
        top = fmaxf(top, x[k]);
      }
#pragma unroll
      for (int offset = 4; offset < 32; offset *= 2) {
        top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, offset));
      }
      if (fmaf(top, kLog2E, -states[u].max) > kMostBits) {
        const float max = ceilf(top * kLog2E) - kHeadroomBits;
        const float keep = exp2_fast(states[u].max - max);
        states[u] = {max, states[u].sum * keep};
#pragma unroll
        for (int n = 0; n < kDim / 16; n++) {
#pragma unroll
          for (int i = 0; i < 4; i++) values[n][u][i] *= keep;
        }
      }
#pragma unroll
      for (int k = 0; k < 2; k++) {
        bits[u][k] = fmaf(x[k], kLog2E, -states[u].max);
      }
    }
  }

  // Looks among the slots of a tile for the nearest of the riders. Sinks take
  // no part in merges.
  __device__ void compare_riders(uint32_t first, uint32_t sinks,
                                 const TileProducts<kTiles> &products,
                                 const TileSides<kTiles> &sides) {
#pragma unroll
    for (int k = 0; k < 2; k++) {
      const bool counts =
          (sides.bias[0][k] > kLiveBias) & (sides.position[k] >= sinks);
      riders.compare(counts, first + lane_id() / 4 + 8 * k, sides.position[k],
                     products.squares[k], products.riders[k]);
    }
  }

  // Logits of sinks are those of the queries at their cache positions.
  __device__ static void replace_sinks(const skv_merge_attend_args &args,
                                       const HeadJob &job,
                                       const skv_cached *keys,
                                       const TileSides<kTiles> &sides,
                                       TileProducts<kTiles> &products) {
    const uint32_t count = args.policy.sinks;
    const bool any = sides.position[0] < count || sides.position[1] < count;
    if (!__any_sync(kAllLanes, any)) return;
    float logits[kTiles][2];
    multiply_sinks<kDim>(args, job, keys, logits);
#pragma unroll
    for (int u = 0; u < kTiles; u++) {
#pragma unroll
      for (int k = 0; k < 2; k++) {
        if (sides.position[k] < count) {
          products.logits[u][k] = logits[u][k];
        }
      }
    }
  }

  // Attends to all tiles of the share. \`tiles\` has room for kStages of them,
  // for this warp alone.
  __device__ void run(const skv_merge_attend_args &args, const HeadJob &job,
                      const Share &share, skv_cached *tiles, float *logits) {
    constexpr uint32_t kAhead = kStages<kDim>;
    const uint32_t end = share.end;
    uint32_t first = share.first_slot(0);
    SlotCopies<Shape> copies;
    copies.init(args, job, first);
    TileCursor<kDim> tile(tiles);
    // All but the newest slot is as the step before left it.
#pragma unroll 1
    for (uint32_t i = 0; i < kAhead; i++) {
      if (i > 0) commit_copies();
      copies.copy_tile_but(job.newest, share.first_slot(i), end, tile.lines);
      tile.advance();
    }
    if (has_riders(job)) riders.load(args, job);
    SlotSides<kTiles> fields;
    fields.init(args, job, first,
                has_riders(job) || args.sink_queries != nullptr);
    TileSides<kTiles> sides = fields.load(first, end);
    wait_for_previous();
    const uint32_t newest = share.tile_of(job.newest);
    if (newest < kAhead) {
      const uint32_t line = (job.newest - share.begin) % kWarpSlots;
      SlotCopies<Shape>::copy_slot(
          args, job, job.newest,
          tiles + newest * kTileElements<kDim> + line * kLinePitch<kDim>);
      if (newest == 0) sides = fields.load(first, end);
    }
    commit_copies();
    queries.load(args, job);
    if (newest < kAhead) wait_copies<0>();
    LaneLogits<kTiles> own(args, job, share, logits);
#pragma unroll 1
    for (; first < end; first += kBlockSlots) {
      wait_copies<kAhead - 1>();
      __syncwarp();
      fields.advance();
      const TileSides<kTiles> next = fields.load(first + kBlockSlots, end);
      add(args, job, first, end, tile, sides, own);
      __syncwarp();
      copies.copy_tile(first + kAhead * kBlockSlots, end, tile.lines);
      commit_copies();
      sides = next;
      own.advance();
      tile.advance();
    }
  }
};
`,
  "lib/blend_slots.cuh": `// Merging slots by the cosines of their keys, under a moving threshold: the
// twin of src/reference/blend_slots.ts, by one warp.
#pragma once

#include "lane_vector.cuh"

// The threshold after slots went whose mean cosine is \`mean\`.
__device__ inline float next_threshold(const skv_policy &policy, float past,
                                       float mean) {
  const float keep = policy.threshold_keep;
  return past == 0.0f ? mean : keep * past + (1.0f - keep) * mean;
}

// Merges \`count\` members into the first of them, which keeps its position, its
// score and its bias. The caller frees the others. \`member(i)\` returns a Slot.
// Called by a whole warp.
template <class Member>
__device__ inline void blend_slots(uint32_t count, Member member,
                                   uint32_t head_dim) {
  const Slot kept = member(0);
  const LaneVector pivot(kept.key, head_dim);
  const float inverse = pivot.inverse_norm();
  float total = expf(1.0f);
  float norm = total * kept.get(kSlotValueNorm);
  uint32_t tokens = kept.word(kSlotTokens);
  LaneSum keys, values;
  keys.add(total, pivot);
  values.add(total, LaneVector(kept.value, head_dim));
  for (uint32_t m = 1; m < count; m++) {
    const Slot slot = member(m);
    const LaneVector key(slot.key, head_dim);
    const float cosine = pivot.dot(key) * (inverse * key.inverse_norm());
    const float weight = expf(cosine);
    keys.add(weight, key);
    values.add(weight, LaneVector(slot.value, head_dim));
    total += weight;
    norm += weight * slot.get(kSlotValueNorm);
    tokens += slot.word(kSlotTokens);
  }
  keys.store(kept.key, 1.0f / total, head_dim);
  values.store(kept.value, 1.0f / total, head_dim);
  // All lanes have read the fields before one of them changes those.
  __syncwarp();
  if (lane_id() == 0) {
    kept.set(kSlotValueNorm, norm / total);
    kept.set_word(kSlotTokens, tokens);
  }
  __syncwarp();
}
`,
  "lib/cached.cuh": `// What caches hold: keys and values in 16 bits, as halves, or as bfloat16 where
// SKV_CACHE_BFLOAT16 is defined. No kernel knows which: this file and
// mma_cached() in instructions.cuh do.
//
// bfloat16 has the range of a 32-bit float and 8 bits of precision in place of
// 11, so storing has an error of 2^-8 in place of 2^-11. A float that is split
// in two of them keeps 2^-17 of itself, two halves keep 2^-22 (lib/mma.cuh).
// The alternative that lost: three parts, which are exact, but do not fit into
// the tiles of decode steps and are finer than what is stored.
#pragma once

#include "half.cuh"
#include "instructions.cuh"
#include "mma.cuh"

#ifdef SKV_CACHE_BFLOAT16

#include <cuda_bf16.h>

constexpr bool kCachesHalves = false;

__device__ inline float2 cached_floats(uint32_t pair) {
  return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162 *>(&pair));
}

__device__ inline float to_float(skv_cached x) {
  return __bfloat162float(__ushort_as_bfloat16(x.bits));
}

__device__ inline skv_cached to_cached(float x) {
  return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
}

__device__ inline uint32_t cached_pair(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t *>(&pair);
}

#else

constexpr bool kCachesHalves = true;

__device__ inline float2 cached_floats(uint32_t pair) {
  return to_floats(pair);
}

__device__ inline float to_float(skv_cached x) { return to_float(x.bits); }

__device__ inline skv_cached to_cached(float x) { return {to_half(x)}; }

__device__ inline uint32_t cached_pair(float low, float high) {
  return to_halves(low, high);
}

#endif

// The smallest number that rounding to what caches hold takes to infinity.
constexpr float kCacheOverflow = kCachesHalves ? kHalfOverflow : 0x1.ffp127f;

// Two numbers, each in two parts that can be multiplied with what caches hold.
__device__ inline SplitPair split_cached(float x, float y) {
  const uint32_t high = cached_pair(x, y);
  const float2 rounded = cached_floats(high);
  return {high, cached_pair(x - rounded.x, y - rounded.y)};
}

// The same, with the two parts of a number next to each other: the high part is
// the first of the pair.
struct PartPairs {
  uint32_t x;
  uint32_t y;
};

__device__ inline PartPairs parts_of(float x, float y) {
  const float2 rounded = cached_floats(cached_pair(x, y));
  return {cached_pair(x, x - rounded.x), cached_pair(y, y - rounded.y)};
}
`,
  "lib/cheapest_pairs.cuh": `// The cheapest candidate to merge with for each of 16 queries, while products
// of keys and of values with tiles of candidates go by. Lanes have the products
// that mma() deals them: four lanes share a query, whose rows are \`h\`.
//
// A cost has an exponential and a logarithm, but most pairs are not near the
// cheapest so far. For a query \`a\` the cost of a candidate \`b\` is, but for a
// factor that all candidates share, D / (1 + exp(wₐ − w_b)); so who costs less
// than the limit c has D < c + c exp(wₐ − r) · exp(r − w_b), for any r. That is
// one more multiplication per pair. Only those that pass, with some room for
// rounding, are priced. The alternative that lost: each pair is priced, which
// takes six times as long as all products.
#pragma once

#include "neighbour.cuh"
#include "pair_costs.cuh"

// What is known of a tile of candidates beside their keys and values.
template <uint32_t CANDIDATES>
struct PairSide {
  // What the squares of keys and then of values count, of two candidates next
  // to each other; infinity where there is none.
  float4 squares[CANDIDATES / 2];
  // exp(r − w), of the same two.
  float2 factors[CANDIDATES / 2];
  float weights[CANDIDATES];
  uint32_t positions[CANDIDATES];
  // kNoItem where there is none.
  uint32_t items[CANDIDATES];

  // Sets what candidate \`c\` is.
  __device__ void set(uint32_t c, float reference, float weight,
                      uint32_t position, uint32_t item) {
    reinterpret_cast<float *>(factors)[c] = weight_ratio(reference - weight);
    weights[c] = weight;
    positions[c] = position;
    items[c] = item;
  }
  // Sets its squares, after that.
  __device__ void set_key_square(uint32_t c, const PairCosts &costs, float x) {
    reinterpret_cast<float *>(squares + c / 2)[c % 2] =
        items[c] != kNoItem ? costs.keys * x : INFINITY;
  }
  __device__ void set_value_square(uint32_t c, const PairCosts &costs,
                                   float x) {
    reinterpret_cast<float *>(squares + c / 2)[2 + c % 2] = costs.values * x;
  }

  // exp(x), or somewhat more where that were next to nothing: limits are then
  // wider than they need be.
  __device__ static float weight_ratio(float x) {
    constexpr float kLeast = -80.0f;
    return expf(fmaxf(x, kLeast));
  }
};

// A query; \`exists\` or it finds nothing.
struct PairQuery {
  bool exists;
  float weight;
  uint32_t position;
  float squares[2];
};

template <uint32_t CANDIDATES>
class CheapestPairs {
 public:
  using Side = PairSide<CANDIDATES>;
  using Products = float[CANDIDATES / 8][4];

  // \`reference\` is r.
  __device__ void begin(const PairCosts &costs, float reference,
                        const PairQuery (&queries)[2]) {
    key_scale_ = -2.0f * costs.keys;
    value_scale_ = -2.0f * costs.values;
    least_value_ = costs.is_product ? 1.0f : 0.0f;
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const PairQuery &query = queries[h];
      weights_[h] = query.weight;
      positions_[h] = query.position;
      keys_[h] = costs.keys * query.squares[0];
      values_[h] = costs.values * query.squares[1] + least_value_;
      factors_[h] = Side::weight_ratio(query.weight - reference);
      set_limit(h, query.exists ? INFINITY : -INFINITY);
      best_[h] = kNoNeighbour;
    }
  }

  // Adds a tile. Where it \`is_mixed\`, only candidates count that are heavier
  // than the query.
  __device__ void add(const Products &keys, const Products &values,
                      const Side &side, bool is_mixed) {
#pragma unroll
    for (int part = 0; part < kParts; part++) {
      bool is_near[2];
      if (least_value_ > 0.0f) {
        look<true>(part, keys, values, side, is_near);
      } else {
        look<false>(part, keys, values, side, is_near);
      }
#pragma unroll
      for (int h = 0; h < 2; h++) {
        if (!__any_sync(kAllLanes, is_near[h])) continue;
        price(h, part, keys, values, side, is_mixed);
        // All four lanes have the limit of the best.
        float limit = limits_[h];
        limit = fminf(limit, __shfl_xor_sync(kAllLanes, limit, 1));
        set_limit(h, fminf(limit, __shfl_xor_sync(kAllLanes, limit, 2)));
      }
    }
  }

  // The best of row \`h\`, by the negative of the cost.
  __device__ Neighbour best(int h) const {
    return nearest_of_lanes<2>(best_[h]);
  }

 private:
  // Candidates are looked at in parts: those that are priced are few.
  static constexpr int kPartTiles = 4;
  static constexpr int kParts = CANDIDATES / 8 / kPartTiles;
  // A limit is this much more than the cost that it stands for.
  static constexpr float kRoom = 1.0001f;

  __device__ void set_limit(int h, float limit) {
    limits_[h] = limit;
    scaled_limits_[h] = limit * factors_[h];
  }

  // What the squared distances of a pair count. Rounding may take either below
  // what it is at least, and their distance with it.
  template <bool PRODUCT>
  __device__ float distance(float keys, float values, int h, float key_square,
                            float value_square) const {
    const float k = fmaf(key_scale_, keys, keys_[h] + key_square);
    const float v = fmaf(value_scale_, values, values_[h] + value_square);
    return PRODUCT ? k * v : k + v;
  }

  // Whether any pair of a part may be better than the best so far.
  template <bool PRODUCT>
  __device__ void look(int part, const Products &keys, const Products &values,
                       const Side &side, bool (&is_near)[2]) const {
    const uint32_t t = lane_id() % 4;
    is_near[0] = is_near[1] = false;
#pragma unroll
    for (int n = kPartTiles * part; n < kPartTiles * (part + 1); n++) {
      const float4 squares = side.squares[4 * n + t];
      const float2 factors = side.factors[4 * n + t];
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int h = i / 2;
        const float d = distance<PRODUCT>(keys[n][i], values[n][i], h,
                                          i % 2 == 0 ? squares.x : squares.y,
                                          i % 2 == 0 ? squares.z : squares.w);
        const float factor = i % 2 == 0 ? factors.x : factors.y;
        // What is no number is not known to be worse.
        is_near[h] |= !(d > fmaf(scaled_limits_[h], factor, limits_[h]));
      }
    }
  }

  // Prices the pairs of a part that may be better, the least distances first,
  // which leave few others.
  __device__ void price(int h, int part, const Products &keys,
                        const Products &values, const Side &side,
                        bool is_mixed) {
    constexpr int kPairs = 2 * kPartTiles;
    const uint32_t t = lane_id() % 4;
    const auto place = [&](uint32_t k) {
      return 8 * (kPartTiles * part + k / 2) + 2 * t + k % 2;
    };
    uint32_t left = (1u << kPairs) - 1;
    for (int k = 0; is_mixed && k < kPairs; k++) {
      if (!is_heavier(side, place(k), h)) left &= ~(1u << k);
    }
    while (true) {
      float least = INFINITY;
      uint32_t found = kPairs;
#pragma unroll
      for (int k = 0; k < kPairs; k++) {
        const int n = kPartTiles * part + k / 2;
        const float4 squares = side.squares[4 * n + t];
        const float2 factors = side.factors[4 * n + t];
        const float x = fmaf(key_scale_, keys[n][2 * h + k % 2],
                             keys_[h] + (k % 2 == 0 ? squares.x : squares.y));
        const float y = fmaf(value_scale_, values[n][2 * h + k % 2],
                             values_[h] + (k % 2 == 0 ? squares.z : squares.w));
        const float d = whole_distance(x, y);
        const float factor = k % 2 == 0 ? factors.x : factors.y;
        const bool is_worse = d > fmaf(scaled_limits_[h], factor, limits_[h]);
        const bool is_found = !is_worse & (left >> k & 1) != 0 & d < least;
        least = is_found ? d : least;
        found = is_found ? k : found;
      }
      if (found == kPairs) return;
      left &= ~(1u << found);
      add(h, least, side, place(found));
    }
  }

  // The distance that parts make which rounding may have taken too low.
  __device__ float whole_distance(float key, float value) const {
    key = fmaxf(key, 0.0f);
    value = fmaxf(value, least_value_);
    return fmaxf(least_value_ > 0.0f ? key * value : key + value,
                 kLeastDistance);
  }

  // Whether candidate \`c\` is heavier than query \`h\`; none is than itself.
  __device__ bool is_heavier(const Side &side, uint32_t c, int h) const {
    const float weight = side.weights[c];
    return weight > weights_[h] ||
           (weight == weights_[h] && side.positions[c] < positions_[h]);
  }

  // Adds candidate \`c\`, which is this far away.
  __device__ void add(int h, float distance, const Side &side, uint32_t c) {
    const float weight = side.weights[c];
    const Neighbour candidate = {
        -PairCosts::cost(weights_[h], weight, distance), side.positions[c],
        side.items[c]};
    if (!candidate.beats(best_[h])) return;
    best_[h] = candidate;
    const float limit = kRoom * distance / (1.0f + expf(weights_[h] - weight));
    // That of the four lanes may be lower.
    set_limit(h, fminf(limits_[h], limit));
  }

  float key_scale_, value_scale_;
  // What the distance of values counts where there is none.
  float least_value_;
  // Of the queries: what squares count, and exp(w − r).
  float keys_[2], values_[2];
  float weights_[2], factors_[2];
  uint32_t positions_[2];
  // c and c exp(w − r).
  float limits_[2], scaled_limits_[2];
  // The best that this lane has found.
  Neighbour best_[2];
};
`,
  "lib/choose_victims.cuh": `// Who goes when a chunk is compressed, and who may take them.
#pragma once

#include "merge_pairs.cuh"
#include "merge_runs.cuh"
#include "ratings.cuh"
#include "search_items.cuh"
#include "select_smallest.cuh"

// Where values count, takes those out of \`keys\` that stay by their scores
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
static __global__ void __launch_bounds__(kCompressThreads)
    choose_kernel(skv_chunk_args args, CompressWork all_work) {
  __shared__ SelectScratch scratch;
  begin_kernel();
  if (row_end(args.step) == 0) return;
  const ChunkHead head = chunk_head(args, blockIdx.x);
  const HeadWork work = all_work.head(blockIdx.x);
  add_divergences(head, work, work.counters[kMatched], scratch);
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
          if ((work.marks[i] & (kGone | kVictim)) != 0) return false;
          const uint32_t item = work.items[i];
          return merges_cheapest(args.policy)
                     ? item_is_evictable(args, head, item)
                     : item_slot(args, head, item).word(kSlotPosition) >=
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
`,
  "lib/chunk_share.cuh": `// What a block of the attention of a chunk works on: some rows for the query
// heads of a KV head, and tiles of the slots that these see.
#pragma once

#include "prefill_form.cuh"
#include "step.cuh"

// Where a tile of slots of the cache, or of staged rows, is.
struct TilePlace {
  const skv_slots &home;
  bool is_staged;
  // Of its first slot in \`home\`.
  uint32_t base;
  // Number of the first slot, and how many there are.
  uint32_t first;
  uint32_t count;
};

// Tiles are SLOTS slots. Blocks of late rows have more to do and come first.
template <uint32_t SLOTS>
struct ChunkShare {
  const skv_cache &cache;
  uint32_t kv_head;
  uint32_t group;
  // None where the chunk has no more.
  uint32_t first_row;
  uint32_t rows;
  uint32_t offset;
  uint32_t high;
  uint32_t budget;
  uint32_t slot_tiles;
  // Tiles of slots, then tiles of staged rows up to the block's last one.
  uint32_t tiles;

  // For blocks of \`pairs\` (row, query head) pairs.
  __device__ ChunkShare(const skv_chunk_args &args, uint32_t pairs)
      : cache(args.cache) {
    const skv_sizes &sizes = args.sizes;
    kv_head = blockIdx.x;
    group = sizes.heads / sizes.kv_heads;
    const uint32_t most_rows = pairs / group;
    first_row = (gridDim.y - 1 - blockIdx.y) * most_rows;
    const uint32_t end_row = forward_end(args.step);
    rows = first_row < end_row ? min(most_rows, end_row - first_row) : 0;
    const uint32_t *words =
        head_words(cache, sizes, args.step.chunk[kChunkSequence], kv_head);
    offset = words[kHeadOffset];
    high = words[kHeadHigh];
    budget = words[kHeadBudget];
    slot_tiles = (high + SLOTS - 1) / SLOTS;
    tiles = slot_tiles + (first_row + rows + SLOTS - 1) / SLOTS;
  }

  __device__ TilePlace place(uint32_t tile) const {
    const bool staged = tile >= slot_tiles;
    const uint32_t first = (staged ? tile - slot_tiles : tile) * SLOTS;
    const uint32_t end = staged ? first_row + rows : high;
    const uint32_t base = staged ? kv_head * cache.stage_rows : offset;
    return {staged ? cache.stage : cache.slots, staged, base + first, first,
            min(end - first, SLOTS)};
  }

  // Whether some of the block's rows come before some slots of a tile.
  __device__ bool has_later(const TilePlace &place) const {
    return place.is_staged && place.first + SLOTS > first_row + 1;
  }

  __device__ PairQueries queries(const float *all,
                                 const skv_sizes &sizes) const {
    return {all,   first_row,      kv_head,     sizes.heads,
            group, sizes.head_dim, rows * group};
  }
};
`,
  "lib/closest_keys.cuh": `// The most similar candidate of each of 16 queries, while products with tiles
// of candidates go by. Lanes have the products that mma() deals them: four
// lanes share a query, whose rows are \`h\`.
//
// Products are scaled by the candidate's inverse norm alone, as the query's is
// the same for all, and only the largest of a tile is compared with the best so
// far, of all four lanes. The warp asks which candidate it was in the few tiles
// that have a better one. The alternative that lost: each lane compares with
// its own best, which takes four times as long to settle.
#pragma once

#include "neighbour.cuh"

// What is known of a tile of candidates beside their keys.
template <uint32_t CANDIDATES>
struct CandidateSide {
  // Null where there is none.
  const skv_cached *keys[CANDIDATES];
  // 1 / |key|, or not a number where there is none: no maximum is one.
  float inverse_norms[CANDIDATES];
  uint32_t positions[CANDIDATES];
  uint32_t ordinals[CANDIDATES];
};

__device__ inline float not_a_number() { return __uint_as_float(0x7fc00000); }

template <uint32_t CANDIDATES>
class ClosestKeys {
 public:
  using Side = CandidateSide<CANDIDATES>;
  using Products = float[CANDIDATES / 8][4];

  // Rows that have no query find nothing.
  __device__ void begin(bool has_first, bool has_second) {
    limits_[0] = has_first ? -INFINITY : INFINITY;
    limits_[1] = has_second ? -INFINITY : INFINITY;
    items_[0] = items_[1] = kNoItem;
  }

  // Takes the products of the warp's queries, the first of which is candidate
  // \`query\`, with themselves out of a tile whose first candidate is \`first\`.
  __device__ static void leave_out(Products &x, uint32_t query,
                                   uint32_t first) {
    if (query >= first + CANDIDATES || first >= query + 16) return;
    const uint32_t own = query - first + lane_id() / 4, t = lane_id() % 4;
#pragma unroll
    for (uint32_t n = 0; n < CANDIDATES / 8; n++) {
#pragma unroll
      for (uint32_t i = 0; i < 4; i++) {
        if (8 * n + 2 * t + i % 2 == own + i / 2 * 8) x[n][i] = not_a_number();
      }
    }
  }

  // Adds a tile. \`lists.position(item)\` is the position of a candidate.
  template <class Lists>
  __device__ void add(const Products &x, const Side &side, const Lists &lists) {
    const uint32_t t = lane_id() % 4;
    float largest[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (uint32_t n = 0; n < CANDIDATES / 8; n++) {
      const float2 inverse =
          *reinterpret_cast<const float2 *>(side.inverse_norms + 8 * n + 2 * t);
#pragma unroll
      for (int h = 0; h < 2; h++) {
        largest[h] = fmaxf(largest[h], x[n][2 * h] * inverse.x);
        largest[h] = fmaxf(largest[h], x[n][2 * h + 1] * inverse.y);
      }
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
      if (!__any_sync(kAllLanes, largest[h] >= limits_[h])) continue;
      // Scaled products are made again: keeping them takes too many registers.
      __syncwarp();
      if (largest[h] >= limits_[h]) {
        find(h, x, side, largest[h], lists);
      }
      const float best = quad_max(fmaxf(largest[h], limits_[h]));
      // Who is beaten forgets.
      if (best > limits_[h] && largest[h] < best) items_[h] = kNoItem;
      limits_[h] = best;
    }
  }

  // The best of row \`h\`; \`lists.inverse_norm(item)\` is 1 / |key|, and the
  // query's is \`inverse\`. The product of the two norms comes first: the
  // similarity of two keys is the same whichever of them is the query.
  template <class Lists>
  __device__ Neighbour nearest(int h, float inverse, const Lists &lists) const {
    Neighbour own = {-INFINITY, 0, items_[h]};
    if (own.exists()) {
      own.similarity = products_[h] * (inverse * lists.inverse_norm(own.item));
      own.position = lists.position(own.item);
    }
    return nearest_of_lanes<2>(own);
  }

 private:
  __device__ static float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, 1));
    return fmaxf(x, __shfl_xor_sync(kAllLanes, x, 2));
  }

  // Finds which candidate of row \`h\` it was, of those of this lane. Ties go to
  // the lower position, whatever order candidates come in.
  template <class Lists>
  __device__ void find(int h, const Products &x, const Side &side,
                       float largest, const Lists &lists) {
    const uint32_t t = lane_id() % 4;
    const bool is_tied = largest == limits_[h] && items_[h] != kNoItem;
    uint32_t position = is_tied ? lists.position(items_[h]) : kNoItem;
    uint32_t found = CANDIDATES;
#pragma unroll
    for (uint32_t n = 0; n < CANDIDATES / 8; n++) {
#pragma unroll
      for (uint32_t i = 0; i < 2; i++) {
        const uint32_t c = 8 * n + 2 * t + i;
        const float product = x[n][2 * h + i];
        if (product * side.inverse_norms[c] != largest) continue;
        if (side.positions[c] >= position) continue;
        position = side.positions[c];
        products_[h] = product;
        found = c;
      }
    }
    if (found < CANDIDATES) items_[h] = side.ordinals[found];
  }

  // The largest scaled product of a row; lanes that have an item have one that
  // is as large.
  float limits_[2];
  // Of what this lane has found.
  float products_[2];
  uint32_t items_[2];
};
`,
  "lib/compress_work.cuh": `// What the kernels of compress hand to each other: lists of the slots and
// staged rows of each KV head, here called items.
#pragma once

#include "../runtime/launch.cuh"
#include "expected_attention.cuh"
#include "scores.cuh"
#include "slots.cuh"
#include "step.cuh"
#include "value_spread.cuh"

// Threads of the blocks that work on a whole head.
constexpr uint32_t kCompressThreads = 512;
constexpr uint32_t kCompressWarps = kCompressThreads / 32;

// Whether pairs merge that cost least.
__host__ __device__ inline bool merges_cheapest(const skv_policy &policy) {
  return policy.merge == SKV_MERGE_PAIR;
}

// Set in an item that is a row of the stage; the rest is its row.
constexpr uint32_t kStaged = 0x80000000u;

// Marks of items.
constexpr uint32_t kTaken = 1;     // is an end of a pair already
constexpr uint32_t kAccepted = 2;  // proposed a pair that is merged
constexpr uint32_t kGone = 4;      // was merged into another
constexpr uint32_t kVictim = 8;    // has to go

enum Counter {
  kItems = 0,
  kQueries = 1,
  kCandidates = 2,
  kMembers = 3,
  // Items that were merged away by now.
  kPairs = 4,
  // How far the values of the head scatter before anything is merged; a float.
  kSpread = 5,
  // Staged rows that go into free slots: of the ordinals in \`queries\`, into the
  // slots in \`candidates\`.
  kMoved = 6,
  // Pairs of the round, listed by who proposed them in \`queries\`.
  kMatched = 7,
  // Tiles of a search of pairs.
  kPairTiles = 8,
  kCounters = 9
};

// An item as those that price pairs see it, in the order in which they go
// through items.
struct alignas(16) PlacedItem {
  uint32_t item;
  uint32_t ordinal;
  uint32_t position;
  // ln of what it weighs in a merge.
  float weight;
  // Of its key and of its value.
  float squares[2];
  // Places of those that are about as heavy: all before are heavier, all behind
  // lighter.
  uint32_t first;
  uint32_t end;
};

// Queries of a tile of lib/group_pairs.cuh, and candidates.
constexpr uint32_t kPairTileItems = 128;

// Lists of one KV head, \`most\` long each.
struct HeadWork {
  // Index of a slot in its head, or kStaged and a row.
  uint32_t *items;
  uint32_t *marks;
  // Where they are not those of the slots themselves: see lib/ratings.cuh.
  float *scores;
  // 1 / |key|, or 0 for a zero key.
  float *inverse_norms;
  // What items are sorted by, and the best key that touches an item. While
  // pairs are matched, those of proposals.
  uint64_t *keys;
  uint64_t *best;
  // The item that an item is to be merged into.
  uint32_t *mates;
  // Items whose nearest candidate is looked for, and the candidates.
  uint32_t *queries;
  uint32_t *candidates;
  float *divergences;
  // (parts, most): by query
  float *similarities;
  uint32_t *nearest;
  // Where queries are expected.
  Expectation expected;
  // Where the cheapest pairs are merged: see lib/value_spread.cuh.
  float *spreads;
  // There too: the weight, the squares of key and value and the position of
  // each item; queries and candidates by place, candidates behind queries where
  // they are others; and for each tile of queries how many tiles of candidates
  // those before it have.
  float4 *measures;
  PlacedItem *placed;
  uint32_t *row_starts;
  // (kCounters)
  uint32_t *counters;
};

struct CompressWork {
  char *memory;
  size_t head_bytes;
  uint32_t most;
  // Parts that candidates are searched in.
  uint32_t parts;
  // Query heads of a group whose queries are expected.
  uint32_t expected_heads;
  // Floats by which the scatter of the values of a head is found.
  uint32_t spread_words;
  // Items whose pairs may be priced.
  uint32_t most_priced;

  // Bytes of one head's lists.
  size_t bytes() const {
    const size_t states = expected_heads == 0 ? 0 : expect_parts(most);
    return aligned(static_cast<size_t>(most) * 4) *
               (7 + 2 * parts + expected_heads) +
           aligned(static_cast<size_t>(most) * 8) * 2 +
           aligned(states * kMaxGroup * sizeof(float2)) +
           aligned(static_cast<size_t>(spread_words) * 4) +
           aligned(static_cast<size_t>(most_priced) * sizeof(float4)) +
           aligned(static_cast<size_t>(most_priced) * sizeof(PlacedItem)) +
           aligned(row_words() * 4) + aligned(kCounters * 4);
  }

  __host__ __device__ size_t row_words() const {
    return most_priced / kPairTileItems + 2;
  }

  __host__ __device__ static size_t aligned(size_t bytes) {
    return (bytes + 255) / 256 * 256;
  }

  __device__ HeadWork head(uint32_t kv_head) const {
    char *at = memory + kv_head * head_bytes;
    const auto take = [&](size_t bytes) {
      char *const taken = at;
      at += aligned(bytes);
      return taken;
    };
    const size_t words = static_cast<size_t>(most) * 4;
    HeadWork work;
    work.items = reinterpret_cast<uint32_t *>(take(words));
    work.marks = reinterpret_cast<uint32_t *>(take(words));
    work.scores = reinterpret_cast<float *>(take(words));
    work.inverse_norms = reinterpret_cast<float *>(take(words));
    work.mates = reinterpret_cast<uint32_t *>(take(words));
    work.queries = reinterpret_cast<uint32_t *>(take(words));
    work.candidates = reinterpret_cast<uint32_t *>(take(words));
    work.keys = reinterpret_cast<uint64_t *>(take(2 * words));
    work.best = reinterpret_cast<uint64_t *>(take(2 * words));
    work.counters = reinterpret_cast<uint32_t *>(take(kCounters * 4));
    // A head's divergences share the memory of \`best\`, which is free by then.
    work.divergences = reinterpret_cast<float *>(work.best);
    work.similarities = reinterpret_cast<float *>(take(parts * aligned(words)));
    work.nearest = reinterpret_cast<uint32_t *>(take(parts * aligned(words)));
    work.expected.pitch = part_pitch();
    work.expected.logits =
        reinterpret_cast<float *>(take(expected_heads * aligned(words)));
    work.spreads =
        reinterpret_cast<float *>(take(static_cast<size_t>(spread_words) * 4));
    const size_t priced = most_priced;
    work.measures = reinterpret_cast<float4 *>(take(priced * sizeof(float4)));
    work.placed =
        reinterpret_cast<PlacedItem *>(take(priced * sizeof(PlacedItem)));
    work.row_starts = reinterpret_cast<uint32_t *>(take(row_words() * 4));
    work.expected.states = reinterpret_cast<float2 *>(at);
    return work;
  }

  // Words from one part of \`similarities\` and \`nearest\` to the next.
  __device__ uint32_t part_pitch() const {
    return static_cast<uint32_t>(aligned(static_cast<size_t>(most) * 4) / 4);
  }
};

// One KV head of the chunk's sequence.
struct ChunkHead {
  uint32_t kv_head;
  uint32_t rows;
  // Position of the newest token.
  uint32_t newest;
  uint32_t *words;
};

__device__ inline ChunkHead chunk_head(const skv_chunk_args &args,
                                       uint32_t kv_head) {
  const uint32_t rows = row_end(args.step);
  const uint32_t sequence = args.step.chunk[kChunkSequence];
  return {kv_head, rows, args.step.chunk[kChunkPosition] + rows - 1,
          head_words(args.cache, args.sizes, sequence, kv_head)};
}

__device__ inline Slot item_slot(const skv_chunk_args &args,
                                 const ChunkHead &head, uint32_t item) {
  const skv_cache &cache = args.cache;
  const bool staged = (item & kStaged) != 0;
  const uint32_t index =
      staged ? head.kv_head * cache.stage_rows + (item & ~kStaged)
             : head.words[kHeadOffset] + item;
  return slot_at(staged ? cache.stage : cache.slots, index,
                 args.sizes.head_dim);
}

__device__ inline bool item_is_evictable(const skv_chunk_args &args,
                                         const ChunkHead &head, uint32_t item) {
  return is_evictable(item_slot(args, head, item).word(kSlotPosition),
                      args.policy, head.words[kHeadRecent], head.newest);
}

// Adds up what the merges of a head cost. Called by the whole block.
__device__ inline void add_divergences(const ChunkHead &head,
                                       const HeadWork &work, uint32_t victims,
                                       SelectScratch &scratch) {
  float divergence = 0.0f;
  for (uint32_t v = threadIdx.x; v < victims; v += kCompressThreads) {
    divergence += work.divergences[v];
  }
  divergence = block_sum(divergence, scratch);
  if (threadIdx.x == 0) {
    head.words[kHeadDivergence] = __float_as_uint(
        __uint_as_float(head.words[kHeadDivergence]) + divergence);
  }
}
`,
  "lib/count_ranks.cuh": `// The second look: ids and weights by coarse ranks, which leave a narrow range
// for the thresholds of top-k and top-p.
#pragma once

#include "find_rank.cuh"

struct CountShared {
  uint32_t counts[kBuckets];
  Histogram<kBuckets> weights;
  uint64_t sums[kSampleWarps];
  // Where thresholds lie, and the sums before them.
  uint32_t top_k;
  uint32_t low, high;
  uint64_t least, most;
  bool is_last;
};

// Buckets of a thread when all are gone through.
constexpr uint32_t kOwnBuckets = kBuckets / kSampleThreads;

// Narrows the thresholds down. Called by the whole block.
__device__ inline void narrow(const SampleRow &row, const SampleWork &work,
                              SamplePlan *plan, CountShared &shared) {
  const size_t first =
      static_cast<size_t>(blockIdx.y) * kBuckets + threadIdx.x * kOwnBuckets;
  uint64_t counts[kOwnBuckets], weights[kOwnBuckets];
  uint64_t count = 0, weight = 0, all_counts, all_weights;
#pragma unroll
  for (uint32_t i = 0; i < kOwnBuckets; i++) {
    counts[i] = __ldcg(work.counts + first + i);
    weights[i] = __ldcg(work.weights + first + i);
    count += counts[i];
    weight += weights[i];
  }
  count = sum_before(count, all_counts, shared.sums);
  weight = sum_before(weight, all_weights, shared.sums);
  // Calls \`use(bucket, count, weight)\` for the buckets in which a sum reaches
  // \`wanted\`, with the sums before.
  const auto find = [&](const uint64_t(&own)[kOwnBuckets], uint64_t before,
                        uint64_t wanted, auto use) {
    uint64_t c = count, w = weight;
#pragma unroll
    for (uint32_t i = 0; i < kOwnBuckets; i++) {
      if (before < wanted && wanted <= before + own[i]) {
        use(threadIdx.x * kOwnBuckets + i, c, w, weights[i]);
      }
      before += own[i];
      c += counts[i];
      w += weights[i];
    }
  };
  if (threadIdx.x == 0) {
    shared.top_k = kBuckets - 1;
    shared.least = shared.most = all_weights;
  }
  __syncthreads();
  if (row.has_top_k()) {
    find(counts, count, row.options[kTopK],
         [&](uint32_t bucket, uint64_t, uint64_t before, uint64_t own) {
           shared.top_k = bucket;
           shared.least = before;
           shared.most = before + own;
         });
    __syncthreads();
  }
  if (threadIdx.x == 0) shared.low = shared.high = shared.top_k;
  __syncthreads();
  if (row.has_top_p()) {
    find(weights, weight, wanted_of(row, shared.least),
         [&](uint32_t bucket, uint64_t, uint64_t, uint64_t) {
           shared.low = min(bucket, shared.top_k);
         });
    if (!row.has_top_k()) {
      __syncthreads();
      if (threadIdx.x == 0) shared.high = shared.low;
    }
    __syncthreads();
  }
  const uint32_t low = shared.low;
  const uint32_t least_rank = row.least_rank();
  // What is too unlikely beside the likeliest may be all that counts.
  if (least_rank < first_of_bucket(low)) return;
  if (threadIdx.x != low / kOwnBuckets) return;
  for (uint32_t i = 0; i < low % kOwnBuckets; i++) {
    count += counts[i];
    weight += weights[i];
  }
  plan->begin = first_of_bucket(low);
  plan->end = first_of_bucket(shared.high + 1);
  plan->count_before = static_cast<uint32_t>(count);
  plan->weight_before = weight;
  plan->weight = all_weights;
}

// Counts ids and their weights by coarse ranks.
__global__ void __launch_bounds__(kSampleThreads)
    count_kernel(skv_sample_args args, SampleWork work) {
  __shared__ CountShared shared;
  begin_kernel();
  SamplePlan *plan = work.plans + blockIdx.y;
  if (plan->draws == 0 || plan->filters == 0) return;
  const SampleRow row(args);
  const ScaledLogits scaled = {row, plan->max, row.option(kTemperature)};
  shared.weights.clear();
  for (uint32_t i = threadIdx.x; i < kBuckets; i += kSampleThreads) {
    shared.counts[i] = 0;
  }
  __syncthreads();
  const bool weighs = row.has_top_p();
  for_each_id(row, work, [&](uint32_t id) {
    const float l = scaled(id);
    const uint32_t bucket = rank_of(l) >> kBucketShift;
    atomicAdd(shared.counts + bucket, 1);
    if (weighs) shared.weights.add(bucket, weight_of(l));
  });
  __syncthreads();
  const size_t first = static_cast<size_t>(blockIdx.y) * kBuckets;
  for (uint32_t i = threadIdx.x; i < kBuckets; i += kSampleThreads) {
    if (shared.counts[i] == 0) continue;
    atomicAdd(work.counts + first + i, shared.counts[i]);
    if (!weighs) continue;
    atomicAdd(reinterpret_cast<unsigned long long *>(work.weights + first + i),
              static_cast<unsigned long long>(shared.weights.get(i)));
  }
  if (!is_left_alone(work, shared.is_last)) return;
  narrow(row, work, plan, shared);
}
`,
  "lib/draw_id.cuh": `// The third look: the ids of the range in which thresholds lie, the thresholds
// among them, and the id that the draw falls on.
#pragma once

#include "find_rank.cuh"

struct DrawShared {
  RankScratch ranks;
  BlockScratch prefix;
  unsigned long long slices[kMostBlocks];
  uint32_t first_listed;
  uint32_t slice;
  uint64_t left;
  bool is_last;
};

// The last rank that takes part. Called by the whole block; \`for_each(use)\`
// calls \`use(rank, weight)\` for this thread's share of the listed ids.
template <class ForEach>
__device__ inline uint32_t last_rank(const SampleRow &row,
                                     const SamplePlan &plan,
                                     RankScratch &shared, ForEach for_each) {
  if (plan.begin == plan.end) return static_cast<uint32_t>(plan.begin - 1);
  // Highest bits that all listed ranks share.
  const uint32_t low = static_cast<uint32_t>(plan.begin);
  const uint32_t high = static_cast<uint32_t>(plan.end - 1);
  const uint32_t mask = (low ^ high) >> 24 == 0 ? 0xff000000u : 0;
  uint32_t last = 0xffffffffu;
  if (row.has_top_k()) {
    last = find_rank(row.options[kTopK] - plan.count_before, low & mask, mask,
                     shared, [&](auto use) {
                       for_each([&](uint32_t rank, uint64_t) { use(rank, 1); });
                     });
  }
  if (row.has_top_p()) {
    uint64_t mass = plan.weight;
    if (row.has_top_k()) {
      uint64_t mine = 0, listed;
      for_each([&](uint32_t rank, uint64_t weight) {
        if (rank <= last) mine += weight;
      });
      sum_before(mine, listed, shared.sums);
      mass = plan.weight_before + listed;
    }
    const uint64_t wanted = wanted_of(row, mass);
    last = find_rank(wanted - plan.weight_before, low & mask, mask, shared,
                     [&](auto use) {
                       for_each([&](uint32_t rank, uint64_t weight) {
                         if (rank <= last) use(rank, weight);
                       });
                     });
  }
  return min(last, row.least_rank());
}

// Draws. Called by the last block of a row.
__device__ inline void draw(const skv_sample_args &args, const SampleRow &row,
                            const ScaledLogits &scaled, const SampleWork &work,
                            const SamplePlan &plan, DrawShared &shared) {
  const uint32_t *list =
      work.list + static_cast<size_t>(blockIdx.y) * kMostListed;
  const uint32_t listed = __ldcg(work.listed + blockIdx.y);
  const bool fits = listed <= kMostListed;
  const uint32_t count = fits ? listed : row.vocabulary;
  const auto for_each_listed = [&](auto use) {
    for (uint32_t i = threadIdx.x; i < count; i += kSampleThreads) {
      const uint32_t id = fits ? __ldcg(list + i) : i;
      const float l = scaled(id);
      const uint32_t rank = rank_of(l);
      if (rank < plan.begin || rank >= plan.end) continue;
      use(id, rank, weight_of(l));
    }
  };
  const uint32_t last = last_rank(row, plan, shared.ranks, [&](auto use) {
    for_each_listed(
        [&](uint32_t, uint32_t rank, uint64_t weight) { use(rank, weight); });
  });
  // Sums of the ids of each block, now that it is known who takes part.
  const size_t first = static_cast<size_t>(blockIdx.y) * work.blocks;
  if (threadIdx.x < kMostBlocks) {
    shared.slices[threadIdx.x] =
        threadIdx.x < work.blocks ? __ldcg(work.sums + first + threadIdx.x) : 0;
  }
  if (threadIdx.x == 0) {
    shared.slice = kMostBlocks;
    shared.ranks.chosen = plan.best;
  }
  __syncthreads();
  for_each_listed([&](uint32_t id, uint32_t rank, uint64_t weight) {
    if (rank > last) return;
    atomicAdd(shared.slices + id / work.slice,
              static_cast<unsigned long long>(weight));
  });
  __syncthreads();
  uint32_t *state = args.step.state + row.sequence * kStateWords;
  const Output output(args, row);
  uint64_t total;
  const uint64_t own = shared.slices[threadIdx.x];
  const uint64_t before = sum_before(own, total, shared.ranks.sums);
  const uint64_t left =
      __umul64hi(total << 8, static_cast<uint64_t>(random_bits(state)) << 32);
  if (left >= before && left < before + own) {
    shared.slice = threadIdx.x;
    shared.left = left - before;
  }
  __syncthreads();
  // Where none has a weight, because logits are not numbers, it is the best.
  uint32_t id = plan.best;
  if (shared.slice != kMostBlocks) {
    const uint32_t begin = shared.slice * work.slice;
    id = find_id(begin, min(row.vocabulary, begin + work.slice), shared.left,
                 shared.ranks, [&](uint32_t at) -> uint64_t {
                   const float l = scaled(at);
                   return rank_of(l) <= last ? weight_of(l) : 0;
                 });
  }
  if (threadIdx.x != 0) return;
  finish_row(args, row, output, id, row.raw[id] - plan.log_sum);
}

// Sums the ids that take part for certain, and lists those that may.
__global__ void __launch_bounds__(kSampleThreads)
    draw_kernel(skv_sample_args args, SampleWork work) {
  __shared__ DrawShared shared;
  begin_kernel();
  const SamplePlan plan = work.plans[blockIdx.y];
  if (plan.draws == 0) return;
  const SampleRow row(args);
  const ScaledLogits scaled = {row, plan.max, row.option(kTemperature)};
  uint64_t mine = 0, sum;
  uint32_t may = 0, listed;
  for_each_id(row, work, [&](uint32_t id) {
    const float l = scaled(id);
    const uint32_t rank = rank_of(l);
    if (rank < plan.begin) {
      mine += weight_of(l);
    } else if (rank < plan.end) {
      may++;
    }
  });
  sum_before(mine, sum, shared.ranks.sums);
  uint32_t at = block_prefix(may, listed, shared.prefix);
  if (listed > 0) {
    if (threadIdx.x == 0) {
      shared.first_listed = atomicAdd(work.listed + blockIdx.y, listed);
    }
    __syncthreads();
    at += shared.first_listed;
    uint32_t *list = work.list + static_cast<size_t>(blockIdx.y) * kMostListed;
    for_each_id(row, work, [&](uint32_t id) {
      const uint32_t rank = rank_of(scaled(id));
      if (rank < plan.begin || rank >= plan.end) return;
      if (at < kMostListed) list[at] = id;
      at++;
    });
  }
  if (threadIdx.x == 0) {
    work.sums[static_cast<size_t>(blockIdx.y) * work.blocks + blockIdx.x] = sum;
  }
  if (!is_left_alone(work, shared.is_last)) return;
  draw(args, row, scaled, work, plan, shared);
}
`,
  "lib/evict_job.cuh": `// One head of a decode step, as the kernels of the policy see it.
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
  // Whether a slot holds a token that may be evicted, \`ahead\` steps after this
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
`,
  "lib/evict_one.cuh": `// The policy's work on a head after a decode step: scores, and the slot that
// goes first. One block per head.
#pragma once

#include "evict_job.cuh"
#include "key_distance.cuh"
#include "neighbour.cuh"
#include "next_values.cuh"
#include "ridden.cuh"
#include "select_smallest.cuh"
#include "shortlist.cuh"
#include "slot_reader.cuh"

// Blocks are small: one merges while another reads.
constexpr uint32_t kEvictWarps = 8;
constexpr uint32_t kEvictThreads = 32 * kEvictWarps;

struct EvictShared {
  // The victim's key, zeros beyond its end.
  __align__(16) skv_cached key[kMaxHeadDim];
  float log_sums[kMaxGroup];
  // The same at the scale of scores.
  float score_sums[kMaxGroup];
  LowestShared<kEvictWarps> lowest;
  Neighbour neighbours[kEvictWarps];
  Ridden ridden;
  SelectScratch select;
  // What one policy has no two of.
  union {
    ListScratch list;
    Followers followers;
    Candidate lowest_of_warps[kEvictWarps][kWarpCandidates];
  };
};

// Bytes of shared memory beside that, which few policies need.
inline size_t evict_bytes(const skv_policy &policy) {
  return policy.score == SKV_SCORE_KEY_DISTANCE
             ? sizeof(KeyScratch<kEvictWarps>)
             : 0;
}

// Sums up the row's softmax at the scale of scores. The sum of the attention is
// at least its largest term, so nothing overflows. Called by the whole block.
__device__ inline void sum_gained(const skv_merge_attend_args &args,
                                  const EvictJob &job, float gain,
                                  EvictShared &shared) {
  const uint32_t lanes = args.cache.lanes;
#pragma unroll 1
  for (uint32_t g = 0; g < job.group; g++) {
    const float *logits =
        job.logits + static_cast<size_t>(g) * args.cache.max_capacity;
    const float log_sum = shared.log_sums[g];
    float sum = 0.0f;
#pragma unroll 1
    for (uint32_t i = threadIdx.x; i < job.high; i += kEvictThreads) {
      const Slot slot = job.slot(args, i);
      if (slot.word(kSlotTokens) == 0) continue;
      sum += expf(gain * (logits[i] + vote_bias(slot, g, lanes) - log_sum));
    }
    sum = block_sum(sum, shared.select);
    if (threadIdx.x == 0) shared.score_sums[g] = gain * log_sum + logf(sum);
  }
  __syncthreads();
}

// Whether a slot's own fields say which goes first.
__device__ inline bool own_fields_decide(const skv_merge_attend_args &args,
                                         const EvictJob &job) {
  return job.ratings == nullptr && !args.policy.count_values;
}

// What a thread finds among its slots: the one that goes first, and the lowest
// of those that may go in the next step, where anybody wants to know.
struct Found {
  Candidate first = kNoCandidate;
  Lowest next;
};

// Steps from this one to the last that is thought of: in the next one more slot
// is no longer recent.
template <bool RIDES>
constexpr uint32_t kAhead = RIDES ? 1 : 0;

// Looks at a slot that may go now or, where there are riders, in the next step.
template <bool RIDES>
__device__ inline void consider(const skv_merge_attend_args &args,
                                const EvictJob &job, const Slot &slot,
                                const Candidate &candidate, Found &found) {
  if constexpr (RIDES) found.next.add(candidate);
  if (candidate.key >= found.first.key) return;
  if (!RIDES || job.may_go(args, slot)) found.first = candidate;
}

// Adds this step to the scores of all slots, and passes \`visit\` each slot with
// its number and its scores. Where their own fields decide, returns what this
// thread found. A slot is on its way while the one before it is looked at: few
// blocks have room beside the products, and each waits for memory most of the
// time. Called by the whole block.
template <bool RIDES, class Visit>
__device__ inline Found observe_slots(const skv_merge_attend_args &args,
                                      const EvictJob &job, EvictShared &shared,
                                      Visit visit) {
  const skv_policy &policy = args.policy;
  const uint32_t lanes = args.cache.lanes;
  const float gain = score_gain(policy, job.position, job.words[kHeadBudget]);
  const bool gains = policy.observe && policy.score == SKV_SCORE_STEP_GAIN;
  if (gains) sum_gained(args, job, gain, shared);
  const float *log_sums = gains ? shared.score_sums : shared.log_sums;
  const bool ranks = job.is_over && own_fields_decide(args, job);
  const bool rates = job.own_ratings != nullptr && !takes_all_keys(policy);
  const uint32_t recent = job.words[kHeadRecent];
  const uint32_t newest = job.position + kAhead<RIDES>;
  const SlotReader reader(args, job);
  Found found;
  Seen next = {};
  if (threadIdx.x < job.high) next = reader.read(threadIdx.x, policy.observe);
#pragma unroll 1
  for (uint32_t i = threadIdx.x; i < job.high; i += kEvictThreads) {
    Seen seen = next;
    if (i + kEvictThreads < job.high) {
      next = reader.read(i + kEvictThreads, policy.observe);
    }
    if (seen.tokens == 0) continue;
    const Slot slot = job.slot(args, i);
    if (policy.observe) {
      observe_seen(args, job, i, gain, log_sums, seen);
      store_scores(slot, seen.scores);
    }
    visit(i, slot, seen.scores);
    const bool counts =
        ranks && is_evictable(seen.position, policy, recent, newest);
    if (!rates && !counts) continue;
    const float score = own_score(seen.scores, seen.position, policy, [&] {
      return lanes == 1 ? seen.bias : pooled_bias(slot, lanes);
    });
    if (rates) job.own_ratings[i] = score;
    if (!counts) continue;
    consider<RIDES>(args, job, slot, {order_key(score, seen.position), i},
                    found);
  }
  return found;
}

// What the policy's score says of slot \`i\`: where heads share their scores,
// their slots are the same tokens in the same order.
__device__ inline float slot_score(const skv_merge_attend_args &args,
                                   const EvictJob &job, const Slot &slot,
                                   uint32_t i) {
  if (job.ratings == nullptr) {
    return own_score(slot, args.policy, args.cache.lanes);
  }
  float sum = no_scores(args.policy);
#pragma unroll 1
  for (uint32_t h = 0; h < job.rating_heads; h++) {
    const size_t at = static_cast<size_t>(h) * args.cache.max_capacity + i;
    sum = add_score(sum, job.ratings[at], args.policy);
  }
  return mean_score(sum, job.rating_heads, args.policy);
}

// Rates the slots where that takes all keys. Called by the whole block.
__device__ inline void rate_slots(const skv_merge_attend_args &args,
                                  const EvictJob &job, EvictShared &shared) {
  const auto slot_of = [&](uint32_t i) { return job.slot(args, i); };
  if (args.policy.score == SKV_SCORE_KEY_DISTANCE) {
    rate_by_key(
        job.high, args.sizes.head_dim, job.own_ratings,
        *reinterpret_cast<KeyScratch<kEvictWarps> *>(dynamic_shared_memory()),
        slot_of);
  } else if (args.policy.score == SKV_SCORE_EXPECTED) {
    rate_by_expectation(
        job.group, job.high, job.expected, shared.score_sums, job.own_ratings,
        [&](uint32_t i) { return slot_of(i).word(kSlotTokens) != 0; });
  }
}

// A slot with a key, in line for the next step, or none. Called by one warp.
__device__ inline Candidate next_in_line(const skv_merge_attend_args &args,
                                         const EvictJob &job, uint32_t i) {
  const Slot slot = job.slot(args, i);
  if (!job.may_go(args, slot, kAhead<true>)) return kNoCandidate;
  const float score = slot_score(args, job, slot, i);
  return {rank_key(score, slot, args.policy), i};
}

// The nearest over the block; each thread brings its own.
__device__ inline Neighbour nearest_of_block(Neighbour best,
                                             EvictShared &shared) {
  best = nearest_of_lanes<16>(best);
  if (lane_id() == 0) shared.neighbours[warp_id()] = best;
  __syncthreads();
  best = kNoNeighbour;
#pragma unroll 1
  for (uint32_t w = 0; w < kEvictWarps; w++) {
    if (shared.neighbours[w].beats(best)) best = shared.neighbours[w];
  }
  return best;
}

// Sets the keys of slots that may go by their scores; returns how many there
// are. Called by the whole block, which sees all keys after the next barrier.
__device__ inline uint32_t key_scores_of(const skv_merge_attend_args &args,
                                         const EvictJob &job,
                                         EvictShared &shared) {
  uint32_t mine = 0, evictable;
#pragma unroll 1
  for (uint32_t i = threadIdx.x; i < job.high; i += kEvictThreads) {
    const Slot slot = job.slot(args, i);
    const bool goes = job.may_go(args, slot);
    job.keys[i] =
        goes ? score_key(slot_score(args, job, slot, i), slot) : kNoKey;
    mine += goes ? 1 : 0;
  }
  block_prefix(mine, evictable, shared.select.block);
  return evictable;
}

// What this thread finds by all that scores take. Called by the whole block.
template <bool RIDES>
__device__ inline Found rank_slots(const skv_merge_attend_args &args,
                                   const EvictJob &job, EvictShared &shared) {
  const skv_policy &policy = args.policy;
  // Slots above this key stay by their scores alone.
  uint64_t limit = kNoKey;
  if (policy.count_values) {
    const uint32_t evictable = key_scores_of(args, job, shared);
    if (evictable == 0) return {};
    limit = kth_smallest(job.keys, job.high,
                         evictable - first_stage(policy, evictable - 1),
                         shared.select);
  }
  Found found;
#pragma unroll 1
  for (uint32_t i = threadIdx.x; i < job.high; i += kEvictThreads) {
    const Slot slot = job.slot(args, i);
    if (!job.may_go(args, slot, kAhead<RIDES>)) continue;
    if (policy.count_values && job.keys[i] > limit) continue;
    const uint64_t key = rank_key(slot_score(args, job, slot, i), slot, policy);
    consider<RIDES>(args, job, slot, {key, i}, found);
  }
  return found;
}
`,
  "lib/evict_step.cuh": `// The policy's work after a decode step, kernel by kernel.
#pragma once

#include "pair_step.cuh"
#include "segment_step.cuh"

// Leaves what is expected of the slots of a head.
template <bool ALIGNED>
__global__ void __launch_bounds__(kExpectThreads)
    expect_kernel(skv_merge_attend_args args, Evidence evidence) {
  __shared__ ExpectShared shared;
  EvictJob job;
  if (!turn_to_head(args, evidence, blockIdx.z, blockIdx.y, job)) return;
  if (blockIdx.x * kExpectSlots >= job.high) return;
  if (!needs_ratings(args, job)) return;
  const ExpectedGroup group =
      expected_group(args.cache, args.sizes, args.policy, job.row, job.kv_head);
  expect_slots<ALIGNED>(group, job.high, job.expected, shared,
                        [&](uint32_t i) { return job.slot(args, i); });
}

// Takes over what attention found of the head and observes the row; evicts; or
// both in one go where no other head has a say.
//
// A kernel has the code of one kind of merge: half a multiprocessor is left to
// the products beside it, and there is less code on the way.
template <uint32_t MERGE, bool ALIGNED, bool QUERIES>
__global__ void __launch_bounds__(kEvictThreads, 4)
    evict_kernel(skv_merge_attend_args args, Evidence evidence, bool observes,
                 bool chooses) {
  constexpr bool kRides =
      ALIGNED && (MERGE == SKV_MERGE_VOTES || MERGE == SKV_MERGE_COSINE);
  __shared__ EvictShared shared;
  EvictJob job;
  if (!turn_to_head(args, evidence, blockIdx.y, blockIdx.x, job)) return;
  if (observes && threadIdx.x == 0) {
    const uint4 seen = evidence.rows[job.index];
    job.words[kHeadLive] = seen.y;
    job.words[kHeadNext] = seen.z;
    job.words[kHeadHigh] = seen.w;
  }
  if constexpr (MERGE != SKV_MERGE_NEVER) {
    if (threadIdx.x < job.group) {
      shared.log_sums[threadIdx.x] =
          evidence.log_sums[job.index * kMaxGroup + threadIdx.x];
    }
    if constexpr (kRides) {
      read_ridden(evidence.riders, job.index, shared.ridden);
    }
    __syncthreads();
    Found found;
    if (observes) {
      bool knows = false;
      found = observe_slots<kRides>(
          args, job, shared,
          [&](uint32_t i, const Slot &slot, const Scores &scores) {
            if constexpr (MERGE == SKV_MERGE_PAIR) {
              knows |= weigh_slot(args, job, evidence.pairs, i, slot, scores);
            }
          });
      if (needs_ratings(args, job)) rate_slots(args, job, shared);
      if constexpr (MERGE == SKV_MERGE_PAIR) {
        begin_pairs<QUERIES>(args, job, evidence.pairs, knows, shared);
      }
      if constexpr (MERGE == SKV_MERGE_SEGMENTS) {
        choose_light(args, job, shared);
      }
    }
    if constexpr (MERGE != SKV_MERGE_PAIR) {
      if (!chooses || !job.is_over) return;
      if constexpr (MERGE == SKV_MERGE_SEGMENTS) {
        if (close_link(args, job, shared)) return;
      }
      if (!observes || !own_fields_decide(args, job)) {
        found = rank_slots<kRides>(args, job, shared);
      }
      const uint32_t victim =
          lowest_of_block(found.first.key, found.first.slot, shared.lowest);
      const bool rides = kRides && evidence.riders.slots != nullptr;
      if (rides) {
        found.next.leave_out(victim);
        keep_lowest(found.next, shared.lowest_of_warps[warp_id()]);
        __syncthreads();
      }
      uint32_t target = ~0u;
      if (victim != ~0u) {
        target = evict<MERGE, ALIGNED, QUERIES>(args, job, evidence.riders,
                                                victim, shared);
      }
      if (rides && warp_id() == 0) {
        __syncwarp();
        const Candidate merged = target == ~0u
                                     ? Candidate(kNoCandidate)
                                     : next_in_line(args, job, target);
        leave_shortlist(
            shared.lowest_of_warps, kEvictWarps, merged,
            evidence.riders.slots + job.index * evidence.riders.count,
            evidence.riders.count);
      }
    }
  }
}

using EvictKernel = void (*)(skv_merge_attend_args, Evidence, bool, bool);

template <bool ALIGNED>
inline EvictKernel evict_kernel_of(const skv_merge_attend_args &args) {
  switch (args.policy.merge) {
    case SKV_MERGE_NEVER:
      return evict_kernel<SKV_MERGE_NEVER, false, false>;
    case SKV_MERGE_VOTES:
      return takes_queries(args)
                 ? evict_kernel<SKV_MERGE_VOTES, ALIGNED, true>
                 : evict_kernel<SKV_MERGE_VOTES, ALIGNED, false>;
    case SKV_MERGE_RIGHT_NEIGHBOUR:
      return evict_kernel<SKV_MERGE_RIGHT_NEIGHBOUR, false, false>;
    case SKV_MERGE_PAIR:
      return takes_queries(args) ? evict_kernel<SKV_MERGE_PAIR, false, true>
                                 : evict_kernel<SKV_MERGE_PAIR, false, false>;
    case SKV_MERGE_COSINE:
      return evict_kernel<SKV_MERGE_COSINE, ALIGNED, false>;
    case SKV_MERGE_NEXT_VALUES:
      return evict_kernel<SKV_MERGE_NEXT_VALUES, false, false>;
    case SKV_MERGE_SEGMENTS:
      return evict_kernel<SKV_MERGE_SEGMENTS, false, false>;
    default:
      return evict_kernel<SKV_MERGE_DROP, false, false>;
  }
}

template <bool ALIGNED>
inline cudaError_t launch_policy(const skv_merge_attend_args &args,
                                 const Evidence &evidence,
                                 const Launch &launch) {
  Launch side;
  cudaError_t status = fork(launch, &side);
  const dim3 grid(args.sizes.kv_heads, args.step.rows);
  if (status == cudaSuccess && args.policy.score == SKV_SCORE_EXPECTED) {
    const dim3 parts(expect_parts(args.cache.max_capacity), grid.x, grid.y);
    status = launch_kernel(side, expect_kernel<ALIGNED>, parts, kExpectThreads,
                           0, args, evidence);
  }
  const skv_policy &policy = args.policy;
  if (status == cudaSuccess && args.policy.merge == SKV_MERGE_PAIR) {
    // Where it is measured once, few blocks find that it was.
    const uint32_t blocks =
        policy.search_every ? 1 : spread_parts(args.cache.max_capacity);
    const dim3 parts(blocks, grid.x, grid.y);
    status = launch_kernel(side, spread_kernel<ALIGNED>, parts, kSpreadThreads,
                           0, args, evidence);
  }
  // One thread takes over what attention found; nobody else has work where
  // nothing is ever evicted.
  const uint32_t threads = policy.merge == SKV_MERGE_NEVER ? 32 : kEvictThreads;
  const auto evict = [&](bool observes, bool chooses) {
    return launch_kernel(side, evict_kernel_of<ALIGNED>(args), grid, threads,
                         evict_bytes(policy), args, evidence, observes,
                         chooses);
  };
  if (status != cudaSuccess) return status;
  if (policy.merge == SKV_MERGE_PAIR) {
    status = evict(true, false);
    return status == cudaSuccess ? launch_pairs(args, evidence, side) : status;
  }
  const bool links = policy.merge == SKV_MERGE_SEGMENTS;
  // Where the heads of a layer choose together, all are scored first.
  if (!policy.layer_scope && !links) return evict(true, true);
  status = evict(true, false);
  if (status == cudaSuccess && links) {
    const dim3 parts(link_parts(args.cache.max_capacity), grid.x, grid.y);
    status = launch_kernel(side, link_kernel<ALIGNED>, parts, kLinkThreads, 0,
                           args, evidence);
  }
  return status == cudaSuccess ? evict(false, true) : status;
}
`,
  "lib/evidence.cuh": `// What attention leaves for the policy, and what the kernels of the policy hand
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
// a head are in \`most_splits\` parts, at most.
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
`,
  "lib/expected_attention.cuh": `// How much attention slots are expected to receive: see
// src/reference/expected_attention.ts.
//
// Blocks share the slots of a head. Each leaves the logits of its slots and a
// softmax state per query head; who needs the ratings adds the states up. Keys
// are read once, 16 bytes a lane, four lanes a key: one kernel per head that
// goes through the keys twice takes no memory for logits, but has one
// multiprocessor for all of them.
#pragma once

#include "scores.cuh"
#include "statistics.cuh"

constexpr uint32_t kExpectThreads = 256;
constexpr uint32_t kExpectWarps = kExpectThreads / 32;

// Slots of a block.
constexpr uint32_t kExpectSlots = 256;

__host__ __device__ inline uint32_t expect_parts(uint32_t slots) {
  return (slots + kExpectSlots - 1) / kExpectSlots;
}

// What blocks leave of a head.
struct Expectation {
  // (group, pitch): ln of the weights of slots before the softmax
  float *logits;
  // (parts, kMaxGroup): maximum and sum over the slots that are no sinks
  float2 *states;
  uint32_t pitch;
};

struct ExpectShared {
  // Of each element of a key \`x\`, \`x (a + b x)\` is its part of the logit.
  __align__(16) float2 terms[kMaxGroup][kMaxHeadDim];
  SoftmaxState states[kExpectWarps][kMaxGroup];
};

// A group of query heads whose queries are expected.
struct ExpectedGroup {
  QueryStatistics first;
  uint32_t size;
  uint32_t lanes;
  uint32_t sinks;

  __device__ QueryStatistics head(uint32_t g) const {
    const uint32_t width = first.head_dim;
    return {first.own + g * (3 * width + 1), width};
  }
};

__device__ inline ExpectedGroup expected_group(const skv_cache &cache,
                                               const skv_sizes &sizes,
                                               const skv_policy &policy,
                                               uint32_t sequence,
                                               uint32_t kv_head) {
  const uint32_t group = sizes.heads / sizes.kv_heads;
  return {statistics_of(cache, sizes, sequence, kv_head * group), group,
          cache.lanes, policy.sinks};
}

__device__ inline void load_terms(const ExpectedGroup &group,
                                  ExpectShared &shared) {
  const uint32_t width = group.first.head_dim, half = width / 2;
  const float root = rsqrtf(static_cast<float>(width));
  for (uint32_t i = threadIdx.x; i < group.size * width; i += kExpectThreads) {
    const uint32_t g = i / width, d = i % width;
    const QueryStatistics own = group.head(g);
    const float variance = own.variance()[d < half ? d : d - half];
    shared.terms[g][d] = {root * own.future()[d],
                          0.5f * root * root * variance};
  }
}

// Leaves what is expected of this block's slots among \`count\`; \`slot_of(i)\` is
// a slot, which may be free. Called by the whole block.
template <bool ALIGNED, class SlotOf>
__device__ inline void expect_slots(const ExpectedGroup &group, uint32_t count,
                                    const Expectation &out,
                                    ExpectShared &shared, SlotOf slot_of) {
  constexpr uint32_t kHeads = kMaxGroup / 4;
  const uint32_t width = group.first.head_dim;
  const uint32_t t = lane_id() % 4;
  const uint32_t begin = blockIdx.x * kExpectSlots;
  const uint32_t end = min(count, begin + kExpectSlots);
  load_terms(group, shared);
  __syncthreads();
  // Lane t has query heads t, t + 4 and so on.
  SoftmaxState states[kHeads];
#pragma unroll
  for (uint32_t j = 0; j < kHeads; j++) states[j] = init_softmax();
  for (uint32_t first = begin + 8 * warp_id(); first < end;
       first += 8 * kExpectWarps) {
    const uint32_t i = first + lane_id() / 4;
    const Slot slot = slot_of(min(i, end - 1));
    float sums[kMaxGroup] = {};
    for (uint32_t d = 8 * t; d < width; d += 32) {
      uint32_t words[4];
      load_pairs<8, ALIGNED>(words, slot.key, d, width);
#pragma unroll
      for (uint32_t j = 0; j < 4; j++) {
        const float2 x = cached_floats(words[j]);
        // Widths are even, and what is beyond them is 0.
        if (d + 2 * j >= width) continue;
#pragma unroll
        for (uint32_t g = 0; g < kMaxGroup; g++) {
          if (g >= group.size) continue;
          const float4 term =
              *reinterpret_cast<const float4 *>(&shared.terms[g][d + 2 * j]);
          sums[g] += x.x * (term.x + term.y * x.x);
          sums[g] += x.y * (term.z + term.w * x.y);
        }
      }
    }
    const bool exists = i < end && slot.word(kSlotTokens) != 0;
    const bool counts = exists && slot.word(kSlotPosition) >= group.sinks;
#pragma unroll
    for (uint32_t g = 0; g < kMaxGroup; g++) {
      if (g >= group.size) continue;
      sums[g] += __shfl_xor_sync(kAllLanes, sums[g], 1);
      sums[g] += __shfl_xor_sync(kAllLanes, sums[g], 2);
    }
#pragma unroll
    for (uint32_t j = 0; j < kHeads; j++) {
      const uint32_t g = 4 * j + t;
      if (!exists || g >= group.size) continue;
      const float sum = t == 0   ? sums[4 * j]
                        : t == 1 ? sums[4 * j + 1]
                        : t == 2 ? sums[4 * j + 2]
                                 : sums[4 * j + 3];
      const float logit = sum + vote_bias(slot, g, group.lanes);
      out.logits[static_cast<size_t>(g) * out.pitch + i] = logit;
      if (counts) add_softmax(states[j], logit);
    }
  }
#pragma unroll
  for (uint32_t j = 0; j < kHeads; j++) {
#pragma unroll
    for (int offset = 4; offset < 32; offset *= 2) {
      const SoftmaxState other = {
          __shfl_xor_sync(kAllLanes, states[j].max, offset),
          __shfl_xor_sync(kAllLanes, states[j].sum, offset)};
      states[j] = merge_softmax(states[j], other);
    }
    if (lane_id() < 4) shared.states[warp_id()][4 * j + t] = states[j];
  }
  __syncthreads();
  if (threadIdx.x >= group.size) return;
  SoftmaxState all = init_softmax();
  for (uint32_t w = 0; w < kExpectWarps; w++) {
    all = merge_softmax(all, shared.states[w][threadIdx.x]);
  }
  out.states[blockIdx.x * kMaxGroup + threadIdx.x] = {all.max, all.sum};
}

// Sets the ratings of \`count\` slots that blocks left their logits of: ln of the
// mean over the group of their shares. \`is_there(i)\` says which slots there
// are; \`log_sums\` is shared memory. Called by the whole block, which sees all
// ratings afterwards.
template <class IsThere>
__device__ inline void rate_by_expectation(uint32_t group, uint32_t count,
                                           const Expectation &expected,
                                           float (&log_sums)[kMaxGroup],
                                           float *ratings, IsThere is_there) {
  if (threadIdx.x < group) {
    SoftmaxState all = init_softmax();
    for (uint32_t p = 0; p < expect_parts(count); p++) {
      const float2 part = expected.states[p * kMaxGroup + threadIdx.x];
      all = merge_softmax(all, {part.x, part.y});
    }
    log_sums[threadIdx.x] = log_sum(all);
  }
  __syncthreads();
  const float heads = logf(static_cast<float>(group));
  for (uint32_t i = threadIdx.x; i < count; i += blockDim.x) {
    if (!is_there(i)) continue;
    float share = kLogZero;
    for (uint32_t g = 0; g < group; g++) {
      const float logit =
          expected.logits[static_cast<size_t>(g) * expected.pitch + i];
      share = log_add(share, logit - log_sums[g]);
    }
    ratings[i] = share - heads;
  }
  __syncthreads();
}
`,
  "lib/find_rank.cuh": `// Searches over ids by one block: the rank at which a sum is reached, and the
// id at which one is.
#pragma once

#include "sampling.cuh"

// A histogram of weights: 37 bits in limbs of 12, 12 and 13, whose sums over
// 2^18 ids fit in 32 bits.
template <uint32_t BUCKETS>
struct Histogram {
  uint32_t limbs[3][BUCKETS];

  // Called by the whole block, which synchronizes afterwards.
  __device__ void clear() {
    for (uint32_t i = threadIdx.x; i < 3 * BUCKETS; i += kSampleThreads) {
      limbs[i / BUCKETS][i % BUCKETS] = 0;
    }
  }
  __device__ void add(uint32_t bucket, uint64_t weight) {
    atomicAdd(limbs[0] + bucket, static_cast<uint32_t>(weight & 4095));
    atomicAdd(limbs[1] + bucket, static_cast<uint32_t>(weight >> 12 & 4095));
    atomicAdd(limbs[2] + bucket, static_cast<uint32_t>(weight >> 24));
  }
  __device__ uint64_t get(uint32_t bucket) const {
    return limbs[0][bucket] + (static_cast<uint64_t>(limbs[1][bucket]) << 12) +
           (static_cast<uint64_t>(limbs[2][bucket]) << 24);
  }
};

struct RankScratch {
  Histogram<256> histogram;
  uint64_t sums[kSampleWarps];
  uint64_t before;
  uint32_t digit;
  uint32_t chosen;
};

// The sum over the lanes up to this one.
__device__ inline uint64_t lane_prefix(uint64_t x) {
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const uint64_t other =
        __shfl_up_sync(kAllLanes, static_cast<unsigned long long>(x), offset);
    if (lane_id() >= static_cast<uint32_t>(offset)) x += other;
  }
  return x;
}

// Sum of \`x\` over the threads before this one; \`total\` gets the sum over all.
// Every thread of the block calls it.
__device__ inline uint64_t sum_before(uint64_t x, uint64_t &total,
                                      uint64_t (&sums)[kSampleWarps]) {
  const uint64_t running = lane_prefix(x);
  __syncthreads();
  if (lane_id() == 31) sums[warp_id()] = running;
  __syncthreads();
  uint64_t before = running - x;
  total = 0;
#pragma unroll
  for (uint32_t w = 0; w < kSampleWarps; w++) {
    if (w < warp_id()) before += sums[w];
    total += sums[w];
  }
  return before;
}

// The smallest rank up to which the weights of ids, from the likeliest on, add
// up to \`wanted\`, at least 1; all ones where they never do. \`for_each(use)\`
// calls \`use(rank, weight)\` for this thread's share of the ids, whose ranks
// begin with the highest bits of \`prefix\` where \`mask\` is set. Called by the
// whole block.
template <class ForEach>
__device__ inline uint32_t find_rank(uint64_t wanted, uint32_t prefix,
                                     uint32_t mask, RankScratch &shared,
                                     ForEach for_each) {
  for (int shift = 24; shift >= 0; shift -= 8) {
    if ((mask >> shift & 1) != 0) continue;
    __syncthreads();
    shared.histogram.clear();
    if (threadIdx.x == 0) shared.digit = 256;
    __syncthreads();
    for_each([&](uint32_t rank, uint64_t weight) {
      if ((rank & mask) != prefix || weight == 0) return;
      shared.histogram.add(rank >> shift & 255, weight);
    });
    __syncthreads();
    if (warp_id() == 0) {
      // Eight buckets per lane.
      uint64_t mine = 0;
      for (uint32_t i = 0; i < 8; i++) {
        mine += shared.histogram.get(8 * lane_id() + i);
      }
      const uint64_t running = lane_prefix(mine);
      uint64_t before = running - mine;
      if (before < wanted && wanted <= running) {
        uint32_t digit = 8 * lane_id();
        while (before + shared.histogram.get(digit) < wanted) {
          before += shared.histogram.get(digit++);
        }
        shared.digit = digit;
        shared.before = before;
      }
    }
    __syncthreads();
    if (shared.digit == 256) return 0xffffffffu;
    prefix |= shared.digit << shift;
    mask |= 255u << shift;
    wanted -= shared.before;
  }
  return prefix;
}

// The id of those from \`begin\` to \`end\` at which the sum of weights, in the
// order of ids, exceeds \`left\`, which is less than the sum of all. Called by
// the whole block.
template <class Weight>
__device__ inline uint32_t find_id(uint32_t begin, uint32_t end, uint64_t left,
                                   RankScratch &shared, Weight weight) {
  // Each warp owns a run of ids.
  const uint32_t run = (end - begin + kSampleWarps - 1) / kSampleWarps;
  const uint32_t from = min(end, begin + warp_id() * run);
  const uint32_t to = min(end, from + run);
  uint64_t mine = 0;
  for (uint32_t id = from + lane_id(); id < to; id += 32) mine += weight(id);
  uint64_t total;
  uint64_t before = sum_before(mine, total, shared.sums);
  before = __shfl_sync(kAllLanes, static_cast<unsigned long long>(before), 0);
  if (left >= before && left < before + shared.sums[warp_id()]) {
    left -= before;
    for (uint32_t first = from; first < to; first += 32) {
      const uint32_t id = first + lane_id();
      const uint64_t running = lane_prefix(id < to ? weight(id) : 0);
      const uint32_t passed = __ballot_sync(kAllLanes, running > left);
      if (passed != 0) {
        if (lane_id() == 0) shared.chosen = first + __ffs(passed) - 1;
        break;
      }
      left -=
          __shfl_sync(kAllLanes, static_cast<unsigned long long>(running), 31);
    }
  }
  __syncthreads();
  return shared.chosen;
}
`,
  "lib/gather_tile.cuh": `// Lines from anywhere as a tile of products of groups.
#pragma once

#include "group_instructions.cuh"

// Starts to copy LINES lines to a tile as products want it: see
// tile_descriptor(). \`line(i)\` is where line i is in memory, or null for zeros.
template <int DIM, uint32_t LINES, uint32_t THREADS, class Line>
__device__ inline void gather_tile(skv_cached (*tile)[LINES][kTileColumns],
                                   uint32_t head_dim, Line line) {
  constexpr uint32_t kChunks = DIM / 8;
  static_assert(LINES * kChunks % THREADS == 0, "as much for each thread");
  const uint32_t chunk = threadIdx.x % kChunks;
#pragma unroll
  for (uint32_t k = 0; k < LINES * kChunks / THREADS; k++) {
    const uint32_t at = threadIdx.x / kChunks + k * (THREADS / kChunks);
    const skv_cached *from = line(at);
    copy_async(tile[chunk / 8][at] + 8 * (chunk % 8 ^ at % 8), from + 8 * chunk,
               from != nullptr && 8 * chunk < head_dim);
  }
}
`,
  "lib/group_attend.cuh": `// Attention of a chunk on Hopper: the plain form of prefill_attend.cu with
// products of groups of four warps, whose operands an engine copies to shared
// memory.
//
// One warp asks for tiles of keys and of values; two groups have 64 (row, query
// head) pairs each. A group's products with the values of a tile and with the
// keys of the next one are queued together; while it turns logits into weights,
// the other group's products go on. Without taking turns at queueing, both
// would wait for products at the same time: a prompt of 32,768 tokens of
// Llama 3.1 8B then takes 1,525 ms in place of 1,475 on an H200.
#pragma once

#include "../runtime/launch.cuh"
#include "group_attend_state.cuh"
#include "overlap.cuh"

template <int DIM>
__global__ void __launch_bounds__(GroupAttend<DIM>::kThreads, 1)
    group_attend_kernel(skv_chunk_args args,
                        const __grid_constant__ ChunkMaps maps) {
  using Form = GroupAttend<DIM>;
  auto &shared = tile_memory<typename Form::Shared>();
  let_next_start();
  if (threadIdx.x == 0) {
    for (uint32_t i = 0; i < Form::kStages; i++) {
      init_barrier(shared.keys_full + i, 1);
      init_barrier(shared.values_full + i, 1);
      init_barrier(shared.keys_free + i, Form::kMultiplying / 32);
      init_barrier(shared.values_free + i, Form::kMultiplying / 32);
    }
    show_barriers();
  }
  __syncthreads();
  wait_for_previous();
  const typename Form::Share share(args, Form::Shape::kPairs);
  if (share.rows == 0) return;
  if (threadIdx.x >= Form::kMultiplying) {
    give_registers<Form::kFetchingRegisters>();
    if (threadIdx.x < Form::kMultiplying + 32) {
      fetch_chunk_tiles<DIM>(share, maps, args.sizes.head_dim, shared);
    }
    return;
  }
  take_registers<Form::kMultiplyingRegisters>();
  const PairQueries queries = share.queries(args.queries, args.sizes);
  round_queries<DIM>(queries, shared);
  show_writes();
  meet_warps(Form::kMultiplying);
  GroupState<DIM> state;
  state.run(share, queries, shared);
  state.store(args, queries, false);
}

// Attends if the device and the heads are made for it, and says so in \`done\`.
template <int DIM>
inline cudaError_t launch_group_attend(const skv_chunk_args &args,
                                       const Launch &launch, bool &done) {
  if constexpr (kHasGroupTiles<DIM>) {
    using Form = GroupAttend<DIM>;
    if (launch.tile_maps == nullptr || args.sizes.head_dim != DIM) {
      return cudaSuccess;
    }
    const skv_slots &slots = args.cache.slots, &stage = args.cache.stage;
    ChunkMaps maps;
    const auto describe = [&](const skv_cached *data, uint32_t rows,
                              TileMap *map) {
      return launch.tile_maps->describe(
          {reinterpret_cast<const skv_half *>(data), rows, DIM, Form::kSlots},
          map);
    };
    if (!describe(slots.keys, slots.total, &maps.slot_keys) ||
        !describe(slots.values, slots.total, &maps.slot_values) ||
        !describe(stage.keys, stage.total, &maps.stage_keys) ||
        !describe(stage.values, stage.total, &maps.stage_values)) {
      return cudaSuccess;
    }
    done = true;
    const auto kernel = group_attend_kernel<DIM>;
    const cudaError_t status = allow_shared_memory(kernel, Form::kBytes);
    if (status != cudaSuccess) return status;
    const dim3 grid(args.sizes.kv_heads,
                    row_blocks<typename Form::Shape>(args));
    return launch_kernel(launch, kernel, grid, Form::kThreads, Form::kBytes,
                         args, maps);
  } else {
    return cudaSuccess;
  }
}
`,
  "lib/group_attend_state.cuh": `// The attention of a group of four warps while tiles go by: see
// lib/group_attend.cuh.
#pragma once

#include "group_attend_tiles.cuh"
#include "prefill_state.cuh"

template <int DIM>
struct GroupState : PrefillState<DIM, PrefillForm::kGroup> {
  using Form = GroupAttend<DIM>;
  using Shared = typename Form::Shared;
  static constexpr int kTiles = Form::kSlots / 8;
  using Logits = float[1][kTiles][4];

  // Starts to multiply the group's queries with a tile of keys.
  __device__ static void begin_keys(const Shared &shared, uint32_t stage,
                                    Logits &x) {
    const uint32_t group = threadIdx.x / 128;
    begin_products();
    multiply_tiles<DIM, Form::kSlots>(shared.queries, 64 * group,
                                      shared.keys[stage], x[0]);
    commit_products();
  }

  // Starts to add the products of weights with a tile of values.
  __device__ void begin_values(const Shared &shared, uint32_t stage,
                               const uint4 (&weights)[kTiles / 2]) {
    begin_products();
#pragma unroll
    for (int k = 0; k < kTiles / 2; k++) {
      group_product_lines<DIM>(
          this->values[0], weights[k],
          column_descriptor(shared_address(&shared.values[stage][0][16 * k]),
                            Form::kPartBytes));
    }
    commit_products();
  }

  // Turns products into logits, in units of ln 2.
  __device__ static void scale(const Shared &shared, uint32_t stage,
                               Logits &x) {
    const uint32_t t = lane_id() % 4;
    const float inverse[2] = {shared.inverse[GroupState::pair_of(0, 0)],
                              shared.inverse[GroupState::pair_of(0, 1)]};
#pragma unroll
    for (int n = 0; n < kTiles; n++) {
      const float2 bias = *reinterpret_cast<const float2 *>(
          shared.biases[stage] + 8 * n + 2 * t);
#pragma unroll
      for (int h = 0; h < 2; h++) {
        x[0][n][2 * h] = fmaf(x[0][n][2 * h], inverse[h], bias.x);
        x[0][n][2 * h + 1] = fmaf(x[0][n][2 * h + 1], inverse[h], bias.y);
      }
    }
  }

  // Leaves out slots from \`ends\` on, of the warp's rows g and g + 8.
  __device__ static void cut(const uint32_t (&ends)[2], Logits &x) {
#pragma unroll
    for (int n = 0; n < kTiles; n++) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const uint32_t slot = 8 * n + lane_id() % 4 * 2 + i % 2;
        if (slot >= ends[i / 2]) x[0][n][i] = -INFINITY;
      }
    }
  }

  __device__ static void round_weights(const Logits &x,
                                       uint4 (&weights)[kTiles / 2]) {
#pragma unroll
    for (int k = 0; k < kTiles / 2; k++) {
      const float(&left)[4] = x[0][2 * k], (&right)[4] = x[0][2 * k + 1];
      weights[k] = {
          cached_pair(left[0], left[1]), cached_pair(left[2], left[3]),
          cached_pair(right[0], right[1]), cached_pair(right[2], right[3])};
    }
  }

  // Turns products with a tile of keys into weights for its values.
  __device__ void weigh_tile(const typename Form::Share &share,
                             const PairQueries &queries, uint32_t tile,
                             Shared &shared, Logits &x,
                             uint4 (&weights)[kTiles / 2]) {
    const uint32_t stage = tile % Form::kStages;
    scale(shared, stage, x);
    __syncwarp();
    if (lane_id() == 0) arrive(shared.keys_free + stage);
    const TilePlace place = share.place(tile);
    if (share.has_later(place) || place.count < Form::kSlots) {
      const auto end_of = [&](int h) {
        const uint32_t row = queries.row(this->pair_of(0, h));
        return !place.is_staged     ? place.count
               : row >= place.first ? row - place.first + 1
                                    : 0;
      };
      cut({end_of(0), end_of(1)}, x);
    }
    this->weigh(x, false);
    round_weights(x, weights);
    wait_barrier(shared.values_full + stage, parity_of(tile));
    if (place.count < Form::kSlots) {
      clear_values<DIM>(place.count, shared, stage);
    }
  }

  // Of the phase in which a tile comes.
  __device__ static uint32_t parity_of(uint32_t tile) {
    return tile / Form::kStages % 2;
  }

  // Attends to all tiles.
  __device__ void run(const typename Form::Share &share,
                      const PairQueries &queries, Shared &shared) {
    Logits x;
    uint4 weights[kTiles / 2];
    wait_barrier(shared.keys_full, 0);
    begin_keys(shared, 0, x);
    wait_products<0>();
    hold_sums<kTiles>(x[0]);
    const uint32_t last = share.tiles - 1;
    const uint32_t group = threadIdx.x / 128;
    if (group == 1) pass_turn(0);
#pragma unroll 1
    for (uint32_t tile = 0; tile < last; tile++) {
      weigh_tile(share, queries, tile, shared, x, weights);
      const uint32_t stage = tile % Form::kStages;
      const uint32_t next = (tile + 1) % Form::kStages;
      wait_barrier(shared.keys_full + next, parity_of(tile + 1));
      wait_turn(group);
      begin_values(shared, stage, weights);
      begin_keys(shared, next, x);
      pass_turn(1 - group);
      wait_products<0>();
      hold_sums<kTiles>(x[0]);
      hold_sums<DIM / 8>(this->values[0]);
      if (lane_id() == 0) arrive(shared.values_free + stage);
    }
    weigh_tile(share, queries, last, shared, x, weights);
    begin_values(shared, last % Form::kStages, weights);
    wait_products<0>();
    hold_sums<DIM / 8>(this->values[0]);
  }
};
`,
  "lib/group_attend_tiles.cuh": `// What a block of lib/group_attend.cuh has in shared memory, and how tiles get
// there.
#pragma once

#include "chunk_share.cuh"
#include "group_tiles.cuh"

template <int DIM>
struct GroupAttend {
  using Shape = PrefillShape<DIM, PrefillForm::kGroup>;
  static constexpr uint32_t kSlots = Shape::kSlots;
  // Columns of a tile in lines of kTileColumns: first those of all lines, then
  // the next.
  static constexpr uint32_t kParts = DIM / kTileColumns;
  static constexpr uint32_t kPartBytes = kSlots * kLineBytes;
  static constexpr uint32_t kTileBytes = kParts * kPartBytes;
  static constexpr uint32_t kStages = 2;
  // Threads that multiply, and a group that fetches: one warp of it, which
  // leaves its registers to the others.
  static constexpr uint32_t kMultiplying = Shape::kThreads;
  static constexpr uint32_t kThreads = kMultiplying + 128;
  static constexpr int kFetchingRegisters = 40;
  static constexpr int kMultiplyingRegisters = 232;
  static constexpr uint32_t kLaneSlots = kSlots / 32;

  struct Shared {
    using Shape = GroupAttend::Shape;
    skv_cached queries[kParts][Shape::kPairs][kTileColumns];
    skv_cached keys[kStages][kParts][kSlots][kTileColumns];
    skv_cached values[kStages][kParts][kSlots][kTileColumns];
    // log2 of votes.
    float biases[kStages][kSlots];
    float inverse[Shape::kPairs];
    // Tiles that have come, and places that are free.
    uint64_t keys_full[kStages], keys_free[kStages];
    uint64_t values_full[kStages], values_free[kStages];

    // Where an element of a query is: see tile_descriptor().
    __device__ skv_cached *query(int, uint32_t pair, uint32_t column) {
      const uint32_t chunk = column % kTileColumns / 8 ^ pair % 8;
      return queries[column / kTileColumns][pair] + 8 * chunk + column % 8;
    }
  };
  static_assert(sizeof(Shared::queries) % kTileAlignment == 0 &&
                    kTileBytes % kTileAlignment == 0,
                "tiles begin where they have to");
  static constexpr size_t kBytes = sizeof(Shared) + kTileAlignment;
  using Share = ChunkShare<kSlots>;
};

// Where the tiles are in memory.
struct ChunkMaps {
  TileMap slot_keys;
  TileMap slot_values;
  TileMap stage_keys;
  TileMap stage_values;
};

// Asks for all tiles, in one warp.
template <int DIM>
__device__ inline void fetch_chunk_tiles(
    const typename GroupAttend<DIM>::Share &share, const ChunkMaps &maps,
    uint32_t head_dim, typename GroupAttend<DIM>::Shared &shared) {
  using Form = GroupAttend<DIM>;
  const auto ask = [&](const TileMap &map, const TilePlace &place, void *to,
                       uint64_t *full) {
    arrive_expecting(full, Form::kTileBytes);
    for (uint32_t part = 0; part < Form::kParts; part++) {
      copy_tile(shared_address(to) + part * Form::kPartBytes, &map,
                part * kTileColumns, place.base, full);
    }
  };
  float biases[Form::kLaneSlots];
  const auto look_ahead = [&](uint32_t tile) {
    if (tile >= share.tiles) return;
    const TilePlace place = share.place(tile);
#pragma unroll
    for (uint32_t i = 0; i < Form::kLaneSlots; i++) {
      const uint32_t slot = lane_id() + 32 * i;
      biases[i] =
          slot < place.count
              ? slot_at(place.home, place.base + slot, head_dim).get(kSlotBias)
              : kFreeBias;
    }
  };
  look_ahead(0);
  uint32_t stage = 0, parity = 1;
  for (uint32_t tile = 0; tile < share.tiles; tile++) {
    const TilePlace place = share.place(tile);
    wait_barrier(shared.keys_free + stage, parity);
#pragma unroll
    for (uint32_t i = 0; i < Form::kLaneSlots; i++) {
      shared.biases[stage][lane_id() + 32 * i] = biases[i] * kLog2E;
    }
    __syncwarp();
    if (lane_id() == 0) {
      ask(place.is_staged ? maps.stage_keys : maps.slot_keys, place,
          shared.keys[stage], shared.keys_full + stage);
    }
    look_ahead(tile + 1);
    wait_barrier(shared.values_free + stage, parity);
    if (lane_id() == 0) {
      ask(place.is_staged ? maps.stage_values : maps.slot_values, place,
          shared.values[stage], shared.values_full + stage);
    }
    if (++stage == Form::kStages) stage = 0, parity ^= 1;
  }
}

// Values beyond the last slot of a tile are anything, also what is no number:
// zeros instead. Called by all groups.
template <int DIM>
__device__ inline void clear_values(uint32_t count,
                                    typename GroupAttend<DIM>::Shared &shared,
                                    uint32_t stage) {
  using Form = GroupAttend<DIM>;
  meet_warps(Form::kMultiplying);
  constexpr uint32_t kChunks = kLineBytes / sizeof(uint4);
  for (uint32_t i = threadIdx.x + count * kChunks; i < Form::kSlots * kChunks;
       i += Form::kMultiplying) {
    for (uint32_t part = 0; part < Form::kParts; part++) {
      reinterpret_cast<uint4 *>(shared.values[stage][part])[i] = {};
    }
  }
  show_writes();
  meet_warps(Form::kMultiplying);
}
`,
  "lib/group_instructions.cuh": `// What devices of compute capability 9.0 have, and no others: products of tiles
// in shared memory by groups of four warps, copies of whole tiles by an engine
// of the multiprocessor, and clusters of blocks that read each other's shared
// memory. For lib/wide_product.cuh and the files of groups alone; on other
// devices nothing calls these.
#pragma once

#include "../runtime/tile_maps.cuh"
#include "instructions.cuh"

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define SKV_HOPPER(...) asm volatile(__VA_ARGS__)
#else
#define SKV_HOPPER(...) __trap()
#endif

// A line of a tile, and what the address of a tile is a multiple of.
constexpr uint32_t kLineBytes = kTileColumns * sizeof(skv_half);
constexpr uint32_t kTileAlignment = 1024;

// Where a tile is, as products want to know it: lines of 128 bytes, whose
// chunks of 16 bytes are at chunk ^ line % 8, from an address that is a
// multiple of 1,024. Further columns are at addresses further on; a unit of the
// result is 16 bytes.
__device__ inline uint64_t tile_descriptor(uint32_t tile) {
  constexpr uint64_t kSwizzled128 = uint64_t{1} << 62;
  constexpr uint64_t kEightLines = uint64_t{1024 >> 4} << 32;
  constexpr uint64_t kUnused = uint64_t{1} << 16;
  return kSwizzled128 | kEightLines | kUnused | (tile & 0x3ffff) >> 4;
}

// The tile from this element of its first line on.
__device__ inline uint64_t lines_at(const skv_cached *element) {
  return tile_descriptor(shared_address(element));
}

// The memory that a launch asks for, kTileAlignment more than a \`Shared\`, from
// where tiles may begin.
template <class Shared>
__device__ inline Shared &tile_memory() {
  char *const memory = reinterpret_cast<char *>(dynamic_shared_memory());
  return *reinterpret_cast<Shared *>(memory +
                                     -shared_address(memory) % kTileAlignment);
}

// The same for lines that are multiplied by columns: \`columns\` bytes further
// are the next 64 columns of all lines, and lines are at addresses further on.
__device__ inline uint64_t column_descriptor(uint32_t tile, uint32_t columns) {
  constexpr uint64_t kSwizzled128 = uint64_t{1} << 62;
  constexpr uint64_t kEightLines = uint64_t{1024 >> 4} << 32;
  return kSwizzled128 | kEightLines | uint64_t{columns >> 4} << 16 |
         (tile & 0x3ffff) >> 4;
}

// In front of products whose sums other instructions have touched.
__device__ inline void begin_products() {
  SKV_HOPPER("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ inline void commit_products() {
  SKV_HOPPER("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Waits until at most LEFT groups of products are under way.
template <int LEFT>
__device__ inline void wait_products() {
  SKV_HOPPER("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
}

// c += left · rightᵀ for 64 lines and N lines of 16 columns, in the background.
// Each warp has 16 of the 64 lines, dealt to its lanes as by mma().
template <int N>
__device__ inline void group_product(float (*c)[4], uint64_t left,
                                     uint64_t right);

// The same for tiles of what caches hold.
template <int N>
__device__ inline void group_product_cached(float (*c)[4], uint64_t left,
                                            uint64_t right);

// c = left · rightᵀ.
template <int N>
__device__ inline void group_product_new(float (*c)[4], uint64_t left,
                                         uint64_t right);

// c += left · right, where 16 columns of this warp's lines are in registers, as
// for mma(), and \`right\` has 16 lines of N columns.
template <int N>
__device__ inline void group_product_lines(float (*c)[4], const uint4 &left,
                                           uint64_t right);

#ifdef SKV_CACHE_BFLOAT16
#define SKV_CACHED "bf16.bf16"
#else
#define SKV_CACHED "f16.f16"
#endif
#define SKV_SUMS_4(x, i) x(c[i][0]), x(c[i][1]), x(c[i][2]), x(c[i][3])
#define SKV_SUMS_8(x, i) SKV_SUMS_4(x, i), SKV_SUMS_4(x, i + 1)
#define SKV_SUMS_16(x, i) SKV_SUMS_8(x, i), SKV_SUMS_8(x, i + 2)
#define SKV_SUMS_32(x, i) SKV_SUMS_16(x, i), SKV_SUMS_16(x, i + 4)
#define SKV_SUMS_64(x, i) SKV_SUMS_32(x, i), SKV_SUMS_32(x, i + 8)
#define SKV_NAMES_8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define SKV_NAMES_16 SKV_NAMES_8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define SKV_NAMES_32                         \\
  SKV_NAMES_16                               \\
  ", %16, %17, %18, %19, %20, %21, %22, %23" \\
  ", %24, %25, %26, %27, %28, %29, %30, %31"
#define SKV_NAMES_64                         \\
  SKV_NAMES_32                               \\
  ", %32, %33, %34, %35, %36, %37, %38, %39" \\
  ", %40, %41, %42, %43, %44, %45, %46, %47" \\
  ", %48, %49, %50, %51, %52, %53, %54, %55" \\
  ", %56, %57, %58, %59, %60, %61, %62, %63"
#define SKV_WGMMA(N, TYPES, COUNT, ADDS)                  \\
  "{ .reg .pred adds; setp.ne.u32 adds, " ADDS            \\
  ", 0; "                                                 \\
  "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPES \\
  " {" SKV_NAMES_##COUNT "}, "
#define SKV_GROUP_PRODUCT(NAME, N, COUNT, TYPES, LEFT, RIGHT, ADDS, FORM)    \\
  template <>                                                                \\
  __device__ inline void NAME<N>(float(*c)[4], uint64_t left,                \\
                                 uint64_t right) {                           \\
    SKV_HOPPER(SKV_WGMMA(N, TYPES, COUNT, ADDS) LEFT ", " RIGHT              \\
                                                     ", adds, 1, 1, 0, 0; }" \\
               : SKV_SUMS_##COUNT(FORM, 0)                                   \\
               : "l"(left), "l"(right));                                     \\
  }
#define SKV_GROUP_PRODUCT_LINES(N, COUNT, A0, A1, A2, A3, RIGHT)              \\
  template <>                                                                 \\
  __device__ inline void group_product_lines<N>(                              \\
      float(*c)[4], const uint4 &left, uint64_t right) {                      \\
    SKV_HOPPER(                                                               \\
        SKV_WGMMA(N, SKV_CACHED, COUNT, "1") "{" A0 ", " A1 ", " A2 ", " A3   \\
                                             "}, " RIGHT ", adds, 1, 1, 1; }" \\
        : SKV_SUMS_##COUNT("+f", 0)                                           \\
        : "r"(left.x), "r"(left.y), "r"(left.z), "r"(left.w), "l"(right));    \\
  }

SKV_GROUP_PRODUCT(group_product, 16, 8, "f16.f16", "%8", "%9", "1", "+f")
SKV_GROUP_PRODUCT(group_product, 32, 16, "f16.f16", "%16", "%17", "1", "+f")
SKV_GROUP_PRODUCT(group_product, 64, 32, "f16.f16", "%32", "%33", "1", "+f")
SKV_GROUP_PRODUCT(group_product_cached, 128, 64, SKV_CACHED, "%64", "%65", "1",
                  "+f")
SKV_GROUP_PRODUCT(group_product_new, 128, 64, SKV_CACHED, "%64", "%65", "0",
                  "=f")
SKV_GROUP_PRODUCT_LINES(64, 32, "%32", "%33", "%34", "%35", "%36")
SKV_GROUP_PRODUCT_LINES(128, 64, "%64", "%65", "%66", "%67", "%68")

#undef SKV_CACHED
#undef SKV_SUMS_4
#undef SKV_SUMS_8
#undef SKV_SUMS_16
#undef SKV_SUMS_32
#undef SKV_SUMS_64
#undef SKV_NAMES_8
#undef SKV_NAMES_16
#undef SKV_NAMES_32
#undef SKV_NAMES_64
#undef SKV_WGMMA
#undef SKV_GROUP_PRODUCT
#undef SKV_GROUP_PRODUCT_LINES

// What products made or will make is touched by nothing before this.
template <int COUNT>
__device__ inline void hold_sums(float (*c)[4]) {
#pragma unroll
  for (int n = 0; n < COUNT; n++) {
#pragma unroll
    for (int i = 0; i < 4; i++) asm volatile("" : "+f"(c[n][i])::"memory");
  }
}

// Makes what threads wrote to shared memory visible to products and engines.
__device__ inline void show_writes() {
  SKV_HOPPER("fence.proxy.async.shared::cta;" ::: "memory");
}

// Gives this warp's threads COUNT registers each. All warps of its group do so;
// those that want more wait until others have given theirs away.
template <int COUNT>
__device__ inline void give_registers() {
  SKV_HOPPER("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}
template <int COUNT>
__device__ inline void take_registers() {
  SKV_HOPPER("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}

// The warps of \`threads\` threads meet; others take no part.
__device__ inline void meet_warps(uint32_t threads) {
  SKV_HOPPER("bar.sync 1, %0;" ::"r"(threads) : "memory");
}

// Two groups of 128 threads take turns: one waits for its turn, the other, when
// it has had its own, passes it on. Who is first is given a turn before.
__device__ inline void wait_turn(uint32_t group) {
  SKV_HOPPER("bar.sync %0, 256;" ::"r"(2 + group) : "memory");
}
__device__ inline void pass_turn(uint32_t to_group) {
  SKV_HOPPER("bar.arrive %0, 256;" ::"r"(2 + to_group) : "memory");
}

// A barrier in shared memory that counts arrivals and bytes. Its phases are
// numbered from 0; who waits names the parity of the one that is to end.
__device__ inline void init_barrier(uint64_t *barrier, uint32_t arrivals) {
  SKV_HOPPER(
      "mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
      "r"(arrivals)
      : "memory");
}

// Lets the copy engine see barriers that were made.
__device__ inline void show_barriers() {
  SKV_HOPPER("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ inline void arrive(uint64_t *barrier) {
  SKV_HOPPER(
      "mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier))
      : "memory");
}

// Arrives, and makes the phase wait for bytes that will be copied.
__device__ inline void arrive_expecting(uint64_t *barrier, uint32_t bytes) {
  SKV_HOPPER("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(
                 shared_address(barrier)),
             "r"(bytes)
             : "memory");
}

__device__ inline void wait_barrier(uint64_t *barrier, uint32_t parity) {
  SKV_HOPPER(
      "{ .reg .pred ended; again: "
      "mbarrier.try_wait.parity.shared::cta.b64 ended, [%0], %1; "
      "@!ended bra again; }" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

// Starts to copy the tile of a matrix at (row, column) to shared memory, zeros
// beyond its ends; \`barrier\` counts the bytes.
__device__ inline void copy_tile(uint32_t to, const TileMap *map,
                                 uint32_t column, uint32_t row,
                                 uint64_t *barrier) {
  SKV_HOPPER(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::"
      "complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(to),
      "l"(map), "r"(column), "r"(row), "r"(shared_address(barrier))
      : "memory");
}

// All threads of a cluster meet, and see what the others wrote before.
__device__ inline void meet_cluster() {
  SKV_HOPPER(
      "barrier.cluster.arrive.release.aligned; "
      "barrier.cluster.wait.acquire.aligned;" ::
          : "memory");
}

// Reads what block \`rank\` of the cluster has where this one has \`own\`.
__device__ inline float read_peer(const float *own, uint32_t rank) {
  float x = 0.0f;
  SKV_HOPPER(
      "{ .reg .u32 at; mapa.shared::cluster.u32 at, %1, %2; "
      "ld.shared::cluster.f32 %0, [at]; }"
      : "=f"(x)
      : "r"(shared_address(own)), "r"(rank));
  return x;
}

#undef SKV_HOPPER
`,
  "lib/group_observe.cuh": `// Scores of many rows of a chunk on Hopper: observe.cu with products of groups
// of four warps.
//
// The moving sum of a slot after rows r of n is
//
//   E = αⁿ E + (1 − α) / heads · Σ α^(n − 1 − r) exp(logit)
//
// so its terms need no order: each thread adds those of its part of the rows,
// with α's power in the exponent, at a reference of its own, as a softmax does.
// The alternative that lost, by eight times: row after row, with a logarithm
// each (observe.cu), which few rows are not worth avoiding.
#pragma once

#include <algorithm>

#include "group_tiles.cuh"
#include "half_rows.cuh"
#include "observed_sums.cuh"
#include "rounded_queries.cuh"

template <int DIM>
struct GroupObserve {
  static constexpr uint32_t kThreads = 256;
  // Slots of a block, 64 for each group; pairs of a tile.
  static constexpr uint32_t kSlots = 64 * (kThreads / 128);
  static constexpr uint32_t kPairs = 128;
  static constexpr uint32_t kParts = DIM / kTileColumns;
  static constexpr int kSums = kPairs / 8;
  using Logits = float[kSums][4];

  // What is known of a tile of pairs: what products are multiplied by, and what
  // is added then for the weight and for the term of the moving sum, in units
  // of ln 2.
  struct Side {
    float inverse[kPairs];
    float weight[kPairs];
    float term[kPairs];
  };
  struct Shared {
    skv_cached keys[kParts][kSlots][kTileColumns];
    // One tile comes while one is multiplied.
    skv_cached queries[2][kParts][kPairs][kTileColumns];
    Side sides[2];
  };
  static constexpr size_t kBytes = sizeof(Shared) + kTileAlignment;
};

template <int DIM>
__global__ void __launch_bounds__(GroupObserve<DIM>::kThreads, 2)
    group_observe_kernel(skv_chunk_args args, RoundedQueries from) {
  using Form = GroupObserve<DIM>;
  auto &shared = tile_memory<typename Form::Shared>();
  begin_kernel();
  const skv_sizes &sizes = args.sizes;
  const uint32_t kv_head = blockIdx.x;
  const uint32_t group = sizes.heads / sizes.kv_heads;
  const ObservedTile tile =
      observed_tile(args, kv_head, blockIdx.y, Form::kSlots);
  const ObservedRows rows(args);
  // Rows before the first staged one of the tile do not see any of it.
  const uint32_t first_row = max(rows.first, tile.staged ? tile.first : 0);
  if (tile.count == 0 || first_row >= rows.end) return;
  const skv_slots &home = tile.home(args.cache);
  const uint32_t first_slot = tile.base + tile.first;
  gather_tile<DIM, Form::kSlots, Form::kThreads>(
      shared.keys, sizes.head_dim, [&](uint32_t i) -> const skv_cached * {
        return i < tile.count
                   ? slot_at(home, first_slot + i, sizes.head_dim).key
                   : nullptr;
      });
  const uint32_t first_pair = first_row * group, end_pair = rows.end * group;
  const bool raw = args.policy.raw_scale != 0;
  // An infinite power of nothing is no number.
  const float log_alpha = kLog2E * fmaxf(args.policy.log_alpha, kLogZero);
  const auto fetch = [&](uint32_t first, uint32_t stage) {
    gather_tile<DIM, Form::kPairs, Form::kThreads>(
        shared.queries[stage], DIM, [&](uint32_t i) -> const skv_cached * {
          const uint32_t pair = first + i;
          return pair >= first_pair && pair < end_pair
                     ? from.lines + from.index(kv_head, pair) * DIM
                     : nullptr;
        });
    commit_copies();
    if (threadIdx.x >= Form::kPairs) return;
    auto &side = shared.sides[stage];
    const uint32_t pair = first + threadIdx.x, row = pair / group;
    float inverse = 0.0f, weight = -INFINITY, term = -INFINITY;
    if (pair >= first_pair && pair < end_pair) {
      inverse = from.inverse[from.index(kv_head, pair)];
      weight = -kLog2E * args.log_sums[static_cast<size_t>(row) * sizes.heads +
                                       kv_head * group + pair % group];
      term = (raw ? 0.0f : weight) +
             static_cast<float>(rows.end - 1 - row) * log_alpha;
    }
    side.inverse[threadIdx.x] = inverse;
    side.weight[threadIdx.x] = weight;
    side.term[threadIdx.x] = term;
  };
  const uint32_t warps_slot = 64 * (threadIdx.x / 128) + 16 * (warp_id() % 4);
  const uint32_t own = warps_slot + lane_id() / 4;
  ObservedSums sums;
  uint32_t stage = 0;
  fetch(first_pair, 0);
#pragma unroll 1
  for (uint32_t first = first_pair; first < end_pair; first += Form::kPairs) {
    wait_copies<0>();
    show_writes();
    // The tile is there, and nobody reads the one before it any more.
    __syncthreads();
    if (first + Form::kPairs < end_pair) {
      fetch(first + Form::kPairs, stage ^ 1);
    }
    typename Form::Logits x;
    begin_products();
    multiply_tiles<DIM, Form::kPairs>(shared.keys, 64 * (threadIdx.x / 128),
                                      shared.queries[stage], x);
    commit_products();
    wait_products<0>();
    hold_sums<Form::kSums>(x);
    // Rows do not see those that are staged after them.
    if (tile.staged && first / group < tile.first + Form::kSlots) {
#pragma unroll
      for (int n = 0; n < Form::kSums; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const uint32_t pair = first + 8 * n + lane_id() % 4 * 2 + i % 2;
          const uint32_t row = tile.first + own + i / 2 * 8;
          if (pair < row * group) x[n][i] = -INFINITY;
        }
      }
    }
    sums.add<Form>(x, shared.sides[stage]);
    stage ^= 1;
  }
  sums.join_lanes();
  // One lane for each of the two slots.
  const uint32_t h = lane_id() % 4, mine = own + 8 * h;
  if (h > 1 || mine >= tile.count) return;
  const Slot slot = slot_at(home, first_slot + mine, sizes.head_dim);
  if (!tile.staged && slot.word(kSlotTokens) == 0) return;
  const uint32_t seen_from =
      max(first_row, tile.staged ? tile.first + mine : 0);
  if (seen_from >= rows.end) return;
  const uint32_t count = rows.end - seen_from;
  if (h == 0) {
    sums.store(0, count, slot, group, args.policy);
  } else {
    sums.store(1, count, slot, group, args.policy);
  }
}

// Whether a call is for this form: many rows, all seen by their logits alone,
// whose order does not count.
template <int DIM>
inline bool is_group_observed(const skv_chunk_args &args) {
  const skv_policy &policy = args.policy;
  const bool is_ordered = policy.score == SKV_SCORE_LAST ||
                          policy.score == SKV_SCORE_AGE ||
                          policy.score == SKV_SCORE_STEP_GAIN;
  const uint32_t rows = policy.probe == SKV_PROBE_ALL
                            ? args.step.rows
                            : std::min(policy.probe_rows, args.step.rows);
  return kHasGroupTiles<DIM> && args.sizes.head_dim % 8 == 0 &&
         args.sink_queries == nullptr && args.cache.lanes == 1 && !is_ordered &&
         rows > kMostExactRows;
}

template <int DIM>
inline size_t group_observe_bytes(const skv_chunk_args &args) {
  if (!is_group_observed<DIM>(args)) return 0;
  Scratch none(nullptr);
  take_queries<DIM>(args, none);
  return none.taken(nullptr);
}

template <int DIM>
inline cudaError_t launch_group_observe(const skv_chunk_args &args,
                                        const Launch &launch) {
  using Form = GroupObserve<DIM>;
  Scratch scratch(launch.scratch);
  const RoundedQueries queries = take_queries<DIM>(args, scratch);
  cudaError_t status = launch_round_pairs<DIM>(args, queries, launch);
  const auto kernel = group_observe_kernel<DIM>;
  if (status == cudaSuccess) {
    status = allow_shared_memory(kernel, Form::kBytes);
  }
  if (status != cudaSuccess) return status;
  const dim3 grid(args.sizes.kv_heads,
                  observed_tiles(args.cache, Form::kSlots));
  return launch_kernel(launch, kernel, grid, Form::kThreads, Form::kBytes, args,
                       queries);
}
`,
  "lib/group_pairs.cuh": `// The search for the cheapest pairs of a chunk on Hopper: lib/search.cuh with
// products of groups of four warps, and with less to do: items are in the order
// of lib/arrange_pairs.cuh.
//
// A block has one multiprocessor: two groups with 64 queries each, which go
// through tiles of 128 candidates by turns. While one group's products of keys
// and values with a tile are made, the other compares what it has of the tile
// before. In step 2 t the first group multiplies tile t, the second compares
// tile t - 1; in step 2 t + 1 the first compares tile t and the second
// multiplies it. All meet after each step.
#pragma once

#include "arrange_pairs.cuh"
#include "cheapest_pairs.cuh"
#include "group_instructions.cuh"
#include "group_tiles.cuh"

template <int DIM>
struct GroupPairs {
  static constexpr uint32_t kThreads = 256;
  static constexpr uint32_t kGroupQueries = 64;
  static constexpr uint32_t kQueries = kPairTileItems;
  static constexpr uint32_t kCandidates = kPairTileItems;
  static constexpr uint32_t kParts = DIM / kTileColumns;
  using Cheapest = CheapestPairs<kCandidates>;
  using Products = typename Cheapest::Products;
  using Tile = skv_cached[kParts][kCandidates][kTileColumns];

  struct Side : PairSide<kCandidates> {
    const skv_cached *lines[2][kCandidates];
  };

  // Keys come first, then values.
  struct Shared {
    Tile queries[2];
    // One tile comes while one is multiplied.
    Tile candidates[2][2];
    // One more: a tile's is written before its lines are fetched.
    Side sides[3];
  };
  static constexpr size_t kBytes = sizeof(Shared) + kTileAlignment;
};

// The queries and candidates of a head, as they were arranged.
struct PlacedLists {
  const skv_chunk_args &args;
  ChunkHead head;
  HeadWork work;
  uint32_t queries;
  uint32_t candidates;
  const PlacedItem *candidate_items;

  __device__ PlacedLists(const skv_chunk_args &chunk, const CompressWork &all,
                         uint32_t kv_head, bool for_pairs)
      : args(chunk), head(chunk_head(chunk, kv_head)), work(all.head(kv_head)) {
    queries = work.counters[kQueries];
    candidates = work.counters[kCandidates];
    candidate_items = work.placed + (for_pairs ? 0 : queries);
  }
  __device__ Slot slot(const PlacedItem &item) const {
    return item_slot(args, head, item.item);
  }
};

// Rows of tiles whose lengths are not all the same.
struct ArrangedRows {
  const CompressWork &all;

  __device__ uint32_t longest(uint32_t h) const {
    return (all.head(h).counters[kCandidates] + kPairTileItems - 1) /
           kPairTileItems;
  }
  __device__ uint32_t tiles(uint32_t h) const {
    return all.head(h).counters[kPairTiles];
  }
  // Called by whole warps.
  __device__ TileRow row_at(uint32_t h, uint32_t at) const {
    const HeadWork work = all.head(h);
    const uint32_t rows =
        (work.counters[kQueries] + kPairTileItems - 1) / kPairTileItems;
    const auto start_of = [&](uint32_t row) {
      return row < rows ? work.row_starts[row] : work.counters[kPairTiles];
    };
    uint32_t after = 0;
    for (uint32_t first = 0; first < rows; first += 32) {
      const uint32_t row = first + lane_id();
      after +=
          __popc(__ballot_sync(kAllLanes, row < rows && start_of(row) <= at));
    }
    const uint32_t start = start_of(after - 1);
    return {after - 1, start, start_of(after) - start};
  }
};

// The candidate of a thread in a tile that comes later.
struct PlacedAhead {
  PlacedItem item;
  bool exists = false;

  __device__ void look(const PlacedLists &lists, uint32_t tile) {
    const uint32_t c = tile * kPairTileItems + threadIdx.x;
    exists = threadIdx.x < kPairTileItems && c < lists.candidates;
    if (exists) item = lists.candidate_items[c];
  }

  template <class Side>
  __device__ void store(const PlacedLists &lists, const PairCosts &costs,
                        float reference, Side &side) const {
    const uint32_t c = threadIdx.x;
    if (c >= kPairTileItems) return;
    if (exists) {
      const Slot slot = lists.slot(item);
      side.lines[0][c] = slot.key;
      side.lines[1][c] = slot.value;
      side.set(c, reference, item.weight, item.position, item.ordinal);
    } else {
      side.lines[0][c] = side.lines[1][c] = nullptr;
      side.set(c, reference, reference, 0, kNoItem);
    }
    side.set_key_square(c, costs, exists ? item.squares[0] : 0.0f);
    side.set_value_square(c, costs, exists ? item.squares[1] : 0.0f);
  }
};

// Searches one share. Called by the whole block.
template <int DIM>
__device__ inline void search_pairs_share(
    const PlacedLists &lists, const SearchShare &share, bool for_pairs,
    uint32_t pitch, typename GroupPairs<DIM>::Shared &shared) {
  using Form = GroupPairs<DIM>;
  constexpr uint32_t kTile = Form::kCandidates;
  constexpr int kSums = kTile / 8;
  const skv_chunk_args &args = lists.args;
  const HeadWork &work = lists.work;
  const uint32_t head_dim = args.sizes.head_dim;
  const PairCosts costs(args.policy, __uint_as_float(work.counters[kSpread]));
  const bool is_second = threadIdx.x >= Form::kThreads / 2;
  const PlacedItem *const queries = work.placed + share.first_query;
  const uint32_t count = min(Form::kQueries, lists.queries - share.first_query);
  const float reference = queries[0].weight;
  // All candidates of the tiles before this place are heavier than all queries.
  const uint32_t heavier = for_pairs ? queries[0].first : 0;
  PlacedAhead ahead;
  const auto store_ahead = [&](uint32_t tile) {
    if (tile < share.end) {
      ahead.store(lists, costs, reference, shared.sides[tile % 3]);
    }
  };
  const auto look_ahead = [&](uint32_t tile) {
    if (tile < share.end) ahead.look(lists, tile);
  };
  const auto fetch = [&](uint32_t tile) {
    if (tile < share.end) {
      const auto &side = shared.sides[tile % 3];
#pragma unroll
      for (int kind = 0; kind < 2; kind++) {
        gather_tile<DIM, kTile, Form::kThreads>(
            shared.candidates[tile % 2][kind], head_dim,
            [&](uint32_t i) { return side.lines[kind][i]; });
      }
    }
    commit_copies();
  };
  const auto wait_for_copies = [] {
    wait_copies<0>();
    show_writes();
  };
  const auto meet = [] { __syncthreads(); };

  look_ahead(share.begin);
#pragma unroll
  for (int kind = 0; kind < 2; kind++) {
    gather_tile<DIM, Form::kQueries, Form::kThreads>(
        shared.queries[kind], head_dim, [&](uint32_t i) -> const skv_cached * {
          if (i >= count) return nullptr;
          const Slot slot = lists.slot(queries[i]);
          return kind == 0 ? slot.key : slot.value;
        });
  }
  store_ahead(share.begin);
  look_ahead(share.begin + 1);
  meet();
  fetch(share.begin);
  store_ahead(share.begin + 1);

  // The first of this group's queries, and of this lane's two.
  const uint32_t group_query = is_second ? Form::kGroupQueries : 0;
  const uint32_t own_query = group_query + 16 * (warp_id() % 4) + lane_id() / 4;
  typename Form::Cheapest cheapest;
  PairQuery own[2] = {};
#pragma unroll
  for (uint32_t h = 0; h < 2; h++) {
    if (own_query + 8 * h >= count) continue;
    const PlacedItem &item = queries[own_query + 8 * h];
    own[h] = {
        true, item.weight, item.position, {item.squares[0], item.squares[1]}};
  }
  cheapest.begin(costs, reference, own);
  typename Form::Products x, y;
  wait_for_copies();
  meet();
  if (is_second) {
    fetch(share.begin + 1);
    meet();
  }
#pragma unroll 1
  for (uint32_t tile = share.begin; tile < share.end; tile++) {
    const auto &candidates = shared.candidates[tile % 2];
    begin_products();
    multiply_tiles<DIM, kTile>(shared.queries[0], group_query, candidates[0],
                               x);
    multiply_tiles<DIM, kTile>(shared.queries[1], group_query, candidates[1],
                               y);
    commit_products();
    if (!is_second) {
      fetch(tile + 1);
      look_ahead(tile + 2);
    }
    wait_products<0>();
    if (is_second) wait_for_copies();
    meet();
    hold_sums<kSums>(x);
    hold_sums<kSums>(y);
    if (is_second) {
      fetch(tile + 2);
    } else {
      store_ahead(tile + 2);
    }
    cheapest.add(x, y, shared.sides[tile % 3],
                 for_pairs && (tile + 1) * kTile > heavier);
    hold_sums<kSums>(x);
    hold_sums<kSums>(y);
    if (!is_second) wait_for_copies();
    meet();
  }
  if (!is_second) meet();
#pragma unroll
  for (uint32_t h = 0; h < 2; h++) {
    const uint32_t q = own_query + 8 * h;
    const Neighbour best = cheapest.best(h);
    if (lane_id() % 4 != 0 || q >= count) continue;
    store_part(work, share, pitch, share.first_query + q, best);
  }
}

template <int DIM>
__global__ void __launch_bounds__(GroupPairs<DIM>::kThreads, 1)
    group_pairs_kernel(skv_chunk_args args, CompressWork all_work,
                       bool for_pairs) {
  using Form = GroupPairs<DIM>;
  auto &shared = tile_memory<typename Form::Shared>();
  begin_kernel();
  if (row_end(args.step) == 0) return;
  SearchShares<ArrangedRows> share({all_work}, args.sizes.kv_heads,
                                   Form::kQueries);
  while (share.next()) {
    const PlacedLists lists(args, all_work, share.kv_head, for_pairs);
    search_pairs_share<DIM>(lists, share, for_pairs, all_work.part_pitch(),
                            shared);
    // Nobody reads the last tiles any more.
    __syncthreads();
  }
}

// Searches if the device and the heads are made for it, and says so in \`done\`.
template <int DIM>
inline cudaError_t launch_group_pairs(const skv_chunk_args &args,
                                      const CompressWork &work, bool for_pairs,
                                      const Launch &launch, bool &done) {
  if constexpr (kHasGroupTiles<DIM>) {
    using Form = GroupPairs<DIM>;
    if (!launch.has_groups || args.sizes.head_dim % 8 != 0) return cudaSuccess;
    done = true;
    const auto kernel = group_pairs_kernel<DIM>;
    const cudaError_t status = allow_shared_memory(kernel, Form::kBytes);
    if (status != cudaSuccess) return status;
    return launch_kernel(launch, kernel, launch.multiprocessors, Form::kThreads,
                         Form::kBytes, args, work, for_pairs);
  } else {
    return cudaSuccess;
  }
}
`,
  "lib/group_search.cuh": `// The search for similar keys on Hopper: lib/search_keys.cuh with products of
// groups of four warps.
//
// A block has one multiprocessor: two groups with 128 queries each, which go
// through tiles of 128 candidates. A group has sums for two halves of its
// queries, and compares those of one while the other's products are made.
#pragma once

#include "group_tiles.cuh"
#include "search_candidates.cuh"

template <int DIM>
struct GroupSearch {
  static constexpr uint32_t kThreads = 256;
  // Queries of a product, of a group and of a block; candidates of a tile.
  static constexpr uint32_t kHalf = 64;
  static constexpr uint32_t kGroupQueries = 2 * kHalf;
  static constexpr uint32_t kQueries = kGroupQueries * (kThreads / 128);
  static constexpr uint32_t kCandidates = 128;
  // Columns of a tile in lines of kTileColumns: first those of all lines, then
  // the next.
  static constexpr uint32_t kParts = DIM / kTileColumns;
  using Closest = ClosestKeys<kCandidates>;
  using Products = typename Closest::Products;

  struct Shared {
    skv_cached queries[kParts][kQueries][kTileColumns];
    // One tile comes while one is multiplied.
    skv_cached candidates[2][kParts][kCandidates][kTileColumns];
    // One more: a tile's is written before its keys are fetched.
    CandidateSide<kCandidates> sides[4];
  };
  static constexpr size_t kBytes = sizeof(Shared) + kTileAlignment;
};

// Starts to multiply 64 queries from \`query\` on with a tile of candidates.
template <int DIM>
__device__ inline void begin_tile(
    const typename GroupSearch<DIM>::Shared &shared, uint32_t query,
    uint32_t stage, typename GroupSearch<DIM>::Products &x) {
  begin_products();
  multiply_tiles<DIM, GroupSearch<DIM>::kCandidates>(
      shared.queries, query, shared.candidates[stage], x);
  commit_products();
}

// Searches one share: see lib/search_keys.cuh.
template <int DIM>
__device__ inline void search_group_share(
    const KeyLists &lists, const SearchShare &share, bool is_among,
    uint32_t pitch, typename GroupSearch<DIM>::Shared &shared) {
  using Form = GroupSearch<DIM>;
  constexpr uint32_t kTile = Form::kCandidates;
  constexpr int kSums = kTile / 8;
  const uint32_t head_dim = lists.args.sizes.head_dim;
  const uint32_t last = share.end - 1;
  CandidateAhead<kTile> ahead;
  const auto look_ahead = [&](uint32_t tile) {
    if (tile < share.end) ahead.look(lists, tile);
  };
  const auto store_ahead = [&](uint32_t tile) {
    if (tile < share.end) ahead.store(shared.sides[tile % 4]);
  };
  const auto fetch = [&](uint32_t tile) {
    const auto &side = shared.sides[tile % 4];
    gather_tile<DIM, kTile, Form::kThreads>(
        shared.candidates[tile % 2], head_dim,
        [&](uint32_t i) { return side.keys[i]; });
    commit_copies();
  };
  gather_tile<DIM, Form::kQueries, Form::kThreads>(
      shared.queries, head_dim,
      [&](uint32_t i) { return lists.query_key(share.first_query + i); });
  look_ahead(share.begin);
  store_ahead(share.begin);
  __syncthreads();
  fetch(share.begin);
  look_ahead(share.begin + 1);
  store_ahead(share.begin + 1);

  const uint32_t group_query = Form::kGroupQueries * (threadIdx.x / 128);
  // The first of this warp's 16 queries of each half.
  const auto warp_query = [&](int m) {
    return share.first_query + group_query + Form::kHalf * m +
           16 * (warp_id() % 4);
  };
  typename Form::Closest closest[2];
#pragma unroll
  for (int m = 0; m < 2; m++) {
    const uint32_t q = warp_query(m) + lane_id() / 4;
    closest[m].begin(q < lists.queries, q + 8 < lists.queries);
  }
  typename Form::Products x[2];
  const auto compare = [&](int m, uint32_t tile) {
    hold_sums<kSums>(x[m]);
    if (is_among) {
      Form::Closest::leave_out(x[m], warp_query(m), tile * kTile);
    }
    closest[m].add(x[m], shared.sides[tile % 4], lists);
    hold_sums<kSums>(x[m]);
  };
  const auto begin_first = [&](uint32_t tile) {
    wait_copies<0>();
    show_writes();
    // The tile is there, and nobody reads the one before it any more.
    __syncthreads();
    begin_tile<DIM>(shared, group_query, tile % 2, x[0]);
    if (tile < last) fetch(tile + 1);
    look_ahead(tile + 2);
  };
  const auto begin_second = [&](uint32_t tile) {
    begin_tile<DIM>(shared, group_query + Form::kHalf, tile % 2, x[1]);
  };
  begin_first(share.begin);
  wait_products<0>();
  // The compiler gives up what products do meanwhile where some are begun under
  // a condition, or in one round of a loop for the next.
#pragma unroll 1
  for (uint32_t tile = share.begin; tile < last; tile++) {
    begin_second(tile);
    compare(0, tile);
    store_ahead(tile + 2);
    wait_products<0>();
    begin_first(tile + 1);
    compare(1, tile);
    wait_products<0>();
  }
  begin_second(last);
  compare(0, last);
  wait_products<0>();
  compare(1, last);
#pragma unroll
  for (int m = 0; m < 2; m++) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      lists.store(share, pitch, warp_query(m) + lane_id() / 4 + 8 * h,
                  closest[m], h);
    }
  }
}

template <int DIM>
__global__ void __launch_bounds__(GroupSearch<DIM>::kThreads, 1)
    group_search_kernel(skv_chunk_args args, CompressWork all_work,
                        bool is_among) {
  using Form = GroupSearch<DIM>;
  auto &shared = tile_memory<typename Form::Shared>();
  begin_kernel();
  if (row_end(args.step) == 0) return;
  SearchShares<EvenRows> share({all_work, Form::kQueries, Form::kCandidates},
                               args.sizes.kv_heads, Form::kQueries);
  while (share.next()) {
    const KeyLists lists(args, all_work, share.kv_head);
    search_group_share<DIM>(lists, share, is_among, all_work.part_pitch(),
                            shared);
    // Nobody reads the last tiles any more.
    __syncthreads();
  }
}

// Searches if the device and the heads are made for it, and says so in \`done\`.
template <int DIM>
inline cudaError_t launch_group_search(const skv_chunk_args &args,
                                       const CompressWork &work, bool is_among,
                                       const Launch &launch, bool &done) {
  if constexpr (kHasGroupTiles<DIM>) {
    using Form = GroupSearch<DIM>;
    if (!launch.has_groups || args.sizes.head_dim % 8 != 0) return cudaSuccess;
    done = true;
    const auto kernel = group_search_kernel<DIM>;
    const cudaError_t status = allow_shared_memory(kernel, Form::kBytes);
    if (status != cudaSuccess) return status;
    return launch_kernel(launch, kernel, launch.multiprocessors, Form::kThreads,
                         Form::kBytes, args, work, is_among);
  } else {
    return cudaSuccess;
  }
}
`,
  "lib/group_tiles.cuh": `// Products of tiles of keys or values by groups of warps.
#pragma once

#include "gather_tile.cuh"

// Widths of heads whose tiles are whole lines of 128 bytes.
template <int DIM>
constexpr bool kHasGroupTiles = DIM == 64 || DIM == 128;

// Starts to multiply 64 lines of a tile, from \`line\` on, with the N of another.
template <int DIM, int N, uint32_t LINES>
__device__ inline void multiply_tiles(
    const skv_cached (*left)[LINES][kTileColumns], uint32_t line,
    const skv_cached (*right)[N][kTileColumns], float (*x)[4]) {
#pragma unroll
  for (int k = 0; k < DIM / 16; k++) {
    const uint32_t part = 16 * k / kTileColumns;
    const uint32_t column = 16 * k % kTileColumns;
    const uint64_t own = lines_at(&left[part][line][column]);
    const uint64_t other = lines_at(&right[part][0][column]);
    if (k == 0) {
      group_product_new<N>(x, own, other);
    } else {
      group_product_cached<N>(x, own, other);
    }
  }
}
`,
  "lib/half.cuh": `// Halves: 16-byte loads of eight of them, and conversions.
#pragma once

#include <cuda_fp16.h>
#include <stdint.h>

#include "../steadykv.h"
#include "instructions.cuh"

// The smallest number that rounding to a half takes to infinity.
constexpr float kHalfOverflow = 65520.0f;

__device__ inline float2 to_floats(uint32_t halves) {
  return __half22float2(*reinterpret_cast<const __half2 *>(&halves));
}

__device__ inline float to_float(skv_half bits) {
  return __half2float(__ushort_as_half(bits));
}

__device__ inline skv_half to_half(float x) {
  return __half_as_ushort(__float2half_rn(x));
}

__device__ inline uint32_t to_halves(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t *>(&pair);
}

// COUNT 16-bit elements of a row of \`width\` from \`first\`, in pairs; zeros
// beyond its end. Rows whose width is a multiple of 8 are read 8 or 16 bytes at
// a time.
template <int COUNT, bool ALIGNED, class T>
__device__ inline void load_pairs(uint32_t (&out)[COUNT / 2], const T *row,
                                  uint32_t first, uint32_t width) {
  static_assert(sizeof(T) == 2, "16-bit elements");
  static_assert(COUNT == 4 || COUNT == 8, "one load per lane");
  if constexpr (ALIGNED) {
    if (first >= width) {
#pragma unroll
      for (int i = 0; i < COUNT / 2; i++) out[i] = 0;
    } else if constexpr (COUNT == 8) {
      const uint4 v = *reinterpret_cast<const uint4 *>(row + first);
      out[0] = v.x, out[1] = v.y, out[2] = v.z, out[3] = v.w;
    } else {
      const uint2 v = *reinterpret_cast<const uint2 *>(row + first);
      out[0] = v.x, out[1] = v.y;
    }
  } else {
    // The width is even, so pairs are whole and aligned.
#pragma unroll
    for (int i = 0; i < COUNT / 2; i++) {
      const uint32_t at = first + 2 * i;
      out[i] = at < width ? *reinterpret_cast<const uint32_t *>(row + at) : 0;
    }
  }
}
`,
  "lib/half_rows.cuh": `// Activations as halves, for products with tensor cores: normed, scaled and
// rounded once, by a kernel of their own, because every tile of outputs reads
// them again.
//
// A row is scaled by a power of two that takes its largest element to
// [2^14, 2^15). One half of an element has an error of 2^-11 of itself down to
// 2^-28 of the largest; a second one, of what the first left over, takes that
// to 2^-22 (see mma.cuh). The alternative that lost: bf16, which needs no scale
// and has an error of 2^-8.
#pragma once

#include "mma.cuh"
#include "overlap.cuh"
#include "product_args.cuh"

struct HalfRows {
  // (rows, weight.pitch), zeros beyond the width
  skv_half *high;
  // The same, right behind, or null where one half is enough.
  skv_half *low;
  // (rows): what the products of a row must be multiplied by
  float *inverse;
};

// Most rows that are kept in two halves. Products are bound by the weights'
// bytes up to here, and the second half is free; beyond, it would double the
// work that bounds them.
constexpr uint32_t kMostExactRows = 32;

inline bool takes_two_halves(const Product &product) {
  return product.rows <= kMostExactRows;
}

inline size_t half_rows_bytes(const Product &product) {
  const size_t halves =
      static_cast<size_t>(product.rows) * product.weight.pitch * 2;
  return aligned_bytes(takes_two_halves(product) ? 2 * halves : halves) +
         aligned_bytes(product.rows * sizeof(float));
}

constexpr uint32_t kHalfRowThreads = 512;

// Chunks of eight elements that a thread keeps in registers between the two
// passes over a row; it reads further ones again.
constexpr uint32_t kHeldChunks = 4;

// Stores eight elements as halves; \`low\` may be null.
__device__ inline void store_chunk(skv_half *high, skv_half *low,
                                   const float (&x)[8], float scale) {
  SplitPair pairs[4];
#pragma unroll
  for (int i = 0; i < 4; i++) {
    pairs[i] = split_pair(x[2 * i] * scale, x[2 * i + 1] * scale);
  }
  *reinterpret_cast<uint4 *>(high) = {pairs[0].high, pairs[1].high,
                                      pairs[2].high, pairs[3].high};
  if (low == nullptr) return;
  *reinterpret_cast<uint4 *>(low) = {pairs[0].low, pairs[1].low, pairs[2].low,
                                     pairs[3].low};
}

// What the norm in front multiplies a row by, given its sum of squares.
__device__ inline float inverse_rms(const Product &product, float squares) {
  if (product.norm == nullptr) return 1.0f;
  return rsqrtf(squares / static_cast<float>(product.weight.columns) +
                product.epsilon);
}

// One row per block.
template <bool ALIGNED>
__global__ void __launch_bounds__(kHalfRowThreads, 2)
    half_rows_kernel(Product product, HalfRows to) {
  __shared__ float shared[2][kHalfRowThreads / 32];
  let_next_start();
  const uint32_t row = blockIdx.x;
  // The rows of a chunk are known no earlier than their elements are.
  const bool is_chunk = product.step.kind == SKV_PREFILL;
  const bool is_early = !is_chunk && product.is_wanted(row);
  wait_for_previous();
  if (!(is_chunk ? product.is_wanted(row) : is_early)) return;
  const uint32_t chunks = product.weight.pitch / 8;
  const float *from = product.row(row);
  float squares = 0.0f, largest = 0.0f;
  float held[kHeldChunks][8];
#pragma unroll
  for (uint32_t i = 0; i < kHeldChunks; i++) {
    const uint32_t chunk = threadIdx.x + i * kHalfRowThreads;
    if (chunk >= chunks) break;
    load_normed<ALIGNED>(held[i], product, from, 8 * chunk, squares);
#pragma unroll
    for (int k = 0; k < 8; k++) largest = fmaxf(largest, fabsf(held[i][k]));
  }
  for (uint32_t chunk = threadIdx.x + kHeldChunks * kHalfRowThreads;
       chunk < chunks; chunk += kHalfRowThreads) {
    float x[8];
    load_normed<ALIGNED>(x, product, from, 8 * chunk, squares);
#pragma unroll
    for (int k = 0; k < 8; k++) largest = fmaxf(largest, fabsf(x[k]));
  }
  squares = warp_sum(squares);
  largest = warp_max(largest);
  if (lane_id() == 0) {
    shared[0][warp_id()] = squares;
    shared[1][warp_id()] = largest;
  }
  __syncthreads();
  const bool exists = lane_id() < kHalfRowThreads / 32;
  squares = warp_sum(exists ? shared[0][lane_id()] : 0.0f);
  largest = warp_max(exists ? shared[1][lane_id()] : 0.0f);
  const Scale scale = scale_for(largest);
  const size_t base = static_cast<size_t>(row) * product.weight.pitch;
  const auto store = [&](uint32_t column, const float(&x)[8]) {
    const size_t at = base + column;
    store_chunk(to.high + at, to.low == nullptr ? nullptr : to.low + at, x,
                scale.scale);
  };
#pragma unroll
  for (uint32_t i = 0; i < kHeldChunks; i++) {
    const uint32_t chunk = threadIdx.x + i * kHalfRowThreads;
    if (chunk >= chunks) break;
    store(8 * chunk, held[i]);
  }
  for (uint32_t chunk = threadIdx.x + kHeldChunks * kHalfRowThreads;
       chunk < chunks; chunk += kHalfRowThreads) {
    float x[8], ignored = 0.0f;
    load_normed<ALIGNED>(x, product, from, 8 * chunk, ignored);
    store(8 * chunk, x);
  }
  if (threadIdx.x == 0) {
    to.inverse[row] = scale.inverse * inverse_rms(product, squares);
  }
}

// Takes memory for the halves of a product's rows.
inline HalfRows place_half_rows(const Product &product, Scratch &scratch) {
  const size_t halves =
      static_cast<size_t>(product.rows) * product.weight.pitch;
  const bool has_low = takes_two_halves(product);
  HalfRows rows;
  rows.high = scratch.take<skv_half>(has_low ? 2 * halves : halves);
  rows.low = has_low ? rows.high + halves : nullptr;
  rows.inverse = scratch.take<float>(product.rows);
  return rows;
}

// Makes them.
inline cudaError_t make_half_rows(const Product &product, const HalfRows &to,
                                  const Launch &launch) {
  const auto kernel = product.weight.columns % 8 == 0 ? half_rows_kernel<true>
                                                      : half_rows_kernel<false>;
  return launch_kernel(launch, kernel, product.rows, kHalfRowThreads, 0,
                       product, to);
}
`,
  "lib/instructions.cuh": `// Instructions that CUDA C++ has no words for, and shared memory whose size a
// launch decides. What only a GPU's compiler understands is in this file, which
// tests/cuda_emulation has another one for, and in group_instructions.cuh.
#pragma once

#include <cuda_runtime.h>
#include <stdint.h>

#include "../steadykv.h"

// The memory that a launch asks for beside that of the kernel's own variables.
__device__ inline uint4 *dynamic_shared_memory() {
  extern __shared__ uint4 memory[];
  return memory;
}

// Sixteen bytes that no kernel writes while this one runs and that are read
// once: past the L1 cache.
__device__ inline uint4 load_weights(const skv_half *address) {
  uint4 v;
  asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
      : "l"(address));
  return v;
}

// c += a · b for tiles of 16 x 16 and 16 x 8 halves. Lane 4 g + t holds
//   a: (g, 2t), (g + 8, 2t), (g, 2t + 8), (g + 8, 2t + 8) and the next columns
//   b: (2t, g), (2t + 8, g) and the next rows
//   c: (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1)
__device__ inline void mma(float (&c)[4], const uint4 &a, uint32_t b0,
                           uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}

// The same for tiles of what caches hold: see lib/cached.cuh.
__device__ inline void mma_cached(float (&c)[4], const uint4 &a, uint32_t b0,
                                  uint32_t b1) {
#ifdef SKV_CACHE_BFLOAT16
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
#else
  mma(c, a, b0, b1);
#endif
}

// The same for tiles of 16 x 8 and 8 x 8: the first half of their columns and
// rows.
__device__ inline void mma_cached_half(float (&c)[4], uint32_t a0, uint32_t a1,
                                       uint32_t b) {
#ifdef SKV_CACHE_BFLOAT16
  asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(b));
#else
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(b));
#endif
}

// c += a · b for tiles of 16 x 8 and 8 x 8 tf32 numbers. Lane 4 g + t holds
//   a: (g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4)
//   b: (t, g), (t + 4, g)
//   c: (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1)
__device__ inline void mma_tf32(float (&c)[4], const float (&a)[4], float b0,
                                float b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])),
        "r"(__float_as_uint(a[2])), "r"(__float_as_uint(a[3])),
        "r"(__float_as_uint(b0)), "r"(__float_as_uint(b1)));
}

// 2^x, with a relative error of 2^-22; below 2^-126 it is 0.
__device__ inline float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 1 / √x, with a relative error of 2^-22, for x that is a normal number.
__device__ inline float rsqrt_fast(float x) {
  float y;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ inline uint32_t shared_address(const void *pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Four 8 x 8 tiles of 16-bit elements; lane i gives the address of row i % 8 of
// tile i / 8.
template <class T>
__device__ inline uint4 load_matrices(const T *row) {
  static_assert(sizeof(T) == 2, "16-bit elements");
  uint4 v;
  asm volatile(
      "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
      : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
      : "r"(shared_address(row))
      : "memory");
  return v;
}

// The same, each tile transposed.
template <class T>
__device__ inline uint4 load_transposed(const T *row) {
  static_assert(sizeof(T) == 2, "16-bit elements");
  uint4 v;
  asm volatile(
      "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
      : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
      : "r"(shared_address(row))
      : "memory");
  return v;
}

// The transpose of an 8 x 8 tile of 16-bit elements; lane 4 g + t has (g, 2t)
// and (g, 2t + 1), of the tile and of the transpose.
__device__ inline uint32_t transpose_matrix(uint32_t pair) {
  uint32_t v;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(v) : "r"(pair));
  return v;
}

// Starts to copy 16 bytes to shared memory, or zeros.
template <class T>
__device__ inline void copy_async(T *to, const T *from, bool wanted) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(shared_address(to)), "l"(from), "r"(wanted ? 16 : 0)
               : "memory");
}

__device__ inline void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most LEFT groups of copies are under way.
template <int LEFT>
__device__ inline void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}

// Adds to a word when the block's writes up to its last barrier can be seen by
// all. Nothing is thrown out of the L1 cache, as __threadfence would do: who
// sees the sum reads what others wrote past that cache.
__device__ inline uint32_t add_released(uint32_t *word, uint32_t x) {
  uint32_t before;
  asm volatile("atom.add.release.gpu.global.u32 %0, [%1], %2;"
               : "=r"(before)
               : "l"(word), "r"(x)
               : "memory");
  return before;
}

// Lets the next kernel start as soon as there is room for it.
__device__ inline void let_next_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// Returns when the kernels before this one have ended.
__device__ inline void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
`,
  "lib/key_distance.cuh": `// How far each key points away from the mean direction of the head's keys, the
// score of KeyDiff: −cos(k, Σ k / |k|).
//
// One block per head reads its keys twice, a warp a key. A running mean would
// read them once, but slots come and go.
#pragma once

#include "lane_vector.cuh"

// For blocks of WARPS warps.
template <uint32_t WARPS>
struct KeyScratch {
  float sums[WARPS][kMaxHeadDim];
};

// Rates the slots \`slot(0)\` to \`slot(count - 1)\`, free ones left out. Called by
// a whole block, which sees all ratings afterwards.
template <uint32_t WARPS, class SlotOf>
__device__ inline void rate_by_key(uint32_t count, uint32_t head_dim,
                                   float *ratings, KeyScratch<WARPS> &scratch,
                                   SlotOf slot_of) {
  float sum[kLaneDims] = {};
  for (uint32_t i = warp_id(); i < count; i += WARPS) {
    const Slot slot = slot_of(i);
    if (slot.word(kSlotTokens) == 0) continue;
    const LaneVector key(slot.key, head_dim);
    const float inverse = key.inverse_norm();
#pragma unroll
    for (int d = 0; d < kLaneDims; d++) sum[d] += key.x[d] * inverse;
  }
#pragma unroll
  for (int d = 0; d < kLaneDims; d++) {
    scratch.sums[warp_id()][lane_id() + 32 * d] = sum[d];
  }
  __syncthreads();
  // Every warp adds the sums up, in the same order.
  float mean[kLaneDims] = {}, square = 0.0f;
#pragma unroll
  for (int d = 0; d < kLaneDims; d++) {
    for (uint32_t w = 0; w < WARPS; w++) {
      mean[d] += scratch.sums[w][lane_id() + 32 * d];
    }
    square += mean[d] * mean[d];
  }
  square = warp_sum(square);
  const float scale = square == 0.0f ? 0.0f : rsqrtf(square);
  for (uint32_t i = warp_id(); i < count; i += WARPS) {
    const Slot slot = slot_of(i);
    if (slot.word(kSlotTokens) == 0) continue;
    const LaneVector key(slot.key, head_dim);
    float product = 0.0f;
#pragma unroll
    for (int d = 0; d < kLaneDims; d++) product += mean[d] * key.x[d];
    product = warp_sum(product);
    const float inverse = key.inverse_norm();
    if (lane_id() == 0) ratings[i] = -product * scale * inverse;
  }
  __syncthreads();
}
`,
  "lib/known_pairs.cuh": `// Merging the cheapest of the pairs that slots remember: see
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

// Merges the cheapest pair, or drops the slot \`lone\` where nobody knows a
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
`,
  "lib/lane_logits.cuh": `// The raw logits that attention leaves for the policy.
#pragma once

#include "tile_products.cuh"

// Where a lane leaves raw logits for the policy.
template <int TILES>
struct LaneLogits {
  // Of the tile, for head t.
  float *to;
  uint32_t pitch;
  // End of the slots whose logits are left for head 4u + t.
  uint32_t ends[TILES];

  __device__ LaneLogits(const skv_merge_attend_args &args, const HeadJob &job,
                        const Share &share, float *logits) {
    const uint32_t g = lane_id() / 4, t = lane_id() % 4;
    pitch = args.cache.max_capacity;
    to = logits + static_cast<size_t>(t) * pitch + share.first_slot(0) + g;
#pragma unroll
    for (int u = 0; u < TILES; u++) {
      const bool wanted =
          args.policy.observe && kColumnHeads * u + t < job.heads;
      ends[u] = wanted ? share.end : 0;
    }
  }

  __device__ void store(uint32_t first,
                        const TileProducts<TILES> &products) const {
    const uint32_t slot = first + lane_id() / 4;
#pragma unroll
    for (int u = 0; u < TILES; u++) {
      float *own = to + static_cast<size_t>(kColumnHeads * u) * pitch;
#pragma unroll
      for (int k = 0; k < 2; k++) {
        if (slot + 8 * k < ends[u]) own[8 * k] = products.logits[u][k];
      }
    }
  }

  // Turns to the warp's next tile.
  __device__ void advance() { to += kBlockSlots; }
};
`,
  "lib/lane_vector.cuh": `// A vector of a slot over the lanes of a warp.
#pragma once

#include "slots.cuh"

// The dimensions that this lane holds, zeros beyond the end.
struct LaneVector {
  float x[kLaneDims];

  __device__ LaneVector(const skv_cached *vector, uint32_t head_dim) {
#pragma unroll
    for (int i = 0; i < kLaneDims; i++) {
      const uint32_t d = lane_id() + 32 * i;
      x[i] = d < head_dim ? to_float(vector[d]) : 0.0f;
    }
  }
  // The following are the same in every lane.
  __device__ float dot(const LaneVector &other) const {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kLaneDims; i++) sum += x[i] * other.x[i];
    return warp_sum(sum);
  }
  // Squared distance.
  __device__ float distance(const LaneVector &other) const {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kLaneDims; i++) {
      sum += (x[i] - other.x[i]) * (x[i] - other.x[i]);
    }
    return warp_sum(sum);
  }
  // 1 / |x|, or 0 for a zero vector.
  __device__ float inverse_norm() const {
    const float square = dot(*this);
    return square == 0.0f ? 0.0f : rsqrtf(square);
  }
};

// A weighted sum of vectors over the lanes of a warp.
struct LaneSum {
  float x[kLaneDims] = {};

  __device__ void add(float weight, const LaneVector &vector) {
#pragma unroll
    for (int i = 0; i < kLaneDims; i++) x[i] += weight * vector.x[i];
  }
  // Stores the sum times \`scale\`.
  __device__ void store(skv_cached *to, float scale, uint32_t head_dim) const {
#pragma unroll
    for (int i = 0; i < kLaneDims; i++) {
      const uint32_t d = lane_id() + 32 * i;
      if (d < head_dim) to[d] = to_cached(x[i] * scale);
    }
  }
};
`,
  "lib/leave_evidence.cuh": `// What attention leaves for the policy: see lib/evidence.cuh.
#pragma once

#include "attend_parts.cuh"

// Notes what the policy needs to know; \`log_sums\` are in shared memory, and
// \`rode\` says how many splits left neighbours.
template <int DIM>
__device__ inline void leave_evidence(const HeadJob &job,
                                      const Evidence &evidence, uint2 counts,
                                      uint32_t rode,
                                      const AttendShared<DIM> &shared) {
  if (threadIdx.x == 0 && job.first_head == 0) {
    evidence.rows[job.index] = {job.position, counts.x, min(counts.y, job.high),
                                job.high};
    if (evidence.riders.splits != nullptr) {
      evidence.riders.splits[job.index] = rode;
    }
  }
  if (evidence.log_sums != nullptr && threadIdx.x < job.heads) {
    evidence.log_sums[job.index * kMaxGroup + job.first_head + threadIdx.x] =
        shared.log_sums[threadIdx.x];
  }
}

// Keeps the queries for the policy, which the next layer overwrites. Called by
// one block of each KV head.
__device__ inline void keep_queries(const skv_merge_attend_args &args,
                                    const HeadJob &job,
                                    const Evidence &evidence) {
  if (evidence.queries == nullptr) return;
  const uint32_t count = job.heads * args.sizes.head_dim;
  const float *from =
      args.queries + query_row(args, job, 0) * args.sizes.head_dim;
  const size_t own =
      static_cast<size_t>(job.index) * job.group + job.first_head;
#pragma unroll 1
  for (uint32_t i = threadIdx.x; i < count; i += kAttendThreads) {
    evidence.queries[own * args.sizes.head_dim + i] = __ldcg(from + i);
  }
}

// Leaves the nearest of a block's slots for each rider.
template <int DIM>
__device__ inline void leave_nearest(const HeadJob &job,
                                     const RiderMemory &riders,
                                     const AttendShared<DIM> &shared) {
  if (threadIdx.x >= riders.count) return;
  Neighbour best = kNoNeighbour;
#pragma unroll
  for (uint32_t w = 0; w < kAttendWarps; w++) {
    const Neighbour other = shared.nearest[w][threadIdx.x];
    if (other.beats(best)) best = other;
  }
  const size_t part =
      static_cast<size_t>(job.index) * riders.most_splits + blockIdx.x;
  riders.nearest[part * riders.count + threadIdx.x] = best;
}
`,
  "lib/library_product.cuh": `// Products of several rows by a library of NVIDIA's
// (runtime/matrix_library.cuh): it multiplies the halves into scratch memory,
// and a kernel of ours does what belongs to the outputs. Where rows are in two
// halves, the small ones are rows of their own.
#pragma once

#include "../runtime/matrix_library.cuh"
#include "half_rows.cuh"
#include "overlap.cuh"
#include "product_args.cuh"

constexpr uint32_t kFinishThreads = 256;

// Pairs that a thread finishes.
constexpr uint32_t kFinishPairs = 4;

template <class Pairs>
__global__ void __launch_bounds__(kFinishThreads)
    finish_pairs_kernel(Product product, Pairs pairs, const float *products,
                        const float *small, const float *inverse) {
  begin_kernel();
  const uint32_t row = blockIdx.y;
  if (!product.is_wanted(row)) return;
  const uint32_t outputs = product.weight.rows;
  const uint32_t count = pairs_of(product.weight);
  const size_t first_output = static_cast<size_t>(row) * outputs;
  const float scale = inverse[row];
  const uint32_t first =
      blockIdx.x * (kFinishThreads * kFinishPairs) + threadIdx.x;
  float ends[kFinishPairs][2];
#pragma unroll
  for (uint32_t i = 0; i < kFinishPairs; i++) {
    const uint32_t pair = min(first + i * kFinishThreads, count - 1);
#pragma unroll
    for (uint32_t end = 0; end < 2; end++) {
      const size_t at =
          first_output + min(pairs.output(pair, end), outputs - 1);
      ends[i][end] = products[at];
      if (small != nullptr) ends[i][end] += small[at];
    }
  }
#pragma unroll
  for (uint32_t i = 0; i < kFinishPairs; i++) {
    const uint32_t pair = first + i * kFinishThreads;
    if (pair >= count) return;
    pairs.finish(pairs.hold(row, pair), ends[i][0] * scale, ends[i][1] * scale);
  }
}

// Rows that the library multiplies.
inline uint32_t library_rows(const Product &product) {
  return takes_two_halves(product) ? 2 * product.rows : product.rows;
}

inline size_t library_product_bytes(const Product &product) {
  const size_t outputs =
      static_cast<size_t>(library_rows(product)) * product.weight.rows;
  return half_rows_bytes(product) + aligned_bytes(outputs * sizeof(float)) +
         MatrixLibrary::kWorkspaceBytes;
}

// Multiplies if the library can, and says so in \`done\`.
template <class Pairs>
inline cudaError_t multiply_with_library(const Product &product,
                                         const Pairs &pairs, Scratch scratch,
                                         const Launch &launch, bool &done) {
  const size_t outputs =
      static_cast<size_t>(product.rows) * product.weight.rows;
  const uint32_t multiplied = library_rows(product);
  const HalfRows rows = place_half_rows(product, scratch);
  cudaError_t status = make_half_rows(product, rows, launch);
  if (status != cudaSuccess) return status;
  float *products = scratch.take<float>(static_cast<size_t>(multiplied) *
                                        product.weight.rows);
  void *workspace = scratch.take<char>(MatrixLibrary::kWorkspaceBytes);
  done = launch.library->multiply(
      {products, rows.high, product.weight, multiplied}, workspace,
      launch.stream);
  if (!done) return cudaSuccess;
  const uint32_t per_block = kFinishThreads * kFinishPairs;
  const dim3 grid((pairs_of(product.weight) + per_block - 1) / per_block,
                  product.rows);
  return launch_kernel(launch, finish_pairs_kernel<Pairs>, grid, kFinishThreads,
                       0, product, pairs, products,
                       rows.low == nullptr ? nullptr : products + outputs,
                       rows.inverse);
}
`,
  "lib/matrix_product.cuh": `// Products of several rows of activations with a weight matrix, for batches and
// prefill chunks: tensor cores, and both operands on their way to shared memory
// several steps before they are needed.
//
// A tile is 64 pairs of outputs by 8 to 256 rows (lib/matrix_shape.cuh); a step
// of it takes 64 columns, in which every lane of a warp finds the operands of
// two products in 16 consecutive bytes: a dot product does not care about the
// order of its terms, so both sides may deal the columns alike. Blocks stay for
// all their tiles and share them evenly (lib/tile_shares.cuh), so that memory
// never waits for a last wave of blocks. As in the form for one row, weights
// are on their way before the kernel in front has ended.
//
// The alternatives that lost: weights from memory straight to registers, which
// leaves none for the sums of many rows; tf32 numbers, which need no scale but
// twice the products, and a conversion of every weight; partial sums that
// blocks add atomically, which are not the same from run to run.
#pragma once

#include <algorithm>

#include "half_rows.cuh"
#include "matrix_shape.cuh"
#include "mma.cuh"
#include "overlap.cuh"
#include "product_args.cuh"
#include "tile_fetcher.cuh"
#include "tile_shares.cuh"
#include "tile_sums.cuh"

// Most blocks that share a tile where there are fewer tiles than blocks, and
// least steps of a block: the last block of a tile reads what all others made.
constexpr uint32_t kMostSharers = 8;
constexpr uint32_t kLeastSteps = 2;

// Adds the products of one step.
template <class Shape>
__device__ inline void add_step(const skv_half *stage, WarpSums<Shape> &sums) {
  const uint32_t lane = lane_id();
  // Places of the lane's lines in the first operands of a step; the chunks of
  // others differ by bits that are the same for all lines.
  const uint32_t left = chunk_place(lane % 16, lane / 16);
  const uint32_t right = chunk_place(lane % 8, lane / 8);
  const skv_half *weights = stage + warp_output<Shape>() * kStepColumns;
  const skv_half *rows =
      stage + (kTileOutputs + warp_row<Shape>()) * kStepColumns;
#pragma unroll
  for (uint32_t part = 0; part < kStepColumns / 32; part++) {
    uint4 w[2][Shape::kOutputTiles];
#pragma unroll
    for (uint32_t k = 0; k < 2; k++) {
#pragma unroll
      for (int o = 0; o < Shape::kOutputTiles; o++) {
        w[k][o] = load_matrices(weights + (left ^ (2 * part + k) * 16) +
                                16 * o * kStepColumns);
      }
    }
#pragma unroll
    for (int r = 0; r < Shape::kRowTiles; r++) {
      // The small halves first.
#pragma unroll
      for (int half = Shape::kHalves - 1; half >= 0; half--) {
        const uint4 x = load_matrices(
            rows + (right ^ part * 32) +
            (half * Shape::kRows + r * Shape::kSliceRows) * kStepColumns);
#pragma unroll
        for (int o = 0; o < Shape::kOutputTiles; o++) {
          mma(sums[o][r], w[0][o], x.x, x.y);
        }
#pragma unroll
        for (int o = 0; o < Shape::kOutputTiles; o++) {
          mma(sums[o][r], w[1][o], x.z, x.w);
        }
      }
    }
  }
}

template <class Shape, class Pairs>
__global__ void __launch_bounds__(kMatrixThreads, Shape::kResident)
    matrix_product_kernel(Product product, HalfRows rows, Pairs pairs,
                          TileSums memory) {
  __shared__ RowFactors<Shape> factors;
  skv_half *const stages =
      reinterpret_cast<skv_half *>(dynamic_shared_memory());
  let_next_start();
  // How many rows a chunk has is not known before; those of a batch are.
  const bool is_chunk = product.step.kind == SKV_PREFILL;
  if (is_chunk) wait_for_previous();
  const uint32_t end = is_chunk ? product.end() : product.rows;
  const uint32_t row_tiles = (end + Shape::kRows - 1) / Shape::kRows;
  const uint32_t output_tiles =
      (product.weight.rows + kTileOutputs - 1) / kTileOutputs;
  const TileShares shares(
      output_tiles * row_tiles,
      (product.weight.pitch + kStepColumns - 1) / kStepColumns, gridDim.x);
  TileFetcher<Shape, Pairs> fetcher(product, rows, pairs, shares, row_tiles,
                                    end);
  uint32_t left = fetcher.left();
  constexpr uint32_t kAhead = Shape::kStages - 1;
  auto early = fetcher;
  for (uint32_t stage = 0; stage < kAhead && early.left() > 0; stage++) {
    early.fetch_weights(stages + stage * Shape::kStageHalves);
    early.advance();
  }
  if (!is_chunk) wait_for_previous();
  for (uint32_t stage = 0; stage < kAhead && fetcher.left() > 0; stage++) {
    fetcher.fetch_rows(stages + stage * Shape::kStageHalves);
    fetcher.advance();
  }
  commit_copies();
  TileCursor now(shares, blockIdx.x);
  uint32_t row_tile = 0;
  if (left > 0) {
    row_tile = now.tile % row_tiles;
    factors.load(product, rows, row_tile);
  }
  wait_copies<0>();

  const skv_half *const end_stage =
      stages + Shape::kStages * Shape::kStageHalves;
  skv_half *full = stages;
  skv_half *free = stages + kAhead * Shape::kStageHalves;
  while (left > 0) {
    const uint32_t run = now.run(shares);
    WarpSums<Shape> sums = {};
    for (uint32_t i = 0; i < run; i++) {
      wait_copies<Shape::kStages - 2>();
      __syncthreads();
      if (fetcher.left() > 0) {
        fetcher.fetch_weights(free);
        fetcher.fetch_rows(free);
        fetcher.advance();
      }
      commit_copies();
      add_step<Shape>(full, sums);
      free = full;
      full += Shape::kStageHalves;
      if (full == end_stage) full = stages;
    }
    // All warps have used the stage up, and the factors of the tile before.
    __syncthreads();
    if (now.tile % row_tiles != row_tile) {
      row_tile = now.tile % row_tiles;
      factors.load(product, rows, row_tile);
    }
    finish_tile<Shape>(product, pairs,
                       TileParts<Shape>(shares, memory, now.tile), sums,
                       factors, row_tiles, free);
    now.advance(shares, blockIdx.x, run);
    left -= run;
  }
  wait_copies<0>();
}

template <class Shape>
inline uint32_t matrix_tiles(const Product &product) {
  return (product.weight.rows + kTileOutputs - 1) / kTileOutputs *
         ((product.rows + Shape::kRows - 1) / Shape::kRows);
}

template <class Shape>
inline uint32_t matrix_blocks(const Product &product,
                              uint32_t multiprocessors) {
  const uint64_t tiles = matrix_tiles<Shape>(product);
  const uint64_t steps =
      (product.weight.pitch + kStepColumns - 1) / kStepColumns;
  const uint64_t useful =
      std::min(tiles * kMostSharers, tiles * steps / kLeastSteps);
  return static_cast<uint32_t>(
      std::max(uint64_t{1},
               std::min(uint64_t{multiprocessors} * Shape::kResident, useful)));
}

// What both the best shape and the one for all devices need.
inline Needs matrix_product_needs(const Product &product,
                                  uint32_t multiprocessors) {
  Needs needs;
  for (const size_t shared_bytes : {kLeastSharedBytes, SIZE_MAX}) {
    with_matrix_shape(product, shared_bytes, [&](auto shape) {
      using Shape = decltype(shape);
      const size_t blocks = matrix_blocks<Shape>(product, multiprocessors);
      const size_t parts = kPartSlots * blocks * Shape::kSums;
      const size_t scratch =
          half_rows_bytes(product) + aligned_bytes(parts * sizeof(float2));
      needs.scratch = std::max(needs.scratch, scratch);
      needs.tickets = std::max(needs.tickets, 2 * blocks);
    });
  }
  return needs;
}

// Multiplies the rows of a step. \`scratch\` has what is needed.
template <class Pairs>
inline cudaError_t multiply_matrix(const Product &product, const Pairs &pairs,
                                   Scratch scratch, const Launch &launch) {
  const HalfRows rows = place_half_rows(product, scratch);
  const cudaError_t status = make_half_rows(product, rows, launch);
  if (status != cudaSuccess) return status;
  return with_matrix_shape(product, launch.shared_bytes, [&](auto shape) {
    using Shape = decltype(shape);
    const uint32_t blocks =
        matrix_blocks<Shape>(product, launch.multiprocessors);
    const TileSums memory = {
        scratch.take<float2>(size_t{kPartSlots} * blocks * Shape::kSums),
        launch.tickets};
    const auto kernel = matrix_product_kernel<Shape, Pairs>;
    const cudaError_t allowed = allow_shared_memory(kernel, Shape::kBytes);
    if (allowed != cudaSuccess) return allowed;
    return launch_kernel(launch, kernel, blocks, kMatrixThreads, Shape::kBytes,
                         product, rows, pairs, memory);
  });
}
`,
  "lib/matrix_shape.cuh": `// Shapes of the tiles of lib/matrix_product.cuh: how many rows and outputs, who
// makes which of them, and how much is on its way meanwhile.
#pragma once

#include "half_rows.cuh"
#include "product_args.cuh"
#include "reduce.cuh"

constexpr uint32_t kMatrixThreads = 256;
constexpr uint32_t kTileOutputs = 128;
constexpr uint32_t kTilePairs = kTileOutputs / 2;
constexpr uint32_t kStepColumns = 64;

// Chunks of eight columns in a step.
constexpr uint32_t kStepChunks = kStepColumns / 8;

// A tile of ROWS rows, of one or two halves each.
template <uint32_t ROWS, bool TWO_HALVES>
struct MatrixShape {
  static constexpr uint32_t kRows = ROWS;
  static constexpr uint32_t kHalves = TWO_HALVES ? 2 : 1;
  // Warps side by side over the rows, and over the outputs.
  static constexpr uint32_t kRowWarps = ROWS <= 16 ? 1 : ROWS <= 128 ? 2 : 4;
  static constexpr uint32_t kOutputWarps = 8 / kRowWarps;
  // Tiles of 16 outputs and of 8 rows that a warp makes. Those of rows go
  // round the warps, so that slices of all of them are rows in a row.
  static constexpr int kOutputTiles = kTileOutputs / 16 / kOutputWarps;
  static constexpr int kRowTiles = ROWS / 8 / kRowWarps;
  static constexpr uint32_t kSliceRows = 8 * kRowWarps;
  static constexpr uint32_t kStageHalves =
      (kTileOutputs + kHalves * ROWS) * kStepColumns;
  // Two blocks are on a multiprocessor, but for the widest tile: one multiplies
  // while the other waits. With one, products of 16 rows took 1.2 times as
  // long.
  static constexpr int kStages = ROWS <= 16    ? 5
                                 : ROWS <= 64  ? 4
                                 : ROWS <= 128 ? 3
                                               : 4;
  static constexpr uint32_t kResident = ROWS <= 128 ? 2 : 1;
  static constexpr uint32_t kBytes = kStages * kStageHalves * 2;
  // Sums of a tile, in pairs. A stage has room for those of some slices.
  static constexpr uint32_t kSums = ROWS * kTilePairs;
  static constexpr int kPasses = ROWS <= 32 ? 1 : ROWS <= 128 ? 2 : 4;
  static constexpr int kPassTiles = kRowTiles / kPasses;
  static constexpr uint32_t kPassRows = ROWS / kPasses;
  static_assert(kPassRows * kTilePairs * sizeof(float2) <= kStageHalves * 2,
                "a stage for the sums of a pass");
};

// Bytes of the kernel's own variables, and more than that.
template <class Shape>
constexpr size_t kMatrixOwnBytes = Shape::kRows * sizeof(float) + 128;

// Whether blocks that may have \`shared_bytes\` have room for a shape's stages.
template <class Shape>
constexpr bool fits_matrix(size_t shared_bytes) {
  return Shape::kBytes + kMatrixOwnBytes<Shape> <= shared_bytes;
}

// Calls \`f\` with the shape for a product's rows, or with the next best one
// where it does not fit.
template <class F>
inline auto with_matrix_shape(const Product &product, size_t shared_bytes,
                              const F &f) {
  using Rows8 = MatrixShape<8, true>;
  using Rows16 = MatrixShape<16, true>;
  using Rows32 = MatrixShape<32, true>;
  using Rows64 = MatrixShape<64, false>;
  using Rows128 = MatrixShape<128, false>;
  using Rows256 = MatrixShape<256, false>;
  static_assert(kMostExactRows == 32, "shapes with two halves");
  static_assert(fits_matrix<Rows8>(kLeastSharedBytes) &&
                    fits_matrix<Rows32>(kLeastSharedBytes) &&
                    fits_matrix<Rows64>(kLeastSharedBytes) &&
                    fits_matrix<Rows128>(kLeastSharedBytes),
                "shapes for all devices");
  const bool has_16 = fits_matrix<Rows16>(shared_bytes);
  const bool has_256 = fits_matrix<Rows256>(shared_bytes);
  if (product.rows <= 8) return f(Rows8());
  if (product.rows <= 16 && has_16) return f(Rows16());
  if (product.rows <= 32) return f(Rows32());
  if (product.rows <= 64) return f(Rows64());
  if (product.rows <= 128 || !has_256) return f(Rows128());
  return f(Rows256());
}

// Where chunk \`chunk\` of line \`line\` is in a stage, in halves: eight lines have
// a chunk in different banks.
__device__ inline uint32_t chunk_place(uint32_t line, uint32_t chunk) {
  return line * kStepColumns + (chunk ^ line % 8) * 8;
}

// The first output and the first row of a warp, in its tile.
template <class Shape>
__device__ inline uint32_t warp_output() {
  return warp_id() % Shape::kOutputWarps * Shape::kOutputTiles * 16;
}
template <class Shape>
__device__ inline uint32_t warp_row() {
  return warp_id() / Shape::kOutputWarps * 8;
}
`,
  "lib/merge_one.cuh": `// What becomes of the slot that goes after a decode step: where it is merged,
// or that it is dropped.
#pragma once

#include "blend_slots.cuh"
#include "evict_one.cuh"
#include "merge_slots.cuh"

// The next slot to the right of the victim, or none. Called by the whole block.
__device__ inline uint32_t find_right(const skv_merge_attend_args &args,
                                      const EvictJob &job, uint32_t victim,
                                      EvictShared &shared) {
  const uint32_t position = job.slot(args, victim).word(kSlotPosition);
  uint64_t best = kNoKey;
  uint32_t nearest = ~0u;
#pragma unroll 1
  for (uint32_t i = threadIdx.x; i < job.high; i += kEvictThreads) {
    const Slot slot = job.slot(args, i);
    const uint32_t other = slot.word(kSlotPosition);
    if (slot.word(kSlotTokens) == 0 || other <= position) continue;
    if (other < best) best = other, nearest = i;
  }
  return lowest_of_block(best, nearest, shared.lowest);
}

// The slot with the key most similar to that of the victim, sinks left out.
// Four lanes share a key. Called by the whole block.
template <bool ALIGNED>
__device__ inline Neighbour find_nearest(const skv_merge_attend_args &args,
                                         const EvictJob &job, uint32_t victim,
                                         EvictShared &shared) {
  const uint32_t head_dim = args.sizes.head_dim;
  const uint32_t t = lane_id() % 4;
  const Slot gone = job.slot(args, victim);
  if (threadIdx.x < kMaxHeadDim) {
    shared.key[threadIdx.x] =
        threadIdx.x < head_dim ? gone.key[threadIdx.x] : skv_cached{};
  }
  __syncthreads();
  // The length of the victim's key counts for all alike, but for the threshold.
  float own_square = 0.0f;
  for (uint32_t d = lane_id(); d < head_dim; d += 32) {
    const float x = to_float(shared.key[d]);
    own_square += x * x;
  }
  own_square = warp_sum(own_square);
  Neighbour best = kNoNeighbour;
#pragma unroll 2
  for (uint32_t first = 8 * warp_id(); first < job.high;
       first += 8 * kEvictWarps) {
    const uint32_t i = first + lane_id() / 4;
    const Slot slot = job.slot(args, min(i, job.high - 1));
    const uint32_t tokens = slot.word(kSlotTokens);
    const uint32_t position = slot.word(kSlotPosition);
    float dot = 0.0f, square = 0.0f;
#pragma unroll 4
    for (uint32_t d = 8 * t; d < head_dim; d += 32) {
      uint32_t other[4];
      load_pairs<8, ALIGNED>(other, slot.key, d, head_dim);
      const uint4 own = *reinterpret_cast<const uint4 *>(shared.key + d);
      const uint32_t mine[4] = {own.x, own.y, own.z, own.w};
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const float2 x = cached_floats(mine[j]), y = cached_floats(other[j]);
        dot += x.x * y.x + x.y * y.y;
        square += y.x * y.x + y.y * y.y;
      }
    }
    dot += __shfl_xor_sync(kAllLanes, dot, 1);
    dot += __shfl_xor_sync(kAllLanes, dot, 2);
    square += __shfl_xor_sync(kAllLanes, square, 1);
    square += __shfl_xor_sync(kAllLanes, square, 2);
    if (i >= job.high || i == victim || tokens == 0) continue;
    if (position < args.policy.sinks) continue;
    const float norms = sqrtf(own_square) * sqrtf(square);
    const Neighbour candidate = {norms == 0.0f ? 0.0f : dot / norms, position,
                                 i};
    if (candidate.beats(best)) best = candidate;
  }
  return nearest_of_block(best, shared);
}

// The same, as attention found it if the victim was a rider.
template <bool ALIGNED>
__device__ inline Neighbour nearest_key(const skv_merge_attend_args &args,
                                        const EvictJob &job,
                                        const RiderMemory &riders,
                                        uint32_t victim, EvictShared &shared) {
  Neighbour nearest = kNoNeighbour;
  if constexpr (ALIGNED) {
    nearest = nearest_ridden(riders, job.index, shared.ridden, victim);
  }
  if (!nearest.exists()) {
    return find_nearest<ALIGNED>(args, job, victim, shared);
  }
  const LaneVector key(job.slot(args, victim).key, args.sizes.head_dim);
  nearest.similarity *= key.inverse_norm();
  return nearest;
}

// Attention weight of slot \`i\` for query head \`g\`.
__device__ inline float attention_weight(const skv_merge_attend_args &args,
                                         const EvictJob &job,
                                         const EvictShared &shared,
                                         const Slot &slot, uint32_t i,
                                         uint32_t g) {
  const float logit =
      job.logits[static_cast<size_t>(g) * args.cache.max_capacity + i];
  return expf(logit + vote_bias(slot, g, args.cache.lanes) -
              shared.log_sums[g]);
}

// Merges the value of the victim into the slot to its right: see
// src/reference/merge_values.ts. Called by one warp.
__device__ inline void merge_value(const skv_merge_attend_args &args,
                                   const EvictJob &job,
                                   const EvictShared &shared, uint32_t victim,
                                   uint32_t right) {
  const uint32_t head_dim = args.sizes.head_dim;
  const Slot gone = job.slot(args, victim);
  const Slot kept = job.slot(args, right);
  const bool exact = args.policy.exact_values != 0;
  const float own = mean_attention(gone), other = mean_attention(kept);
  const float share = own + other == 0.0f ? 0.5f : own / (own + other);
  float weights[kMaxGroup], lost = 0.0f, left = 0.0f;
#pragma unroll
  for (uint32_t g = 0; g < kMaxGroup; g++) {
    weights[g] = 0.0f;
    if (!exact || g >= job.group) continue;
    weights[g] = attention_weight(args, job, shared, gone, victim, g);
    lost += weights[g];
    left += attention_weight(args, job, shared, kept, right, g);
  }
  const float scale = fmaxf(left, lost / args.policy.ratio_cap);
  for (uint32_t d = lane_id(); d < head_dim; d += 32) {
    const float from = to_float(gone.value[d]);
    float value = to_float(kept.value[d]);
    if (exact) {
      float change = 0.0f;
#pragma unroll
      for (uint32_t g = 0; g < kMaxGroup; g++) {
        if (g >= job.group) continue;
        change += weights[g] * (from - job.outputs[g * head_dim + d]);
      }
      if (scale > 0.0f) value += change / scale;
    } else {
      value = share * from + (1.0f - share) * value;
    }
    kept.value[d] = to_cached(value);
  }
  if (lane_id() != 0) return;
  kept.set_word(kSlotTokens, kept.word(kSlotTokens) + gone.word(kSlotTokens));
  if (exact) return;
  kept.set(kSlotValueNorm, share * gone.get(kSlotValueNorm) +
                               (1.0f - share) * kept.get(kSlotValueNorm));
}

// Merges two slots so that the one that stays has the mass of both. Called by
// one warp.
template <bool QUERIES>
__device__ inline Merged merge_two(const skv_merge_attend_args &args,
                                   const EvictJob &job, uint32_t stays,
                                   uint32_t goes) {
  const Slot kept = job.slot(args, stays), gone = job.slot(args, goes);
  const MergeContext context = {job.queries, job.group, args.sizes.head_dim,
                                args.cache.lanes};
  return merge_slots<QUERIES>(
      2, [&](uint32_t i) { return i == 0 ? kept : gone; }, context,
      args.policy);
}

// Frees the slot that goes, and counts what became of it. Called by one thread.
__device__ inline void remove_slot(const skv_merge_attend_args &args,
                                   const EvictJob &job, uint32_t victim,
                                   bool is_merged, const Merged &merged) {
  const Slot gone = job.slot(args, victim);
  uint32_t *words = job.words;
  if (is_merged) {
    words[kHeadMerged]++;
    words[kHeadGuarded] += merged.guarded ? 1 : 0;
    words[kHeadDivergence] = __float_as_uint(
        __uint_as_float(words[kHeadDivergence]) + merged.divergence);
  } else {
    words[kHeadDropped]++;
    words[kHeadDroppedTokens] += gone.word(kSlotTokens);
  }
  free_slot(gone, args.cache.lanes);
  words[kHeadLive]--;
  words[kHeadNext] = min(words[kHeadNext], victim);
}

// Merges the victim where the policy says, or drops it. Returns the slot that
// took its key in, or none, to the first warp. Called by the whole block.
template <uint32_t MERGE, bool ALIGNED, bool QUERIES>
__device__ inline uint32_t evict(const skv_merge_attend_args &args,
                                 const EvictJob &job, const RiderMemory &riders,
                                 uint32_t victim, EvictShared &shared) {
  const skv_policy &policy = args.policy;
  uint32_t target = ~0u;
  bool is_merged = false;
  if constexpr (MERGE == SKV_MERGE_VOTES) {
    const Neighbour nearest =
        nearest_key<ALIGNED>(args, job, riders, victim, shared);
    if (nearest.similarity > policy.threshold) target = nearest.item;
  } else if constexpr (MERGE == SKV_MERGE_COSINE) {
    const Neighbour nearest =
        nearest_key<ALIGNED>(args, job, riders, victim, shared);
    if (nearest.exists() && warp_id() == 0) {
      const float past = __uint_as_float(job.words[kHeadThreshold]);
      const float threshold = next_threshold(policy, past, nearest.similarity);
      __syncwarp();
      if (lane_id() == 0) {
        job.words[kHeadThreshold] = __float_as_uint(threshold);
      }
      if (nearest.similarity >= threshold) target = nearest.item;
    }
  } else if constexpr (MERGE == SKV_MERGE_RIGHT_NEIGHBOUR) {
    target = find_right(args, job, victim, shared);
  } else if constexpr (MERGE == SKV_MERGE_NEXT_VALUES) {
    const PassedOn place = {job.slot(args, victim), args.cache.layer,
                            job.kv_head, args.sizes.head_dim};
    is_merged = pass_on(
        policy, place, job.high, shared.followers, shared.select,
        [&](uint32_t i) {
          const Slot slot = job.slot(args, i);
          return slot.word(kSlotTokens) == 0 ? 0 : slot.word(kSlotPosition);
        },
        [&](uint32_t i) { return job.slot(args, i); });
  }
  if (warp_id() != 0) return ~0u;
  Merged merged = {};
  if (target != ~0u) {
    is_merged = true;
    if constexpr (MERGE == SKV_MERGE_VOTES) {
      merged = merge_two<QUERIES>(args, job, target, victim);
    } else if constexpr (MERGE == SKV_MERGE_COSINE) {
      const Slot kept = job.slot(args, target), gone = job.slot(args, victim);
      blend_slots(
          2, [&](uint32_t i) { return i == 0 ? kept : gone; },
          args.sizes.head_dim);
    } else if constexpr (MERGE == SKV_MERGE_RIGHT_NEIGHBOUR) {
      merge_value(args, job, shared, victim, target);
    }
  }
  __syncwarp();
  if (lane_id() == 0) remove_slot(args, job, victim, is_merged, merged);
  return target;
}
`,
  "lib/merge_pairs.cuh": `// Merging pairs before anything is evicted: similar ones, or the cheapest.
//
// Taking proposals in order looks sequential, but a proposal that is the best
// of both its ends is taken whatever the others do; so rounds take all of those
// at once, and give exactly the same pairs. A round is about the proposals
// whose ends are still free, which are fewer and fewer. The alternative that
// lost: sorting proposals and one thread that goes through them.
//
// One block per head decides. Many blocks find what each item proposes and
// merge what was decided, since both wait for memory more than for anything
// else.
#pragma once

#include "merge_slots.cuh"
#include "ratings.cuh"
#include "search_items.cuh"
#include "select_smallest.cuh"

__device__ inline MergeContext merge_context(const skv_chunk_args &args,
                                             const ChunkHead &head) {
  const skv_sizes &sizes = args.sizes;
  const uint32_t group = sizes.heads / sizes.kv_heads;
  const size_t query =
      static_cast<size_t>(head.rows - 1) * sizes.heads + head.kv_head * group;
  return {args.queries + query * sizes.head_dim, group, sizes.head_dim,
          args.cache.lanes};
}

// Sets what searches take of an item: 1 / |key|, or what prices its pairs.
// Called by a whole warp.
__device__ inline void measure_item(const skv_chunk_args &args,
                                    const ChunkHead &head, const HeadWork &work,
                                    uint32_t ordinal) {
  const Slot slot = item_slot(args, head, work.items[ordinal]);
  const bool prices = merges_cheapest(args.policy);
  float key = 0.0f, value = 0.0f;
  for (uint32_t d = lane_id(); d < args.sizes.head_dim; d += 32) {
    const float x = to_float(slot.key[d]);
    const float y = prices ? to_float(slot.value[d]) : 0.0f;
    key += x * x;
    value += y * y;
  }
  key = warp_sum(key);
  if (!prices) {
    if (lane_id() == 0) {
      work.inverse_norms[ordinal] = key == 0.0f ? 0.0f : rsqrtf(key);
    }
    return;
  }
  value = warp_sum(value);
  if (lane_id() != 0) return;
  work.measures[ordinal] = {log_weight(slot, args.policy, args.cache.lanes),
                            key, value, slot.get(kSlotPosition)};
}

constexpr uint32_t kProposeThreads = 256;

// Finds what each query proposes: \`keys\`, the lowest first, and \`mates\`.
static __global__ void __launch_bounds__(kProposeThreads)
    propose_kernel(skv_chunk_args args, CompressWork all_work) {
  begin_kernel();
  if (row_end(args.step) == 0) return;
  const ChunkHead head = chunk_head(args, blockIdx.y);
  const HeadWork work = all_work.head(blockIdx.y);
  const uint32_t q = blockIdx.x * kProposeThreads + threadIdx.x;
  if (q >= work.counters[kQueries]) return;
  const Neighbour nearest = nearest_of_query(args, head, all_work, work, q);
  const bool fits = args.policy.merge != SKV_MERGE_VOTES ||
                    nearest.similarity > args.policy.threshold;
  if (!nearest.exists() || !fits) return;
  const uint32_t i = work.queries[q];
  const uint32_t position =
      item_slot(args, head, work.items[i]).word(kSlotPosition);
  work.keys[i] = order_key(-nearest.similarity, position);
  work.mates[i] = nearest.item;
}

// Takes the best proposals first while both ends are free, up to \`excess\` of
// them, and lists who made them in \`queries\`. Returns their number. Called by
// the whole block.
__device__ inline uint32_t match_pairs(const HeadWork &work, uint32_t excess,
                                       SelectScratch &scratch) {
  const uint32_t items = work.counters[kItems];
  auto *best = reinterpret_cast<unsigned long long *>(work.best);
  const auto has_key = [&](uint32_t i) { return work.keys[i] != kNoKey; };
  // Open proposals, in two lists by turns; searches are over.
  uint32_t *open = work.candidates, *next = work.nearest;
  uint32_t count = list_if(items, open, scratch, has_key);
  while (count > 0) {
    for (uint32_t i = threadIdx.x; i < items; i += kCompressThreads) {
      best[i] = kNoKey;
    }
    __syncthreads();
    for (uint32_t k = threadIdx.x; k < count; k += kCompressThreads) {
      const uint32_t i = open[k];
      const auto key = static_cast<unsigned long long>(work.keys[i]);
      atomicMin(best + i, key);
      atomicMin(best + work.mates[i], key);
    }
    __syncthreads();
    for (uint32_t k = threadIdx.x; k < count; k += kCompressThreads) {
      const uint32_t i = open[k], mate = work.mates[i];
      const uint64_t key = work.keys[i];
      if (__ldcg(best + i) != key || __ldcg(best + mate) != key) continue;
      // Nobody else has these ends.
      work.marks[i] = kTaken | kAccepted;
      work.marks[mate] = kTaken;
    }
    __syncthreads();
    count = list_if(
        count, next, scratch,
        [&](uint32_t k) {
          const uint32_t i = open[k];
          return ((work.marks[i] | work.marks[work.mates[i]]) & kTaken) == 0;
        },
        [&](uint32_t k) { return open[k]; });
    uint32_t *const old = open;
    open = next;
    next = old;
  }
  for (uint32_t i = threadIdx.x; i < items; i += kCompressThreads) {
    if ((work.marks[i] & kAccepted) == 0) work.keys[i] = kNoKey;
  }
  __syncthreads();
  const uint32_t pairs = list_if(items, work.queries, scratch, has_key);
  if (pairs <= excess) return pairs;
  const uint64_t last = kth_smallest(work.keys, items, excess, scratch);
  return list_if(items, work.queries, scratch, [&](uint32_t i) {
    return has_key(i) && work.keys[i] <= last;
  });
}

// Decides which pairs merge, until the head fits its budget.
static __global__ void __launch_bounds__(kCompressThreads)
    match_kernel(skv_chunk_args args, CompressWork all_work) {
  __shared__ SelectScratch scratch;
  begin_kernel();
  if (row_end(args.step) == 0) return;
  const ChunkHead head = chunk_head(args, blockIdx.x);
  const HeadWork work = all_work.head(blockIdx.x);
  if (work.counters[kQueries] == 0) return;
  const uint32_t merged = work.counters[kPairs];
  const uint32_t excess =
      work.counters[kItems] - merged - head.words[kHeadBudget];
  const uint32_t pairs = match_pairs(work, excess, scratch);
  if (threadIdx.x == 0) {
    work.counters[kMatched] = pairs;
    work.counters[kPairs] = merged + pairs;
    head.words[kHeadMerged] += pairs;
  }
}

constexpr uint32_t kPairWarps = 4;

// Merges the pairs that \`queries\` lists: the end that eviction ranks lower
// goes. A warp has a pair; no two pairs have an end in common.
static __global__ void __launch_bounds__(32 * kPairWarps)
    merge_pairs_kernel(skv_chunk_args args, CompressWork all_work) {
  begin_kernel();
  if (row_end(args.step) == 0) return;
  const ChunkHead head = chunk_head(args, blockIdx.x);
  const HeadWork work = all_work.head(blockIdx.x);
  const uint32_t pairs = work.counters[kMatched];
  const MergeContext context = merge_context(args, head);
  for (uint32_t p = blockIdx.y * kPairWarps + warp_id(); p < pairs;
       p += gridDim.y * kPairWarps) {
    uint32_t goes = work.queries[p];
    uint32_t stays = work.mates[goes];
    if (item_rank(args, head, work, stays) <
        item_rank(args, head, work, goes)) {
      const uint32_t other = goes;
      goes = stays;
      stays = other;
    }
    const Slot gone = item_slot(args, head, work.items[goes]);
    const Slot kept = item_slot(args, head, work.items[stays]);
    const Merged merged = merge_slots<true>(
        2, [&](uint32_t i) { return i == 0 ? kept : gone; }, context,
        args.policy);
    if (lane_id() == 0) {
      free_slot(gone, context.lanes);
      work.marks[goes] |= kGone;
      work.divergences[p] = merged.divergence;
      if (merged.guarded) atomicAdd(head.words + kHeadGuarded, 1);
    }
    measure_item(args, head, work, stays);
  }
}

inline cudaError_t launch_pairs(const skv_chunk_args &args,
                                const CompressWork &work,
                                const Launch &launch) {
  const uint32_t heads = args.sizes.kv_heads;
  const dim3 proposals((work.most + kProposeThreads - 1) / kProposeThreads,
                       heads);
  cudaError_t status = launch_kernel(launch, propose_kernel, proposals,
                                     kProposeThreads, 0, args, work);
  if (status == cudaSuccess) {
    status = launch_kernel(launch, match_kernel, heads, kCompressThreads, 0,
                           args, work);
  }
  if (status != cudaSuccess) return status;
  const uint32_t wanted = 8 * launch.multiprocessors / heads;
  const uint32_t most = (work.most / 2 + kPairWarps - 1) / kPairWarps;
  return launch_kernel(launch, merge_pairs_kernel,
                       dim3(heads, max(1u, min(wanted, most))), 32 * kPairWarps,
                       0, args, work);
}
`,
  "lib/merge_runs.cuh": `// Runs: items that all go, in the order of their positions, up to the kept one
// to their right, which takes their values. \`runWeights\` in
// src/reference/merge_values.ts says what weights they have there.
//
// The reference reads a run with a stack. Here each member finds its own
// weight, by walks along the run: which member takes it in (the next one that
// goes after it, or the kept one), and what the members that are taken in after
// it leave of it. Runs are short unless the budget is far exceeded.
#pragma once

#include "search_items.cuh"

constexpr uint32_t kRunThreads = 256;

// What is known of the items of a head, by ordinal: other names for lists that
// only similar keys need.
struct RunWork {
  // The next item to the right of one that goes; the kept one, in the end.
  uint32_t *right;
  // The item that goes whose right neighbour this is.
  uint32_t *left;
  // The item that takes this one in.
  uint32_t *taker;
  // What is left of an item's own value by those that it takes in, and in the
  // end its weight in the kept one.
  float *share;
  // What of it stays in the item that takes it in.
  float *pass;
};

__device__ inline RunWork run_work(const HeadWork &work) {
  return {work.mates, work.nearest, work.candidates, work.similarities,
          work.inverse_norms};
}

// Finds the right neighbour of each item that goes. A thread has one of them
// and goes through all items by tiles.
static __global__ void __launch_bounds__(kRunThreads)
    right_neighbours_kernel(skv_chunk_args args, CompressWork all_work) {
  __shared__ uint32_t positions[kRunThreads];
  begin_kernel();
  if (row_end(args.step) == 0) return;
  const ChunkHead head = chunk_head(args, blockIdx.y);
  const HeadWork work = all_work.head(blockIdx.y);
  const RunWork run = run_work(work);
  const uint32_t items = work.counters[kItems];
  const uint32_t victims = work.counters[kQueries];
  const uint32_t first = blockIdx.x * kRunThreads;
  if (first >= victims) return;
  const auto position_of = [&](uint32_t i) {
    return item_slot(args, head, work.items[i]).word(kSlotPosition);
  };
  const bool exists = first + threadIdx.x < victims;
  const uint32_t mine = exists ? work.queries[first + threadIdx.x] : kNoItem;
  const uint32_t position = exists ? position_of(mine) : ~0u;
  uint32_t nearest = kNoItem, nearest_position = ~0u;
  for (uint32_t tile = 0; tile < items; tile += kRunThreads) {
    const uint32_t i = tile + threadIdx.x;
    __syncthreads();
    // Nothing lies to the left of position 0: it stands for no item.
    positions[threadIdx.x] = i < items ? position_of(i) : 0;
    __syncthreads();
    for (uint32_t k = 0; k < kRunThreads; k++) {
      const uint32_t other = positions[k];
      if (other <= position || other >= nearest_position) continue;
      nearest_position = other;
      nearest = tile + k;
    }
  }
  if (!exists) return;
  run.right[mine] = nearest;
  if (nearest != kNoItem) run.left[nearest] = mine;
}

// A head whose runs are merged.
struct RunHead {
  const skv_chunk_args &args;
  const ChunkHead &head;
  const HeadWork &work;
  RunWork run;

  __device__ Slot slot(uint32_t i) const {
    return item_slot(args, head, work.items[i]);
  }
  __device__ bool goes(uint32_t i) const {
    return (work.marks[i] & kVictim) != 0;
  }
  // Items to the left, as long as they go.
  __device__ uint32_t left_of(uint32_t i) const {
    const uint32_t left = run.left[i];
    return left != kNoItem && goes(left) ? left : kNoItem;
  }
  // What is left of a value with this mean attention once \`i\` is merged into
  // it.
  __device__ float left_by(uint32_t i, float mean) const {
    const float own = mean_attention(slot(i));
    return own + mean == 0.0f ? 0.5f : mean / (own + mean);
  }
  // What the items from \`i\` leftwards leave of a value: those that go before
  // \`limit\` and after \`last\`, as long as no nearer one takes them.
  __device__ float left_from(uint32_t i, float mean, uint64_t last,
                             uint64_t limit) const {
    float share = 1.0f;
    for (; i != kNoItem && work.keys[i] <= limit; i = left_of(i)) {
      if (work.keys[i] <= last) continue;
      share *= left_by(i, mean);
      last = work.keys[i];
    }
    return share;
  }
};

// Finds which item takes each one in, and what is left of its value then.
__device__ inline void weigh_victims(const RunHead &run, uint32_t victims) {
  const HeadWork &work = run.work;
  for (uint32_t v = threadIdx.x; v < victims; v += kCompressThreads) {
    const uint32_t i = work.queries[v];
    const uint64_t key = work.keys[i];
    uint32_t taker = run.run.right[i];
    while (taker != kNoItem && run.goes(taker) && work.keys[taker] < key) {
      taker = run.run.right[taker];
    }
    run.run.taker[i] = taker;
    run.run.share[i] =
        run.left_from(run.left_of(i), mean_attention(run.slot(i)), 0, key);
    if (taker == kNoItem) continue;
    const float mean = mean_attention(run.slot(taker));
    const uint64_t limit = run.goes(taker) ? work.keys[taker] : kNoKey;
    run.run.pass[i] = (1.0f - run.left_by(i, mean)) *
                      run.left_from(run.left_of(i), mean, key, limit);
  }
  __syncthreads();
  // The weights in the kept value, which is where the takers lead.
  for (uint32_t v = threadIdx.x; v < victims; v += kCompressThreads) {
    const uint32_t i = work.queries[v];
    float weight = run.run.share[i];
    uint32_t taker = i;
    while (taker != kNoItem && run.goes(taker)) {
      weight *= run.run.pass[taker];
      taker = run.run.taker[taker];
    }
    work.scores[i] = weight;
  }
  __syncthreads();
}

// Merges the run whose last member is \`last\` into the slot to its right; called
// by a whole warp. Returns how many members it has.
__device__ inline uint32_t merge_run(const RunHead &run, uint32_t last) {
  const HeadWork &work = run.work;
  const uint32_t kept_item = run.run.right[last];
  const Slot kept = run.slot(kept_item);
  const float own = run.left_from(last, mean_attention(kept), 0, kNoKey);
  for (uint32_t d = lane_id(); d < run.args.sizes.head_dim; d += 32) {
    float value = own * to_float(kept.value[d]);
    for (uint32_t i = last; i != kNoItem; i = run.left_of(i)) {
      value += work.scores[i] * to_float(run.slot(i).value[d]);
    }
    kept.value[d] = to_cached(value);
  }
  float norm = own * kept.get(kSlotValueNorm);
  uint32_t tokens = kept.word(kSlotTokens), count = 0;
  for (uint32_t i = last; i != kNoItem; i = run.left_of(i)) {
    const Slot slot = run.slot(i);
    norm += work.scores[i] * slot.get(kSlotValueNorm);
    tokens += slot.word(kSlotTokens);
    count++;
  }
  __syncwarp();
  if (lane_id() == 0) {
    kept.set(kSlotValueNorm, norm);
    kept.set_word(kSlotTokens, tokens);
  }
  return count;
}

// Merges the values of all runs, and drops what has nothing to its right.
// Called by the whole block; the caller frees the slots.
__device__ inline void merge_runs(const skv_chunk_args &args,
                                  const ChunkHead &head, const HeadWork &work,
                                  uint32_t victims) {
  const RunHead run = {args, head, work, run_work(work)};
  weigh_victims(run, victims);
  for (uint32_t v = warp_id(); v < victims; v += kCompressWarps) {
    const uint32_t i = work.queries[v];
    const uint32_t right = run.run.right[i];
    if (right == kNoItem || run.goes(right)) continue;
    const uint32_t count = merge_run(run, i);
    if (lane_id() == 0) atomicAdd(head.words + kHeadMerged, count);
  }
  // A run at the end of the text has no kept slot to its right.
  for (uint32_t v = threadIdx.x; v < victims; v += kCompressThreads) {
    uint32_t i = work.queries[v];
    const uint32_t tokens = run.slot(i).word(kSlotTokens);
    while (i != kNoItem && run.goes(i)) i = run.run.right[i];
    if (i != kNoItem) continue;
    atomicAdd(head.words + kHeadDropped, 1);
    atomicAdd(head.words + kHeadDroppedTokens, tokens);
  }
  __syncthreads();
}

inline cudaError_t launch_right_neighbours(const skv_chunk_args &args,
                                           const CompressWork &work,
                                           const Launch &launch) {
  const dim3 grid((work.most + kRunThreads - 1) / kRunThreads,
                  args.sizes.kv_heads);
  return launch_kernel(launch, right_neighbours_kernel, grid, kRunThreads, 0,
                       args, work);
}
`,
  "lib/merge_segment.cuh": `// Merging slots that follow each other in the text and have similar keys: the
// twin of src/reference/segments.ts, by one warp.
#pragma once

#include "lane_vector.cuh"
#include "scores.cuh"

// Of \`evictable\` slots, \`count\` of which go, those that may be merged.
__device__ inline uint32_t light_slots(const skv_policy &policy,
                                       uint32_t evictable, uint32_t count) {
  const uint32_t fitting = evictable - min(evictable, count);
  return evictable -
         static_cast<uint32_t>(policy.heavy * static_cast<float>(fitting));
}

// Merges \`count\` members into the first of them, their pivot. The caller frees
// the others. \`member(i)\` returns a Slot. Called by a whole warp.
template <class Member>
__device__ inline void merge_segment(uint32_t count, Member member,
                                     uint32_t head_dim,
                                     const skv_policy &policy) {
  const Slot pivot = member(0);
  const LaneVector pivot_key(pivot.key, head_dim);
  const auto square_of = [&](const Slot &slot) {
    return pivot_key.distance(LaneVector(slot.key, head_dim));
  };
  float distances = 0.0f;
  for (uint32_t m = 1; m < count; m++) distances += sqrtf(square_of(member(m)));
  const float mean = distances / static_cast<float>(count);

  // The pivot's own weight is 1.
  LaneSum keys, values;
  keys.add(1.0f, pivot_key);
  values.add(1.0f, LaneVector(pivot.value, head_dim));
  float total = 1.0f;
  float norm = pivot.get(kSlotValueNorm);
  float score = log_score(pivot, policy);
  float accumulated = pivot.get(kSlotAccumulated);
  uint32_t observations = pivot.word(kSlotObservations);
  uint32_t tokens = pivot.word(kSlotTokens);
  for (uint32_t m = 1; m < count; m++) {
    const Slot slot = member(m);
    const float square = square_of(slot);
    const float weight = mean > 0.0f ? expf(-square / (mean * mean)) : 1.0f;
    keys.add(weight, LaneVector(slot.key, head_dim));
    values.add(weight, LaneVector(slot.value, head_dim));
    total += weight;
    norm += weight * slot.get(kSlotValueNorm);
    score = log_add(score, log_score(slot, policy));
    accumulated += slot.get(kSlotAccumulated);
    observations = max(observations, slot.word(kSlotObservations));
    tokens += slot.word(kSlotTokens);
  }
  keys.store(pivot.key, 1.0f / total, head_dim);
  values.store(pivot.value, 1.0f / total, head_dim);
  // All lanes have read the fields before one of them changes those.
  __syncwarp();
  if (lane_id() == 0) {
    if (observations > 0) {
      pivot.set(kSlotEma, score + ema_correction(policy, observations));
    }
    pivot.set(kSlotAccumulated, accumulated);
    pivot.set_word(kSlotObservations, observations);
    pivot.set(kSlotValueNorm, norm / total);
    pivot.set_word(kSlotTokens, tokens);
  }
  __syncwarp();
}
`,
  "lib/merge_segments.cuh": `// Closing links between neighbours in the text until a chunk fits its budget:
// list_light, right_neighbours, measure_links, merge_segments.
#pragma once

#include "merge_runs.cuh"
#include "merge_segment.cuh"
#include "ratings.cuh"
#include "select_smallest.cuh"

// Lists the items that may be merged with their neighbours, if the head is over
// its budget.
static __global__ void __launch_bounds__(kCompressThreads)
    list_light_kernel(skv_chunk_args args, CompressWork all_work) {
  __shared__ SelectScratch scratch;
  begin_kernel();
  if (row_end(args.step) == 0) return;
  const ChunkHead head = chunk_head(args, blockIdx.x);
  const HeadWork work = all_work.head(blockIdx.x);
  const uint32_t items = work.counters[kItems];
  const uint32_t budget = head.words[kHeadBudget];
  uint32_t light = 0;
  if (items > budget) {
    uint32_t mine = 0, evictable;
    for (uint32_t i = threadIdx.x; i < items; i += kCompressThreads) {
      const bool goes = item_is_evictable(args, head, work.items[i]);
      work.keys[i] = goes ? score_key(item_score(args, head, work, i),
                                      item_slot(args, head, work.items[i]))
                          : kNoKey;
      work.mates[i] = kNoItem;
      mine += goes ? 1 : 0;
    }
    block_prefix(mine, evictable, scratch.block);
    if (evictable > 0) {
      const uint32_t count =
          light_slots(args.policy, evictable, items - budget);
      // None is light where all stay by their scores.
      const uint64_t last =
          count == 0 ? 0 : kth_smallest(work.keys, items, count, scratch);
      light = list_if(items, work.queries, scratch, [&](uint32_t i) {
        return work.keys[i] != kNoKey && work.keys[i] <= last;
      });
      for (uint32_t q = threadIdx.x; q < light; q += kCompressThreads) {
        work.marks[work.queries[q]] |= kTaken;
      }
    }
  }
  // The counters that are written were read above.
  __syncthreads();
  if (threadIdx.x == 0) work.counters[kQueries] = light;
}

constexpr uint32_t kLinkWarps = 8;

// Measures the link of each light item to its right neighbour: its key. There
// is none to a neighbour that is not light. A warp has a link.
static __global__ void __launch_bounds__(32 * kLinkWarps)
    measure_links_kernel(skv_chunk_args args, CompressWork all_work) {
  begin_kernel();
  if (row_end(args.step) == 0) return;
  const ChunkHead head = chunk_head(args, blockIdx.y);
  const HeadWork work = all_work.head(blockIdx.y);
  const uint32_t q = blockIdx.x * kLinkWarps + warp_id();
  if (q >= work.counters[kQueries]) return;
  const uint32_t i = work.queries[q];
  const uint32_t right = work.mates[i];
  uint64_t key = kNoKey;
  if (right != kNoItem && (work.marks[right] & kTaken) != 0) {
    const uint32_t head_dim = args.sizes.head_dim;
    const Slot slot = item_slot(args, head, work.items[i]);
    const LaneVector a(slot.key, head_dim);
    const LaneVector b(item_slot(args, head, work.items[right]).key, head_dim);
    const float cosine = a.dot(b) * (a.inverse_norm() * b.inverse_norm());
    key = order_key(-cosine, slot.word(kSlotPosition));
  }
  if (lane_id() == 0) work.best[i] = key;
}

// Merges the segment that begins at an item into its pivot; called by a whole
// warp. Returns how many slots it took away.
__device__ inline uint32_t merge_chain(const skv_chunk_args &args,
                                       const ChunkHead &head,
                                       const HeadWork &work, uint32_t first,
                                       uint64_t last) {
  const auto slot_of = [&](uint32_t i) {
    return item_slot(args, head, work.items[i]);
  };
  const auto is_closed = [&](uint32_t i) {
    return work.keys[i] != kNoKey && work.keys[i] <= last;
  };
  uint32_t count = 1, pivot = first, place = 0;
  float most = slot_of(first).get(kSlotAccumulated);
  for (uint32_t i = first; is_closed(i);) {
    i = work.mates[i];
    const float attention = slot_of(i).get(kSlotAccumulated);
    if (attention > most) most = attention, pivot = i, place = count;
    count++;
  }
  // Members in order, but for the pivot, which comes first.
  uint32_t from = 0;
  if (lane_id() == 0) from = atomicAdd(work.counters + kMembers, count);
  from = __shfl_sync(kAllLanes, from, 0);
  uint32_t *members = work.candidates + from;
  if (lane_id() == 0) {
    members[0] = pivot;
    uint32_t i = first;
    for (uint32_t m = 0; m < count; m++) {
      if (m != place) members[m < place ? m + 1 : m] = i;
      if (m + 1 < count) i = work.mates[i];
    }
  }
  __syncwarp();
  merge_segment(
      count, [&](uint32_t m) { return slot_of(members[m]); },
      args.sizes.head_dim, args.policy);
  for (uint32_t m = 1 + lane_id(); m < count; m += 32) {
    free_slot(slot_of(members[m]), args.cache.lanes);
    work.marks[members[m]] |= kGone;
  }
  return count - 1;
}

// Closes the closest links, as many as the head is over its budget, and merges
// what they connect.
static __global__ void __launch_bounds__(kCompressThreads)
    merge_segments_kernel(skv_chunk_args args, CompressWork all_work) {
  __shared__ SelectScratch scratch;
  begin_kernel();
  if (row_end(args.step) == 0) return;
  const ChunkHead head = chunk_head(args, blockIdx.x);
  const HeadWork work = all_work.head(blockIdx.x);
  const uint32_t items = work.counters[kItems];
  const uint32_t light = work.counters[kQueries];
  if (light == 0) return;
  const uint32_t excess = items - head.words[kHeadBudget];
  uint32_t mine = 0, links;
  for (uint32_t i = threadIdx.x; i < items; i += kCompressThreads) {
    work.keys[i] = kNoKey;
  }
  __syncthreads();
  for (uint32_t q = threadIdx.x; q < light; q += kCompressThreads) {
    const uint32_t i = work.queries[q];
    work.keys[i] = work.best[i];
    mine += work.keys[i] != kNoKey ? 1 : 0;
  }
  block_prefix(mine, links, scratch.block);
  uint64_t last = kNoKey;
  if (links > excess) last = kth_smallest(work.keys, items, excess, scratch);
  const auto is_closed = [&](uint32_t i) {
    return work.keys[i] != kNoKey && work.keys[i] <= last;
  };
  for (uint32_t q = threadIdx.x; q < light; q += kCompressThreads) {
    const uint32_t i = work.queries[q];
    if (is_closed(i)) atomicOr(work.marks + work.mates[i], kAccepted);
  }
  __syncthreads();
  // A segment begins where nothing is linked from the left.
  const uint32_t segments =
      list_if(items, work.nearest, scratch, [&](uint32_t i) {
        return is_closed(i) && (work.marks[i] & kAccepted) == 0;
      });
  uint32_t gone = 0;
  for (uint32_t s = warp_id(); s < segments; s += kCompressWarps) {
    gone += merge_chain(args, head, work, work.nearest[s], last);
  }
  if (gone > 0 && lane_id() == 0) {
    atomicAdd(head.words + kHeadMerged, gone);
    atomicAdd(work.counters + kPairs, gone);
  }
}

inline cudaError_t launch_segments(const skv_chunk_args &args,
                                   const CompressWork &work,
                                   const Launch &launch) {
  const uint32_t heads = args.sizes.kv_heads;
  cudaError_t status = launch_kernel(launch, list_light_kernel, heads,
                                     kCompressThreads, 0, args, work);
  if (status == cudaSuccess) {
    status = launch_right_neighbours(args, work, launch);
  }
  const dim3 links((work.most + kLinkWarps - 1) / kLinkWarps, heads);
  if (status == cudaSuccess) {
    status = launch_kernel(launch, measure_links_kernel, links, 32 * kLinkWarps,
                           0, args, work);
  }
  if (status != cudaSuccess) return status;
  return launch_kernel(launch, merge_segments_kernel, heads, kCompressThreads,
                       0, args, work);
}
`,
  "lib/merge_slots.cuh": `// Merging slots: the twin of src/reference/merge_slots.ts, by one warp.
//
// Lanes share the members while votes and masses are summed, and the dimensions
// while keys and values are.
#pragma once

#include "scores.cuh"

// What a merge needs beside its members.
struct MergeContext {
  // (group, head_dim): queries of the current row.
  const float *queries;
  uint32_t group;
  uint32_t head_dim;
  uint32_t lanes;
};

struct Merged {
  // KL divergence between merge weights and vote shares.
  float divergence;
  // Whether a ZIP scale was unsafe.
  bool guarded;
};

// Share of the mean squared query added to the Gram matrix's diagonal.
constexpr double kRidge = 1e-6;

// Dot product of a query with lane-shared dimensions, in every lane.
__device__ inline float query_dot(const float *query,
                                  const float (&x)[kLaneDims],
                                  uint32_t head_dim) {
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kLaneDims; i++) {
    const uint32_t d = lane_id() + 32 * i;
    if (d < head_dim) sum += query[d] * x[i];
  }
  return warp_sum(sum);
}

// Moves a key by the smallest vector that changes the logit of every query head
// by \`shift\`, one in each lane. It lies in the span of the queries; its
// coordinates solve their Gram system, of which lane g holds row g.
//
// The elimination is in 64-bit floats: nearly parallel queries leave a system
// that 32 bits cannot solve.
__device__ inline void shift_key(float (&key)[kLaneDims],
                                 const MergeContext &context, float shift) {
  const uint32_t lane = lane_id();
  const uint32_t group = context.group;
  const uint32_t head_dim = context.head_dim;
  const bool mine = lane < group;
  const float *own = context.queries + (mine ? lane : 0) * head_dim;
  const double root = sqrt(static_cast<double>(head_dim));
  // In local memory: rows are short, and kept in registers they make this the
  // longest part of any kernel that merges.
  double row[kMaxGroup];
  double diagonal = 0.0;
#pragma unroll 1
  for (uint32_t j = 0; j < group; j++) {
    const float *other = context.queries + j * head_dim;
    double sum = 0.0;
#pragma unroll 4
    for (uint32_t d = 0; d < head_dim; d++) {
      sum += static_cast<double>(own[d]) * static_cast<double>(other[d]);
    }
    // Lanes beyond the group hold zeros, which take no part.
    row[j] = mine ? sum / root : 0.0;
    if (j == lane) diagonal = row[j];
  }
  double mean = diagonal;
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    mean += __shfl_xor_sync(kAllLanes, mean, offset);
  }
  mean /= group;
  if (mean == 0.0) return;
  double solution = mine ? static_cast<double>(shift) : 0.0;
  if (mine) row[lane] += kRidge * mean;
    // Gram matrices are positive definite: elimination needs no pivoting.
#pragma unroll 1
  for (uint32_t column = 0; column < group; column++) {
    const double pivot = __shfl_sync(kAllLanes, row[column], column);
    const double factor = lane == column ? 0.0 : row[column] / pivot;
#pragma unroll 1
    for (uint32_t j = column; j < group; j++) {
      row[j] -= factor * __shfl_sync(kAllLanes, row[j], column);
    }
    solution -= factor * __shfl_sync(kAllLanes, solution, column);
    if (lane == column) {
      solution /= pivot;
#pragma unroll 1
      for (uint32_t j = column; j < group; j++) row[j] /= pivot;
    }
  }
#pragma unroll 1
  for (uint32_t g = 0; g < group; g++) {
    const float weight =
        static_cast<float>(__shfl_sync(kAllLanes, solution, g));
    const float *query = context.queries + g * head_dim;
#pragma unroll
    for (int i = 0; i < kLaneDims; i++) {
      const uint32_t d = lane + 32 * i;
      if (d < head_dim) key[i] += weight * query[d];
    }
  }
}

// Merges \`count\` members into the first of them, which keeps its position. The
// caller frees the others. \`member(i)\` returns a Slot. QUERIES is false where
// merges are known not to look at the queries: with one vote lane, and any form
// of keys but the one with the smallest change. Called by a whole warp.
template <bool QUERIES, class Member>
__device__ inline Merged merge_slots(uint32_t count, Member member,
                                     const MergeContext &context,
                                     const skv_policy &policy) {
  const uint32_t lane = lane_id();
  const uint32_t lanes = context.lanes;
  const uint32_t group = context.group;
  const uint32_t head_dim = context.head_dim;

  // Merge weights a ∝ votes · ŝ, and how far they are from the vote shares.
  SoftmaxState masses = init_softmax(), ballots = init_softmax();
  for (uint32_t i = lane; i < count; i += 32) {
    const Slot slot = member(i);
    const float bias = pooled_bias(slot, lanes);
    add_softmax(masses, bias + log_score(slot, policy));
    add_softmax(ballots, bias);
  }
  const float mass = log_sum(warp_softmax(masses));
  const float votes = log_sum(warp_softmax(ballots));
  const auto weight_of = [&](const Slot &slot) {
    return expf(pooled_bias(slot, lanes) + log_score(slot, policy) - mass);
  };
  float score_sum = 0.0f, accumulated = 0.0f, norm_sum = 0.0f;
  uint32_t tokens = 0, observations = 0;
  for (uint32_t i = lane; i < count; i += 32) {
    const Slot slot = member(i);
    const float weight = weight_of(slot);
    score_sum += weight * log_score(slot, policy);
    accumulated += slot.get(kSlotAccumulated);
    norm_sum += weight * slot.get(kSlotValueNorm);
    tokens += slot.word(kSlotTokens);
    observations = max(observations, slot.word(kSlotObservations));
  }
  const float mean_score = warp_sum(score_sum);
  accumulated = warp_sum(accumulated);
  // At least the norm of the mean value, by the triangle inequality.
  const float value_norm = warp_sum(norm_sum);
  tokens = __reduce_add_sync(kAllLanes, tokens);
  observations = __reduce_max_sync(kAllLanes, observations);
  const float divergence = mean_score - (mass - votes);

  float key[kLaneDims] = {}, value[kLaneDims] = {};
  for (uint32_t first = 0; first < count; first += 32) {
    const uint32_t members = min(count - first, 32u);
    float own = 0.0f;
    if (lane < members) own = weight_of(member(first + lane));
    for (uint32_t m = 0; m < members; m++) {
      const Slot slot = member(first + m);
      const float weight = __shfl_sync(kAllLanes, own, m);
#pragma unroll
      for (int i = 0; i < kLaneDims; i++) {
        const uint32_t d = lane + 32 * i;
        if (d >= head_dim) continue;
        key[i] += weight * to_float(slot.key[d]);
        value[i] += weight * to_float(slot.value[d]);
      }
    }
  }

  // Per query head, one in each lane: ln of the members' votes, and by how much
  // the mean key overstates their mass for the current query.
  float lane_votes = votes, excess = 0.0f;
  if (QUERIES && (lanes > 1 || policy.key == SKV_KEY_MIN_NORM)) {
    const float root = rsqrtf(static_cast<float>(head_dim));
#pragma unroll 1
    for (uint32_t g = 0; g < group; g++) {
      const float *query = context.queries + g * head_dim;
      SoftmaxState exact = init_softmax(), shares = init_softmax();
      for (uint32_t m = 0; m < count; m++) {
        const Slot slot = member(m);
        float parts[kLaneDims];
#pragma unroll
        for (int i = 0; i < kLaneDims; i++) {
          const uint32_t d = lane + 32 * i;
          parts[i] = d < head_dim ? to_float(slot.key[d]) : 0.0f;
        }
        const float logit = query_dot(query, parts, head_dim) * root;
        const float bias = vote_bias(slot, g, lanes);
        add_softmax(exact, bias + logit);
        add_softmax(shares, bias);
      }
      const float current = query_dot(query, key, head_dim) * root;
      const float head_votes = log_sum(shares);
      if (lane == g) {
        lane_votes = head_votes;
        excess = current - (log_sum(exact) - head_votes);
      }
    }
  }

  float bias = lanes == 1 ? votes : lane_votes;
  const float real_votes =
      lanes == 1 ? votes - divergence : lane_votes - excess;
  bool guarded = false;
  if (policy.key == SKV_KEY_REAL_VOTES) {
    bias = real_votes;
  } else if (policy.key == SKV_KEY_ZIP) {
    const float scale = (mass - votes) / mean_score;
    guarded = !(scale >= policy.guard_low && scale <= policy.guard_high);
    if (guarded) {
      bias = real_votes;
    } else {
#pragma unroll
      for (int i = 0; i < kLaneDims; i++) key[i] *= scale;
    }
  } else if (QUERIES && policy.key == SKV_KEY_MIN_NORM) {
    shift_key(key, context, -excess);
  }

  // The merged slot's score is the one that gives its votes the members' mass.
  const float pooled =
      warp_sum(lane < lanes ? bias : 0.0f) / static_cast<float>(lanes);
  const Slot kept = member(0);
  // All lanes have read the members before any of them changes.
  __syncwarp();
#pragma unroll
  for (int i = 0; i < kLaneDims; i++) {
    const uint32_t d = lane + 32 * i;
    if (d >= head_dim) continue;
    kept.key[d] = to_cached(key[i]);
    kept.value[d] = to_cached(value[i]);
  }
  if (lane == 0) {
    if (observations > 0) {
      kept.set(kSlotEma, mass - pooled + ema_correction(policy, observations));
    }
    kept.set(kSlotAccumulated, accumulated);
    kept.set(kSlotValueNorm, value_norm);
    kept.set_word(kSlotObservations, observations);
    kept.set_word(kSlotTokens, tokens);
  }
  if (lane < lanes) kept.set(kSlotBias + lane, bias);
  __syncwarp();
  return {divergence, guarded};
}
`,
  "lib/merge_victims.cuh": `// Merging what has to go into the most similar of what is kept.
#pragma once

#include "blend_slots.cuh"
#include "merge_pairs.cuh"

// Moves the threshold of the head and takes their targets from those victims
// that are not similar enough: \`mates\` and \`similarities\` by victim. Called by
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

// Finds the target of each victim: \`mates\`, by victim. Called by the whole
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
`,
  "lib/mma.cuh": `// Tensor core products of halves with f32 sums, and how 32-bit floats take part
// in them without losing precision.
//
// A float is split into two halves, x ≈ high + low, after its row was scaled by
// a power of two that takes the largest of the row to [2^14, 2^15). Elements
// down to 2^-17 of that are kept to 2^-22 of themselves, smaller ones to 2^-39
// of the largest: what 32-bit sums would lose anyway. Two products of halves
// are still four times as fast as one of tf32 pairs, and as exact.
#pragma once

#include "half.cuh"
#include "instructions.cuh"
#include "reduce.cuh"

// A power of two and its inverse.
struct Scale {
  float scale;
  float inverse;
};

// The scale that takes \`largest\` to [2^14, 2^15).
__device__ inline Scale scale_for(float largest) {
  const uint32_t exponent = (__float_as_uint(largest) >> 23) & 255;
  const uint32_t e = min(max(exponent, 15u), 254u);
  return {__uint_as_float((268 - e) << 23), __uint_as_float((e - 14) << 23)};
}

// Two halves that make up each of two numbers, packed.
struct SplitPair {
  uint32_t high;
  uint32_t low;
};

__device__ inline SplitPair split_pair(float x, float y) {
  const uint32_t high = to_halves(x, y);
  const float2 rounded = to_floats(high);
  return {high, to_halves(x - rounded.x, y - rounded.y)};
}
`,
  "lib/narrow_product.cuh": `// Products of up to 16 rows of activations with a weight matrix of few columns,
// for batches of small models, whose products are over before a kernel in front
// of them or an exchange between blocks would have begun to pay.
//
// A block turns all rows into halves itself, in shared memory, while its first
// weights are on their way, and multiplies them with 16 outputs at a time. Its
// warps share the columns and add up through shared memory. Weights go straight
// to registers: lane 4 g + t loads 16 bytes of line g, which are its operands
// of two products if both sides deal the columns alike (lib/mma.cuh).
//
// The alternative that lost: tiles of 128 outputs that blocks share, as in
// lib/matrix_product.cuh, with a handful of steps per block.
#pragma once

#include <algorithm>

#include "mma.cuh"
#include "narrow_rows.cuh"
#include "overlap.cuh"

constexpr uint32_t kNarrowPairs = 8;

// Most rows, most columns, and most tiles of a block: with more of them the
// passes over the rows are what a tile of more outputs saves.
constexpr uint32_t kMostNarrowRows = 16;
constexpr uint32_t kMostNarrowColumns = 2048;
constexpr uint32_t kMostNarrowTiles = 8;

template <class Shape>
using StripWords = uint4[Shape::kStrips][2];

// Strip \`i\` of this warp.
__device__ inline uint32_t strip_of(int i) {
  return i / 2 * (2 * kNarrowWarps) + 2 * warp_id() + i % 2;
}

// Starts to load this lane's words of a tile.
template <class Shape, class Pairs>
__device__ inline void load_strips(StripWords<Shape> &words,
                                   const Product &product, const Pairs &pairs,
                                   uint32_t tile) {
  const skv_matrix &weight = product.weight;
  const uint32_t pair =
      min(tile * kNarrowPairs + lane_id() / 4, pairs_of(weight) - 1);
#pragma unroll
  for (uint32_t end = 0; end < 2; end++) {
    const uint32_t row = min(pairs.output(pair, end), weight.rows - 1);
    const skv_half *from =
        weight.data + static_cast<size_t>(row) * weight.pitch;
#pragma unroll
    for (int i = 0; i < Shape::kStrips; i++) {
      const uint32_t column = strip_of(i) * kStripColumns + lane_id() % 4 * 8;
      words[i][end] =
          column < weight.pitch ? load_weights(from + column) : uint4{};
    }
  }
}

// Sums of a warp over its columns, for all rows.
template <class Shape>
using NarrowSums = float[Shape::kRowTiles][4];

template <class Shape>
__device__ inline void add_strips(const StripWords<Shape> &words,
                                  const skv_half *rows, uint32_t chunks,
                                  NarrowSums<Shape> &sums) {
#pragma unroll
  for (int i = 0; i < Shape::kStrips; i++) {
    const uint32_t chunk = strip_of(i) * kStripChunks + lane_id() % 4;
    if (chunk >= chunks) break;
    const uint4 a = words[i][0], b = words[i][1];
    // The small halves first.
#pragma unroll
    for (int half = 1; half >= 0; half--) {
#pragma unroll
      for (int r = 0; r < Shape::kRowTiles; r++) {
        const uint4 x = *reinterpret_cast<const uint4 *>(
            rows + narrow_place(8 * r + lane_id() / 4, chunk, chunks, half));
        mma(sums[r], {a.x, b.x, a.y, b.y}, x.x, x.y);
        mma(sums[r], {a.z, b.z, a.w, b.w}, x.z, x.w);
      }
    }
  }
}

// Adds up the warps' sums, at \`parts\`, in their order, and hands them over.
template <class Shape, class Pairs>
__device__ inline void finish_narrow(const Product &product, const Pairs &pairs,
                                     const NarrowSums<Shape> &sums,
                                     const float *factors, float4 *parts,
                                     uint32_t tile) {
  constexpr uint32_t kLines = 32 * Shape::kRowTiles;
  __syncthreads();
#pragma unroll
  for (int r = 0; r < Shape::kRowTiles; r++) {
    parts[warp_id() * kLines + 32 * r + lane_id()] = {sums[r][0], sums[r][1],
                                                      sums[r][2], sums[r][3]};
  }
  __syncthreads();
  const uint32_t row = threadIdx.x / kNarrowPairs;
  const uint32_t pair = threadIdx.x % kNarrowPairs;
  if (row >= Shape::kRows) return;
  const float factor = factors[row];
  const uint32_t whole = tile * kNarrowPairs + pair;
  if (factor < 0.0f || whole >= pairs_of(product.weight)) return;
  // Who had them: see \`mma\`.
  const float *from = reinterpret_cast<const float *>(parts + row / 8 * 32 +
                                                      4 * pair + row % 8 / 2) +
                      row % 2;
  float a = 0.0f, b = 0.0f;
#pragma unroll
  for (uint32_t w = 0; w < kNarrowWarps; w++) {
    a += from[4 * kLines * w];
    b += from[4 * kLines * w + 2];
  }
  pairs.finish(pairs.hold(row, whole), a * factor, b * factor);
}

template <class Shape, class Pairs>
__global__ void __launch_bounds__(kNarrowThreads, Shape::kResident)
    narrow_product_kernel(Product product, Pairs pairs, uint32_t tiles) {
  __shared__ float factors[Shape::kRows];
  let_next_start();
  const uint32_t chunks =
      (product.weight.pitch + kStripColumns - 1) / kStripColumns * kStripChunks;
  float4 *const parts = reinterpret_cast<float4 *>(dynamic_shared_memory());
  float4 *const norms = parts + kNarrowWarps * Shape::kRowTiles * 32;
  skv_half *const rows = reinterpret_cast<skv_half *>(norms + 2 * chunks);
  StripWords<Shape> words;
  load_strips<Shape>(words, product, pairs, blockIdx.x);
  load_norms(product, chunks, norms);
  // The rows of a chunk are known no earlier than their elements are.
  const bool is_chunk = product.step.kind == SKV_PREFILL;
  if (is_chunk) wait_for_previous();
  find_wanted<Shape>(product, factors);
  __syncthreads();
  if (!is_chunk) wait_for_previous();
  make_narrow_rows<Shape>(product, norms, chunks, rows, factors);
  __syncthreads();
  for (uint32_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    StripWords<Shape> next = {};
    if (tile + gridDim.x < tiles) {
      load_strips<Shape>(next, product, pairs, tile + gridDim.x);
    }
    NarrowSums<Shape> sums = {};
    add_strips<Shape>(words, rows, chunks, sums);
    finish_narrow<Shape>(product, pairs, sums, factors, parts, tile);
#pragma unroll
    for (int i = 0; i < Shape::kStrips; i++) {
      words[i][0] = next[i][0], words[i][1] = next[i][1];
    }
  }
}

inline uint32_t narrow_tiles(const Product &product) {
  return (pairs_of(product.weight) + kNarrowPairs - 1) / kNarrowPairs;
}

// Bytes of shared memory for products of 8 or 16 rows.
inline size_t narrow_bytes(const Product &product) {
  const size_t rows = product.rows <= 8 ? 8 : 16;
  const size_t columns = (product.weight.pitch + kStripColumns - 1) /
                         kStripColumns * kStripColumns;
  const size_t parts = kNarrowWarps * rows / 8 * 32 * sizeof(float4);
  const size_t norms = columns * sizeof(float);
  return parts + norms + rows * columns * 2 * sizeof(skv_half);
}

// Whether a product is one of these.
inline bool is_narrow(const Product &product, const Launch &launch) {
  constexpr size_t kOwnBytes = 128;
  return product.rows <= kMostNarrowRows && product.weight.columns % 8 == 0 &&
         product.weight.pitch <= kMostNarrowColumns &&
         narrow_tiles(product) <= kMostNarrowTiles * launch.multiprocessors &&
         narrow_bytes(product) + kOwnBytes <= launch.shared_bytes;
}

template <class Shape, class Pairs>
inline cudaError_t launch_narrow(const Product &product, const Pairs &pairs,
                                 const Launch &launch) {
  const uint32_t tiles = narrow_tiles(product);
  const auto kernel = narrow_product_kernel<Shape, Pairs>;
  const size_t bytes = narrow_bytes(product);
  const cudaError_t allowed = allow_shared_memory(kernel, bytes);
  if (allowed != cudaSuccess) return allowed;
  return launch_kernel(launch, kernel, std::min(tiles, launch.multiprocessors),
                       kNarrowThreads, bytes, product, pairs, tiles);
}

// Multiplies the rows of a step.
template <class Pairs>
inline cudaError_t multiply_narrow(const Product &product, const Pairs &pairs,
                                   const Launch &launch) {
  const bool is_short = product.weight.pitch <= 1024;
  if (product.rows <= 8) {
    return is_short ? launch_narrow<NarrowShape<1, 4>>(product, pairs, launch)
                    : launch_narrow<NarrowShape<1, 8>>(product, pairs, launch);
  }
  return is_short ? launch_narrow<NarrowShape<2, 4>>(product, pairs, launch)
                  : launch_narrow<NarrowShape<2, 8>>(product, pairs, launch);
}
`,
  "lib/narrow_rows.cuh": `// Up to 16 rows of activations as halves in shared memory, for products of one
// block: a warp has a row at a time, takes its norm, and scales it so that no
// exponent runs out.
#pragma once

#include "half_rows.cuh"
#include "product_args.cuh"

constexpr uint32_t kNarrowWarps = 8;
constexpr uint32_t kNarrowThreads = 32 * kNarrowWarps;

// Columns of a strip: a lane's 16 bytes of each line, four lanes wide.
constexpr uint32_t kStripChunks = 4;
constexpr uint32_t kStripColumns = 8 * kStripChunks;

// ROW_TILES · 8 rows of up to CHUNKS · 256 columns.
template <int ROW_TILES, int CHUNKS>
struct NarrowShape {
  static constexpr uint32_t kRows = 8 * ROW_TILES;
  static constexpr int kRowTiles = ROW_TILES;
  // Chunks of eight columns of a row that a lane turns into halves.
  static constexpr int kChunks = CHUNKS;
  // Neighbouring strips of a warp, two at a time: whole lines of the cache.
  static constexpr int kStrips = CHUNKS;
  // Two blocks fit on a multiprocessor, but for the widest rows: the second is
  // the first of the next product.
  static constexpr uint32_t kResident = CHUNKS <= 4 ? 2 : 1;
  static_assert(kStrips * kStripChunks * kNarrowWarps == CHUNKS * 32,
                "as many columns on both sides");
};

// Where a chunk of a row is, in halves: its other half is in the other 16 of
// 32 bytes, and neighbouring rows have the same half in different banks.
__device__ inline uint32_t narrow_place(uint32_t row, uint32_t chunk,
                                        uint32_t chunks, uint32_t half) {
  return (row * chunks + chunk) * 16 + (row + half) % 2 * 8;
}

// Copies the weights of the norm, ones where there is none, to shared memory:
// they need not wait for the kernel in front, and take no registers meanwhile.
__device__ inline void load_norms(const Product &product, uint32_t chunks,
                                  float4 *norms) {
  for (uint32_t chunk = threadIdx.x; chunk < chunks; chunk += kNarrowThreads) {
    float x[8] = {1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f};
    if (product.norm != nullptr) {
      load_floats<true>(x, product.norm, 8 * chunk, product.weight.columns);
    }
    norms[2 * chunk] = {x[0], x[1], x[2], x[3]};
    norms[2 * chunk + 1] = {x[4], x[5], x[6], x[7]};
  }
}

// Notes which rows are wanted: factors of the others are negative.
template <class Shape>
__device__ inline void find_wanted(const Product &product, float *factors) {
  const uint32_t row = threadIdx.x;
  if (row >= Shape::kRows) return;
  factors[row] = row < product.rows && product.is_wanted(row) ? 0.0f : -1.0f;
}

// Turns all rows into halves. The factors of wanted ones get what their
// products must be multiplied by. A row is one warp's.
template <class Shape>
__device__ inline void make_narrow_rows(const Product &product,
                                        const float4 *norms, uint32_t chunks,
                                        skv_half *rows, float *factors) {
  constexpr int kAtOnce = Shape::kChunks > 4 ? 1 : Shape::kRowTiles;
#pragma unroll
  for (int first = 0; first < Shape::kRowTiles; first += kAtOnce) {
    float x[kAtOnce][Shape::kChunks][8];
#pragma unroll
    for (int k = 0; k < kAtOnce; k++) {
      const float *from = product.row(warp_id() + kNarrowWarps * (first + k));
#pragma unroll
      for (int i = 0; i < Shape::kChunks; i++) {
        load_floats<true>(x[k][i], from, 8 * (lane_id() + 32 * i),
                          product.weight.columns);
      }
    }
#pragma unroll
    for (int k = 0; k < kAtOnce; k++) {
      const uint32_t row = warp_id() + kNarrowWarps * (first + k);
      float squares = 0.0f, largest = 0.0f;
#pragma unroll
      for (int i = 0; i < Shape::kChunks; i++) {
        const uint32_t chunk = lane_id() + 32 * i;
        if (chunk >= chunks) break;
        const float4 low = norms[2 * chunk], high = norms[2 * chunk + 1];
        const float n[8] = {low.x,  low.y,  low.z,  low.w,
                            high.x, high.y, high.z, high.w};
#pragma unroll
        for (int j = 0; j < 8; j++) {
          squares += x[k][i][j] * x[k][i][j];
          x[k][i][j] *= n[j];
          largest = fmaxf(largest, fabsf(x[k][i][j]));
        }
      }
      const Scale scale = scale_for(warp_max(largest));
#pragma unroll
      for (int i = 0; i < Shape::kChunks; i++) {
        const uint32_t chunk = lane_id() + 32 * i;
        if (chunk >= chunks) break;
        store_chunk(rows + narrow_place(row, chunk, chunks, 0),
                    rows + narrow_place(row, chunk, chunks, 1), x[k][i],
                    scale.scale);
      }
      const float rms = inverse_rms(product, warp_sum(squares));
      if (lane_id() == 0 && !(factors[row] < 0.0f)) {
        factors[row] = scale.inverse * rms;
      }
    }
  }
}
`,
  "lib/neighbour.cuh": `// The slot with the most similar key: how candidates are compared.
#pragma once

#include "reduce.cuh"

constexpr uint32_t kNoItem = ~0u;

// An item and the cosine of its key with the one that is looked for.
struct Neighbour {
  float similarity;
  uint32_t position;
  uint32_t item;

  __device__ bool exists() const { return item != ~0u; }

  // Ties go to the lower position, whatever order candidates come in.
  __device__ bool beats(const Neighbour &other) const {
    if (!exists() || !other.exists()) return exists();
    return similarity > other.similarity ||
           (similarity == other.similarity && position < other.position);
  }
};

constexpr Neighbour kNoNeighbour = {0.0f, 0, ~0u};

// The best of lanes that differ in the bits from LEAST to LANES.
template <int LANES, int LEAST = 1>
__device__ inline Neighbour nearest_of_lanes(Neighbour best) {
#pragma unroll
  for (int offset = LANES; offset >= LEAST; offset /= 2) {
    const Neighbour other = {
        __shfl_xor_sync(kAllLanes, best.similarity, offset),
        __shfl_xor_sync(kAllLanes, best.position, offset),
        __shfl_xor_sync(kAllLanes, best.item, offset)};
    if (other.beats(best)) best = other;
  }
  return best;
}

// What lane \`from\` has; that may be another in each lane.
__device__ inline Neighbour neighbour_of_lane(const Neighbour &own,
                                              uint32_t from) {
  return {__shfl_sync(kAllLanes, own.similarity, from),
          __shfl_sync(kAllLanes, own.position, from),
          __shfl_sync(kAllLanes, own.item, from)};
}
`,
  "lib/next_values.cuh": `// Adding the value of a slot that goes to those of the slots after it: the twin
// of src/reference/next_values.ts.
#pragma once

#include "select_smallest.cuh"
#include "slots.cuh"

// Most positions after a slot that take its value in.
constexpr uint32_t kMaxFollowers = 256;

// Slots by their distance from the one that goes.
struct Followers {
  uint32_t at[kMaxFollowers];
  uint32_t nearest;
  uint32_t count;
};

// A slot that goes, and where it is.
struct PassedOn {
  Slot slot;
  uint32_t layer;
  uint32_t kv_head;
  uint32_t head_dim;
};

// A number in [0, 1) that depends on the seed and the place alone.
__device__ inline float draw_uniform(uint32_t seed, uint32_t layer,
                                     uint32_t kv_head, uint32_t position) {
  const uint32_t words[3] = {layer, kv_head, position};
  uint32_t hash = seed;
#pragma unroll
  for (int i = 0; i < 3; i++) {
    hash ^= words[i];
    hash = (hash ^ (hash >> 16)) * 0x7feb352du;
    hash = (hash ^ (hash >> 15)) * 0x846ca68bu;
    hash = (hash ^ (hash >> 16)) + 0x9e3779b9u;
  }
  return static_cast<float>(hash >> 8) / 16777216.0f;
}

// Passes the value of a slot on to those of \`count\` others in the positions
// after it; returns whether anything was. \`position_of(i)\` is 0 for slots that
// are not there, \`slot_of(i)\` the slot. The caller frees the slot that goes.
// Called by the whole block, of at least kMaxFollowers threads.
template <class PositionOf, class SlotOf>
__device__ inline bool pass_on(const skv_policy &policy, const PassedOn &gone,
                               uint32_t count, Followers &followers,
                               SelectScratch &scratch, PositionOf position_of,
                               SlotOf slot_of) {
  const uint32_t next_count = policy.next_count;
  const uint32_t position = gone.slot.word(kSlotPosition);
  __syncthreads();
  if (threadIdx.x < kMaxFollowers) followers.at[threadIdx.x] = ~0u;
  if (threadIdx.x == 0) followers.nearest = ~0u, followers.count = 0;
  __syncthreads();
  for (uint32_t i = threadIdx.x; i < count; i += blockDim.x) {
    // Nothing lies before position 0: it stands for no slot.
    const uint32_t distance = position_of(i) - position - 1;
    if (distance < next_count) followers.at[distance] = i;
  }
  __syncthreads();
  const bool follows =
      threadIdx.x < next_count && followers.at[threadIdx.x] != ~0u;
  float attention = 0.0f;
  if (follows) {
    attention = slot_of(followers.at[threadIdx.x]).get(kSlotAccumulated);
    atomicMin(&followers.nearest, threadIdx.x);
    atomicAdd(&followers.count, 1u);
  }
  const float sum = block_sum(attention, scratch);
  if (followers.count == 0) return false;
  const float mean = sum / static_cast<float>(followers.count);
  const float own = gone.slot.get(kSlotAccumulated);
  const float chance = own < mean ? own / mean : 1.0f;
  const float draw =
      draw_uniform(policy.draw_seed, gone.layer, gone.kv_head, position);
  const float mask = policy.expected_values ? chance
                     : draw < chance        ? 1.0f
                                            : 0.0f;
  if (mask == 0.0f) return false;
  const float share = mask / static_cast<float>(next_count);
  // A warp has a slot that takes the value in.
  for (uint32_t f = warp_id(); f < next_count; f += blockDim.x / 32) {
    if (followers.at[f] == ~0u) continue;
    const Slot slot = slot_of(followers.at[f]);
    for (uint32_t d = lane_id(); d < gone.head_dim; d += 32) {
      const float both =
          to_float(slot.value[d]) + share * to_float(gone.slot.value[d]);
      slot.value[d] = to_cached(both);
    }
    if (lane_id() != 0) continue;
    slot.set(kSlotValueNorm,
             slot.get(kSlotValueNorm) + share * gone.slot.get(kSlotValueNorm));
    if (f != followers.nearest) continue;
    slot.set_word(kSlotTokens,
                  slot.word(kSlotTokens) + gone.slot.word(kSlotTokens));
  }
  // Whoever frees the slot comes after.
  __syncthreads();
  return true;
}
`,
  "lib/observed.cuh": `// Which rows of a chunk are observed, and by which slots.
#pragma once

#include "slots.cuh"
#include "step.cuh"

struct ObservedRows {
  uint32_t first;
  uint32_t end;

  __device__ explicit ObservedRows(const skv_chunk_args &args) {
    const skv_policy &policy = args.policy;
    end = row_end(args.step);
    first = 0;
    if (policy.probe == SKV_PROBE_LAST && end > policy.probe_rows) {
      first = end - policy.probe_rows;
    } else if (policy.probe == SKV_PROBE_INSTRUCTION) {
      first = end;
      end = forward_end(args.step);
    }
  }
};

// Some slots of the cache or of the stage.
struct ObservedTile {
  bool staged;
  uint32_t first;
  uint32_t count;
  // Index of slot 0 among those of the layer.
  uint32_t base;

  __device__ const skv_slots &home(const skv_cache &cache) const {
    return staged ? cache.stage : cache.slots;
  }
};

inline uint32_t observed_tiles(const skv_cache &cache, uint32_t size) {
  return (cache.max_capacity + size - 1) / size +
         (cache.stage_rows + size - 1) / size;
}

// Tile \`index\`, of tiles of \`size\` slots: those of the cache come first.
__device__ inline ObservedTile observed_tile(const skv_chunk_args &args,
                                             uint32_t kv_head, uint32_t index,
                                             uint32_t size) {
  const skv_cache &cache = args.cache;
  const uint32_t slot_tiles = (cache.max_capacity + size - 1) / size;
  ObservedTile tile;
  tile.staged = index >= slot_tiles;
  tile.first = (index - (tile.staged ? slot_tiles : 0)) * size;
  const uint32_t *words =
      head_words(cache, args.sizes, args.step.chunk[kChunkSequence], kv_head);
  const uint32_t end = tile.staged ? row_end(args.step) : words[kHeadHigh];
  tile.count = tile.first < end ? min(size, end - tile.first) : 0;
  tile.base = tile.staged ? kv_head * cache.stage_rows : words[kHeadOffset];
  return tile;
}
`,
  "lib/observed_sums.cuh": `// What many rows leave on the scores of slots: see lib/group_observe.cuh.
#pragma once

#include "scores.cuh"

// What the rows leave on a lane's two slots, g and g + 8 of its warp's.
struct ObservedSums {
  // The moving sum's terms, over 2^reference.
  float reference[2] = {-INFINITY, -INFINITY};
  float terms[2] = {};
  float weights[2] = {};

  // Adds the products of a tile of pairs.
  template <class Form>
  __device__ void add(typename Form::Logits &x,
                      const typename Form::Side &side) {
    const uint32_t t = lane_id() % 4;
    float top[2] = {reference[0], reference[1]};
#pragma unroll
    for (int n = 0; n < Form::kSums; n++) {
      const auto pick = [&](const float *all) {
        return *reinterpret_cast<const float2 *>(all + 8 * n + 2 * t);
      };
      const float2 inverse = pick(side.inverse), weight = pick(side.weight),
                   term = pick(side.term);
#pragma unroll
      for (int h = 0; h < 2; h++) {
        float &a = x[n][2 * h], &b = x[n][2 * h + 1];
        weights[h] += exp2_fast(fmaf(a, inverse.x, weight.x));
        weights[h] += exp2_fast(fmaf(b, inverse.y, weight.y));
        a = fmaf(a, inverse.x, term.x);
        b = fmaf(b, inverse.y, term.y);
        top[h] = fmaxf(top[h], fmaxf(a, b));
      }
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const float to = finite(top[h]);
      terms[h] *= exp2_fast(reference[h] - to);
      reference[h] = top[h];
#pragma unroll
      for (int n = 0; n < Form::kSums; n++) {
        terms[h] += exp2_fast(x[n][2 * h] - to);
        terms[h] += exp2_fast(x[n][2 * h + 1] - to);
      }
    }
  }

  // Adds up what the four lanes of a slot have.
  __device__ void join_lanes() {
#pragma unroll
    for (int h = 0; h < 2; h++) {
#pragma unroll
      for (int offset = 1; offset < 4; offset *= 2) {
        const float other = __shfl_xor_sync(kAllLanes, reference[h], offset);
        const float sum = __shfl_xor_sync(kAllLanes, terms[h], offset);
        const float top = fmaxf(reference[h], other), to = finite(top);
        terms[h] = terms[h] * exp2_fast(reference[h] - to) +
                   sum * exp2_fast(other - to);
        reference[h] = top;
        weights[h] += __shfl_xor_sync(kAllLanes, weights[h], offset);
      }
    }
  }

  // Adds them to the scores of the slot of row h, which \`rows\` rows observed.
  __device__ void store(int h, uint32_t rows, const Slot &slot, uint32_t group,
                        const skv_policy &policy) const {
    Scores scores = load_scores(slot);
    const float share = __frcp_rn(static_cast<float>(group));
    const float added = kLn2 * reference[h] + logf(terms[h] * share);
    scores.ema =
        log_add(scores.ema + static_cast<float>(rows) * policy.log_alpha,
                added + policy.log_rest);
    scores.accumulated += expf(slot.get(kSlotBias)) * weights[h] * share;
    scores.observations += rows;
    store_scores(slot, scores);
  }
};
`,
  "lib/overlap.cuh": `// How kernels overlap with the ones before and after them.
//
// A kernel may be started when all blocks of the one in front of it run. Until
// wait_for_previous returns it may read what no kernel of the program writes
// before it does so itself, and nothing else: weights, and in a decode step the
// words of sequences and heads, all slots but the newest and the shortlist of
// slots that are likely to go, which change after attention alone. Every thread
// calls it, so that whoever waits for this kernel has waited for all before it.
#pragma once

#include "instructions.cuh"

// Both, for kernels that have nothing to do meanwhile.
__device__ inline void begin_kernel() {
  let_next_start();
  wait_for_previous();
}
`,
  "lib/pair_costs.cuh": `// What merging two slots costs: the twin of src/reference/pairs.ts.
#pragma once

#include "scores.cuh"

// Where two slots are the same, their cost still has a logarithm.
constexpr float kLeastDistance = 1e-30f;

// How far slots are apart, and what that costs.
struct PairCosts {
  // What squared distances of keys and of values count.
  float keys;
  float values;
  bool is_product;

  __device__ PairCosts(const skv_policy &policy, float spread)
      : keys(policy.key_weight),
        values(spread > 0.0f ? policy.value_weight / spread : 0.0f),
        is_product(policy.product_distance != 0) {}

  // The distance of slots whose keys and values have these squared distances.
  __device__ float distance(float key_square, float value_square) const {
    const float k = keys * key_square, v = values * value_square;
    return is_product ? k * (1.0f + v) : k + v;
  }
  // ln of the cost of merging slots whose weights have these logarithms.
  __device__ static float cost(float a, float b, float distance) {
    // a + b - ln(exp(a) + exp(b)), without what cancels out.
    return fminf(a, b) - log1pf(expf(-fabsf(a - b))) +
           logf(fmaxf(distance, kLeastDistance));
  }
};

// ln of the weight that a slot has in a merge.
__device__ inline float log_weight(const Slot &slot, const skv_policy &policy,
                                   uint32_t lanes) {
  return pooled_bias(slot, lanes) + log_score(slot, policy);
}
`,
  "lib/pair_job.cuh": `// A head whose slots are searched for pairs.
#pragma once

#include "known_pairs.cuh"
#include "neighbour.cuh"

// Threads of blocks that merge.
constexpr uint32_t kPairThreads = 128;
constexpr uint32_t kPairWarps = kPairThreads / 32;

struct PairJob {
  uint32_t offset;
  // Slots that may go, those without a partner first: how many of both.
  const uint32_t *list;
  uint32_t count;
  uint32_t alone;
  // Those of the latter that all parts search for.
  uint32_t shared;
  // How far its values scatter.
  float spread;
  const float *weights;
  // Parts of the list that are searched, and places of each.
  uint32_t parts;
  uint32_t per_part;
  // By place in the list; by part and place, for those that are shared.
  uint2 *found;
  uint2 *part_found;
  uint32_t pitch;
  // Parts that are done.
  uint32_t *ticket;

  __device__ Slot slot(const skv_merge_attend_args &args, uint32_t i) const {
    return slot_at(args.cache.slots, offset + i, args.sizes.head_dim);
  }
  __device__ uint2 *found_by(uint32_t part) const {
    return part_found + static_cast<size_t>(part) * pitch;
  }
};

// What there is to be searched of a head, if anything.
__device__ inline bool turn_to_pairs(const skv_merge_attend_args &args,
                                     const Evidence &evidence, uint32_t row,
                                     uint32_t kv_head, PairJob &work) {
  const PairWork &pairs = evidence.pairs;
  const uint32_t index = row * args.sizes.kv_heads + kv_head;
  // All that is read is on its way before any of it is looked at.
  const uint4 header = pairs.headers[index];
  const uint32_t used = evidence.rows[index].w;
  work.offset = head_words(args.cache, args.sizes, row, kv_head)[kHeadOffset];
  if (used == 0 || header.x == 0) return false;
  const size_t first = static_cast<size_t>(index) * args.cache.max_capacity;
  work.list = pairs.lists + first;
  work.count = header.x;
  work.alone = header.y;
  work.shared = min(header.y, pairs.shared);
  work.spread = __uint_as_float(header.z);
  work.weights = pairs.weights + first;
  work.per_part = pairs.part_places(header.x);
  work.parts = (header.x + work.per_part - 1) / work.per_part;
  work.found = pairs.found + first;
  work.part_found = pairs.part_found_of(index, 0);
  work.pitch = pairs.shared;
  work.ticket = pairs.tickets + index;
  return true;
}

// What a part has found for a slot as it is stored, and back. Other blocks of
// the same kernel may have stored it.
__device__ inline void store_found(uint2 *to, const Neighbour &best) {
  *to = {__float_as_uint(best.similarity), best.item};
}

__device__ inline Neighbour load_found(const skv_merge_attend_args &args,
                                       const PairJob &work, const uint2 *from) {
  const uint2 words = __ldcg(from);
  const uint32_t item = words.y;
  const uint32_t position =
      item == kNoItem ? 0 : work.slot(args, item).word(kSlotPosition);
  return {__uint_as_float(words.x), position, item};
}

// The best that any part has found for the slot at a place in the list.
__device__ inline Neighbour best_of_parts(const skv_merge_attend_args &args,
                                          const PairJob &work, uint32_t parts,
                                          uint32_t place) {
  Neighbour best = kNoNeighbour;
  for (uint32_t part = 0; part < parts; part++) {
    const Neighbour other = load_found(args, work, work.found_by(part) + place);
    if (other.beats(best)) best = other;
  }
  return best;
}
`,
  "lib/pair_step.cuh": `// The cheapest pair of a head in a decode step.
//
// Where slots remember partners, the kernel that observes merges the cheapest
// of these pairs at once (lib/known_pairs.cuh). In a step in which a search is
// due it lists the slots that may go instead, those that know no partner first:
// a search brings all partners up to date, and the last block of it merges
// (lib/partners.cuh). Where no partners are remembered, all pairs are compared
// in every step (lib/search.cuh).
#pragma once

#include "evict_job.cuh"
#include "partners.cuh"
#include "search.cuh"

// Leaves how far the values of a head that is over its budget scatter, unless
// that is known.
template <bool ALIGNED>
__global__ void __launch_bounds__(kSpreadThreads)
    spread_kernel(skv_merge_attend_args args, Evidence evidence) {
  __shared__ SpreadShared shared;
  EvictJob job;
  if (!turn_to_head(args, evidence, blockIdx.z, blockIdx.y, job)) return;
  if (!job.is_over || job.words[kHeadSpread] != 0) return;
  const uint32_t parts = spread_parts(job.high);
  for (uint32_t part = blockIdx.x; part < parts; part += gridDim.x) {
    spread_part<ALIGNED>(part, job.high, args.sizes.head_dim,
                         evidence.pairs.spreads_of(job.index), shared,
                         [&](uint32_t i) { return job.slot(args, i); });
  }
}

// Notes what a slot that was observed weighs, where slots remember partners;
// returns whether this one does.
__device__ inline bool weigh_slot(const skv_merge_attend_args &args,
                                  const EvictJob &job, const PairWork &pairs,
                                  uint32_t i, const Slot &slot,
                                  const Scores &scores) {
  if (!job.is_over || args.policy.search_every == 0) return false;
  const uint32_t lanes = args.cache.lanes;
  const size_t first = static_cast<size_t>(job.index) * args.cache.max_capacity;
  pairs.weights[first + i] =
      pooled_bias(slot, lanes) + log_score(scores, args.policy);
  return partner_word(slot, lanes) != 0;
}

// Lists the slots that may go. Called by the whole block.
__device__ inline void list_pairs(const skv_merge_attend_args &args,
                                  const EvictJob &job, const PairWork &pairs,
                                  EvictShared &shared) {
  const bool remembers = args.policy.search_every != 0;
  const size_t first = static_cast<size_t>(job.index) * args.cache.max_capacity;
  uint32_t spread = job.words[kHeadSpread];
  const uint2 counts = list_two(
      job.high, pairs.lists + first, shared.list, [&](uint32_t i) -> uint32_t {
        const Slot slot = job.slot(args, i);
        if (!job.may_go(args, slot)) return 2;
        if (!remembers) return 0;
        return partner_word(slot, args.cache.lanes) != 0 ? 1 : 0;
      });
  if (spread == 0) {
    spread = __float_as_uint(join_spread(job.high, args.sizes.head_dim,
                                         pairs.spreads_of(job.index),
                                         shared.select));
  }
  if (threadIdx.x != 0) return;
  pairs.headers[job.index] = {counts.x + counts.y, counts.x, spread, 0};
  if (!remembers) return;
  job.words[kHeadSpread] = spread;
  pairs.tickets[job.index] = 0;
}

// Merges the cheapest pair of a head that is over its budget, or lists its
// slots for a search. Each thread says whether it saw a slot that \`knows\` a
// partner. Called by the whole block.
template <bool QUERIES>
__device__ inline void begin_pairs(const skv_merge_attend_args &args,
                                   const EvictJob &job, const PairWork &pairs,
                                   bool knows, EvictShared &shared) {
  if (threadIdx.x == 0) pairs.headers[job.index] = {};
  if (!job.is_over) return;
  const bool remembers = args.policy.search_every != 0;
  const uint32_t turn = job.position + args.cache.layer + job.kv_head;
  // After this everybody sees all weights.
  const bool anybody = __syncthreads_or(knows) != 0;
  if (!remembers || !anybody || job.words[kHeadSpread] == 0 ||
      turn % search_period(args.policy, job.words[kHeadBudget]) == 0) {
    list_pairs(args, job, pairs, shared);
    return;
  }
  const size_t first = static_cast<size_t>(job.index) * args.cache.max_capacity;
  merge_known<kEvictWarps, QUERIES>(args, job, pairs.weights + first, kNoItem,
                                    shared.lowest);
}

static_assert(kPairTile == kCandidateTile, "parts of a list are tiles");

// Queries and candidates of a head: see lib/search.cuh. The number of a slot is
// its index in the head.
struct PairView {
  const skv_merge_attend_args &args;
  EvictJob job;
  const PairWork &work;
  float scatter;
  uint32_t queries;
  uint32_t candidates;
  uint32_t part;
  uint32_t parts;

  __device__ uint32_t query(uint32_t q) const {
    return work
        .lists[static_cast<size_t>(job.index) * args.cache.max_capacity + q];
  }
  __device__ uint32_t candidate(uint32_t c) const { return query(c); }
  __device__ Slot slot(uint32_t i) const { return job.slot(args, i); }
  __device__ float spread() const { return scatter; }
  __device__ void store(uint32_t q, const Neighbour &best) const {
    store_found(work.part_found_of(job.index, part) + q, best);
  }
};

struct PairSource {
  skv_merge_attend_args args;
  Evidence evidence;

  __device__ PairView view() const {
    const PairWork &work = evidence.pairs;
    EvictJob job = {};
    const uint32_t row = blockIdx.z / work.parts;
    const bool works = turn_to_head(args, evidence, row, blockIdx.y, job);
    const uint4 header = works ? work.headers[job.index] : uint4{};
    return {args,
            job,
            work,
            __uint_as_float(header.z),
            header.x,
            header.x,
            blockIdx.z % work.parts,
            work.parts};
  }
};

// Merges the cheapest pair of a head whose pairs were all compared.
template <bool QUERIES>
__global__ void __launch_bounds__(kPairThreads)
    merge_pair_kernel(skv_merge_attend_args args, Evidence evidence) {
  __shared__ LowestShared<kPairWarps> shared;
  const uint32_t kv_head = blockIdx.x, row = blockIdx.y;
  PairJob work;
  if (!turn_to_pairs(args, evidence, row, kv_head, work)) return;
  EvictJob job;
  turn_to_head(args, evidence, row, kv_head, job);
  uint64_t lowest = kNoKey;
  uint32_t own = kNoItem;
  for (uint32_t i = threadIdx.x; i < work.count; i += kPairThreads) {
    const Neighbour best = best_of_parts(args, work, work.parts, i);
    if (!best.exists()) continue;
    const Slot slot = work.slot(args, work.list[i]);
    const uint64_t key = order_key(-best.similarity, slot.word(kSlotPosition));
    if (key < lowest) lowest = key, own = i;
  }
  const uint32_t place = lowest_of_block(lowest, own, shared);
  if (place != kNoItem) {
    const Neighbour other = best_of_parts(args, work, work.parts, place);
    merge_pair<kPairWarps, QUERIES>(args, job, work.list[place], other.item);
  } else if (threadIdx.x == 0) {
    // A slot that is alone has no partner, and is dropped.
    remove_slot(args, job, work.list[0], false, {});
  }
}

inline cudaError_t launch_pairs(const skv_merge_attend_args &args,
                                const Evidence &evidence, const Launch &side) {
  if (args.policy.search_every) return launch_partners(args, evidence, side);
  const PairSearch pairs = {args.policy, args.cache.lanes, true};
  const PairSource source = {args, evidence};
  const cudaError_t status = launch_search(
      source, pairs, args.sizes.head_dim, args.cache.max_capacity,
      args.sizes.kv_heads, args.step.rows * evidence.pairs.parts, side);
  if (status != cudaSuccess) return status;
  const auto merge =
      takes_queries(args) ? merge_pair_kernel<true> : merge_pair_kernel<false>;
  return launch_kernel(side, merge, dim3(args.sizes.kv_heads, args.step.rows),
                       kPairThreads, 0, args, evidence);
}
`,
  "lib/partner_tile.cuh": `// Slots of a head's list compared with those that know no partner, a tile at a
// time: see lib/partners.cuh.
#pragma once

#include "pair_job.cuh"
#include "row_tiles.cuh"
#include "shared_vector.cuh"

static_assert(kPartnerTile == 8 * kPairWarps, "eight slots per warp");

// Slots that these are compared with: so many are fetched at a time, and so
// many are the rows of a product.
constexpr uint32_t kPartnerRows = 32;
constexpr uint32_t kProductRows = 16;

// A slot that a warp has, and what it remembers where that is not compared
// again.
struct PartnerColumn {
  uint32_t number;
  uint32_t position;
  Neighbour known;
};

template <int DIM>
struct PartnersShared {
  // Keys and values of the rows, their squares, and what slots they are.
  skv_cached rows[2][kPartnerRows * kLinePitch<DIM>];
  float squares[2][kPartnerRows];
  uint32_t numbers[kPartnerRows];
  uint32_t positions[kPartnerRows];
  PartnerColumn columns[kPartnerTile];
  // What each warp found for them.
  Neighbour found[kPartnerRows][kPairWarps];
  bool is_last;
  LowestShared<kPairWarps> lowest;
};

// Fetches the slots from place \`first\` of the list to place \`end\`. Called by
// the whole block, which synchronizes afterwards.
template <int DIM, bool ALIGNED>
__device__ inline void fetch_rows(const skv_merge_attend_args &args,
                                  const PairJob &work, uint32_t first,
                                  uint32_t end, PartnersShared<DIM> &shared) {
  constexpr uint32_t kChunks = DIM / 8;
#pragma unroll
  for (uint32_t i = threadIdx.x; i < 2 * kPartnerRows * kChunks;
       i += kPairThreads) {
    const uint32_t kind = i / (kPartnerRows * kChunks);
    const uint32_t row = i / kChunks % kPartnerRows, d = i % kChunks * 8;
    uint32_t words[4] = {};
    if (first + row < end) {
      const Slot slot = work.slot(args, work.list[first + row]);
      load_pairs<8, ALIGNED>(words, kind == 0 ? slot.key : slot.value, d,
                             args.sizes.head_dim);
    }
    *reinterpret_cast<uint4 *>(shared.rows[kind] + row * kLinePitch<DIM> +
                               d) = {words[0], words[1], words[2], words[3]};
    const float square = sum_of_lanes<kChunks>(square_of(words));
    if (d == 0) shared.squares[kind][row] = square;
  }
  if (threadIdx.x >= kPartnerRows) return;
  const uint32_t place = first + threadIdx.x;
  const bool exists = place < end;
  const uint32_t number = exists ? work.list[place] : kNoItem;
  shared.numbers[threadIdx.x] = number;
  shared.positions[threadIdx.x] =
      exists ? work.slot(args, number).word(kSlotPosition) : 0;
}

// Adds the products of kProductRows rows with the vectors of a warp, of which
// each lane has a part of one; returns the square of that.
template <int DIM, bool ALIGNED>
__device__ inline float multiply_rows(float (&x)[4], const skv_cached *rows,
                                      const skv_cached *vector,
                                      uint32_t head_dim) {
  const uint32_t d = shared_column();
  const skv_cached *own = rows + lane_id() / 4 * kLinePitch<DIM> + d;
  float squares[DIM / 32];
#pragma unroll
  for (int c = 0; c < DIM; c += 32) {
    uint32_t words[4];
    load_pairs<8, ALIGNED>(words, vector, c + d, head_dim);
    squares[c / 32] = square_of(words);
    const uint4 a = *reinterpret_cast<const uint4 *>(own + c);
    const uint4 b =
        *reinterpret_cast<const uint4 *>(own + 8 * kLinePitch<DIM> + c);
    mma_cached(x, {a.x, b.x, a.y, b.y}, words[0], words[1]);
    mma_cached(x, {a.z, b.z, a.w, b.w}, words[2], words[3]);
  }
  return sum_shared(squares);
}

// The slot at a place in the list.
__device__ inline PartnerColumn column_of(const skv_merge_attend_args &args,
                                          const PairJob &work, uint32_t place) {
  const uint32_t lanes = args.cache.lanes;
  const uint32_t number = work.list[place];
  const Slot slot = work.slot(args, number);
  PartnerColumn column = {number, slot.word(kSlotPosition), kNoNeighbour};
  const uint32_t word = partner_word(slot, lanes);
  if (word == 0) return column;
  const Slot partner = work.slot(args, word - 1);
  // Who knows none is one of the rows.
  if (partner_word(partner, lanes) != 0) {
    column.known = {-partner_distance(slot, lanes), partner.word(kSlotPosition),
                    word - 1};
  }
  return column;
}

// Whether the slot at a place knows no partner and is not shared: who has it as
// a column compares it with all.
__device__ inline bool is_own(const PairJob &work, uint32_t place) {
  return place >= work.shared && place < work.alone;
}

// Compares rows of a product, from line \`line\` of those that were fetched from
// place \`first_row\` on, with the columns of a warp from place \`first_column\` on
// and keeps what is nearest: for the rows in shared memory, for the lane's two
// columns in \`nearest\`. Called by a whole warp.
template <int DIM, bool ALIGNED>
__device__ inline void compare_rows(const skv_merge_attend_args &args,
                                    const PairJob &work, const PairCosts &costs,
                                    uint32_t first_row, uint32_t line,
                                    uint32_t first_column,
                                    PartnersShared<DIM> &shared,
                                    Neighbour (&nearest)[2]) {
  const PartnerColumn *columns = shared.columns + 8 * warp_id();
  const uint32_t g = lane_id() / 4, t = lane_id() % 4;
  const uint32_t own = columns[g].number;
  const Slot slot = work.slot(args, own == kNoItem ? 0 : own);
  float products[2][4] = {};
  // Of columns 2 t and 2 t + 1.
  float column_squares[2][2];
#pragma unroll
  for (int kind = 0; kind < 2; kind++) {
    const float square = multiply_rows<DIM, ALIGNED>(
        products[kind], shared.rows[kind] + line * kLinePitch<DIM>,
        kind == 0 ? slot.key : slot.value, args.sizes.head_dim);
#pragma unroll
    for (int c = 0; c < 2; c++) {
      column_squares[kind][c] = __shfl_sync(kAllLanes, square, 4 * (2 * t + c));
    }
  }
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const uint32_t r = line + g + 8 * h;
    const uint32_t number = shared.numbers[r];
    Neighbour best = kNoNeighbour;
#pragma unroll
    for (int c = 0; c < 2; c++) {
      const PartnerColumn &column = columns[2 * t + c];
      if (number == kNoItem || column.number == kNoItem) continue;
      if (number == column.number) continue;
      float squares[2];
#pragma unroll
      for (int kind = 0; kind < 2; kind++) {
        const float both = shared.squares[kind][r] + column_squares[kind][c];
        const float product = products[kind][2 * h + c];
        squares[kind] = fmaxf(0.0f, both - 2.0f * product);
      }
      const float distance = costs.distance(squares[0], squares[1]);
      const Neighbour other = {-distance, column.position, column.number};
      if (other.beats(best)) best = other;
      const Neighbour row = {-distance, shared.positions[r], number};
      // Others are compared with all elsewhere.
      const bool searches = is_own(work, first_column + 2 * t + c);
      const bool is_alone = first_row + r < work.alone;
      if ((searches || is_alone) && row.beats(nearest[c])) nearest[c] = row;
    }
    best = nearest_of_lanes<2>(best);
    if (t == 0) shared.found[r][warp_id()] = best;
  }
}

// Leaves what the warps found for the rows from place \`first\` on, a lane for
// each warp and row; \`before\` says whether this part of the list has left
// something for them already.
template <int DIM>
__device__ inline void leave_rows(const skv_merge_attend_args &args,
                                  const PairJob &work, uint32_t part,
                                  uint32_t first, bool before,
                                  const PartnersShared<DIM> &shared) {
  static_assert(kPartnerRows * kPairWarps == kPairThreads, "a lane for each");
  const uint32_t row = threadIdx.x / kPairWarps;
  Neighbour best = nearest_of_lanes<kPairWarps / 2>(
      shared.found[row][threadIdx.x % kPairWarps]);
  if (threadIdx.x % kPairWarps != 0 || first + row >= work.shared) return;
  uint2 *const to = work.found_by(part) + first + row;
  if (before) {
    const Neighbour other = load_found(args, work, to);
    if (other.beats(best)) best = other;
  }
  store_found(to, best);
}

// The square of the difference of two vectors; four lanes share them.
template <int DIM, bool ALIGNED>
__device__ inline float difference_of(const skv_cached *vector,
                                      const skv_cached *other,
                                      uint32_t head_dim) {
  float squares[DIM / 32];
#pragma unroll
  for (int c = 0; c < DIM / 32; c++) {
    const uint32_t d = 32 * c + shared_column();
    uint32_t mine[4], theirs[4];
    load_pairs<8, ALIGNED>(mine, vector, d, head_dim);
    load_pairs<8, ALIGNED>(theirs, other, d, head_dim);
    squares[c] = square_of(mine, theirs);
  }
  return sum_shared(squares);
}

// How far two slots are apart, by differences, which lose nothing where they
// are close; four lanes share them. Called by a whole warp.
template <int DIM, bool ALIGNED>
__device__ inline float distance_of(const skv_merge_attend_args &args,
                                    const PairCosts &costs, const Slot &a,
                                    const Slot &b) {
  const uint32_t head_dim = args.sizes.head_dim;
  const float keys = difference_of<DIM, ALIGNED>(a.key, b.key, head_dim);
  const float values = difference_of<DIM, ALIGNED>(a.value, b.value, head_dim);
  return costs.distance(keys, values);
}
`,
  "lib/partners.cuh": `// The nearest partner of each slot that may go, where a search is due: see
// src/reference/partners.ts.
//
// Slots that know no partner, some tens as a rule, come first in the list and
// are compared with all others; these are compared with them alone. So a block
// goes through its part of the list once: a warp has eight slots, the columns
// of tensor core products whose rows are 16 of those that know no partner. A
// block is small, because those of all layers run beside the logits, which
// leave a part of each multiprocessor. It looks at as many heads of a row as a
// search is due in one of, since blocks that find nothing to do take time too.
//
// Who is nearest follows from products and squares. How far away that is, which
// is remembered, follows from differences: products lose a few bits where two
// are close.
#pragma once

#include "overlap.cuh"
#include "partner_tile.cuh"

// Blocks that fit on a multiprocessor: three beside the logits, which take half
// of its registers.
template <int DIM>
constexpr int kPartnerBlocks = DIM == 256 ? 3 : 6;

// Whether this block is the last of its head to get here; it sees what all have
// left. Called by the whole block.
__device__ inline bool is_last_part(const PairJob &work, bool &shared) {
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) shared = atomicAdd(work.ticket, 1) == work.parts - 1;
  __syncthreads();
  return shared;
}

// Leaves what a warp has found for its columns from place \`first\` of the list
// on, those left out that all parts search for. All lanes with the same t have
// found as much for columns 2 t and 2 t + 1.
template <int DIM, bool ALIGNED>
__device__ inline void leave_columns(const skv_merge_attend_args &args,
                                     const PairJob &work,
                                     const PairCosts &costs, uint32_t first,
                                     const PartnersShared<DIM> &shared,
                                     const Neighbour (&nearest)[2]) {
  const uint32_t g = lane_id() / 4;
  const PartnerColumn column = shared.columns[8 * warp_id() + g];
  const Neighbour even = neighbour_of_lane(nearest[0], g / 2);
  const Neighbour odd = neighbour_of_lane(nearest[1], g / 2);
  const Neighbour best = g % 2 == 0 ? even : odd;
  const bool wanted = column.number != kNoItem && first + g >= work.shared;
  const bool is_new = wanted && best.beats(column.known);
  uint2 found = {__float_as_uint(-column.known.similarity), column.known.item};
  if (__any_sync(kAllLanes, is_new)) {
    const uint32_t own = is_new ? column.number : work.list[0];
    const float distance =
        distance_of<DIM, ALIGNED>(args, costs, work.slot(args, own),
                                  work.slot(args, is_new ? best.item : own));
    if (is_new) found = {__float_as_uint(distance), best.item};
  }
  if (wanted && lane_id() % 4 == 0) work.found[first + g] = found;
}

// Looks for the partners of the slots of one part of a head's list.
template <int DIM, bool ALIGNED>
__device__ inline void search_part(const skv_merge_attend_args &args,
                                   const PairJob &work, const PairCosts &costs,
                                   uint32_t part, PartnersShared<DIM> &shared) {
  const uint32_t begin = part * work.per_part;
  const uint32_t end = min(work.count, begin + work.per_part);
  // The rows that are in shared memory.
  uint32_t fetched = kNoItem;
  for (uint32_t first = begin; first < end; first += kPartnerTile) {
    const uint32_t first_column = first + 8 * warp_id();
    const uint32_t place = first_column + lane_id();
    if (lane_id() < 8) {
      PartnerColumn column = column_of(args, work, min(place, end - 1));
      if (place >= end) column.number = kNoItem;
      shared.columns[8 * warp_id() + lane_id()] = column;
    }
    __syncwarp();
    Neighbour nearest[2] = {kNoNeighbour, kNoNeighbour};
    const bool has_own =
        max(first, work.shared) < min(first + kPartnerTile, work.alone);
    const uint32_t rows = has_own ? work.count : work.alone;
    for (uint32_t row = 0; row < rows; row += kPartnerRows) {
      if (fetched != row || has_own) {
        // Nobody reads the rows before these any more.
        __syncthreads();
        fetch_rows<DIM, ALIGNED>(args, work, row, rows, shared);
        fetched = has_own ? kNoItem : row;
      }
      __syncthreads();
#pragma unroll 1
      for (uint32_t line = 0; line < min(kPartnerRows, rows - row);
           line += kProductRows) {
        compare_rows<DIM, ALIGNED>(args, work, costs, row, line, first_column,
                                   shared, nearest);
      }
      __syncthreads();
      leave_rows(args, work, part, row, first != begin, shared);
    }
#pragma unroll
    for (int c = 0; c < 2; c++) {
      nearest[c] = nearest_of_lanes<16, 4>(nearest[c]);
    }
    leave_columns<DIM, ALIGNED>(args, work, costs, first_column, shared,
                                nearest);
    __syncwarp();
  }
}

// Joins what the parts have found for the slots that all of them search for;
// four lanes share a slot. Called by the whole block.
template <int DIM, bool ALIGNED>
__device__ inline void join_parts(const skv_merge_attend_args &args,
                                  const PairJob &work, const PairCosts &costs) {
  constexpr uint32_t kSlots = kPairThreads / 4;
  for (uint32_t first = 0; first < work.shared; first += kSlots) {
    const uint32_t place = first + threadIdx.x / 4;
    const bool exists = place < work.shared;
    Neighbour best = kNoNeighbour;
#pragma unroll
    for (uint32_t k = 0; k < kMaxPairParts / 4; k++) {
      const uint32_t part = 4 * k + lane_id() % 4;
      if (!exists || part >= work.parts) continue;
      const Neighbour other =
          load_found(args, work, work.found_by(part) + place);
      if (other.beats(best)) best = other;
    }
    best = nearest_of_lanes<2>(best);
    const uint32_t own = work.list[exists ? place : 0];
    const float distance = distance_of<DIM, ALIGNED>(
        args, costs, work.slot(args, own),
        work.slot(args, best.exists() ? best.item : own));
    if (exists && threadIdx.x % 4 == 0) {
      work.found[place] = {__float_as_uint(distance), best.item};
    }
  }
}

// Makes slots remember what was found for them. Called by the whole block.
__device__ inline void remember_found(const skv_merge_attend_args &args,
                                      const PairJob &work) {
  constexpr uint32_t kReads = 4;
  for (uint32_t first = threadIdx.x; first < work.count;
       first += kReads * kPairThreads) {
    // All are read before any slot is written.
    uint2 found[kReads];
    uint32_t numbers[kReads];
#pragma unroll
    for (uint32_t k = 0; k < kReads; k++) {
      const uint32_t i = min(first + k * kPairThreads, work.count - 1);
      found[k] = __ldcg(work.found + i);
      numbers[k] = work.list[i];
    }
#pragma unroll
    for (uint32_t k = 0; k < kReads; k++) {
      if (first + k * kPairThreads >= work.count) continue;
      const bool exists = found[k].y != kNoItem;
      set_partner(work.slot(args, numbers[k]), args.cache.lanes,
                  exists ? found[k].y + 1 : 0,
                  exists ? __uint_as_float(found[k].x) : 0.0f);
    }
  }
}

// Looks for partners where a search is due; the last part of a head merges.
template <int DIM, bool ALIGNED, bool QUERIES>
__global__ void __launch_bounds__(kPairThreads, kPartnerBlocks<DIM>)
    partners_kernel(skv_merge_attend_args args, Evidence evidence) {
  __shared__ PartnersShared<DIM> shared;
  begin_kernel();
  const uint32_t part = blockIdx.x, row = blockIdx.z;
  const uint32_t heads = group_heads(args);
  const uint32_t own_head = blockIdx.y * heads + lane_id();
  const bool is_due =
      lane_id() < heads && own_head < args.sizes.kv_heads &&
      evidence.pairs.headers[row * args.sizes.kv_heads + own_head].x != 0;
  uint32_t due = __ballot_sync(kAllLanes, is_due);
  for (; due != 0; due &= due - 1) {
    const uint32_t kv_head = blockIdx.y * heads + __ffs(due) - 1;
    PairJob work;
    if (!turn_to_pairs(args, evidence, row, kv_head, work)) continue;
    if (part >= work.parts) continue;
    const PairCosts costs(args.policy, work.spread);
    search_part<DIM, ALIGNED>(args, work, costs, part, shared);
    if (!is_last_part(work, shared.is_last)) continue;
    join_parts<DIM, ALIGNED>(args, work, costs);
    __syncthreads();
    remember_found(args, work);
    __syncthreads();
    EvictJob job;
    turn_to_head(args, evidence, row, kv_head, job);
    merge_known<kPairWarps, QUERIES>(args, job, work.weights, work.list[0],
                                     shared.lowest);
  }
}

template <int DIM>
inline cudaError_t launch_partners_width(const skv_merge_attend_args &args,
                                         const Evidence &evidence,
                                         const Launch &launch) {
  const bool queries = takes_queries(args);
  const auto kernel = args.sizes.head_dim % 8 == 0
                          ? queries ? partners_kernel<DIM, true, true>
                                    : partners_kernel<DIM, true, false>
                      : queries ? partners_kernel<DIM, false, true>
                                : partners_kernel<DIM, false, false>;
  const dim3 grid(evidence.pairs.parts, head_groups(args), args.step.rows);
  return launch_kernel(launch, kernel, grid, kPairThreads, 0, args, evidence);
}

inline cudaError_t launch_partners(const skv_merge_attend_args &args,
                                   const Evidence &evidence,
                                   const Launch &launch) {
  return with_width(args.sizes.head_dim, [&](auto width) {
    return launch_partners_width<decltype(width)::value>(args, evidence,
                                                         launch);
  });
}
`,
  "lib/pass_values.cuh": `// Passing the values of victims on, one by one in the order of their ranks,
// since each takes in what those before it have passed on.
//
// One block has a head: finding who takes a value in reads a position per item,
// and the elements of a value do not touch each other. The alternative that
// lost: many blocks, which would wait for each other after every victim.
#pragma once

#include "compress_work.cuh"
#include "next_values.cuh"

// Called by the whole block; the caller frees the slots.
__device__ inline void pass_values(const skv_chunk_args &args,
                                   const ChunkHead &head, const HeadWork &work,
                                   uint32_t victims, Followers &followers,
                                   SelectScratch &scratch) {
  const uint32_t items = work.counters[kItems];
  const auto slot_of = [&](uint32_t i) {
    return item_slot(args, head, work.items[i]);
  };
  // Positions of those that are still there.
  uint32_t *positions = work.mates;
  for (uint32_t i = threadIdx.x; i < items; i += kCompressThreads) {
    positions[i] = slot_of(i).word(kSlotPosition);
  }
  for (uint32_t v = threadIdx.x; v < victims; v += kCompressThreads) {
    const uint32_t i = work.queries[v];
    uint32_t place = 0;
    for (uint32_t u = 0; u < victims; u++) {
      place += work.keys[work.queries[u]] < work.keys[i] ? 1 : 0;
    }
    work.candidates[place] = i;
  }
  __syncthreads();
  for (uint32_t v = 0; v < victims; v++) {
    const uint32_t i = work.candidates[v];
    const PassedOn gone = {slot_of(i), args.cache.layer, head.kv_head,
                           args.sizes.head_dim};
    const bool is_passed = pass_on(
        args.policy, gone, items, followers, scratch,
        [&](uint32_t other) { return positions[other]; }, slot_of);
    // The next one looks at positions after a barrier, and so did all at this.
    if (threadIdx.x != 0) continue;
    positions[i] = 0;
    if (is_passed) {
      head.words[kHeadMerged]++;
    } else {
      head.words[kHeadDropped]++;
      head.words[kHeadDroppedTokens] += gone.slot.word(kSlotTokens);
    }
  }
  __syncthreads();
}
`,
  "lib/prefill_form.cuh": `// The forms of the attention of a chunk, and what its blocks have in shared
// memory.
#pragma once

#include "row_tiles.cuh"
#include "slots.cuh"
#include "softmax_state.cuh"

// kExact: for few rows. Queries and weights are split in two parts each
// (lib/cached.cuh), which comes near to 32-bit precision or has it; the memory
// that keys come from bounds it, not the products.
//
// kGeneral: queries and weights are rounded to what caches hold.
//
// kPlain: the same without what few policies ask for: queries of their own for
// sinks, votes per query head, scores at a scale of their own. A warp has twice
// the rows, so that operands are read from shared memory half as often.
//
// kGroup: the same on Hopper, by group products: see lib/group_attend.cuh.
enum class PrefillForm { kExact, kGeneral, kPlain, kGroup };

template <int DIM, PrefillForm FORM>
struct PrefillShape {
  static constexpr bool kIsExact = FORM == PrefillForm::kExact;
  static constexpr bool kIsGroup = FORM == PrefillForm::kGroup;
  static constexpr bool kIsPlain = FORM == PrefillForm::kPlain || kIsGroup;
  // Parts that an element of a query is split into.
  static constexpr int kSplits = kIsExact ? 2 : 1;
  static constexpr int kWarps = kIsGroup ? 8 : DIM == 256 && kIsExact ? 2 : 4;
  static constexpr uint32_t kThreads = 32 * kWarps;
  // Tiles of 16 (row, query head) pairs of a warp, and pairs of a block.
  static constexpr int kTiles =
      FORM == PrefillForm::kPlain && DIM <= 128 ? 2 : 1;
  static constexpr int kWarpPairs = 16 * kTiles;
  static constexpr int kPairs = kWarpPairs * kWarps;
  // Slots of a tile.
  static constexpr int kSlots = kIsGroup ? 128 : DIM == 256 ? 32 : 64;
  // Biases that a slot has here.
  static constexpr int kLanes = kIsPlain ? 1 : static_cast<int>(kMaxGroup);
};

// Blocks that share the rows of a chunk.
template <class Shape>
inline uint32_t row_blocks(const skv_chunk_args &args) {
  const uint32_t group = args.sizes.heads / args.sizes.kv_heads;
  const uint32_t rows = Shape::kPairs / group;
  return (args.step.rows + rows - 1) / rows;
}

template <int DIM, PrefillForm FORM>
struct PrefillShared {
  using Shape = PrefillShape<DIM, FORM>;
  skv_cached queries[Shape::kSplits][Shape::kPairs * kLinePitch<DIM>];
  skv_cached keys[Shape::kSlots * kLinePitch<DIM>];
  skv_cached values[Shape::kSlots * kLinePitch<DIM>];
  // log2 of votes.
  float biases[Shape::kLanes][Shape::kSlots];
  bool is_sink[Shape::kSlots];
  // What products of a pair are multiplied by: logits in units of ln 2.
  float inverse[Shape::kPairs];
  // The same for queries of sinks, and what those were multiplied by.
  float sink_inverse[Shape::kIsPlain ? 4 : Shape::kPairs];
  float sink_scale[Shape::kIsPlain ? 4 : Shape::kPairs];

  // Where a part of a query's element is.
  __device__ skv_cached *query(int split, uint32_t pair, uint32_t column) {
    return queries[split] + pair * kLinePitch<DIM> + column;
  }
};

// Where the queries of a block's pairs are: pair p is query head p % group of
// row p / group.
struct PairQueries {
  const float *all;
  uint32_t first_row;
  uint32_t kv_head;
  uint32_t heads;
  uint32_t group;
  uint32_t head_dim;
  uint32_t pairs;

  __device__ uint32_t row(uint32_t pair) const {
    return first_row + pair / group;
  }
  // Index among the queries of all rows.
  __device__ size_t index(uint32_t pair) const {
    return static_cast<size_t>(row(pair)) * heads + kv_head * group +
           pair % group;
  }
  // Two elements; zeros beyond the end and of pairs that are not there.
  __device__ float2 load(uint32_t pair, uint32_t column) const {
    if (pair >= pairs || column >= head_dim) return {0.0f, 0.0f};
    return *reinterpret_cast<const float2 *>(all + index(pair) * head_dim +
                                             column);
  }
};

// Queries that a warp reads at a time.
constexpr int kQueryBatch = 4;

// Reads the queries of a warp's pairs, and calls \`use\` with a pair, its scale,
// where the elements of this lane are, and the elements: two of every 64.
template <int DIM, int PAIRS, class Use>
__device__ inline void each_query(const PairQueries &queries, Use use) {
  constexpr int kSteps = (DIM + 63) / 64;
  const uint32_t column = 2 * lane_id();
#pragma unroll 1
  for (int first = 0; first < PAIRS; first += kQueryBatch) {
    float2 x[kQueryBatch][kSteps];
#pragma unroll
    for (int k = 0; k < kQueryBatch; k++) {
#pragma unroll
      for (int step = 0; step < kSteps; step++) {
        x[k][step] =
            queries.load(PAIRS * warp_id() + first + k, column + 64 * step);
      }
    }
#pragma unroll
    for (int k = 0; k < kQueryBatch; k++) {
      float largest = 0.0f;
#pragma unroll
      for (int step = 0; step < kSteps; step++) {
        largest =
            fmaxf(largest, fmaxf(fabsf(x[k][step].x), fabsf(x[k][step].y)));
      }
      use(PAIRS * warp_id() + first + k, scale_for(warp_max(largest)), x[k]);
    }
  }
}

// Rounds the queries of a warp's pairs to what caches hold. Shared:
// PrefillShared, or what has its queries somewhere else.
template <int DIM, class Shared>
__device__ inline void round_queries(const PairQueries &queries,
                                     Shared &shared) {
  using Shape = typename Shared::Shape;
  const float unit = rsqrtf(static_cast<float>(queries.head_dim)) * kLog2E;
  each_query<DIM, Shape::kWarpPairs>(
      queries, [&](uint32_t pair, const Scale &scale, const auto &x) {
        if (lane_id() == 0) shared.inverse[pair] = scale.inverse * unit;
#pragma unroll
        for (int step = 0; step < (DIM + 63) / 64; step++) {
          const uint32_t column = 2 * lane_id() + 64 * step;
          if (column >= DIM) continue;
          const SplitPair both =
              split_cached(x[step].x * scale.scale, x[step].y * scale.scale);
          *reinterpret_cast<uint32_t *>(shared.query(0, pair, column)) =
              both.high;
          if constexpr (Shape::kIsExact) {
            *reinterpret_cast<uint32_t *>(shared.query(1, pair, column)) =
                both.low;
          }
        }
      });
}
`,
  "lib/prefill_sinks.cuh": `// The logits of sinks where positions are those in the cache: rows have queries
// of their own for them. Few tiles of slots have any, so these queries stay in
// memory and are rounded each time.
#pragma once

#include "prefill_form.cuh"

// Finds the scales of the queries of sinks.
template <int DIM, PrefillForm FORM>
__device__ inline void scale_sinks(const PairQueries &sinks,
                                   PrefillShared<DIM, FORM> &shared) {
  const float unit = rsqrtf(static_cast<float>(sinks.head_dim)) * kLog2E;
  each_query<DIM, PrefillShape<DIM, FORM>::kWarpPairs>(
      sinks, [&](uint32_t pair, const Scale &scale, const auto &) {
        if (lane_id() != 0) return;
        shared.sink_inverse[pair] = scale.inverse * unit;
        shared.sink_scale[pair] = scale.scale;
      });
}

// Logits of sinks, whose queries have other positions, take the place of what
// they are in \`x\`.
template <int DIM, PrefillForm FORM>
__device__ inline void replace_sinks(
    const PairQueries &sinks, const PrefillShared<DIM, FORM> &shared,
    uint32_t lanes,
    float (&x)[PrefillShape<DIM, FORM>::kTiles]
              [PrefillShape<DIM, FORM>::kSlots / 8][4]) {
  using Shape = PrefillShape<DIM, FORM>;
  static_assert(Shape::kTiles == 1, "registers for other logits");
  const uint32_t g = lane_id() / 4, t = lane_id() % 4;
  const uint32_t first_pair = Shape::kWarpPairs * warp_id() + g;
  float other[Shape::kSlots / 8][4] = {};
#pragma unroll 1
  for (int step = 0; step < DIM / 16; step++) {
    SplitPair a[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const uint32_t pair = first_pair + i % 2 * 8;
      const float2 q = sinks.load(pair, 16 * step + 2 * t + i / 2 * 8);
      const float scale = shared.sink_scale[pair];
      a[i] = split_cached(q.x * scale, q.y * scale);
    }
    const uint4 high = {a[0].high, a[1].high, a[2].high, a[3].high};
    const uint4 low = {a[0].low, a[1].low, a[2].low, a[3].low};
#pragma unroll
    for (int n = 0; n < Shape::kSlots / 8; n += 2) {
      const uint4 k = key_operands<DIM>(shared.keys, 8 * n, 16 * step);
      if constexpr (Shape::kIsExact) {
        mma_cached(other[n], low, k.x, k.y);
        mma_cached(other[n + 1], low, k.z, k.w);
      }
      mma_cached(other[n], high, k.x, k.y);
      mma_cached(other[n + 1], high, k.z, k.w);
    }
  }
#pragma unroll
  for (int n = 0; n < Shape::kSlots / 8; n++) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const uint32_t slot = 8 * n + 2 * t + i % 2;
      const uint32_t pair = first_pair + i / 2 * 8;
      if (!shared.is_sink[slot]) continue;
      const uint32_t lane = lanes == 1 ? 0 : pair % sinks.group;
      x[0][n][i] =
          other[n][i] * shared.sink_inverse[pair] + shared.biases[lane][slot];
    }
  }
}
`,
  "lib/prefill_state.cuh": `// The attention of one warp's (row, query head) pairs while tiles of slots go
// by: a running softmax, and its products on tensor cores.
//
// Logits are in units of ln 2 here, so that a weight is a power of two.
#pragma once

#include "prefill_form.cuh"

template <int DIM, PrefillForm FORM>
struct PrefillState {
  using Shape = PrefillShape<DIM, FORM>;
  using Shared = PrefillShared<DIM, FORM>;
  static constexpr int kTiles = Shape::kTiles;
  static constexpr int kSlots = Shape::kSlots;

  // Of rows g and g + 8 of each tile of pairs.
  float max[kTiles][2];
  float sum[kTiles][2];
  float values[kTiles][DIM / 8][4] = {};
  // Where scores have a scale of their own: that, and the softmax sum then.
  float gain[kTiles][2];
  float gained[kTiles][2];

  __device__ PrefillState() {
#pragma unroll
    for (int m = 0; m < kTiles; m++) {
#pragma unroll
      for (int h = 0; h < 2; h++) {
        max[m][h] = -INFINITY;
        sum[m][h] = gained[m][h] = 0.0f;
        gain[m][h] = 1.0f;
      }
    }
  }

  // The pair of row 8h + g of a warp's tile m.
  __device__ static uint32_t pair_of(int m, int h) {
    return Shape::kWarpPairs * warp_id() + 16 * m + 8 * h + lane_id() / 4;
  }

  // Adds the products of the pairs with a tile of keys.
  __device__ static void multiply_keys(const Shared &shared,
                                       float (&x)[kTiles][kSlots / 8][4]) {
#pragma unroll
    for (int step = 0; step < DIM / 16; step++) {
      uint4 q[Shape::kSplits][kTiles];
#pragma unroll
      for (int s = 0; s < Shape::kSplits; s++) {
#pragma unroll
        for (int m = 0; m < kTiles; m++) {
          q[s][m] = line_operands<DIM>(shared.queries[s],
                                       Shape::kWarpPairs * warp_id() + 16 * m,
                                       16 * step);
        }
      }
#pragma unroll
      for (int n = 0; n < kSlots / 8; n += 2) {
        const uint4 k = key_operands<DIM>(shared.keys, 8 * n, 16 * step);
        // Low parts first.
#pragma unroll
        for (int s = Shape::kSplits - 1; s >= 0; s--) {
#pragma unroll
          for (int m = 0; m < kTiles; m++) {
            mma_cached(x[m][n], q[s][m], k.x, k.y);
            mma_cached(x[m][n + 1], q[s][m], k.z, k.w);
          }
        }
      }
    }
  }

  // Adds a tile of logits to the sums at the scale of scores; \`to\` is the
  // softmax's next reference.
  __device__ void add_gained(int m, int h,
                             const float (&x)[kTiles][kSlots / 8][4],
                             float to) {
    const auto weight = [&](float from) {
      return from == -INFINITY ? 0.0f : exp2_fast(gain[m][h] * (from - to));
    };
    gained[m][h] *= weight(max[m][h]);
#pragma unroll
    for (int n = 0; n < kSlots / 8; n++) {
      gained[m][h] += weight(x[m][n][2 * h]) + weight(x[m][n][2 * h + 1]);
    }
  }

  // Turns a tile of logits into weights, at the references of their rows, which
  // may grow.
  __device__ void weigh(float (&x)[kTiles][kSlots / 8][4], bool gains) {
    float keep[kTiles][2];
    bool grows = false;
#pragma unroll
    for (int m = 0; m < kTiles; m++) {
#pragma unroll
      for (int h = 0; h < 2; h++) {
        float top = -INFINITY;
#pragma unroll
        for (int n = 0; n < kSlots / 8; n++) {
          top = fmaxf(top, fmaxf(x[m][n][2 * h], x[m][n][2 * h + 1]));
        }
        top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 1));
        top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 2));
        const float to = fmaxf(max[m][h], top - kHeadroomBits);
        const float reference = finite(to);
        keep[m][h] = exp2_fast(max[m][h] - reference);
        grows = grows || to != max[m][h];
        if constexpr (!Shape::kIsPlain) {
          if (gains) add_gained(m, h, x, reference);
        }
        max[m][h] = to;
        sum[m][h] *= keep[m][h];
#pragma unroll
        for (int n = 0; n < kSlots / 8; n++) {
#pragma unroll
          for (int i = 2 * h; i < 2 * h + 2; i++) {
            x[m][n][i] = exp2_fast(x[m][n][i] - reference);
            sum[m][h] += x[m][n][i];
          }
        }
      }
    }
    // References hardly grow once some tiles have gone by.
    if (!__any_sync(kAllLanes, grows)) return;
#pragma unroll
    for (int m = 0; m < kTiles; m++) {
#pragma unroll
      for (int d = 0; d < DIM / 8; d++) {
#pragma unroll
        for (int i = 0; i < 4; i++) values[m][d][i] *= keep[m][i / 2];
      }
    }
  }

  // Adds the products of a tile's weights with its values.
  __device__ void multiply_values(const Shared &shared,
                                  const float (&x)[kTiles][kSlots / 8][4]) {
#pragma unroll
    for (int j = 0; j < kSlots / 16; j++) {
      uint4 p[Shape::kSplits][kTiles];
#pragma unroll
      for (int m = 0; m < kTiles; m++) {
        const float(&left)[4] = x[m][2 * j], (&right)[4] = x[m][2 * j + 1];
        const SplitPair a = split_cached(left[0], left[1]);
        const SplitPair b = split_cached(left[2], left[3]);
        const SplitPair c = split_cached(right[0], right[1]);
        const SplitPair d = split_cached(right[2], right[3]);
        p[0][m] = {a.high, b.high, c.high, d.high};
        if constexpr (Shape::kIsExact) p[1][m] = {a.low, b.low, c.low, d.low};
      }
#pragma unroll
      for (int column = 0; column < DIM; column += 16) {
        const uint4 v = value_operands<DIM>(shared.values, 16 * j, column);
#pragma unroll
        for (int s = Shape::kSplits - 1; s >= 0; s--) {
#pragma unroll
          for (int m = 0; m < kTiles; m++) {
            mma_cached(values[m][column / 8], p[s][m], v.x, v.y);
            mma_cached(values[m][column / 8 + 1], p[s][m], v.z, v.w);
          }
        }
      }
    }
  }

  // Adds up what the four lanes of a row have.
  __device__ void join_lanes() {
#pragma unroll
    for (int m = 0; m < kTiles; m++) {
#pragma unroll
      for (int h = 0; h < 2; h++) {
#pragma unroll
        for (int offset = 1; offset < 4; offset *= 2) {
          sum[m][h] += __shfl_xor_sync(kAllLanes, sum[m][h], offset);
          if constexpr (!Shape::kIsPlain) {
            gained[m][h] += __shfl_xor_sync(kAllLanes, gained[m][h], offset);
          }
        }
      }
    }
  }

  // Stores the outputs of the pairs and the ln of their sums. Called once, by
  // the whole warp.
  __device__ void store(const skv_chunk_args &args, const PairQueries &queries,
                        bool gains) {
    join_lanes();
    const uint32_t t = lane_id() % 4;
#pragma unroll
    for (int m = 0; m < kTiles; m++) {
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const uint32_t pair = pair_of(m, h);
        if (pair >= queries.pairs) continue;
        const size_t query = queries.index(pair);
        if (t == 0) {
          args.log_sums[query] =
              gains ? kLn2 * gain[m][h] * max[m][h] + logf(gained[m][h])
                    : kLn2 * max[m][h] + logf(sum[m][h]);
        }
        const float share = 1.0f / sum[m][h];
#pragma unroll
        for (int d = 0; d < DIM / 8; d++) {
          const uint32_t at = 8 * d + 2 * t;
          if (at >= queries.head_dim) continue;
          const float2 both = {values[m][d][2 * h] * share,
                               values[m][d][2 * h + 1] * share};
          *reinterpret_cast<float2 *>(args.output + query * queries.head_dim +
                                      at) = both;
        }
      }
    }
  }
};
`,
  "lib/product.cuh": `// Products of activations with a weight matrix, in one of six forms by the
// number of rows: lib/vector_product.cuh or, where the matrix is large,
// lib/stream_product.cuh for one; for some, lib/narrow_product.cuh where the
// matrix is small and lib/wide_product.cuh where it is large and the device is
// a Hopper; lib/library_product.cuh for more where there is that library, and
// lib/matrix_product.cuh where there is none.
//
// Outputs come in pairs that are finished together: neighbours, such as a gate
// and its up value, or the two ends of a RoPE pair. A kernel describes them as
//
//   struct Pairs {
//     // Weight row of an end, 0 or 1, of a pair.
//     __device__ uint32_t output(uint32_t pair, uint32_t end) const;
//     // Whether any \`outputs\` weight rows from a multiple of that on are the
//     // ends of as many pairs, of half that multiple on.
//     bool has_tiles(uint32_t outputs) const;
//     // What finishing a pair of a row takes beside its products. Loads what
//     // no kernel of the step has written, so that it can be called before
//     // the kernel in front has ended: see lib/overlap.cuh.
//     struct Held;
//     __device__ Held hold(uint32_t row, uint32_t pair) const;
//     // Takes the products of a live row. The second end of the last pair may
//     // not exist.
//     __device__ void finish(const Held &held, float a, float b) const;
//   };
#pragma once

#include "library_product.cuh"
#include "matrix_product.cuh"
#include "narrow_product.cuh"
#include "stream_product.cuh"
#include "vector_product.cuh"
#include "wide_product.cuh"

// Device memory that a product takes, however much shared memory there is.
inline Needs product_needs(const Product &product, uint32_t multiprocessors) {
  if (product.rows == 1) return {};
  Needs needs = matrix_product_needs(product, multiprocessors);
  needs.library_scratch = library_product_bytes(product);
  return needs;
}

// Multiplies. \`scratch\` has what is needed.
template <class Pairs>
inline cudaError_t multiply(const Product &product, const Pairs &pairs,
                            const Scratch &scratch, const Launch &launch) {
  if (product.rows == 1) {
    return is_streamed(product, launch)
               ? multiply_stream(product, pairs, launch)
               : multiply_vector(product, pairs, launch);
  }
  bool done = false;
  cudaError_t status = multiply_wide(product, pairs, scratch, launch, done);
  if (status != cudaSuccess || done) return status;
  if (is_narrow(product, launch)) {
    return multiply_narrow(product, pairs, launch);
  }
  if (launch.library != nullptr) {
    status = multiply_with_library(product, pairs, scratch, launch, done);
    if (status != cudaSuccess || done) return status;
  }
  return multiply_matrix(product, pairs, scratch, launch);
}
`,
  "lib/product_args.cuh": `// What all forms of a product share: see lib/product.cuh.
#pragma once

#include "../runtime/launch.cuh"
#include "half.cuh"
#include "step.cuh"

struct Product {
  skv_matrix weight;
  // (step.rows, weight.columns)
  const float *input;
  // (weight.columns): weights of the RMS norm in front, or null
  const float *norm;
  float epsilon;
  skv_step step;
  // Rows that are multiplied: those of the step, or the last live one alone.
  uint32_t rows;
  bool last_row;
  // Whether guests have no part in it.
  bool text_only = false;

  __device__ uint32_t first_row() const {
    const uint32_t end = last_row ? row_end(step) : 0;
    return end > 0 ? end - 1 : 0;
  }
  __device__ bool is_wanted(uint32_t row) const {
    const Row wanted = row_of(step, first_row() + row);
    return text_only ? wanted.live : wanted.forwarded;
  }
  // Rows from 0 that may be wanted.
  __device__ uint32_t end() const {
    return text_only ? row_end(step) : forward_end(step);
  }
  // Row \`row\` of the activations; one that exists, whatever the row.
  __device__ const float *row(uint32_t row) const {
    return input + static_cast<size_t>(first_row() + min(row, rows - 1)) *
                       weight.columns;
  }
};

__host__ __device__ inline uint32_t pairs_of(const skv_matrix &weight) {
  return (weight.rows + 1) / 2;
}

// Eight floats from \`first\`, zeros beyond the width.
template <bool ALIGNED>
__device__ inline void load_floats(float (&out)[8], const float *row,
                                   uint32_t first, uint32_t width) {
  if constexpr (ALIGNED) {
    const float4 zeros = {};
    const bool exists = first < width;
    const float4 *from = reinterpret_cast<const float4 *>(row + first);
    const float4 a = exists ? from[0] : zeros;
    const float4 b = exists ? from[1] : zeros;
    out[0] = a.x, out[1] = a.y, out[2] = a.z, out[3] = a.w;
    out[4] = b.x, out[5] = b.y, out[6] = b.z, out[7] = b.w;
  } else {
#pragma unroll
    for (int i = 0; i < 8; i++) {
      out[i] = first + i < width ? row[first + i] : 0.0f;
    }
  }
}

// Loads eight elements, adds up their squares, and norms them.
template <bool ALIGNED>
__device__ inline void load_normed(float (&x)[8], const Product &product,
                                   const float *row, uint32_t first,
                                   float &squares) {
  const uint32_t width = product.weight.columns;
  load_floats<ALIGNED>(x, row, first, width);
  if (product.norm == nullptr) return;
  float norms[8];
  load_floats<ALIGNED>(norms, product.norm, first, width);
#pragma unroll
  for (int i = 0; i < 8; i++) {
    squares += x[i] * x[i];
    x[i] *= norms[i];
  }
}

// Adds eight weights times eight activations.
__device__ inline void add_eight(float &sum, const uint4 &weights,
                                 const float (&x)[8]) {
  const uint32_t pairs[4] = {weights.x, weights.y, weights.z, weights.w};
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const float2 pair = to_floats(pairs[i]);
    sum += pair.x * x[2 * i];
    sum += pair.y * x[2 * i + 1];
  }
}
`,
  "lib/query_operands.cuh": `// Queries as operands of tensor core products, in two parts each.
#pragma once

#include "attend_shape.cuh"

// Row of a query head of the job.
__device__ inline size_t query_row(const skv_merge_attend_args &args,
                                   const HeadJob &job, uint32_t g) {
  return static_cast<size_t>(job.row) * args.sizes.heads +
         job.kv_head * job.group + job.first_head + g;
}

// One of eight columns of right operands: the high or the low parts of a query.
struct QueryColumn {
  // Null for zeros.
  const float *query;
  uint32_t head_dim;

  // Elements 2t and 2t + 1 of half i of a step.
  __device__ float2 pair(int step, int i) const {
    const uint32_t column = 16 * step + 8 * i + 2 * (lane_id() % 4);
    if (query == nullptr || column >= head_dim) return {};
    return __ldcg(reinterpret_cast<const float2 *>(query + column));
  }
  // Lanes of the same column have the scale together.
  __device__ static Scale scale_of_lanes(float largest) {
    largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 2));
    return scale_for(largest);
  }
  // Operands of a step.
  __device__ static uint2 split(float2 first, float2 second, float scale) {
    const SplitPair a = split_cached(first.x * scale, first.y * scale);
    const SplitPair b = split_cached(second.x * scale, second.y * scale);
    return lane_id() / 4 % 2 == 0 ? uint2{a.high, b.high} : uint2{a.low, b.low};
  }
  // What products of columns 2t and 2t + 1 must be multiplied by.
  __device__ float inverse(const Scale &scale) const {
    return __shfl_sync(kAllLanes, scale.inverse, 8 * (lane_id() % 4)) *
           rsqrtf(static_cast<float>(head_dim));
  }
};

__device__ inline float largest_of(float2 x) {
  return fmaxf(fabsf(x.x), fabsf(x.y));
}

// This lane's column of tile u, of the job's \`queries\`: 2h has the high parts
// of head 4u + h and 2h + 1 the low ones, so that a lane of the product, which
// has columns 2t and 2t + 1, has all of head 4u + t.
//
// The alternative that lost: queries as rows. Products have 16 of those and
// eight columns, so that groups of up to four heads take twice as many, and
// lanes of rows that no head needs do the same work as others.
__device__ inline QueryColumn query_column(const skv_merge_attend_args &args,
                                           const HeadJob &job,
                                           const float *queries, int u) {
  const uint32_t head = kColumnHeads * u + lane_id() / 8;
  const uint32_t head_dim = args.sizes.head_dim;
  if (head >= job.heads) return {nullptr, head_dim};
  return {queries + query_row(args, job, head) * head_dim, head_dim};
}

// Query heads as right operands.
template <int DIM, int TILES>
struct QueryOperands {
  uint2 steps[TILES][DIM / 16];
  // What products of head 4u + t must be multiplied by.
  float inverse[TILES];

  __device__ void load(const skv_merge_attend_args &args, const HeadJob &job) {
#pragma unroll
    for (int u = 0; u < TILES; u++) {
      const QueryColumn column = query_column(args, job, args.queries, u);
      float2 x[DIM / 16][2];
      float largest = 0.0f;
#pragma unroll
      for (int step = 0; step < DIM / 16; step++) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
          x[step][i] = column.pair(step, i);
          largest = fmaxf(largest, largest_of(x[step][i]));
        }
      }
      const Scale scale = column.scale_of_lanes(largest);
#pragma unroll
      for (int step = 0; step < DIM / 16; step++) {
        steps[u][step] = column.split(x[step][0], x[step][1], scale.scale);
      }
      inverse[u] = column.inverse(scale);
    }
  }
};
`,
  "lib/query_rows.cuh": `// Rows of queries as left operands of products with what caches hold, in shared
// memory.
#pragma once

#include "cached.cuh"
#include "reduce.cuh"

// Where element (row, column) of a tile of 16 rows is among the elements of the
// \`a\` operands, 32 lanes of a uint4 for each 16 columns.
__device__ inline uint32_t fragment_index(uint32_t row, uint32_t column) {
  const uint32_t step = column >> 4;
  const uint32_t right = (column >> 3) & 1;
  const uint32_t lane = (row & 7) * 4 + ((column & 7) >> 1);
  const uint32_t word = (row >> 3) + 2 * right;
  return ((step * 32 + lane) * 4 + word) * 2 + (column & 1);
}

// Elements that a lane has of a row of WIDTH floats.
template <int WIDTH>
struct QueryRow {
  float x[WIDTH / 32];

  // A null pointer stands for zeros.
  __device__ void load(const float *values, uint32_t width) {
#pragma unroll
    for (int i = 0; i < WIDTH / 32; i++) {
      const uint32_t column = lane_id() + 32 * i;
      x[i] = values != nullptr && column < width ? values[column] : 0.0f;
    }
  }

  // Splits the row into \`a\` operands; called by a whole warp. Returns what
  // products must be multiplied by.
  __device__ float split(uint32_t row, uint4 *high, uint4 *low) const {
    float largest = 0.0f;
#pragma unroll
    for (int i = 0; i < WIDTH / 32; i++) largest = fmaxf(largest, fabsf(x[i]));
    const Scale scale = scale_for(warp_max(largest));
#pragma unroll
    for (int i = 0; i < WIDTH / 32; i++) {
      const uint32_t at = fragment_index(row, lane_id() + 32 * i);
      const float scaled = x[i] * scale.scale;
      const skv_cached rounded = to_cached(scaled);
      reinterpret_cast<skv_cached *>(high)[at] = rounded;
      reinterpret_cast<skv_cached *>(low)[at] =
          to_cached(scaled - to_float(rounded));
    }
    return scale.inverse;
  }
};
`,
  "lib/ratings.cuh": `// Scores that take more than a slot's own fields: compared with other keys,
// pooled over neighbours, or shared by the heads of a layer; see
// src/reference/selection.ts.
#pragma once

#include "compress_work.cuh"
#include "expected_attention.cuh"
#include "key_distance.cuh"
#include "overlap.cuh"

constexpr uint32_t kRateThreads = 256;

// Whether scores take more than a slot's own fields.
__host__ __device__ inline bool is_rated(const skv_policy &policy) {
  return policy.pool != SKV_POOL_NONE || policy.layer_scope != 0 ||
         takes_all_keys(policy);
}

// Where scores that take all keys are left: in memory that pairs need later on
// where they are still to be pooled.
__device__ inline float *key_scores(const skv_policy &policy,
                                    const HeadWork &work) {
  return policy.pool == SKV_POOL_NONE ? work.scores
                                      : reinterpret_cast<float *>(work.best);
}

// Leaves what is expected of the items.
template <bool ALIGNED>
__global__ void __launch_bounds__(kExpectThreads)
    expect_items_kernel(skv_chunk_args args, CompressWork all_work) {
  __shared__ ExpectShared shared;
  begin_kernel();
  if (row_end(args.step) == 0) return;
  const ChunkHead head = chunk_head(args, blockIdx.y);
  const HeadWork work = all_work.head(blockIdx.y);
  const uint32_t items = work.counters[kItems];
  if (blockIdx.x * kExpectSlots >= items) return;
  const ExpectedGroup group =
      expected_group(args.cache, args.sizes, args.policy,
                     args.step.chunk[kChunkSequence], blockIdx.y);
  expect_slots<ALIGNED>(group, items, work.expected, shared, [&](uint32_t i) {
    return item_slot(args, head, work.items[i]);
  });
}

// Scores that take all keys of a head; one block has it.
static __global__ void __launch_bounds__(kCompressThreads)
    rate_keys_kernel(skv_chunk_args args, CompressWork all_work) {
  __shared__ KeyScratch<kCompressWarps> scratch;
  __shared__ float log_sums[kMaxGroup];
  begin_kernel();
  if (row_end(args.step) == 0) return;
  const ChunkHead head = chunk_head(args, blockIdx.x);
  const HeadWork work = all_work.head(blockIdx.x);
  if (args.policy.score == SKV_SCORE_EXPECTED) {
    rate_by_expectation(args.sizes.heads / args.sizes.kv_heads,
                        work.counters[kItems], work.expected, log_sums,
                        key_scores(args.policy, work), [&](uint32_t i) {
                          const Slot slot =
                              item_slot(args, head, work.items[i]);
                          return slot.word(kSlotTokens) != 0;
                        });
    return;
  }
  rate_by_key(work.counters[kItems], args.sizes.head_dim,
              key_scores(args.policy, work), scratch,
              [&](uint32_t i) { return item_slot(args, head, work.items[i]); });
}

__device__ inline float item_score(const skv_chunk_args &args,
                                   const ChunkHead &head, const HeadWork &work,
                                   uint32_t ordinal) {
  if (is_rated(args.policy)) return work.scores[ordinal];
  return own_score(item_slot(args, head, work.items[ordinal]), args.policy,
                   args.cache.lanes);
}

__device__ inline uint64_t item_rank(const skv_chunk_args &args,
                                     const ChunkHead &head,
                                     const HeadWork &work, uint32_t ordinal) {
  return rank_key(item_score(args, head, work, ordinal),
                  item_slot(args, head, work.items[ordinal]), args.policy);
}

constexpr uint32_t kNotPooled = ~0u;

// Each item's own score, pooled over its neighbours outside the recent window.
// A thread has an item and goes through all of them by tiles.
static __global__ void __launch_bounds__(kRateThreads)
    rate_kernel(skv_chunk_args args, CompressWork all_work) {
  __shared__ uint32_t positions[kRateThreads];
  __shared__ float scores[kRateThreads];
  begin_kernel();
  if (row_end(args.step) == 0) return;
  const ChunkHead head = chunk_head(args, blockIdx.y);
  const HeadWork work = all_work.head(blockIdx.y);
  const skv_policy &policy = args.policy;
  const uint32_t items = work.counters[kItems];
  const uint32_t first = blockIdx.x * kRateThreads;
  if (first >= items) return;
  // What other threads look at: the position, unless it takes no part.
  const auto look = [&](uint32_t i, float &score) {
    score = 0.0f;
    if (i >= items) return kNotPooled;
    const Slot slot = item_slot(args, head, work.items[i]);
    if (slot.word(kSlotTokens) == 0) return kNotPooled;
    score = takes_all_keys(policy) ? key_scores(policy, work)[i]
                                   : own_score(slot, policy, args.cache.lanes);
    const uint32_t position = slot.word(kSlotPosition);
    return position + head.words[kHeadRecent] <= head.newest ? position
                                                             : kNotPooled;
  };
  const uint32_t mine = first + threadIdx.x;
  float score;
  const uint32_t position = look(mine, score);
  if (policy.pool != SKV_POOL_NONE) {
    float sum = no_scores(policy), largest = -INFINITY;
    uint32_t count = 0;
    for (uint32_t tile = 0; tile < items; tile += kRateThreads) {
      float other;
      const uint32_t there = look(tile + threadIdx.x, other);
      __syncthreads();
      positions[threadIdx.x] = there;
      scores[threadIdx.x] = other;
      __syncthreads();
      for (uint32_t k = 0; k < kRateThreads; k++) {
        const uint32_t at = positions[k];
        const uint32_t distance = max(at, position) - min(at, position);
        if (at == kNotPooled || distance > policy.pool_reach) continue;
        sum = add_score(sum, scores[k], policy);
        largest = fmaxf(largest, scores[k]);
        count++;
      }
    }
    if (position != kNotPooled) {
      score = policy.pool == SKV_POOL_MAX ? largest
                                          : mean_score(sum, count, policy);
    }
  }
  if (mine < items) work.scores[mine] = score;
}

// The mean over the heads of the layer, whose items are the same tokens in the
// same order. A thread has an item of all heads.
static __global__ void __launch_bounds__(kRateThreads)
    share_kernel(skv_chunk_args args, CompressWork all_work) {
  begin_kernel();
  if (row_end(args.step) == 0) return;
  const uint32_t heads = args.sizes.kv_heads;
  const uint32_t i = blockIdx.x * kRateThreads + threadIdx.x;
  if (i >= all_work.head(0).counters[kItems]) return;
  float sum = no_scores(args.policy);
  for (uint32_t h = 0; h < heads; h++) {
    sum = add_score(sum, all_work.head(h).scores[i], args.policy);
  }
  const float score = mean_score(sum, heads, args.policy);
  for (uint32_t h = 0; h < heads; h++) all_work.head(h).scores[i] = score;
}

inline cudaError_t launch_ratings(const skv_chunk_args &args,
                                  const CompressWork &work,
                                  const Launch &launch) {
  if (!is_rated(args.policy)) return cudaSuccess;
  const uint32_t blocks = (work.most + kRateThreads - 1) / kRateThreads;
  const uint32_t heads = args.sizes.kv_heads;
  cudaError_t status = cudaSuccess;
  if (args.policy.score == SKV_SCORE_EXPECTED) {
    const auto kernel = args.sizes.head_dim % 8 == 0
                            ? expect_items_kernel<true>
                            : expect_items_kernel<false>;
    status = launch_kernel(launch, kernel, dim3(expect_parts(work.most), heads),
                           kExpectThreads, 0, args, work);
  }
  if (status == cudaSuccess && takes_all_keys(args.policy)) {
    status = launch_kernel(launch, rate_keys_kernel, heads, kCompressThreads, 0,
                           args, work);
  }
  const bool pools = args.policy.pool != SKV_POOL_NONE;
  if (status == cudaSuccess && (pools || !takes_all_keys(args.policy))) {
    status = launch_kernel(launch, rate_kernel, dim3(blocks, heads),
                           kRateThreads, 0, args, work);
  }
  if (status != cudaSuccess || !args.policy.layer_scope) return status;
  return launch_kernel(launch, share_kernel, blocks, kRateThreads, 0, args,
                       work);
}
`,
  "lib/reduce.cuh": `// Sums, maxima and minima over the lanes of a warp, and order-preserving keys.
#pragma once

#include <stdint.h>

constexpr uint32_t kAllLanes = 0xffffffffu;

__device__ inline uint32_t lane_id() { return threadIdx.x & 31; }

__device__ inline uint32_t warp_id() { return threadIdx.x >> 5; }

// The sum over all lanes, in every lane; the order of additions is fixed.
__device__ inline float warp_sum(float x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    x += __shfl_xor_sync(kAllLanes, x, offset);
  }
  return x;
}

__device__ inline float warp_max(float x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, offset));
  }
  return x;
}

__device__ inline uint64_t warp_min(uint64_t x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    x = min(x, static_cast<uint64_t>(__shfl_xor_sync(
                   kAllLanes, static_cast<unsigned long long>(x), offset)));
  }
  return x;
}

// Words in the order of the floats.
__device__ inline uint32_t ordered(float x) {
  const uint32_t bits = __float_as_uint(x);
  return bits ^ ((bits >> 31) != 0 ? 0xffffffffu : 0x80000000u);
}

// Sorts by a float, then by a position.
__device__ inline uint64_t order_key(float x, uint32_t position) {
  return static_cast<uint64_t>(ordered(x)) << 32 | position;
}

constexpr uint64_t kNoKey = ~0ull;

// Shared memory of block_prefix and of block sums.
struct BlockScratch {
  uint32_t words[33];
};

// Sum of \`x\` over the threads before this one; \`total\` gets the sum over all.
// Every thread of the block calls it.
__device__ inline uint32_t block_prefix(uint32_t x, uint32_t &total,
                                        BlockScratch &scratch) {
  const uint32_t lane = lane_id(), warp = warp_id();
  const uint32_t warps = blockDim.x >> 5;
  uint32_t sum = x;
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const uint32_t before = __shfl_up_sync(kAllLanes, sum, offset);
    if (lane >= static_cast<uint32_t>(offset)) sum += before;
  }
  __syncthreads();
  if (lane == 31) scratch.words[warp] = sum;
  __syncthreads();
  if (warp == 0) {
    uint32_t mine = lane < warps ? scratch.words[lane] : 0;
    uint32_t running = mine;
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
      const uint32_t before = __shfl_up_sync(kAllLanes, running, offset);
      if (lane >= static_cast<uint32_t>(offset)) running += before;
    }
    scratch.words[lane] = running - mine;
    if (lane == 31) scratch.words[32] = running;
  }
  __syncthreads();
  total = scratch.words[32];
  return scratch.words[warp] + sum - x;
}

template <uint32_t WARPS>
struct LowestShared {
  uint64_t keys[WARPS];
  uint32_t owners[WARPS];
};

// Who has the lowest key of a block of WARPS, or ~0 if nobody has one; each
// thread brings one, the owners of the same key are told apart by their number.
template <uint32_t WARPS>
__device__ inline uint32_t lowest_of_block(uint64_t key, uint32_t owner,
                                           LowestShared<WARPS> &shared) {
  const uint64_t lowest = warp_min(key);
  owner = __reduce_min_sync(kAllLanes, key == lowest ? owner : ~0u);
  __syncthreads();
  if (lane_id() == 0) {
    shared.keys[warp_id()] = lowest;
    shared.owners[warp_id()] = owner;
  }
  __syncthreads();
  uint64_t best = kNoKey;
  uint32_t found = ~0u;
#pragma unroll 1
  for (uint32_t w = 0; w < WARPS; w++) {
    if (shared.keys[w] >= best) continue;
    best = shared.keys[w];
    found = shared.owners[w];
  }
  return found;
}
`,
  "lib/ridden.cuh": `// What attention found for the riders of a head, as the policy reads it: see
// lib/riders.cuh.
#pragma once

#include "riders.cuh"

// Who rode in this step, in shared memory: the policy tells the next step of
// others before it is through.
struct Ridden {
  uint32_t slots[kMaxRiders];
  // Splits that left neighbours.
  uint32_t splits;
};

// Called by the whole block, which sees it after the next barrier.
__device__ inline void read_ridden(const RiderMemory &riders, uint32_t head,
                                   Ridden &ridden) {
  if (threadIdx.x < riders.count) {
    ridden.slots[threadIdx.x] = riders.slots[head * riders.count + threadIdx.x];
  }
  if (threadIdx.x == 0) {
    ridden.splits = riders.splits == nullptr ? 0 : riders.splits[head];
  }
}

// What attention found for a slot, by cosines times the length of its key; none
// where that slot did not ride. The same in all lanes and warps; called by
// whole warps.
__device__ inline Neighbour nearest_ridden(const RiderMemory &riders,
                                           uint32_t head, const Ridden &ridden,
                                           uint32_t slot) {
  Neighbour best = kNoNeighbour;
  if (ridden.splits == 0) return best;
  const bool is_it =
      lane_id() < riders.count && ridden.slots[lane_id()] == slot;
  const uint32_t found = __ballot_sync(kAllLanes, is_it);
  if (found == 0) return best;
  const Neighbour *nearest =
      riders.nearest +
      static_cast<size_t>(head) * riders.most_splits * riders.count +
      (__ffs(found) - 1);
#pragma unroll 1
  for (uint32_t s = lane_id(); s < ridden.splits; s += 32) {
    const Neighbour other = nearest[s * riders.count];
    if (other.beats(best)) best = other;
  }
  return nearest_of_lanes<16>(best);
}
`,
  "lib/riders.cuh": `// Riders: keys for which attention finds the most similar other key while it
// reads all keys anyway, so that a merge need not read them once more.
//
// Whose key has to be compared is known when the step's scores are, which is
// after attention. But scores change little from one step to the next: the
// policy leaves a shortlist of the slots that are next in line (see
// lib/shortlist.cuh), and the keys of those ride in columns of their own beside
// those of the queries. A key is what caches hold already, so it takes one
// column and the product is exact. Riders take every second of eight columns,
// so that each lane of the product has one of them.
//
// A shortlist is a hint and no more: it may be that of another text, or memory
// that nothing was written to. The policy takes what was found for a slot if
// that is the one it evicts, and searches by itself if not, so that no choice
// hangs on the hint. A slot that cannot be compared here has no neighbour.
//
// The alternative that lost: to search when the victim is known, for each step
// of each head, which at batch 16 took a third of a step on an H200.
#pragma once

#include "attend_job.cuh"
#include "neighbour.cuh"

// Most riders of a head. Over hundreds of steps of small models the victim was
// one of the first four in 998 of a thousand and one of the first two in 97 of
// a hundred: more would ride in vain.
constexpr uint32_t kMaxRiders = 4;

// Riders of a group of query heads. With larger ones several blocks go through
// the slots of a head.
__host__ __device__ constexpr uint32_t riders_beside(uint32_t group) {
  return group <= kTileHeads ? kMaxRiders : 0;
}

// Memory of the riders of a step; no addresses where there are none.
struct RiderMemory {
  // (heads, count): the shortlist, as the step before left it
  uint32_t *slots;
  // (heads, most_splits, count): the nearest of each split, by cosines times
  // the length of the rider's key
  Neighbour *nearest;
  // (heads): splits that left them, none where no search was expected
  uint32_t *splits;
  uint32_t count;
  uint32_t most_splits;
};

// The least normal number.
constexpr float kLeastSquare = 0x1p-126f;

// Rider t = lane % 4, and all of them as operands.
template <int DIM>
struct LaneRiders {
  uint32_t slot = kNoSlot;
  // What any slot beats.
  Neighbour best = {-INFINITY, ~0u, kNoItem};
  // As right operands: see QueryOperands. Rider r is column 2r.
  uint2 steps[DIM / 16];

  // Reads who the riders are, which may be anything.
  __device__ void read(const RiderMemory &riders, uint32_t head) {
    const uint32_t t = lane_id() % 4;
    if (t < riders.count) slot = riders.slots[head * riders.count + t];
  }

  // Reads their keys. All slots but the newest are as the step before left
  // them, so this need not wait for the kernel in front: see lib/overlap.cuh.
  __device__ void load(const skv_merge_attend_args &args, const HeadJob &job) {
    static_assert(kMaxRiders == 4, "one for each lane of a row");
    const uint32_t g = lane_id() / 4, t = lane_id() % 4;
    const uint32_t head_dim = args.sizes.head_dim;
    if (slot >= job.high || slot == job.newest) slot = kNoSlot;
    const uint32_t rider = __shfl_sync(kAllLanes, slot, g / 2);
    const bool is_column = g % 2 == 0 && rider != kNoSlot;
    const skv_cached *key =
        args.cache.slots.keys +
        static_cast<size_t>(job.offset + (is_column ? rider : 0)) * head_dim;
    const auto pair = [&](uint32_t column) -> uint32_t {
      if (!is_column || column >= head_dim) return 0;
      return *reinterpret_cast<const uint32_t *>(key + column);
    };
#pragma unroll
    for (int step = 0; step < DIM / 16; step++) {
      const uint32_t column = 16 * step + 2 * t;
      steps[step] = {pair(column), pair(column + 8)};
    }
  }

  // Compares this lane's rider with a slot, if that counts, given its squared
  // length and their product. The same choice as by Neighbour::beats, without a
  // branch.
  __device__ void compare(bool counts, uint32_t other, uint32_t position,
                          float square, float product) {
    // A key that is 0 has no length, but its product is 0 as well.
    const float similarity = product * rsqrt_fast(fmaxf(square, kLeastSquare));
    const bool is_first =
        (similarity == best.similarity) & (position < best.position);
    const bool beats = (similarity > best.similarity) | is_first;
    const bool takes = counts & (other != slot) & beats;
    best.similarity = takes ? similarity : best.similarity;
    best.position = takes ? position : best.position;
    best.item = takes ? other : best.item;
  }

  // Leaves the nearest of the warp, by rider.
  __device__ void gather(Neighbour *nearest) const {
    Neighbour found = best;
    if (slot == kNoSlot) found = kNoNeighbour;
    found = nearest_of_lanes<16, 4>(found);
    if (lane_id() < kMaxRiders) nearest[lane_id()] = found;
  }
};
`,
  "lib/rope.cuh": `// Rotations of RoPE as complex numbers, from tables: see src/model/rope.ts.
#pragma once

#include <stdint.h>

__device__ inline float2 turned(float2 x, float2 turn) {
  return {x.x * turn.x - x.y * turn.y, x.y * turn.x + x.x * turn.y};
}

// Cosine and sine by which pair \`pair\` of a head turns at \`position\`: the
// product of one rotation per base-256 digit.
__device__ inline float2 rotation(const float *rope, uint32_t half,
                                  uint32_t pair, uint32_t position) {
  const float2 *table = reinterpret_cast<const float2 *>(rope);
  float2 turn = {1.0f, 0.0f};
#pragma unroll
  for (uint32_t level = 0; level < 3; level++) {
    const uint32_t digit = (position >> (8 * level)) & 255;
    turn = turned(turn, table[(level * 256 + digit) * half + pair]);
  }
  return turn;
}
`,
  "lib/rounded_queries.cuh": `// The queries of a chunk, rounded to what caches hold, in memory.
#pragma once

#include "../runtime/launch.cuh"
#include "mma.cuh"
#include "observed.cuh"
#include "overlap.cuh"

// Queries as products want them.
struct RoundedQueries {
  // (kv_heads, pairs, DIM): pair p is query head p % group of row p / group
  skv_cached *lines;
  // (kv_heads, pairs): what products are multiplied by: logits in units of ln 2
  float *inverse;
  uint32_t pairs;

  __device__ size_t index(uint32_t kv_head, uint32_t pair) const {
    return static_cast<size_t>(kv_head) * pairs + pair;
  }
};

constexpr uint32_t kRoundThreads = 256;

// One warp per pair of an observed row.
template <int DIM>
__global__ void __launch_bounds__(kRoundThreads)
    round_pairs_kernel(skv_chunk_args args, RoundedQueries to) {
  begin_kernel();
  const ObservedRows rows(args);
  const skv_sizes &sizes = args.sizes;
  const uint32_t group = sizes.heads / sizes.kv_heads;
  const uint32_t pair = blockIdx.x * (kRoundThreads / 32) + warp_id();
  if (pair < rows.first * group || pair >= rows.end * group) return;
  const uint32_t kv_head = blockIdx.y, head_dim = sizes.head_dim;
  const float *query =
      args.queries + (static_cast<size_t>(pair / group) * sizes.heads +
                      kv_head * group + pair % group) *
                         head_dim;
  float2 x[DIM / 64];
  float largest = 0.0f;
#pragma unroll
  for (int i = 0; i < DIM / 64; i++) {
    const uint32_t column = 64 * i + 2 * lane_id();
    x[i] = column < head_dim ? *reinterpret_cast<const float2 *>(query + column)
                             : float2{};
    largest = fmaxf(largest, fmaxf(fabsf(x[i].x), fabsf(x[i].y)));
  }
  const Scale scale = scale_for(warp_max(largest));
  const size_t index = to.index(kv_head, pair);
#pragma unroll
  for (int i = 0; i < DIM / 64; i++) {
    *reinterpret_cast<uint32_t *>(to.lines + index * DIM + 64 * i +
                                  2 * lane_id()) =
        cached_pair(x[i].x * scale.scale, x[i].y * scale.scale);
  }
  if (lane_id() == 0) {
    to.inverse[index] =
        scale.inverse * rsqrtf(static_cast<float>(head_dim)) * kLog2E;
  }
}

// Takes memory for the rounded queries of a chunk.
template <int DIM>
inline RoundedQueries take_queries(const skv_chunk_args &args,
                                   Scratch &scratch) {
  const uint32_t pairs =
      args.step.rows * (args.sizes.heads / args.sizes.kv_heads);
  const size_t all = static_cast<size_t>(pairs) * args.sizes.kv_heads;
  RoundedQueries queries;
  queries.lines = scratch.take<skv_cached>(all * DIM);
  queries.inverse = scratch.take<float>(all);
  queries.pairs = pairs;
  return queries;
}

template <int DIM>
inline cudaError_t launch_round_pairs(const skv_chunk_args &args,
                                      const RoundedQueries &to,
                                      const Launch &launch) {
  constexpr uint32_t kWarps = kRoundThreads / 32;
  const dim3 pairs((to.pairs + kWarps - 1) / kWarps, args.sizes.kv_heads);
  return launch_kernel(launch, round_pairs_kernel<DIM>, pairs, kRoundThreads, 0,
                       args, to);
}
`,
  "lib/row_tiles.cuh": `// Tiles of keys or values in shared memory, one slot per line, as operands of
// tensor core products. Lines are padded by 16 bytes, so that the eight lines
// of an 8 x 8 matrix are in different banks.
#pragma once

#include <type_traits>

#include "cached.cuh"
#include "reduce.cuh"

template <int DIM>
constexpr int kLinePitch = DIM + 8;

// Width that kernels for heads of \`head_dim\` are made for.
inline uint32_t padded_width(uint32_t head_dim) {
  uint32_t width = 32;
  while (width < head_dim) width *= 2;
  return width;
}

// Calls \`f\` with that width, as a constant.
template <class F>
inline auto with_width(uint32_t head_dim, const F &f) {
  switch (padded_width(head_dim)) {
    case 32:
      return f(std::integral_constant<int, 32>());
    case 64:
      return f(std::integral_constant<int, 64>());
    case 128:
      return f(std::integral_constant<int, 128>());
    default:
      return f(std::integral_constant<int, 256>());
  }
}

template <int DIM, bool ALIGNED, class Line>
__device__ inline void fill_lines(skv_cached *tile, uint32_t lines,
                                  uint32_t head_dim, Line line) {
  constexpr uint32_t kChunks = DIM / 8;
#pragma unroll 4
  for (uint32_t i = threadIdx.x; i < lines * kChunks; i += blockDim.x) {
    const uint32_t at = i / kChunks, first = i % kChunks * 8;
    const skv_cached *from = line(at);
    uint32_t pairs[4] = {};
    if (from != nullptr) {
      load_pairs<8, ALIGNED>(pairs, from, first, head_dim);
    }
    *reinterpret_cast<uint4 *>(tile + at * kLinePitch<DIM> + first) = {
        pairs[0], pairs[1], pairs[2], pairs[3]};
  }
}

// Fills \`lines\` lines of a tile; \`line(i)\` is where line i is in memory, or
// null for zeros. Called by the whole block, which synchronizes afterwards.
template <int DIM, class Line>
__device__ inline void load_lines(skv_cached *tile, uint32_t lines,
                                  uint32_t head_dim, Line line) {
  if (head_dim % 8 == 0) {
    fill_lines<DIM, true>(tile, lines, head_dim, line);
  } else {
    fill_lines<DIM, false>(tile, lines, head_dim, line);
  }
}

// Starts to fill LINES lines of a tile, by THREADS threads, with \`count\` lines
// from \`from\` and zeros; whoever reads them waits for the copies first.
template <int DIM, uint32_t LINES, uint32_t THREADS>
__device__ inline void copy_lines(skv_cached *tile, const skv_cached *from,
                                  uint32_t count, uint32_t head_dim) {
  if (head_dim % 8 != 0) {
    fill_lines<DIM, false>(tile, LINES, head_dim, [&](uint32_t i) {
      return i < count ? from + static_cast<size_t>(i) * head_dim : nullptr;
    });
    return;
  }
  constexpr uint32_t kChunks = DIM / 8;
  static_assert(THREADS % kChunks == 0 && LINES * kChunks % THREADS == 0,
                "a column and as many lines for each thread");
  const uint32_t line = threadIdx.x / kChunks;
  const uint32_t column = threadIdx.x % kChunks * 8;
  const skv_cached *own = from + line * head_dim + column;
  skv_cached *to = tile + line * kLinePitch<DIM> + column;
#pragma unroll
  for (uint32_t k = 0; k < LINES * kChunks / THREADS; k++) {
    const uint32_t lines = k * (THREADS / kChunks);
    copy_async(to + lines * kLinePitch<DIM>, own + lines * head_dim,
               line + lines < count && column < head_dim);
  }
}

// The same with lines from anywhere: \`line(i)\` is where line i is in memory, or
// null for zeros.
template <int DIM, uint32_t LINES, uint32_t THREADS, class Line>
__device__ inline void gather_lines(skv_cached *tile, uint32_t head_dim,
                                    Line line) {
  if (head_dim % 8 != 0) {
    fill_lines<DIM, false>(tile, LINES, head_dim, line);
    return;
  }
  constexpr uint32_t kChunks = DIM / 8;
  const uint32_t column = threadIdx.x % kChunks * 8;
#pragma unroll
  for (uint32_t k = 0; k < LINES * kChunks / THREADS; k++) {
    const uint32_t at = threadIdx.x / kChunks + k * (THREADS / kChunks);
    const skv_cached *from = line(at);
    copy_async(tile + at * kLinePitch<DIM> + column, from + column,
               from != nullptr && column < head_dim);
  }
}

// Right operands for the product with lines \`line .. line + 16\` of a tile, dims
// \`column .. column + 16\`: two for each eight lines.
template <int DIM>
__device__ inline uint4 key_operands(const skv_cached *tile, uint32_t line,
                                     uint32_t column) {
  const uint32_t lane = lane_id();
  return load_matrices(tile +
                       (line + lane % 8 + lane / 16 * 8) * kLinePitch<DIM> +
                       column + lane / 8 % 2 * 8);
}

// Right operands for weights of lines \`line .. line + 16\` times dims
// \`column .. column + 16\`: two for each eight dims.
template <int DIM>
__device__ inline uint4 value_operands(const skv_cached *tile, uint32_t line,
                                       uint32_t column) {
  const uint32_t lane = lane_id();
  return load_transposed(tile + (line + lane % 16) * kLinePitch<DIM> + column +
                         lane / 16 * 8);
}

// Left operands of lines \`line .. line + 16\`, dims \`column .. column + 16\`.
template <int DIM>
__device__ inline uint4 line_operands(const skv_cached *tile, uint32_t line,
                                      uint32_t column) {
  const uint32_t lane = lane_id();
  return load_matrices(tile + (line + lane % 16) * kLinePitch<DIM> + column +
                       lane / 16 * 8);
}
`,
  "lib/sampling.cuh": `// What sampling knows of a sequence: its options, its logits, and what the
// kernels of a step hand to each other.
#pragma once

#include "overlap.cuh"
#include "reduce.cuh"
#include "softmax_state.cuh"
#include "step.cuh"

constexpr uint32_t kSampleThreads = 512;
constexpr uint32_t kSampleWarps = kSampleThreads / 32;

enum SamplingWord {
  kTemperature = 0,
  kTopK = 1,
  kTopP = 2,
  kMinP = 3,
  kRepetitionPenalty = 4,
  kStopCount = 5,
  kStopIds = 8,
  kSamplingWords = 32
};

// A weight exp(l) ≤ 1 in units of 2^-36: sums of any number of ids are exact,
// and do not depend on the order of the threads.
constexpr float kWeightUnit = 68719476736.0f;

__device__ inline uint64_t weight_of(float scaled) {
  return static_cast<uint64_t>(expf(scaled) * kWeightUnit + 0.5f);
}

// -l in units of 2^-26: what thresholds are searched by. Smaller is likelier.
// Below -64, where weights are 0, all are alike.
__device__ inline uint32_t rank_of(float scaled) {
  const float rank = -scaled * 67108864.0f;
  return rank < 4294967040.0f ? static_cast<uint32_t>(rank) : 0xffffffffu;
}

// Ranks that are counted together, 1/32 of a natural logarithm.
constexpr uint32_t kBucketShift = 21;
constexpr uint32_t kBuckets = 1u << (32 - kBucketShift);

__device__ inline uint64_t first_of_bucket(uint32_t bucket) {
  return static_cast<uint64_t>(bucket) << kBucketShift;
}

// What is known of a row after a kernel.
struct SamplePlan {
  // The most likely id and its logit, as the options change it.
  uint32_t best;
  float max;
  // ln of the softmax sum of the raw logits.
  float log_sum;
  // Whether the id is still to be drawn, and whether thresholds are unknown.
  uint32_t draws;
  uint32_t filters;
  // Ids of the ranks between the two are listed: whether they take part is
  // decided last. Those before take part.
  uint64_t begin;
  uint64_t end;
  // Weights of all ids; those before \`begin\`, and how many they are.
  uint64_t weight;
  uint64_t weight_before;
  uint32_t count_before;
};

// What a block finds in its ids: the key of the best, its raw logit and the
// one that the options make of it, and the softmax state of the raw logits.
struct SamplePart {
  uint64_t key;
  float raw;
  float changed;
  float max;
  float sum;
};

// Ids that are listed; where there are more, all are looked at again.
constexpr uint32_t kMostListed = 8192;

// Memory of the kernels, by row.
struct SampleWork {
  // (rows)
  SamplePlan *plans;
  // (rows, blocks)
  SamplePart *parts;
  // (rows, kBuckets): ids of each bucket, and their weights
  uint32_t *counts;
  uint64_t *weights;
  // (rows, blocks): weights of a block's ids that take part for certain
  uint64_t *sums;
  // (rows), (rows, kMostListed): ids that are listed
  uint32_t *listed;
  uint32_t *list;
  // (rows)
  uint32_t *tickets;
  // Blocks of a row, and ids of each.
  uint32_t blocks;
  uint32_t slice;
};

// A row that is sampled: blockIdx.y of the launch.
struct SampleRow {
  bool live;
  uint32_t sequence;
  uint32_t position;
  uint32_t vocabulary;
  const float *raw;
  const uint32_t *seen;
  const uint32_t *options;
  float penalty;

  __device__ explicit SampleRow(const skv_sample_args &args) {
    const bool prefill = args.step.kind == SKV_PREFILL;
    const uint32_t end = row_end(args.step);
    Row row = {};
    if (end > 0) row = row_of(args.step, prefill ? end - 1 : blockIdx.y);
    live = row.live;
    sequence = row.sequence;
    position = row.position;
    vocabulary = args.sizes.vocabulary;
    raw = args.logits + static_cast<size_t>(blockIdx.y) * vocabulary;
    seen = args.seen + sequence * static_cast<size_t>((vocabulary + 31) / 32);
    options = args.sampling + sequence * kSamplingWords;
    penalty = option(kRepetitionPenalty);
  }

  __device__ float option(uint32_t word) const {
    return __uint_as_float(options[word]);
  }
  // Whether the likeliest ids alone take part.
  __device__ bool has_top_k() const {
    return options[kTopK] > 0 && options[kTopK] < vocabulary;
  }
  __device__ bool has_top_p() const { return option(kTopP) < 1.0f; }
  // The last rank that is likely enough beside the likeliest.
  __device__ uint32_t least_rank() const {
    const float least = option(kMinP);
    return least > 0.0f ? rank_of(logf(least)) : 0xffffffffu;
  }

  // Positive logits of ids seen before are divided, negative ones multiplied.
  __device__ float changed(uint32_t id, float logit) const {
    if ((seen[id / 32] >> id % 32 & 1) == 0) return logit;
    return logit > 0.0f ? logit / penalty : logit * penalty;
  }
  __device__ float logit(uint32_t id) const { return changed(id, raw[id]); }
};

// The logits of a row as they are drawn from.
struct ScaledLogits {
  const SampleRow &row;
  float max;
  float temperature;

  __device__ float operator()(uint32_t id) const {
    return (row.logit(id) - max) / temperature;
  }
};

// The id that a text takes, and its place among the outputs.
struct Output {
  size_t ring;
  uint32_t produced;
  // What is taken whatever the logits, if it is an id.
  uint32_t forced;

  __device__ Output(const skv_sample_args &args, const SampleRow &row) {
    produced = args.step.state[row.sequence * kStateWords + kStateProduced];
    ring = static_cast<size_t>(row.sequence) * args.ring + produced % args.ring;
    forced = args.forced[ring];
  }
};

// Writes the id and moves the sequence on. Called by one thread.
__device__ inline void finish_row(const skv_sample_args &args,
                                  const SampleRow &row, const Output &output,
                                  uint32_t id, float log_probability) {
  uint32_t *state = args.step.state + row.sequence * kStateWords;
  args.next_tokens[row.sequence] = id;
  uint32_t *entry = args.output + output.ring * 2;
  entry[0] = id;
  entry[1] = __float_as_uint(log_probability);
  bool finished = output.produced + 1 >= state[kStateLimit];
  for (uint32_t i = 0; i < row.options[kStopCount]; i++) {
    finished = finished || row.options[kStopIds + i] == id;
  }
  state[kStatePosition] = row.position + 1;
  state[kStateProduced] = output.produced + 1;
  if (finished) state[kStateFinished] = 1;
}

// Takes a ticket of the row; true for the last of its blocks, which then sees
// what the others wrote. Called by one thread that has fenced.
__device__ inline bool is_last_block(const SampleWork &work) {
  uint32_t *ticket = work.tickets + blockIdx.y;
  const bool last = atomicAdd(ticket, 1) == work.blocks - 1;
  if (last) *ticket = 0;
  __threadfence();
  return last;
}

// True in the last of a row's blocks to get here, which then sees what the
// others wrote. Called by the whole block.
__device__ inline bool is_left_alone(const SampleWork &work, bool &is_last) {
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) is_last = is_last_block(work);
  __syncthreads();
  if (is_last) __threadfence();
  return is_last;
}

// The PCG output permutation (O'Neill, 2014).
__device__ inline uint32_t permute(uint32_t value) {
  const uint32_t state = value * 747796405u + 2891336453u;
  const uint32_t word = ((state >> ((state >> 28) + 4)) ^ state) * 277803737u;
  return (word >> 22) ^ word;
}

// 24 random bits that depend on the seed and the counter alone.
__device__ inline uint32_t random_bits(const uint32_t *state) {
  const uint32_t seed =
      permute(state[kStateSeedLow] + permute(state[kStateSeedHigh]));
  return permute(state[kStateProduced] + seed) >> 8;
}

// Calls \`use(id)\` for this thread's ids of the block.
template <class Use>
__device__ inline void for_each_id(const SampleRow &row, const SampleWork &work,
                                   Use use) {
  const uint32_t end = min(row.vocabulary, (blockIdx.x + 1) * work.slice);
#pragma unroll 2
  for (uint32_t id = blockIdx.x * work.slice + threadIdx.x; id < end;
       id += kSampleThreads) {
    use(id);
  }
}

// What the weights of the likeliest ids have to add up to, of a sum.
__device__ inline uint64_t wanted_of(const SampleRow &row, uint64_t mass) {
  const double share = ceil(row.option(kTopP) * static_cast<double>(mass));
  return max(static_cast<uint64_t>(share), static_cast<uint64_t>(1));
}

// Blocks of a row are at most the threads of one.
constexpr uint32_t kMostBlocks = kSampleThreads;
`,
  "lib/scores.cuh": `// The scores that rows of attention leave on slots, and the order in which
// slots are evicted: the twin of src/reference/scores.ts.
#pragma once

#include "reduce.cuh"
#include "slots.cuh"
#include "softmax_state.cuh"

// A slot's scores while rows are added to them.
struct Scores {
  float ema;
  float accumulated;
  uint32_t observations;
};

__device__ inline Scores load_scores(const Slot &slot) {
  return {slot.get(kSlotEma), slot.get(kSlotAccumulated),
          slot.word(kSlotObservations)};
}

__device__ inline void store_scores(const Slot &slot, const Scores &scores) {
  slot.set(kSlotEma, scores.ema);
  slot.set(kSlotAccumulated, scores.accumulated);
  slot.set_word(kSlotObservations, scores.observations);
}

// Share of the mean attention that a slot needs in order to matter.
constexpr float kLeastShare = 0.999f;

// ln(exp(a) + exp(b)).
__device__ inline float log_add(float a, float b) {
  const float max = fmaxf(a, b);
  return max + __logf(1.0f + exp_fast(fminf(a, b) - max));
}

// What the logits of the row at \`position\` are multiplied with for its scores:
// see scoreGain of the reference.
__device__ inline float score_gain(const skv_policy &policy, uint32_t position,
                                   uint32_t budget) {
  if (policy.score != SKV_SCORE_STEP_GAIN) return 1.0f;
  const float ratio =
      static_cast<float>(position + 1) / static_cast<float>(budget);
  return sqrtf(2.0f * fmaxf(0.0f, logf(ratio)));
}

// Query heads whose logits are looked at together: all are read before any is
// used, since they may come from far.
constexpr uint32_t kRowHeads = 4;

// Adds the row at \`position\` of the text. At the scale that its scores have,
// \`terms(first, logits, biases)\` are the raw logits of the slot and its vote
// biases for kRowHeads heads, of those from \`first\` on that there are, and
// \`log_sum(g)\` the ln of the row's softmax sums.
//
// The moving sum is kept as its logarithm, because exp of a raw logit
// overflows: E ← ln(alpha exp(E) + (1 − alpha) s).
template <class Terms, class LogSum>
__device__ inline void observe_row(Scores &scores, const skv_policy &policy,
                                   uint32_t group, uint32_t position,
                                   Terms terms, LogSum log_sum) {
  const bool raw = policy.raw_scale != 0;
  float max = -INFINITY;
  float sum = 0.0f;
  float weight = 0.0f;
#pragma unroll 1
  for (uint32_t first = 0; first < group; first += kRowHeads) {
    float logits[kRowHeads], biases[kRowHeads];
    terms(first, logits, biases);
    const float before = max;
#pragma unroll
    for (uint32_t k = 0; k < kRowHeads; k++) {
      const float log_sum_of_row = log_sum(min(first + k, group - 1));
      biases[k] += logits[k] - log_sum_of_row;
      if (!raw) logits[k] -= log_sum_of_row;
      max = fmaxf(max, logits[k]);
    }
    sum *= exp_fast(before - max);
#pragma unroll
    for (uint32_t k = 0; k < kRowHeads; k++) {
      if (first + k >= group) continue;
      sum += exp_fast(logits[k] - max);
      weight += exp_fast(biases[k]);
    }
  }
  const float share = __frcp_rn(static_cast<float>(group));
  const float score = max + __logf(sum * share);
  if (policy.score == SKV_SCORE_LAST) {
    scores.accumulated = 0.0f;
    scores.observations = 0;
  }
  // A moving sum without a past is its last term: ln 0 is far below any score.
  scores.ema = log_add(scores.ema + policy.log_alpha, score + policy.log_rest);
  weight *= share;
  if (policy.score == SKV_SCORE_AGE) {
    const float tokens = static_cast<float>(position + 1);
    if (weight * tokens >= kLeastShare) scores.accumulated = tokens;
  } else {
    scores.accumulated += weight;
  }
  scores.observations++;
}

// ln(1 − alphaⁿ): the bias correction of a moving sum of \`n\` terms.
__device__ inline float ema_correction(const skv_policy &policy, uint32_t n) {
  const float past = static_cast<float>(n) * policy.log_alpha;
  // A difference from 1 that loses at most one bit.
  return past < -kLn2 ? __logf(1.0f - exp_fast(past)) : logf(-expm1f(past));
}

// ln of the corrected score; 0 if no row observed the slot yet.
__device__ inline float log_score(const Scores &scores,
                                  const skv_policy &policy) {
  const uint32_t n = scores.observations;
  return n == 0 ? 0.0f : scores.ema - ema_correction(policy, n);
}

__device__ inline float log_score(const Slot &slot, const skv_policy &policy) {
  return log_score(load_scores(slot), policy);
}

// ln votes for the group: the mean over the lanes.
__device__ inline float pooled_bias(const Slot &slot, uint32_t lanes) {
  float sum = 0.0f;
#pragma unroll 1
  for (uint32_t lane = 0; lane < lanes; lane++) {
    sum += slot.get(kSlotBias + lane);
  }
  return sum / static_cast<float>(lanes);
}

// Vote bias for query head \`g\` of the group.
__device__ inline float vote_bias(const Slot &slot, uint32_t g,
                                  uint32_t lanes) {
  return slot.get(kSlotBias + (lanes == 1 ? 0 : g));
}

// Mean attention weight of the rows that observed a slot.
__device__ inline float mean_attention(const Scores &scores) {
  return scores.accumulated / static_cast<float>(max(1u, scores.observations));
}

__device__ inline float mean_attention(const Slot &slot) {
  return mean_attention(load_scores(slot));
}

// Whether a score is worked out from all keys of a head, without any row.
__host__ __device__ inline bool takes_all_keys(const skv_policy &policy) {
  return policy.score == SKV_SCORE_KEY_DISTANCE ||
         policy.score == SKV_SCORE_EXPECTED;
}

// What the policy's score says of a slot with these scores; \`bias()\` is its
// pooled vote bias. A position too large for a float is rounded; ties go by
// position and put it right.
template <class Bias>
__device__ inline float own_score(const Scores &scores, uint32_t position,
                                  const skv_policy &policy, Bias bias) {
  switch (policy.score) {
    case SKV_SCORE_POSITION:
      return static_cast<float>(position);
    case SKV_SCORE_EMA:
      return log_score(scores, policy) + (policy.count_votes ? bias() : 0.0f);
    case SKV_SCORE_MEAN:
    case SKV_SCORE_STEP_GAIN:
      return mean_attention(scores);
    default:
      return scores.accumulated;
  }
}

__device__ inline float own_score(const Slot &slot, const skv_policy &policy,
                                  uint32_t lanes) {
  return own_score(load_scores(slot), slot.word(kSlotPosition), policy,
                   [&] { return pooled_bias(slot, lanes); });
}

// Whether the numbers that a score says are logarithms.
__device__ inline bool is_logarithm(const skv_policy &policy) {
  return policy.score == SKV_SCORE_EMA || policy.score == SKV_SCORE_EXPECTED;
}

// Smallest norm that counts; the logarithm of less is of no use.
constexpr float kLeastNorm = 1e-30f;

// A score times the norm of the slot's value, where that counts.
__device__ inline float rank_of(float score, const Slot &slot,
                                const skv_policy &policy) {
  if (!policy.count_values) return score;
  const float norm = slot.get(kSlotValueNorm);
  const float power = static_cast<float>(policy.value_power);
  if (!is_logarithm(policy)) {
    return (score + policy.value_epsilon) *
           (policy.value_power == 2 ? norm * norm : norm);
  }
  return log_add(score, policy.log_value_epsilon) +
         power * logf(fmaxf(norm, kLeastNorm));
}

// What eviction sorts by: the rank, ties by position. The lowest goes first.
__device__ inline uint64_t rank_key(float score, const Slot &slot,
                                    const skv_policy &policy) {
  return order_key(rank_of(score, slot, policy), slot.word(kSlotPosition));
}

// What slots that stay by their scores alone are chosen by.
__device__ inline uint64_t score_key(float score, const Slot &slot) {
  return order_key(score, slot.word(kSlotPosition));
}

// Of \`fitting\` slots that have room, those that stay by their scores alone.
__device__ inline uint32_t first_stage(const skv_policy &policy,
                                       uint32_t fitting) {
  return static_cast<uint32_t>(policy.first_stage *
                               static_cast<float>(fitting));
}

// The sum of no scores; where they are logarithms, of what they stand for.
__device__ inline float no_scores(const skv_policy &policy) {
  return is_logarithm(policy) ? kLogZero : 0.0f;
}

__device__ inline float add_score(float sum, float score,
                                  const skv_policy &policy) {
  return is_logarithm(policy) ? log_add(sum, score) : sum + score;
}

__device__ inline float mean_score(float sum, uint32_t count,
                                   const skv_policy &policy) {
  const float terms = static_cast<float>(count);
  return is_logarithm(policy) ? sum - logf(terms) : sum / terms;
}

// Whether a slot may be evicted: neither a sink nor a recent token.
__device__ inline bool is_evictable(uint32_t position, const skv_policy &policy,
                                    uint32_t recent, uint32_t newest) {
  return position >= policy.sinks && position + recent <= newest;
}
`,
  "lib/search.cuh": `// For each query of a list, the cheapest of some candidates to merge with.
//
// A block has a tile of queries and goes through the tiles of one part of the
// candidates: all products of the two lists on tensor cores, exact because keys
// and values are operands as they are, with the best candidate kept per query.
// Candidates are read once per tile of queries. Squared distances follow from
// products and squares. The alternative that lost: one warp per query, which
// reads all candidates for each of them.
//
// Who searches passes a \`Source\`, whose \`view()\` a block asks for
//   queries, candidates   how many there are; none if there is nothing to do
//   part, parts           which part of the candidates is this block's
//   query(q), candidate(c)   the number of a slot; the same in both lists
//   slot(number)          the slot
//   spread()              how far values scatter
//   store(q, best)        takes what was found
#pragma once

#include "neighbour.cuh"
#include "overlap.cuh"
#include "search_tiles.cuh"

// How pairs are compared.
struct PairSearch {
  skv_policy policy;
  uint32_t lanes;
  // Whether a query only looks at candidates that are heavier than itself.
  bool heavier;
};

// What a slot of a view weighs; there is another of these for views that know.
template <class View>
__device__ inline float weight_of(const View &, uint32_t, const Slot &slot,
                                  const PairSearch &pairs) {
  return log_weight(slot, pairs.policy, pairs.lanes);
}

template <int DIM, class Source>
__global__ void __launch_bounds__(32 * kSearchWarps<DIM>)
    search_kernel(Source source, PairSearch pairs, uint32_t head_dim) {
  constexpr uint32_t kQueries = kQueryTile<DIM>;
  uint4 *shared_memory = dynamic_shared_memory();
  begin_kernel();
  auto &shared = *reinterpret_cast<SearchShared<DIM> *>(shared_memory);
  const auto view = source.view();
  const uint32_t first_query = blockIdx.x * kQueries;
  if (first_query >= view.queries) return;
  const uint32_t candidates = view.candidates;
  const uint32_t tiles = (candidates + kCandidateTile - 1) / kCandidateTile;
  const uint32_t per_part = (tiles + view.parts - 1) / view.parts;
  const uint32_t begin = view.part * per_part;
  const uint32_t end = min(tiles, begin + per_part);
  const uint32_t own_query = first_query + 16 * warp_id() + lane_id() / 4;
  if (begin >= end) {
    const Neighbour none = kNoNeighbour;
    for (uint32_t h = 0; h < 2; h++) {
      const uint32_t q = own_query + 8 * h;
      if (lane_id() % 4 == 0 && q < view.queries) view.store(q, none);
    }
    return;
  }
  const PairCosts costs(pairs.policy, view.spread());
  const auto weigh = [&](uint32_t number) {
    return weight_of(view, number, view.slot(number), pairs);
  };
  const float reference = weigh(view.query(first_query));

  constexpr uint32_t kThreads = 32 * kSearchWarps<DIM>;
  const auto copy_queries = [&](skv_cached *tile, bool keys) {
    gather_lines<DIM, kQueries, kThreads>(
        tile, head_dim, [&](uint32_t i) -> const skv_cached * {
          const uint32_t q = first_query + i;
          if (q >= view.queries) return nullptr;
          const Slot slot = view.slot(view.query(q));
          return keys ? slot.key : slot.value;
        });
  };
  const auto copy_candidates = [&](skv_cached *to, uint32_t first, bool keys) {
    gather_lines<DIM, kCandidateTile, kThreads>(
        to, head_dim, [&](uint32_t i) -> const skv_cached * {
          if (first + i >= candidates) return nullptr;
          const Slot slot = view.slot(view.candidate(first + i));
          return keys ? slot.key : slot.value;
        });
  };
  constexpr bool kBoth = kCandidateTiles<DIM> == 2;
  skv_cached *const keys = shared.candidates[0];
  skv_cached *const values = shared.candidates[kCandidateTiles<DIM> - 1];
  // Starts to load a tile of candidates, with the values where there is room.
  const auto start_tile = [&](uint32_t tile) {
    const uint32_t first = tile * kCandidateTile;
    copy_candidates(keys, first, true);
    if constexpr (kBoth) copy_candidates(values, first, false);
    if (threadIdx.x >= kCandidateTile) return;
    const uint32_t c = first + threadIdx.x;
    if (c < candidates) {
      const uint32_t number = view.candidate(c);
      shared.side.set(threadIdx.x, reference, weigh(number),
                      view.slot(number).word(kSlotPosition), number);
    } else {
      shared.side.set(threadIdx.x, reference, reference, 0, kNoItem);
    }
  };
  // Called by the whole block, for which all that was started is there then.
  const auto wait_for_tiles = [] {
    commit_copies();
    wait_copies<0>();
    __syncthreads();
  };
  copy_queries(shared.queries, true);
  copy_queries(shared.query_values, false);
  start_tile(begin);
  wait_for_tiles();
  square_lines<DIM>(shared.queries, kQueries, [&](uint32_t q, float square) {
    shared.query_squares[0][q] = square;
  });
  square_lines<DIM>(
      shared.query_values, kQueries,
      [&](uint32_t q, float square) { shared.query_squares[1][q] = square; });
  __syncthreads();
  CheapestPairs<kCandidateTile> cheapest;
  PairQuery own[2] = {};
#pragma unroll
  for (uint32_t h = 0; h < 2; h++) {
    const uint32_t q = own_query + 8 * h;
    if (q >= view.queries) continue;
    const uint32_t number = view.query(q);
    own[h] = {true,
              weigh(number),
              view.slot(number).word(kSlotPosition),
              {shared.query_squares[0][q - first_query],
               shared.query_squares[1][q - first_query]}};
  }
  cheapest.begin(costs, reference, own);
  for (uint32_t tile = begin; tile < end; tile++) {
    const uint32_t first = tile * kCandidateTile;
    if (tile != begin) {
      __syncthreads();
      start_tile(tile);
      wait_for_tiles();
    }
    typename CheapestPairs<kCandidateTile>::Products x, y;
    square_lines<DIM>(keys, kCandidateTile, [&](uint32_t c, float square) {
      shared.side.set_key_square(c, costs, square);
    });
    multiply_lines<DIM>(shared.queries, keys, x);
    if constexpr (!kBoth) {
      __syncthreads();
      copy_candidates(values, first, false);
      wait_for_tiles();
    }
    square_lines<DIM>(values, kCandidateTile, [&](uint32_t c, float square) {
      shared.side.set_value_square(c, costs, square);
    });
    multiply_lines<DIM>(shared.query_values, values, y);
    __syncthreads();
    cheapest.add(x, y, shared.side, pairs.heavier);
  }
#pragma unroll
  for (uint32_t h = 0; h < 2; h++) {
    const uint32_t q = own_query + 8 * h;
    const Neighbour best = cheapest.best(h);
    if (lane_id() % 4 == 0 && q < view.queries) view.store(q, best);
  }
}

template <int DIM, class Source>
inline cudaError_t launch_search_width(const Source &source,
                                       const PairSearch &pairs,
                                       uint32_t head_dim, uint32_t most,
                                       uint32_t heads, uint32_t parts,
                                       const Launch &launch) {
  const auto kernel = search_kernel<DIM, Source>;
  const size_t bytes = sizeof(SearchShared<DIM>);
  const cudaError_t status = allow_shared_memory(kernel, bytes);
  if (status != cudaSuccess) return status;
  constexpr uint32_t kQueries = kQueryTile<DIM>;
  const dim3 grid((most + kQueries - 1) / kQueries, heads, parts);
  return launch_kernel(launch, kernel, grid, 32 * kSearchWarps<DIM>, bytes,
                       source, pairs, head_dim);
}

// Searches for up to \`most\` queries of each head; \`blocks\` are those that share
// a tile of queries, for all rows of the step.
template <class Source>
inline cudaError_t launch_search(const Source &source, const PairSearch &pairs,
                                 uint32_t head_dim, uint32_t most,
                                 uint32_t heads, uint32_t blocks,
                                 const Launch &launch) {
  return with_width(head_dim, [&](auto width) {
    return launch_search_width<decltype(width)::value>(
        source, pairs, head_dim, most, heads, blocks, launch);
  });
}
`,
  "lib/search_candidates.cuh": `// What the forms of a search for similar keys have in common: candidates that
// are looked at before their keys are fetched, and where answers go.
#pragma once

#include "closest_keys.cuh"
#include "row_tiles.cuh"
#include "search_shares.cuh"

// The queries and candidates of a head.
struct KeyLists {
  const skv_chunk_args &args;
  ChunkHead head;
  HeadWork work;
  uint32_t queries;
  uint32_t candidates;

  __device__ KeyLists(const skv_chunk_args &chunk, const CompressWork &all,
                      uint32_t kv_head)
      : args(chunk), head(chunk_head(chunk, kv_head)), work(all.head(kv_head)) {
    queries = work.counters[kQueries];
    candidates = work.counters[kCandidates];
  }

  __device__ Slot slot(uint32_t ordinal) const {
    return item_slot(args, head, work.items[ordinal]);
  }
  __device__ uint32_t position(uint32_t ordinal) const {
    return slot(ordinal).word(kSlotPosition);
  }
  __device__ float inverse_norm(uint32_t ordinal) const {
    return work.inverse_norms[ordinal];
  }
  // Null where there is no such query.
  __device__ const skv_cached *query_key(uint32_t q) const {
    return q < queries ? slot(work.queries[q]).key : nullptr;
  }

  // Stores what was found for the four lanes' query \`q\`.
  template <class Closest>
  __device__ void store(const SearchShare &share, uint32_t pitch, uint32_t q,
                        const Closest &closest, int h) const {
    const float inverse = q < queries ? inverse_norm(work.queries[q]) : 0.0f;
    const Neighbour found = closest.nearest(h, inverse, *this);
    if (lane_id() % 4 != 0 || q >= queries) return;
    store_part(work, share, pitch, q, found);
  }
};

// The candidate of a thread in a tile that comes later.
template <uint32_t CANDIDATES>
struct CandidateAhead {
  const skv_cached *key = nullptr;
  float inverse_norm = 0.0f;
  uint32_t position = 0;
  uint32_t ordinal = kNoItem;

  __device__ void look(const KeyLists &lists, uint32_t tile) {
    const uint32_t c = tile * CANDIDATES + threadIdx.x;
    key = nullptr;
    ordinal = kNoItem;
    inverse_norm = not_a_number();
    if (threadIdx.x >= CANDIDATES || c >= lists.candidates) return;
    ordinal = lists.work.candidates[c];
    const Slot slot = lists.slot(ordinal);
    key = slot.key;
    position = slot.word(kSlotPosition);
    inverse_norm = lists.work.inverse_norms[ordinal];
  }

  __device__ void store(CandidateSide<CANDIDATES> &side) const {
    if (threadIdx.x >= CANDIDATES) return;
    side.keys[threadIdx.x] = key;
    side.inverse_norms[threadIdx.x] = inverse_norm;
    side.positions[threadIdx.x] = position;
    side.ordinals[threadIdx.x] = ordinal;
  }
};
`,
  "lib/search_items.cuh": `// Searching the items of a chunk for what they are merged into.
#pragma once

#include "arrange_pairs.cuh"
#include "group_pairs.cuh"
#include "search.cuh"
#include "search_keys.cuh"

// Whether victims are merged into the most similar item that is kept, or into
// the cheapest.
__host__ __device__ inline bool merges_victims(const skv_policy &policy) {
  return policy.merge == SKV_MERGE_VOTES || policy.merge == SKV_MERGE_COSINE ||
         merges_cheapest(policy);
}

// Tiles of a part of the candidates, at least: blocks with fewer would mostly
// load queries.
constexpr uint32_t kLeastTiles = 4;

// Queries and candidates of a head, as they were arranged: see lib/search.cuh.
// The number of an item is its ordinal.
struct ItemView {
  const skv_chunk_args &args;
  ChunkHead head;
  HeadWork work;
  uint32_t pitch;
  uint32_t queries;
  uint32_t candidates;
  uint32_t part;
  uint32_t parts;

  __device__ uint32_t query(uint32_t q) const { return work.queries[q]; }
  __device__ uint32_t candidate(uint32_t c) const { return work.candidates[c]; }
  __device__ Slot slot(uint32_t ordinal) const {
    return item_slot(args, head, work.items[ordinal]);
  }
  __device__ float spread() const {
    return __uint_as_float(work.counters[kSpread]);
  }
  __device__ void store(uint32_t q, const Neighbour &best) const {
    const size_t at = static_cast<size_t>(part) * pitch + q;
    work.similarities[at] = best.similarity;
    work.nearest[at] = best.item;
  }
};

__device__ inline float weight_of(const ItemView &view, uint32_t ordinal,
                                  const Slot &, const PairSearch &) {
  return view.work.measures[ordinal].x;
}

struct ItemSource {
  skv_chunk_args args;
  CompressWork work;
  bool for_pairs;

  __device__ ItemView view() const {
    const HeadWork own = work.head(blockIdx.y);
    const uint32_t queries =
        row_end(args.step) > 0 ? own.counters[kQueries] : 0;
    const uint32_t tile = pair_query_tile(args.sizes.head_dim);
    const uint32_t end = min(queries, (blockIdx.x + 1) * tile);
    // None behind the last that is as heavy as the lightest of the queries.
    const uint32_t candidates = end <= blockIdx.x * tile ? 0
                                : for_pairs ? own.placed[end - 1].end
                                            : own.counters[kCandidates];
    const uint32_t least = kLeastTiles * kCandidateTile;
    return {args,       chunk_head(args, blockIdx.y),
            own,        work.part_pitch(),
            queries,    candidates,
            blockIdx.z, min(kSearchParts, max(1u, candidates / least))};
  }
};

// The best candidate of query \`q\`, over the parts.
__device__ inline Neighbour nearest_of_query(const skv_chunk_args &args,
                                             const ChunkHead &head,
                                             const CompressWork &all_work,
                                             const HeadWork &work, uint32_t q) {
  Neighbour best = kNoNeighbour;
  for (uint32_t part = 0; part < all_work.parts; part++) {
    const size_t at = static_cast<size_t>(part) * all_work.part_pitch() + q;
    Neighbour other = {work.similarities[at], 0, work.nearest[at]};
    if (!other.exists()) continue;
    other.position =
        item_slot(args, head, work.items[other.item]).word(kSlotPosition);
    if (other.beats(best)) best = other;
  }
  return best;
}

// Searches for what merges in pairs, whose queries and candidates are the same
// items, or for what takes victims. An item that merges at a cost only looks at
// what is heavier than itself where it could as well be found from the other
// end.
inline cudaError_t launch_item_search(const skv_chunk_args &args,
                                      const CompressWork &work, bool for_pairs,
                                      const Launch &launch) {
  if (!merges_cheapest(args.policy)) {
    return launch_key_search(args, work, for_pairs, launch);
  }
  return with_width(args.sizes.head_dim, [&](auto width) {
    constexpr int kWidth = decltype(width)::value;
    bool done = false;
    const cudaError_t status =
        launch_group_pairs<kWidth>(args, work, for_pairs, launch, done);
    if (status != cudaSuccess || done) return status;
    const PairSearch pairs = {args.policy, args.cache.lanes, for_pairs};
    return launch_search_width<kWidth, ItemSource>(
        {args, work, for_pairs}, pairs, args.sizes.head_dim, work.most,
        args.sizes.kv_heads, kSearchParts, launch);
  });
}
`,
  "lib/search_keys.cuh": `// For each query of a chunk's items, the candidate with the most similar key.
//
// A block has tiles of queries and goes through tiles of candidates: all
// products of the two lists on tensor cores, exact because keys are operands as
// they are, with the best candidate kept per query. The next tile is always on
// its way: where its keys are is found out one tile before that. A warp has two
// tiles of 16 queries, in registers as long as candidates go by, so that shared
// memory delivers these alone.
#pragma once

#include "group_search.cuh"
#include "search_candidates.cuh"

template <int DIM>
struct KeySearch {
  static constexpr uint32_t kThreads = 128;
  // Tiles of 16 queries of a warp, queries of a block, candidates of a tile.
  static constexpr int kTiles = DIM == 256 ? 1 : 2;
  static constexpr uint32_t kWarpQueries = 16 * kTiles;
  static constexpr uint32_t kQueries = kWarpQueries * (kThreads / 32);
  static constexpr uint32_t kCandidates = DIM == 256 ? 32 : 64;
  static_assert(kQueries == 2 * kCandidates, "queries begin in their lines");
  using Closest = ClosestKeys<kCandidates>;

  struct Shared {
    // Two tiles of candidates.
    skv_cached lines[2][kCandidates * kLinePitch<DIM>];
    // A tile's is written while that of the one before it is used to fetch
    // keys, and that of the one before that to compare them.
    CandidateSide<kCandidates> sides[3];
  };
};

// Blocks of more registers than this leave room for two where there is shared
// memory for three.
constexpr int kSearchBlocks = 3;

// Searches one share. \`is_among\` says whether queries and candidates are the
// same list. Called by the whole block.
template <int DIM>
__device__ inline void search_share(const KeyLists &lists,
                                    const SearchShare &share, bool is_among,
                                    uint32_t pitch,
                                    typename KeySearch<DIM>::Shared &shared) {
  using Form = KeySearch<DIM>;
  constexpr uint32_t kTile = Form::kCandidates;
  const uint32_t head_dim = lists.args.sizes.head_dim;
  CandidateAhead<kTile> ahead;
  const auto fetch = [&](uint32_t tile) {
    const auto &side = shared.sides[tile % 3];
    gather_lines<DIM, kTile, Form::kThreads>(
        shared.lines[tile % 2], head_dim,
        [&](uint32_t i) { return side.keys[i]; });
    commit_copies();
  };
  load_lines<DIM>(shared.lines[0], Form::kQueries, head_dim, [&](uint32_t i) {
    return lists.query_key(share.first_query + i);
  });
  ahead.look(lists, share.begin);
  ahead.store(shared.sides[share.begin % 3]);
  __syncthreads();
  uint4 own[Form::kTiles][DIM / 16];
#pragma unroll
  for (int m = 0; m < Form::kTiles; m++) {
#pragma unroll
    for (int k = 0; k < DIM / 16; k++) {
      own[m][k] = line_operands<DIM>(
          shared.lines[0], Form::kWarpQueries * warp_id() + 16 * m, 16 * k);
    }
  }
  // Candidates take the place of the queries.
  __syncthreads();
  fetch(share.begin);
  if (share.begin + 1 < share.end) {
    ahead.look(lists, share.begin + 1);
    ahead.store(shared.sides[(share.begin + 1) % 3]);
  }
  const uint32_t warp_query =
      share.first_query + Form::kWarpQueries * warp_id();
  const uint32_t own_query = warp_query + lane_id() / 4;
  typename Form::Closest closest[Form::kTiles];
#pragma unroll
  for (int m = 0; m < Form::kTiles; m++) {
    closest[m].begin(own_query + 16 * m < lists.queries,
                     own_query + 16 * m + 8 < lists.queries);
  }
  for (uint32_t tile = share.begin; tile < share.end; tile++) {
    wait_copies<0>();
    // The tile is there, and nobody reads the one before it any more.
    __syncthreads();
    if (tile + 1 < share.end) fetch(tile + 1);
    if (tile + 2 < share.end) ahead.look(lists, tile + 2);
    float x[Form::kTiles][kTile / 8][4] = {};
#pragma unroll
    for (int k = 0; k < DIM / 16; k++) {
#pragma unroll
      for (int n = 0; n < static_cast<int>(kTile) / 8; n += 2) {
        const uint4 b =
            key_operands<DIM>(shared.lines[tile % 2], 8 * n, 16 * k);
#pragma unroll
        for (int m = 0; m < Form::kTiles; m++) {
          mma_cached(x[m][n], own[m][k], b.x, b.y);
          mma_cached(x[m][n + 1], own[m][k], b.z, b.w);
        }
      }
    }
#pragma unroll
    for (int m = 0; m < Form::kTiles; m++) {
      if (is_among) {
        Form::Closest::leave_out(x[m], warp_query + 16 * m, tile * kTile);
      }
      closest[m].add(x[m], shared.sides[tile % 3], lists);
    }
    if (tile + 2 < share.end) ahead.store(shared.sides[(tile + 2) % 3]);
  }
#pragma unroll
  for (int m = 0; m < Form::kTiles; m++) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      lists.store(share, pitch, own_query + 16 * m + 8 * h, closest[m], h);
    }
  }
}

template <int DIM>
__global__ void __launch_bounds__(KeySearch<DIM>::kThreads, kSearchBlocks)
    search_keys_kernel(skv_chunk_args args, CompressWork all_work,
                       bool is_among) {
  using Form = KeySearch<DIM>;
  uint4 *shared_memory = dynamic_shared_memory();
  begin_kernel();
  if (row_end(args.step) == 0) return;
  auto &shared = *reinterpret_cast<typename Form::Shared *>(shared_memory);
  SearchShares<EvenRows> share({all_work, Form::kQueries, Form::kCandidates},
                               args.sizes.kv_heads, Form::kQueries);
  while (share.next()) {
    const KeyLists lists(args, all_work, share.kv_head);
    search_share<DIM>(lists, share, is_among, all_work.part_pitch(), shared);
    // Nobody reads the last tile any more.
    __syncthreads();
  }
}

template <int DIM>
inline cudaError_t launch_key_search_width(const skv_chunk_args &args,
                                           const CompressWork &work,
                                           bool is_among,
                                           const Launch &launch) {
  bool done = false;
  cudaError_t status =
      launch_group_search<DIM>(args, work, is_among, launch, done);
  if (status != cudaSuccess || done) return status;
  using Form = KeySearch<DIM>;
  constexpr size_t kBytes = sizeof(typename Form::Shared);
  static_assert(kBytes <= kLeastSharedBytes, "a form for all devices");
  const auto kernel = search_keys_kernel<DIM>;
  status = allow_shared_memory(kernel, kBytes);
  if (status != cudaSuccess) return status;
  return launch_kernel(launch, kernel, kSearchBlocks * launch.multiprocessors,
                       Form::kThreads, kBytes, args, work, is_among);
}

inline cudaError_t launch_key_search(const skv_chunk_args &args,
                                     const CompressWork &work, bool is_among,
                                     const Launch &launch) {
  return with_width(args.sizes.head_dim, [&](auto width) {
    return launch_key_search_width<decltype(width)::value>(args, work, is_among,
                                                           launch);
  });
}
`,
  "lib/search_shares.cuh": `// How the blocks of a search share its work: tiles of queries times tiles of
// candidates, of all heads, in one row that is cut into equal shares.
//
// How many there are is known on the device alone. As many blocks as run at a
// time get a share each, so that all end together; a block that has tiles of
// several queries begins anew for each. Tiles of queries that several blocks
// have a part of keep the best of each part. The alternative that lost: a block
// for each tile of queries, of which the last few keep the device waiting.
#pragma once

#include "compress_work.cuh"
#include "neighbour.cuh"

// Most parts that the candidates of a query are searched in.
constexpr uint32_t kSearchParts = 8;

// A share of one tile of queries.
struct SearchShare {
  uint32_t kv_head;
  uint32_t first_query;
  // Tiles of candidates.
  uint32_t begin;
  uint32_t end;
  // Which part of the candidates that is, and whether it is the last.
  uint32_t part;
  bool is_last;
};

// Stores what a share has found for query \`q\`; \`pitch\` is that of the parts.
__device__ inline void store_part(const HeadWork &work,
                                  const SearchShare &share, uint32_t pitch,
                                  uint32_t q, const Neighbour &found) {
  const uint32_t end = share.is_last ? kSearchParts : share.part + 1;
  for (uint32_t part = share.part; part < end; part++) {
    const size_t at = static_cast<size_t>(part) * pitch + q;
    work.similarities[at] = found.similarity;
    work.nearest[at] = part == share.part ? found.item : kNoItem;
  }
}

// The tiles of candidates of one tile of queries, in the row of a head's.
struct TileRow {
  uint32_t number;
  uint32_t start;
  uint32_t tiles;
};

// Where all queries of a head are compared with all of its candidates.
struct EvenRows {
  const CompressWork &all;
  uint32_t queries;
  uint32_t candidates;

  __device__ static uint32_t divide_up(uint32_t x, uint32_t y) {
    return (x + y - 1) / y;
  }
  // Tiles of the longest row: never none, so that all queries are answered.
  __device__ uint32_t longest(uint32_t h) const {
    return max(1u, divide_up(all.head(h).counters[kCandidates], candidates));
  }
  // All tiles of a head.
  __device__ uint32_t tiles(uint32_t h) const {
    return divide_up(all.head(h).counters[kQueries], queries) * longest(h);
  }
  // The row that has the tile \`at\`.
  __device__ TileRow row_at(uint32_t h, uint32_t at) const {
    const uint32_t length = longest(h);
    return {at / length, at / length * length, length};
  }
};

template <class Rows>
class SearchShares : public SearchShare {
 public:
  // Of this block; tiles have \`query_tile\` queries.
  __device__ SearchShares(const Rows &rows, uint32_t heads, uint32_t query_tile)
      : rows_(rows), query_tile_(query_tile) {
    uint32_t total = 0, longest = 0;
    for (uint32_t h = 0; h < heads; h++) {
      total += rows_.tiles(h);
      longest = max(longest, rows_.longest(h));
    }
    // A row of tiles is then in kSearchParts shares at most.
    length_ = max((total + gridDim.x - 1) / gridDim.x,
                  (longest + kSearchParts - 2) / (kSearchParts - 1));
    next_ = blockIdx.x * length_;
    end_ = min(total, next_ + length_);
  }

  // Moves on to the next tile of queries; false if there is none.
  __device__ bool next() {
    if (next_ >= end_) return false;
    uint32_t before = 0;
    uint32_t tiles = rows_.tiles(kv_head = 0);
    while (next_ >= before + tiles) {
      before += tiles;
      tiles = rows_.tiles(++kv_head);
    }
    const TileRow row = rows_.row_at(kv_head, next_ - before);
    const uint32_t row_start = before + row.start;
    first_query = row.number * query_tile_;
    begin = next_ - row_start;
    end = min(row.tiles, end_ - row_start);
    part = blockIdx.x - row_start / length_;
    is_last = end == row.tiles;
    next_ = row_start + end;
    return true;
  }

 private:
  const Rows rows_;
  const uint32_t query_tile_;
  // Tiles of a share, and the block's that are left.
  uint32_t length_;
  uint32_t next_;
  uint32_t end_;
};
`,
  "lib/search_tiles.cuh": `// Tiles of queries and candidates of a search in shared memory, and what is
// made of them: see lib/search.cuh.
#pragma once

#include "cheapest_pairs.cuh"
#include "row_tiles.cuh"

constexpr uint32_t kCandidateTile = 64;

// Two tiles of queries and one or two of candidates fit.
template <int DIM>
constexpr uint32_t kSearchWarps = DIM == 256 ? 2 : 4;

// Tiles of candidates: keys and values, or one after the other.
template <int DIM>
constexpr uint32_t kCandidateTiles = DIM == 256 ? 1 : 2;

template <int DIM>
constexpr uint32_t kQueryTile = 16 * kSearchWarps<DIM>;

// The same for heads of a width.
__host__ __device__ inline uint32_t pair_query_tile(uint32_t head_dim) {
  return head_dim <= 128 ? kQueryTile<128> : kQueryTile<256>;
}

template <int DIM>
struct SearchShared {
  static constexpr uint32_t kQueries = kQueryTile<DIM>;
  skv_cached queries[kQueries * kLinePitch<DIM>];
  skv_cached query_values[kQueries * kLinePitch<DIM>];
  // Keys, and values in the last.
  skv_cached candidates[kCandidateTiles<DIM>][kCandidateTile * kLinePitch<DIM>];
  // Of the queries' keys and values.
  float query_squares[2][kQueries];
  // Of what is in \`candidates\`.
  PairSide<kCandidateTile> side;
};

// Calls \`use(line, square)\` for the squares of \`lines\` lines of a tile. Called
// by the whole block, whose threads are once or twice as many.
template <int DIM, class Use>
__device__ inline void square_lines(const skv_cached *tile, uint32_t lines,
                                    Use use) {
  const uint32_t per_line = blockDim.x / lines;
  const uint32_t line = threadIdx.x / per_line;
  float sum = 0.0f;
  for (uint32_t c = threadIdx.x % per_line; c < DIM / 8; c += per_line) {
    const uint4 words =
        *reinterpret_cast<const uint4 *>(tile + line * kLinePitch<DIM> + 8 * c);
    const uint32_t pairs[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const float2 x = cached_floats(pairs[i]);
      sum += x.x * x.x + x.y * x.y;
    }
  }
  if (per_line == 2) sum += __shfl_xor_sync(kAllLanes, sum, 1);
  if (threadIdx.x % per_line == 0) use(line, sum);
}

// Products of a warp's queries with all candidates of the tile.
template <int DIM>
__device__ inline void multiply_lines(const skv_cached *queries,
                                      const skv_cached *candidates,
                                      float (&x)[kCandidateTile / 8][4]) {
#pragma unroll
  for (int n = 0; n < static_cast<int>(kCandidateTile) / 8; n++) {
#pragma unroll
    for (int i = 0; i < 4; i++) x[n][i] = 0.0f;
  }
#pragma unroll
  for (int column = 0; column < DIM; column += 16) {
    const uint4 a = line_operands<DIM>(queries, 16 * warp_id(), column);
#pragma unroll
    for (int n = 0; n < static_cast<int>(kCandidateTile) / 8; n += 2) {
      const uint4 b = key_operands<DIM>(candidates, 8 * n, column);
      mma_cached(x[n], a, b.x, b.y);
      mma_cached(x[n + 1], a, b.z, b.w);
    }
  }
}
`,
  "lib/segment_step.cuh": `// The link between neighbours in the text that a decode step closes.
//
// Blocks share the slots of a head: finding neighbours compares all positions,
// a slot a thread, and a link takes two keys. The alternative that lost: one
// block per head, as for the rest of the policy's work, whose time grows with
// the square of the slots.
#pragma once

#include "merge_one.cuh"
#include "merge_segment.cuh"

// Finds the score up to which slots may be merged with their neighbours; the
// keys of the others and \`limit\` tell who. Called by the whole block.
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
`,
  "lib/select_smallest.cuh": `// Things that one block does with a list in global memory: choosing the
// smallest keys, listing what has a property, adding up.
#pragma once

#include "reduce.cuh"

struct SelectScratch {
  BlockScratch block;
  uint32_t histogram[256];
  uint32_t digit;
  uint32_t before;
  float sums[32];
};

// Keys that a thread of kth_smallest reads before it looks at any.
constexpr uint32_t kKeysAhead = 4;

// The \`count\`th smallest of the keys \`key(0)\` to \`key(length - 1)\`, \`kNoKey\`
// left out; there must be as many. Called by the whole block.
//
// One pass per byte from the top narrows the keys down to those that share a
// prefix. The alternative that lost: sorting, which does more than is asked.
template <class Key>
__device__ inline uint64_t kth_smallest(uint32_t length, uint32_t count,
                                        SelectScratch &scratch, Key key_of) {
  uint64_t prefix = 0, mask = 0;
  for (int shift = 56; shift >= 0; shift -= 8) {
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < 256; i += blockDim.x) {
      scratch.histogram[i] = 0;
    }
    __syncthreads();
    for (uint32_t first = threadIdx.x; first < length;
         first += kKeysAhead * blockDim.x) {
      uint64_t keys[kKeysAhead];
#pragma unroll
      for (uint32_t k = 0; k < kKeysAhead; k++) {
        const uint32_t i = first + k * blockDim.x;
        keys[k] = key_of(min(i, length - 1));
        if (i >= length) keys[k] = kNoKey;
      }
#pragma unroll
      for (uint32_t k = 0; k < kKeysAhead; k++) {
        if (keys[k] == kNoKey || (keys[k] & mask) != prefix) continue;
        atomicAdd(scratch.histogram + (keys[k] >> shift & 255), 1);
      }
    }
    __syncthreads();
    if (warp_id() == 0) {
      // Eight buckets per lane.
      uint32_t mine = 0;
      for (uint32_t i = 0; i < 8; i++) {
        mine += scratch.histogram[8 * lane_id() + i];
      }
      uint32_t running = mine;
#pragma unroll
      for (int offset = 1; offset < 32; offset *= 2) {
        const uint32_t other = __shfl_up_sync(kAllLanes, running, offset);
        if (lane_id() >= static_cast<uint32_t>(offset)) running += other;
      }
      uint32_t before = running - mine;
      if (before < count && count <= running) {
        uint32_t digit = 8 * lane_id();
        while (before + scratch.histogram[digit] < count) {
          before += scratch.histogram[digit++];
        }
        scratch.digit = digit;
        scratch.before = before;
      }
    }
    __syncthreads();
    prefix |= static_cast<uint64_t>(scratch.digit) << shift;
    mask |= 255ull << shift;
    count -= scratch.before;
  }
  return prefix;
}

// The same of keys in memory.
__device__ inline uint64_t kth_smallest(const uint64_t *keys, uint32_t length,
                                        uint32_t count,
                                        SelectScratch &scratch) {
  return kth_smallest(length, count, scratch,
                      [&](uint32_t i) { return keys[i]; });
}

// Groups of 32 numbers that a warp of list_if asks about before it looks at any
// answer, so that what answers depend on is on its way together.
constexpr uint32_t kGroupsAhead = 8;

// Writes \`value(i)\` of the numbers below \`length\` that \`wanted\` accepts to
// \`list\`, in their order; returns how many there are. Called by the whole
// block.
//
// A warp has a run of up to 32 groups at a time, and lane k keeps which numbers
// of group k are wanted: so the block waits once for 32 numbers of each thread.
template <class Wanted, class Value>
__device__ inline uint32_t list_if(uint32_t length, uint32_t *list,
                                   SelectScratch &scratch, Wanted wanted,
                                   Value value) {
  const uint32_t warps = blockDim.x / 32, lane = lane_id();
  uint32_t listed = 0;
  for (uint32_t first = 0; first < length; first += 32 * blockDim.x) {
    const uint32_t groups = min((length - first + 31) / 32, blockDim.x);
    const uint32_t run = (groups + warps - 1) / warps;
    const uint32_t begin = first + warp_id() * run * 32 + lane;
    uint32_t mine = 0;
    for (uint32_t group = 0; group < run; group += kGroupsAhead) {
      bool answers[kGroupsAhead];
#pragma unroll
      for (uint32_t k = 0; k < kGroupsAhead; k++) {
        const uint32_t i = begin + 32 * (group + k);
        answers[k] = wanted(min(i, length - 1));
        answers[k] = answers[k] && group + k < run && i < length;
      }
#pragma unroll
      for (uint32_t k = 0; k < kGroupsAhead; k++) {
        const uint32_t ballot = __ballot_sync(kAllLanes, answers[k]);
        if (lane == group + k) mine = ballot;
      }
    }
    uint32_t total;
    const uint32_t before =
        listed + block_prefix(__popc(mine), total, scratch.block);
    for (uint32_t group = 0; group < run; group++) {
      const uint32_t ballot = __shfl_sync(kAllLanes, mine, group);
      const uint32_t at = __shfl_sync(kAllLanes, before, group);
      if ((ballot >> lane & 1) == 0) continue;
      list[at + __popc(ballot & ((1u << lane) - 1))] =
          value(begin + 32 * group);
    }
    listed += total;
  }
  __syncthreads();
  return listed;
}

// The same of the numbers themselves.
template <class Wanted>
__device__ inline uint32_t list_if(uint32_t length, uint32_t *list,
                                   SelectScratch &scratch, Wanted wanted) {
  return list_if(length, list, scratch, wanted, [](uint32_t i) { return i; });
}

// Shared memory of list_two, for up to 32 warps.
struct ListScratch {
  uint32_t counts[32][2];
};

// Writes the numbers below \`length\` of the first kind to \`list\`, in order, and
// those of the second kind after them; \`kind(i)\` is 0 or 1, or anything else
// for numbers that are left out. Returns how many there are of each. Called by
// the whole block.
//
// A warp has a run of numbers, counts them first and then knows their places.
template <class Kind>
__device__ inline uint2 list_two(uint32_t length, uint32_t *list,
                                 ListScratch &scratch, Kind kind) {
  const uint32_t warps = blockDim.x / 32;
  const uint32_t run = (length + 32 * warps - 1) / (32 * warps) * 32;
  const uint32_t begin = warp_id() * run, end = min(length, begin + run);
  // Calls \`use\` with a number and the lanes that have one of each kind.
  const auto each = [&](auto use) {
    for (uint32_t first = begin; first < end; first += 32) {
      const uint32_t i = first + lane_id();
      const uint32_t own = i < end ? kind(i) : 2;
      const uint32_t zeros = __ballot_sync(kAllLanes, own == 0);
      const uint32_t ones = __ballot_sync(kAllLanes, own == 1);
      use(i, own, zeros, ones);
    }
  };
  uint32_t counts[2] = {};
  each([&](uint32_t, uint32_t, uint32_t zeros, uint32_t ones) {
    counts[0] += __popc(zeros);
    counts[1] += __popc(ones);
  });
  __syncthreads();
  if (lane_id() < 2) {
    scratch.counts[warp_id()][lane_id()] = counts[lane_id() == 0 ? 0 : 1];
  }
  __syncthreads();
  uint32_t before[2] = {}, total[2] = {};
  for (uint32_t w = 0; w < warps; w++) {
#pragma unroll
    for (int k = 0; k < 2; k++) {
      if (w < warp_id()) before[k] += scratch.counts[w][k];
      total[k] += scratch.counts[w][k];
    }
  }
  before[1] += total[0];
  const uint32_t lower = (1u << lane_id()) - 1;
  each([&](uint32_t i, uint32_t own, uint32_t zeros, uint32_t ones) {
    if (own == 0) list[before[0] + __popc(zeros & lower)] = i;
    if (own == 1) list[before[1] + __popc(ones & lower)] = i;
    before[0] += __popc(zeros);
    before[1] += __popc(ones);
  });
  __syncthreads();
  return {total[0], total[1]};
}

// Sum of \`x\` over the threads of the block, always in the same order.
__device__ inline float block_sum(float x, SelectScratch &scratch) {
  x = warp_sum(x);
  __syncthreads();
  if (lane_id() == 0) scratch.sums[warp_id()] = x;
  __syncthreads();
  float sum = 0.0f;
  for (uint32_t w = 0; w < blockDim.x / 32; w++) sum += scratch.sums[w];
  return sum;
}
`,
  "lib/settle_chunk.cuh": `// The end of a chunk's compression: victims leave, and the staged rows that are
// left go into free slots.
//
// One block per head decides which row goes where, and many blocks move them:
// a row is 16 bytes of each lane, which one block would wait for row by row.
#pragma once

#include <type_traits>

#include "merge_victims.cuh"
#include "pass_values.cuh"

// Drops victims, or merges them where other slots take only their values, and
// says where the staged rows that are left go.
static __global__ void __launch_bounds__(kCompressThreads)
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
    } else if (merges_victims(args.policy)) {
      add_divergences(head, work, victims, scratch);
    } else {
      find_targets(args, head, all_work, work, victims, scratch);
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
  uint32_t high = head.words[kHeadHigh];
  if (moved > 0) high = max(high, work.candidates[moved - 1] + 1);
  // No slot knows what has become of its partner.
  for (uint32_t i = threadIdx.x; args.policy.search_every && i < high;
       i += kCompressThreads) {
    forget_partner(item_slot(args, head, i), lanes);
  }
  // Everybody has read the words that one changes.
  __syncthreads();
  if (threadIdx.x == 0) {
    work.counters[kMoved] = moved;
    uint32_t *words = head.words;
    words[kHeadSpread] = 0;
    words[kHeadHigh] = high;
    words[kHeadLive] = capacity - free + moved;
    words[kHeadNext] = moved < free ? work.candidates[moved] : capacity;
  }
}

constexpr uint32_t kMoveWarps = 8;

// Copies a staged row's key, value and fields to its slot; a warp has a row.
template <bool ALIGNED>
__global__ void __launch_bounds__(32 * kMoveWarps)
    move_kernel(skv_chunk_args args, CompressWork all_work) {
  // What one lane copies at a time: rows are whole numbers of it.
  using Piece = std::conditional_t<ALIGNED, uint4, uint32_t>;
  constexpr uint32_t kHalves = sizeof(Piece) / sizeof(skv_cached);
  begin_kernel();
  if (row_end(args.step) == 0) return;
  const ChunkHead head = chunk_head(args, blockIdx.y);
  const HeadWork work = all_work.head(blockIdx.y);
  const uint32_t i = blockIdx.x * kMoveWarps + warp_id();
  if (i >= work.counters[kMoved]) return;
  const Slot from = item_slot(args, head, work.items[work.queries[i]]);
  const Slot to = item_slot(args, head, work.candidates[i]);
  if (lane_id() < kSlotBias + args.cache.lanes) {
    to.set(lane_id(), from.get(lane_id()));
  }
  const uint32_t pieces = args.sizes.head_dim / kHalves;
#pragma unroll 2
  for (uint32_t p = lane_id(); p < 2 * pieces; p += 32) {
    const bool is_key = p < pieces;
    const size_t at = is_key ? p : p - pieces;
    reinterpret_cast<Piece *>(is_key ? to.key : to.value)[at] =
        reinterpret_cast<const Piece *>(is_key ? from.key : from.value)[at];
  }
}

inline cudaError_t launch_settle(const skv_chunk_args &args,
                                 const CompressWork &work,
                                 const Launch &launch) {
  const uint32_t heads = args.sizes.kv_heads;
  const cudaError_t status = launch_kernel(launch, settle_kernel, heads,
                                           kCompressThreads, 0, args, work);
  if (status != cudaSuccess) return status;
  const auto kernel =
      args.sizes.head_dim % 8 == 0 ? move_kernel<true> : move_kernel<false>;
  const dim3 grid((args.cache.stage_rows + kMoveWarps - 1) / kMoveWarps, heads);
  return launch_kernel(launch, kernel, grid, 32 * kMoveWarps, 0, args, work);
}
`,
  "lib/shared_vector.cuh": `// A key or a value that four lanes share: each has 8 of every 32 elements, so
// that loads are as wide as they can be. In this order elements are right
// operands of tensor core products whose left ones are dealt alike, which a dot
// product does not notice.
#pragma once

#include "cached.cuh"
#include "reduce.cuh"

// This lane's first element of 32.
__device__ inline uint32_t shared_column() { return lane_id() % 4 * 8; }

// The square of eight elements, and of their differences from eight others.
__device__ inline float square_of(const uint32_t (&words)[4]) {
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const float2 x = cached_floats(words[i]);
    sum += x.x * x.x + x.y * x.y;
  }
  return sum;
}

__device__ inline float square_of(const uint32_t (&words)[4],
                                  const uint32_t (&others)[4]) {
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const float2 x = cached_floats(words[i]), y = cached_floats(others[i]);
    sum += (x.x - y.x) * (x.x - y.x) + (x.y - y.y) * (x.y - y.y);
  }
  return sum;
}

// Sum of what four lanes have of each 32 elements of a vector.
template <int COUNT>
__device__ inline float sum_shared(float (&sums)[COUNT]) {
#pragma unroll
  for (int step = 1; step < COUNT; step *= 2) {
#pragma unroll
    for (int c = 0; c < COUNT; c += 2 * step) sums[c] += sums[c + step];
  }
  const float sum = sums[0] + __shfl_xor_sync(kAllLanes, sums[0], 1);
  return sum + __shfl_xor_sync(kAllLanes, sum, 2);
}

// The same where CHUNKS lanes have eight elements each. The order is the same
// as well, so that the distance of two slots does not depend on which of them
// is a row: see lib/partner_tile.cuh.
template <int CHUNKS>
__device__ inline float sum_of_lanes(float x) {
#pragma unroll
  for (int bit = 4; bit < CHUNKS; bit *= 2) {
    x += __shfl_xor_sync(kAllLanes, x, bit);
  }
  x += __shfl_xor_sync(kAllLanes, x, 1);
  return x + __shfl_xor_sync(kAllLanes, x, 2);
}
`,
  "lib/shortlist.cuh": `// The slots of a head that are likely to go in the next step, left for
// attention: see lib/riders.cuh. They are those with the lowest keys after this
// step, among all that may go in the next. That the slot which took in the last
// victim is one of them is not rare: its score is a mean with that of the
// victim.
//
// It is a guess, so it need not be the exact list, which would take a round of
// the block per slot: a thread brings its two lowest, a warp keeps four,
// and one warp takes the lowest of those.
#pragma once

#include "neighbour.cuh"
#include "riders.cuh"

// A slot and what eviction sorts it by.
struct Candidate {
  uint64_t key;
  uint32_t slot;
};

constexpr Candidate kNoCandidate = {kNoKey, ~0u};

// Candidates that a warp keeps.
constexpr uint32_t kWarpCandidates = kMaxRiders;

// The two lowest of a thread.
struct Lowest {
  Candidate first = kNoCandidate;
  Candidate second = kNoCandidate;

  __device__ void add(const Candidate &other) {
    if (other.key < first.key) {
      second = first;
      first = other;
    } else if (other.key < second.key) {
      second = other;
    }
  }
  __device__ void pop() {
    first = second;
    second = kNoCandidate;
  }
  __device__ void leave_out(uint32_t slot) {
    if (second.slot == slot) second = kNoCandidate;
    if (first.slot == slot) pop();
  }
};

// Turns the candidates of a warp into the lowest of them; true in the lane that
// brought it. Called by the whole warp.
__device__ inline bool take_lowest(Candidate &candidate) {
  const uint32_t score = static_cast<uint32_t>(candidate.key >> 32);
  const uint32_t least = __reduce_min_sync(kAllLanes, score);
  const uint32_t position = static_cast<uint32_t>(candidate.key);
  const uint32_t lowest =
      __reduce_min_sync(kAllLanes, score == least ? position : ~0u);
  const bool is_mine = score == least && position == lowest;
  const uint32_t slot =
      __reduce_min_sync(kAllLanes, is_mine ? candidate.slot : ~0u);
  candidate = {static_cast<uint64_t>(least) << 32 | lowest, slot};
  return is_mine;
}

// Keeps the lowest of a warp, in order. Called by the whole warp.
__device__ inline void keep_lowest(Lowest mine, Candidate *kept) {
#pragma unroll
  for (uint32_t i = 0; i < kWarpCandidates; i++) {
    Candidate lowest = mine.first;
    if (take_lowest(lowest)) mine.pop();
    if (lane_id() == 0) kept[i] = lowest;
  }
}

// Leaves the lowest of what the warps of a block kept, and of the slot that
// took the victim in, as it is now. Called by one warp.
__device__ inline void leave_shortlist(const Candidate (*kept)[kWarpCandidates],
                                       uint32_t warps, const Candidate &merged,
                                       uint32_t *slots, uint32_t count) {
  // A lane goes through what one warp kept; the one behind them has \`merged\`.
  const Candidate *mine = kept[min(lane_id(), warps - 1)];
  uint32_t taken = 0;
  uint32_t slot = ~0u;
#pragma unroll 1
  for (uint32_t i = 0; i < count; i++) {
    Candidate lowest = kNoCandidate;
    if (lane_id() < warps) {
      if (taken < kWarpCandidates && mine[taken].slot == merged.slot) taken++;
      if (taken < kWarpCandidates) lowest = mine[taken];
    } else if (lane_id() == warps && taken == 0) {
      lowest = merged;
    }
    if (take_lowest(lowest)) taken++;
    if (lane_id() == i) slot = lowest.slot;
  }
  if (lane_id() < count) slots[lane_id()] = slot;
}
`,
  "lib/slot_copies.cuh": `// Slots on their way to the tiles of a warp in shared memory.
#pragma once

#include "attend_shape.cuh"

// 16 bytes of a key and those of its value, for each lane: the same columns of
// every line that it copies.
template <class Shape>
struct SlotCopies {
  static constexpr int kDim = Shape::kDim;
  static constexpr uint32_t kChunks = kDim / 8;
  // Lines that a warp copies at a time.
  static constexpr uint32_t kLines = 32 / kChunks;
  static constexpr uint32_t kMiddle = kWarpSlots / 2;

  // Of the next tile: in its middle, from where instructions reach all lines.
  const skv_cached *keys;
  const skv_cached *values;
  // Of all lines; a constant where heads have all dimensions that there is room
  // for, so that addresses of lines are one address and constants.
  uint32_t given_dim;

  // Begins with the tile whose first slot is \`first\`.
  __device__ void init(const skv_merge_attend_args &args, const HeadJob &job,
                       uint32_t first) {
    given_dim = args.sizes.head_dim;
    const uint32_t slot = job.offset + first + kMiddle + line();
    const size_t at = static_cast<size_t>(slot) * head_dim() + column();
    keys = args.cache.slots.keys + at;
    values = args.cache.slots.values + at;
  }

  __device__ uint32_t head_dim() const {
    return Shape::kIsExact ? kDim : given_dim;
  }
  // Of the lines that are copied together.
  __device__ static uint32_t line() { return lane_id() / kChunks; }
  __device__ static uint32_t column() { return lane_id() % kChunks * 8; }

  // Zeros where it is not wanted, and beyond the end of a line.
  __device__ void copy_chunk(skv_cached *to, const skv_cached *from,
                             bool wanted) const {
    if (Shape::kIsExact || head_dim() % 8 == 0) {
      copy_async(to, from,
                 wanted && (Shape::kIsExact || column() < head_dim()));
      return;
    }
    uint32_t pairs[4] = {};
    if (wanted) {
      load_pairs<8, false>(pairs, from - column(), column(), head_dim());
    }
    *reinterpret_cast<uint4 *>(to) = {pairs[0], pairs[1], pairs[2], pairs[3]};
  }

  // Starts to copy the slots from \`first\` on, at this lane's first line of a
  // tile: zeros from \`end\` on, and nothing for slot \`missing\`. WHOLE: there is
  // neither.
  template <bool WHOLE>
  __device__ void copy_lines(uint32_t first, uint32_t end, uint32_t missing,
                             skv_cached *to) const {
#pragma unroll
    for (uint32_t c = 0; c < kWarpSlots; c += kLines) {
      const uint32_t slot = first + line() + c;
      if (!WHOLE && slot == missing) continue;
      const bool wanted = WHOLE || slot < end;
      const int from =
          static_cast<int>(c - kMiddle) * static_cast<int>(head_dim());
      skv_cached *at = to + c * kLinePitch<kDim>;
      copy_chunk(at, keys + from, wanted);
      copy_chunk(at + kWarpSlots * kLinePitch<kDim>, values + from, wanted);
    }
  }

  // Starts to copy a tile, and turns to the warp's next.
  __device__ void copy_tile(uint32_t first, uint32_t end, skv_cached *to) {
    if (first + kWarpSlots <= end) {
      copy_lines<true>(first, end, kNoSlot, to);
    } else if (first < end) {
      copy_lines<false>(first, end, kNoSlot, to);
    }
    advance();
  }

  // The same for a tile that may have slot \`missing\`. Nothing is copied from
  // \`end\` on, not even zeros: nobody waits for those, and what the block finds
  // goes where the tiles were.
  __device__ void copy_tile_but(uint32_t missing, uint32_t first, uint32_t end,
                                skv_cached *to) {
    if (first < end && missing - first < kWarpSlots) {
      copy_lines<false>(first, end, missing, to);
      advance();
    } else {
      copy_tile(first, end, to);
    }
  }

  __device__ void advance() {
    keys += kBlockSlots * head_dim();
    values += kBlockSlots * head_dim();
  }

  // Starts to copy one slot to its line.
  __device__ static void copy_slot(const skv_merge_attend_args &args,
                                   const HeadJob &job, uint32_t slot,
                                   skv_cached *to) {
    if (line() != 0) return;
    SlotCopies only;
    only.init(args, job, slot - kMiddle);
    to += column();
    only.copy_chunk(to, only.keys, true);
    only.copy_chunk(to + kWarpSlots * kLinePitch<kDim>, only.values, true);
  }
};
`,
  "lib/slot_reader.cuh": `// The slots of a head on their way to the policy, one ahead of another.
#pragma once

#include "evict_job.cuh"

// What is read of a slot that a row observes.
struct Seen {
  uint32_t tokens;
  uint32_t position;
  Scores scores;
  // The first, or only, vote bias.
  float bias;
  // Of the first query heads, where there is a row.
  float logits[kRowHeads];
};

// Reads it: of slot i of a head, by its number alone.
struct SlotReader {
  const float *ema;
  const float *accumulated;
  const float *observations;
  const float *positions;
  const float *tokens;
  const float *biases;
  const float *logits[kRowHeads];

  __device__ SlotReader(const skv_merge_attend_args &args,
                        const EvictJob &job) {
    const skv_slots &slots = args.cache.slots;
    const auto field = [&](uint32_t number) {
      return slots.side + static_cast<size_t>(number) * slots.total +
             job.offset;
    };
    ema = field(kSlotEma);
    accumulated = field(kSlotAccumulated);
    observations = field(kSlotObservations);
    positions = field(kSlotPosition);
    tokens = field(kSlotTokens);
    biases = field(kSlotBias);
#pragma unroll
    for (uint32_t k = 0; k < kRowHeads; k++) {
      logits[k] = head_logits(args, job, min(k, job.group - 1));
    }
  }

  __device__ static const float *head_logits(const skv_merge_attend_args &args,
                                             const EvictJob &job, uint32_t g) {
    return job.logits + static_cast<size_t>(g) * args.cache.max_capacity;
  }

  __device__ Seen read(uint32_t i, bool has_row) const {
    Seen seen = {__float_as_uint(tokens[i]),
                 __float_as_uint(positions[i]),
                 {ema[i], accumulated[i], __float_as_uint(observations[i])},
                 biases[i],
                 {}};
    if (has_row) {
#pragma unroll
      for (uint32_t k = 0; k < kRowHeads; k++) seen.logits[k] = logits[k][i];
    }
    return seen;
  }
};

// Adds the row to what was seen of slot i.
__device__ inline void observe_seen(const skv_merge_attend_args &args,
                                    const EvictJob &job, uint32_t i, float gain,
                                    const float *log_sums, Seen &seen) {
  const uint32_t lanes = args.cache.lanes;
  observe_row(
      seen.scores, args.policy, job.group, job.position,
      [&](uint32_t first, auto &logits, auto &biases) {
        // Nearly always this is all.
        if (first == 0 && lanes == 1) {
#pragma unroll
          for (uint32_t k = 0; k < kRowHeads; k++) {
            logits[k] = gain * seen.logits[k];
            biases[k] = gain * seen.bias;
          }
          return;
        }
#pragma unroll
        for (uint32_t k = 0; k < kRowHeads; k++) {
          const uint32_t g = min(first + k, job.group - 1);
          logits[k] = gain * SlotReader::head_logits(args, job, g)[i];
          biases[k] = gain * vote_bias(job.slot(args, i), g, lanes);
        }
      },
      [&](uint32_t g) { return log_sums[g]; });
}
`,
  "lib/slot_sides.cuh": `// Side fields of the slots of tiles.
#pragma once

#include "attend_shape.cuh"

// Those of a lane's slots, g and g + 8 of the tile.
template <int TILES>
struct TileSides {
  // Votes on behalf of head 4u + t; slots beyond the end look free.
  float bias[TILES][2];
  // Where somebody asks.
  uint32_t position[2];
};

// Where a lane finds them.
template <int TILES>
struct SlotSides {
  // Of the next tile.
  const float *biases[TILES];
  const float *positions;
  bool asks;

  // Begins with the tile whose first slot is \`first\`. \`asks\`: for positions.
  __device__ void init(const skv_merge_attend_args &args, const HeadJob &job,
                       uint32_t first, bool asks) {
    const skv_slots &slots = args.cache.slots;
    const uint32_t g = lane_id() / 4, t = lane_id() % 4;
    const float *at = slots.side + job.offset + first + g;
#pragma unroll
    for (int u = 0; u < TILES; u++) {
      const uint32_t head = min(kColumnHeads * u + t, job.heads - 1);
      const uint32_t lane = args.cache.lanes == 1 ? 0 : job.first_head + head;
      biases[u] = at + static_cast<size_t>(kSlotBias + lane) * slots.total;
    }
    positions = at + static_cast<size_t>(kSlotPosition) * slots.total;
    this->asks = asks;
  }

  __device__ TileSides<TILES> load(uint32_t first, uint32_t end) const {
    TileSides<TILES> sides;
#pragma unroll
    for (int k = 0; k < 2; k++) {
      const bool is_there = first + lane_id() / 4 + 8 * k < end;
#pragma unroll
      for (int u = 0; u < TILES; u++) {
        sides.bias[u][k] = is_there ? biases[u][8 * k] : kFreeBias;
      }
      sides.position[k] =
          is_there && asks ? __float_as_uint(positions[8 * k]) : ~0u;
    }
    return sides;
  }

  // Turns to the warp's next tile.
  __device__ void advance() {
#pragma unroll
    for (int u = 0; u < TILES; u++) biases[u] += kBlockSlots;
    positions += kBlockSlots;
  }
};
`,
  "lib/slots.cuh": `// Slots, their side fields and the head table: see SlotField and HeadWord in
// src/backends/backend.ts.
//
// All reads are ordinary loads: kernels that merge change slots while other
// warps of the block read them later on.
#pragma once

#include <stdint.h>

#include "cached.cuh"
#include "reduce.cuh"

enum HeadWord {
  kHeadOffset = 0,
  kHeadCapacity = 1,
  kHeadBudget = 2,
  kHeadRecent = 3,
  kHeadLive = 4,
  kHeadNext = 5,
  kHeadHigh = 6,
  kHeadMerged = 7,
  kHeadDropped = 8,
  kHeadDroppedTokens = 9,
  kHeadGuarded = 10,
  kHeadDivergence = 11,
  kHeadThreshold = 12,
  kHeadSpread = 13,
  kHeadWords = 16
};

enum SlotField {
  kSlotEma = 0,
  kSlotAccumulated = 1,
  kSlotObservations = 2,
  kSlotPosition = 3,
  kSlotTokens = 4,
  kSlotValueNorm = 5,
  kSlotBias = 6
};

// Fields after the vote biases: see PartnerField in src/backends/backend.ts.
enum PartnerField { kPartnerSlot = 0, kPartnerDistance = 1 };

constexpr float kFreeBias = -1e30f;
constexpr float kLogZero = -1e30f;

// Biases below this are those of free slots: ln votes are nowhere near.
constexpr float kLiveBias = -1e29f;

// Most query heads that share a KV head, and thus vote lanes.
constexpr uint32_t kMaxGroup = 16;

// Dimensions of a head that one lane holds, and the widest head.
constexpr int kLaneDims = 8;
constexpr uint32_t kMaxHeadDim = 32 * kLaneDims;

// Words of a (sequence, KV head) of the layer.
__device__ inline uint32_t *head_words(const skv_cache &cache,
                                       const skv_sizes &sizes,
                                       uint32_t sequence, uint32_t kv_head) {
  const uint32_t head =
      (cache.layer * cache.sequences + sequence) * sizes.kv_heads + kv_head;
  return cache.table + static_cast<size_t>(head) * kHeadWords;
}

// One slot of the cache or of the stage.
struct Slot {
  skv_cached *key;
  skv_cached *value;
  float *side;
  uint32_t total;

  __device__ float get(uint32_t field) const {
    return side[static_cast<size_t>(field) * total];
  }
  __device__ void set(uint32_t field, float x) const {
    side[static_cast<size_t>(field) * total] = x;
  }
  __device__ uint32_t word(uint32_t field) const {
    return __float_as_uint(get(field));
  }
  __device__ void set_word(uint32_t field, uint32_t x) const {
    set(field, __uint_as_float(x));
  }
};

// Slot \`index\`, counted from the first of all heads.
__device__ inline Slot slot_at(const skv_slots &slots, uint32_t index,
                               uint32_t head_dim) {
  const size_t at = static_cast<size_t>(index) * head_dim;
  return {slots.keys + at, slots.values + at, slots.side + index, slots.total};
}

// Makes a slot hold one token that nobody observed.
__device__ inline void initialise_slot(const Slot &slot, uint32_t position,
                                       uint32_t lanes) {
  slot.set(kSlotEma, kLogZero);
  slot.set(kSlotAccumulated, 0.0f);
  slot.set_word(kSlotObservations, 0);
  slot.set_word(kSlotPosition, position);
  slot.set_word(kSlotTokens, 1);
  slot.set(kSlotValueNorm, 0.0f);
  for (uint32_t lane = 0; lane < lanes; lane++) {
    slot.set(kSlotBias + lane, 0.0f);
  }
}

// One more than the index in its head of the partner that a slot remembers, or
// 0 for none.
__device__ inline uint32_t partner_word(const Slot &slot, uint32_t lanes) {
  return slot.word(kSlotBias + lanes + kPartnerSlot);
}

// How far away that is.
__device__ inline float partner_distance(const Slot &slot, uint32_t lanes) {
  return slot.get(kSlotBias + lanes + kPartnerDistance);
}

// Makes a slot remember a partner.
__device__ inline void set_partner(const Slot &slot, uint32_t lanes,
                                   uint32_t word, float distance) {
  slot.set_word(kSlotBias + lanes + kPartnerSlot, word);
  slot.set(kSlotBias + lanes + kPartnerDistance, distance);
}

__device__ inline void forget_partner(const Slot &slot, uint32_t lanes) {
  set_partner(slot, lanes, 0, 0.0f);
}

// Frees a slot.
__device__ inline void free_slot(const Slot &slot, uint32_t lanes) {
  slot.set_word(kSlotTokens, 0);
  for (uint32_t lane = 0; lane < lanes; lane++) {
    slot.set(kSlotBias + lane, kFreeBias);
  }
}
`,
  "lib/softmax_state.cuh": `// Softmax over a stream of logits: running maximum and sum; the weighted value
// is kept by the kernel in whatever layout suits it and scaled alongside. Two
// states over disjoint parts merge into the state over both.
#pragma once

// A state may use any reference instead of the true maximum: what counts is
// max + ln(sum). Attention has its logits in units of ln 2, and a reference
// that is lower than the largest by kHeadroomBits, so that weights reach 2^14
// and those of 2^-24 of the largest still are normal halves.
constexpr float kHeadroomBits = 14.0f;

// ln to log2 and back.
constexpr float kLog2E = 1.442695041f;
constexpr float kLn2 = 0.6931471806f;

// e^x, with a relative error of 2^-22 and what x is rounded by.
__device__ inline float exp_fast(float x) { return exp2_fast(x * kLog2E); }

struct SoftmaxState {
  float max;
  float sum;
};

__device__ inline SoftmaxState init_softmax() { return {-INFINITY, 0.0f}; }

// What a sum with reference \`from\` has to be scaled by to have \`to\`.
__device__ inline float softmax_scale(float from, float to) {
  return from == -INFINITY ? 0.0f : exp_fast(from - to);
}

// The same for many that have one reference: exp(from - finite(to)).
__device__ inline float finite(float to) { return to == -INFINITY ? 0.0f : to; }

// What is not a number makes the sum that, too.
__device__ inline void add_softmax(SoftmaxState &state, float logit) {
  if (logit == -INFINITY) return;
  const float max = fmaxf(state.max, logit);
  state.sum = state.sum * softmax_scale(state.max, max) + exp_fast(logit - max);
  state.max = max;
}

__device__ inline SoftmaxState merge_softmax(SoftmaxState a, SoftmaxState b) {
  const float max = fmaxf(a.max, b.max);
  return {max, a.sum * softmax_scale(a.max, max) +
                   b.sum * softmax_scale(b.max, max)};
}

// ln of the softmax sum.
__device__ inline float log_sum(SoftmaxState state) {
  return state.max + logf(state.sum);
}

// The same of a state in units of ln 2.
__device__ inline float log_sum_of_bits(SoftmaxState state) {
  return kLn2 * state.max + logf(state.sum);
}

// The state over all lanes of a warp, in every lane.
__device__ inline SoftmaxState warp_softmax(SoftmaxState state) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    const SoftmaxState other = {__shfl_xor_sync(~0u, state.max, offset),
                                __shfl_xor_sync(~0u, state.sum, offset)};
    state = merge_softmax(state, other);
  }
  return state;
}
`,
  "lib/statistics.cuh": `// Where the statistics of query heads are: see queryStatisticsLayout in
// src/backends/backend.ts.
#pragma once

#include <stdint.h>

#include "../steadykv.h"

// The statistics of one query head.
struct QueryStatistics {
  float *own;
  uint32_t head_dim;

  // Mean of the unrotated queries, and how far they scatter, per RoPE pair.
  __device__ float *mean() const { return own; }
  __device__ float *scatter() const { return own + head_dim; }
  // Mean of the queries that are expected, and their variance, per RoPE pair.
  __device__ float *future() const { return own + head_dim / 2 * 3; }
  __device__ float *variance() const { return own + head_dim / 2 * 5; }
  // Queries that were counted.
  __device__ float *count() const { return own + head_dim * 3; }
};

__device__ inline QueryStatistics statistics_of(const skv_cache &cache,
                                                const skv_sizes &sizes,
                                                uint32_t sequence,
                                                uint32_t head) {
  const size_t index = static_cast<size_t>(sequence) * sizes.heads + head;
  return {cache.statistics + index * (3 * sizes.head_dim + 1), sizes.head_dim};
}
`,
  "lib/step.cuh": `// The rows that a program works on: see Step, ChunkWord and StateWord in
// src/backends/backend.ts.
#pragma once

#include <stdint.h>

#include "../steadykv.h"

enum ChunkWord {
  kChunkSequence = 0,
  kChunkRows = 1,
  kChunkPosition = 2,
  kChunkGuests = 3
};

enum StateWord {
  kStatePosition = 0,
  kStateFinished = 1,
  kStateProduced = 2,
  kStateLimit = 3,
  kStateSeedLow = 4,
  kStateSeedHigh = 5,
  kStateWords = 8
};

struct Row {
  bool live;
  // Live, or a guest, which goes through the layers but is no part of the text.
  bool forwarded;
  uint32_t sequence;
  uint32_t position;
};

// A row of the step. Rows beyond those recorded are not live.
__device__ inline Row row_of(const skv_step &step, uint32_t row) {
  if (row >= step.rows) return {false, false, 0, 0};
  if (step.kind == SKV_PREFILL) {
    const uint32_t rows = step.chunk[kChunkRows];
    return {row < rows, row < rows + step.chunk[kChunkGuests],
            step.chunk[kChunkSequence], step.chunk[kChunkPosition] + row};
  }
  const uint32_t *state = step.state + row * kStateWords;
  const bool live = state[kStateFinished] == 0;
  return {live, live, row, state[kStatePosition]};
}

// Rows from 0 that may be live: all of a decode step, those of the chunk in a
// prefill step.
__device__ inline uint32_t row_end(const skv_step &step) {
  return step.kind == SKV_PREFILL ? min(step.rows, step.chunk[kChunkRows])
                                  : step.rows;
}

// The same with the guests of a chunk.
__device__ inline uint32_t forward_end(const skv_step &step) {
  if (step.kind != SKV_PREFILL) return step.rows;
  return min(step.rows, step.chunk[kChunkRows] + step.chunk[kChunkGuests]);
}
`,
  "lib/stream_product.cuh": `// Products of one row of activations with a large weight matrix: each weight is
// read once and passes through shared memory.
//
// One block per multiprocessor makes an equal share of the outputs. Each lane
// copies and multiplies weights of its own, 16 bytes of four rows at a time,
// kRing such loads ahead: lanes wait for nobody but memory. A lane keeps its
// part of the activations in registers, and sums wait in shared memory until
// kBatch groups of outputs are there, and are then finished by all threads at
// once.
//
// An RMS norm scales the whole row by one number, which is a factor of every
// product: Σ w·(x·n) first, then times 1 / rms(x).
//
// The alternatives that lost, for the shape of Llama 3.1 8B on an H200, where
// this one takes a step of 4.10 ms: weights straight to registers, 4.59 ms;
// half the ring, so that the next product's blocks fit beside this one's and
// fill theirs, 5.46 ms with equal rings, because some multiprocessors get two
// blocks and others none, and 4.27 ms with unequal ones, which prevents that;
// batches of outputs that blocks take as they get on, 5.46 ms; sixteen
// warps, 4.72 ms; asking for the next product's first weights to come to the
// second-level cache when a block has none left to load, 4.58 ms, because that
// holds up the others.
#pragma once

#include <type_traits>

#include "overlap.cuh"
#include "weight_stream.cuh"

// Groups of outputs that a warp makes between two barriers.
constexpr uint32_t kBatch = 16;

struct StreamShared {
  // Two batches: one is finished while the next is made.
  float sums[2][kStreamWarps][kBatch][kStreamOutputs];
  float squares[kStreamWarps];
};

// Eight activations, normed but for the length of the row, and the sum of their
// squares before that.
__device__ inline void load_row(float (&x)[8], const Product &product,
                                const float *row, uint32_t column,
                                float &squares) {
  if (product.weight.columns % 8 == 0) {
    load_normed<true>(x, product, row, column, squares);
  } else {
    load_normed<false>(x, product, row, column, squares);
  }
}

// The sum of output \`lane / 8\` over all lanes, in the lanes of that output.
__device__ inline float sum_of_lanes(const float (&sums)[kStreamOutputs]) {
  static_assert(kStreamOutputs == 4, "two bits of a lane name the output");
  const bool upper = (lane_id() & 16) != 0, odd = (lane_id() & 8) != 0;
  float a = upper ? sums[2] : sums[0], b = upper ? sums[3] : sums[1];
  a += __shfl_xor_sync(kAllLanes, upper ? sums[0] : sums[2], 16);
  b += __shfl_xor_sync(kAllLanes, upper ? sums[1] : sums[3], 16);
  float sum = odd ? b : a;
  sum += __shfl_xor_sync(kAllLanes, odd ? a : b, 8);
#pragma unroll
  for (int offset = 4; offset > 0; offset /= 2) {
    sum += __shfl_xor_sync(kAllLanes, sum, offset);
  }
  return sum;
}

// HELD: loads whose activations a lane keeps; those of wider rows are read
// again for every group. The ring has \`slots\` places, kRing or as many as
// a warp has loads.
template <class Pairs, uint32_t HELD>
__global__ void __launch_bounds__(kStreamThreads, 2)
    stream_product_kernel(Product product, Pairs pairs, StreamPlan plan,
                          uint32_t slots) {
  __shared__ StreamShared shared;
  let_next_start();
  if (!product.is_wanted(0)) {
    wait_for_previous();
    return;
  }
  const uint32_t count = pairs_of(product.weight);
  const GroupShare share = share_of_block((count + 1) / 2);
  const uint32_t part = warp_id() % plan.parts, row = warp_id() / plan.parts;
  skv_half *const ring = reinterpret_cast<skv_half *>(dynamic_shared_memory()) +
                         warp_id() * slots * kSlotHalves + 8 * lane_id();
  WeightStream<Pairs> stream(product, pairs, plan, share, ring);
#pragma unroll 1
  for (uint32_t i = 0; i < kRing; i++) stream.fetch(i);

  // The pair of a batch that this thread finishes: what that takes is on its
  // way before the products are there.
  const uint32_t end = min(2 * share.end, count);
  const auto pair_of = [&](uint32_t batch) {
    return threadIdx.x < 2 * kBatch * plan.rows()
               ? 2 * (share.begin + batch * kBatch * plan.rows()) + threadIdx.x
               : end;
  };
  typename Pairs::Held held = {};
  if (pair_of(0) < end) held = pairs.hold(0, pair_of(0));
  wait_for_previous();

  const float *const from = product.row(0);
  const uint32_t first = 8 * (32 * part + lane_id());
  const uint32_t stride = plan.parts * 256;
  float x[HELD][8];
  float squares = 0.0f;
#pragma unroll
  for (uint32_t i = 0; i < HELD; i++) {
    load_row(x[i], product, from, first + i * stride, squares);
  }
  for (uint32_t i = HELD; i < plan.steps; i++) {
    float ignored[8];
    load_row(ignored, product, from, first + i * stride, squares);
  }
  squares = warp_sum(squares);
  if (lane_id() == 0) shared.squares[warp_id()] = squares;

  uint32_t slot = 0;
  // Takes the next weights out of the ring, and starts to load others.
  const auto take = [&](float(&sums)[kStreamOutputs], const float(&values)[8]) {
    wait_copies<kRing - 1>();
    const skv_half *weights = ring + slot * kSlotHalves;
#pragma unroll
    for (uint32_t o = 0; o < kStreamOutputs; o++) {
      add_eight(sums[o], *reinterpret_cast<const uint4 *>(weights + o * 256),
                values);
    }
    stream.fetch(slot);
    slot = slot + 1 == slots ? 0 : slot + 1;
  };
  uint32_t group = share.begin + row;
  for (uint32_t batch = 0;
       share.begin + batch * kBatch * plan.rows() < share.end; batch++) {
    float(&kept)[kStreamWarps][kBatch][kStreamOutputs] = shared.sums[batch % 2];
    for (uint32_t i = 0; i < kBatch && group < share.end; i++) {
      float sums[kStreamOutputs] = {};
#pragma unroll
      for (uint32_t k = 0; k < HELD; k++) {
        if (k < plan.steps) take(sums, x[k]);
      }
      for (uint32_t k = HELD; k < plan.steps; k++) {
        float values[8], ignored = 0.0f;
        load_row(values, product, from, first + k * stride, ignored);
        take(sums, values);
      }
      const float sum = sum_of_lanes(sums);
      if (lane_id() % 8 == 0) kept[warp_id()][i][lane_id() / 8] = sum;
      group += plan.rows();
    }
    __syncthreads();
    if (pair_of(batch) >= end) continue;
    const uint32_t local = threadIdx.x / 2;
    float2 sum = {};
    float norm = 0.0f;
    for (uint32_t p = 0; p < plan.parts; p++) {
      const uint32_t warp = local % plan.rows() * plan.parts + p;
      const float *ends = kept[warp][local / plan.rows()];
      sum.x += ends[threadIdx.x % 2 * 2];
      sum.y += ends[threadIdx.x % 2 * 2 + 1];
      norm += shared.squares[warp];
    }
    const float scale =
        product.norm == nullptr
            ? 1.0f
            : rsqrtf(norm / product.weight.columns + product.epsilon);
    pairs.finish(held, sum.x * scale, sum.y * scale);
    if (pair_of(batch + 1) < end) held = pairs.hold(0, pair_of(batch + 1));
  }
}

// Enough parts that lanes keep what they can of a row, and as few idle lanes as
// possible.
inline StreamPlan stream_plan(const Product &product, uint32_t held) {
  const uint32_t chunks = product.weight.pitch / 8;
  StreamPlan best = {};
  for (uint32_t parts = kStreamWarps; parts > 0; parts /= 2) {
    const uint32_t steps = (chunks + 32 * parts - 1) / (32 * parts);
    if (best.parts != 0 &&
        (steps > held || steps * parts >= best.steps * best.parts)) {
      continue;
    }
    best = {parts, steps};
  }
  return best;
}

template <class Pairs, uint32_t HELD>
inline cudaError_t launch_stream(const Product &product, const Pairs &pairs,
                                 const StreamPlan &plan, const Launch &launch) {
  const uint32_t groups = (pairs_of(product.weight) + 1) / 2;
  const uint32_t blocks = min(launch.multiprocessors, groups);
  const uint32_t most = (groups + blocks - 1) / blocks;
  const uint32_t loads = (most + plan.rows() - 1) / plan.rows() * plan.steps;
  const uint32_t slots = min(kRing, loads);
  const size_t bytes = size_t{kStreamWarps} * slots * kSlotHalves * 2;
  const auto kernel = stream_product_kernel<Pairs, HELD>;
  const cudaError_t status = allow_shared_memory(kernel, bytes);
  if (status != cudaSuccess) return status;
  return launch_kernel(launch, kernel, blocks, kStreamThreads, bytes, product,
                       pairs, plan, slots);
}

// Least bytes of a multiprocessor's share, in rings, and least columns. Smaller
// products are over before the ring has gone round, or add up more than they
// multiply: see lib/vector_product.cuh.
constexpr float kLeastRings = 1.5f;
constexpr uint32_t kLeastColumns = 2048;

inline bool is_streamed(const Product &product, const Launch &launch) {
  constexpr size_t kRingBytes = size_t{kStreamWarps} * kRing * kSlotHalves * 2;
  const skv_matrix &weight = product.weight;
  const float bytes =
      2.0f * static_cast<float>(weight.rows) * static_cast<float>(weight.pitch);
  return weight.columns >= kLeastColumns &&
         kRingBytes + sizeof(StreamShared) <= launch.shared_bytes &&
         bytes >= kLeastRings * kRingBytes * launch.multiprocessors;
}

template <class Pairs>
inline cudaError_t multiply_stream(const Product &product, const Pairs &pairs,
                                   const Launch &launch) {
  constexpr uint32_t kMostHeld = 8;
  const StreamPlan plan = stream_plan(product, kMostHeld);
  const auto run = [&](auto held) {
    return launch_stream<Pairs, decltype(held)::value>(product, pairs, plan,
                                                       launch);
  };
  if (plan.steps <= 2) return run(std::integral_constant<uint32_t, 2>());
  if (plan.steps <= 3) return run(std::integral_constant<uint32_t, 3>());
  if (plan.steps <= 5) return run(std::integral_constant<uint32_t, 5>());
  return run(std::integral_constant<uint32_t, kMostHeld>());
}
`,
  "lib/survey_logits.cuh": `// The first look at the logits of a sequence: the most likely id and the
// softmax sum. Ends the step where nothing is drawn.
#pragma once

#include "sampling.cuh"

// The better of two parts, and the softmax state of both.
__device__ inline void add_part(SamplePart &sum, const SamplePart &part) {
  const SoftmaxState state =
      merge_softmax({sum.max, sum.sum}, {part.max, part.sum});
  sum.max = state.max;
  sum.sum = state.sum;
  if (part.key >= sum.key) return;
  sum.key = part.key;
  sum.raw = part.raw;
  sum.changed = part.changed;
}

// The part of all lanes, in the first lane.
__device__ inline SamplePart part_of_lanes(SamplePart mine) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    SamplePart other;
    other.key = __shfl_down_sync(
        kAllLanes, static_cast<unsigned long long>(mine.key), offset);
    other.raw = __shfl_down_sync(kAllLanes, mine.raw, offset);
    other.changed = __shfl_down_sync(kAllLanes, mine.changed, offset);
    other.max = __shfl_down_sync(kAllLanes, mine.max, offset);
    other.sum = __shfl_down_sync(kAllLanes, mine.sum, offset);
    add_part(mine, other);
  }
  return mine;
}

__device__ inline SamplePart no_part() {
  return {kNoKey, 0.0f, 0.0f, -INFINITY, 0.0f};
}

// What is left to do once the most likely id is known.
__device__ inline SamplePlan plan_of(const SampleRow &row,
                                     const SamplePart &all) {
  SamplePlan plan = {};
  plan.best = static_cast<uint32_t>(all.key);
  plan.max = all.changed;
  plan.log_sum = log_sum({all.max, all.sum});
  plan.draws = 1;
  plan.filters = row.has_top_k() || row.has_top_p();
  plan.begin = plan.end = static_cast<uint64_t>(row.least_rank()) + 1;
  return plan;
}

// The most likely id, ties to the lowest, and the softmax sum of all.
__global__ void __launch_bounds__(kSampleThreads)
    survey_kernel(skv_sample_args args, SampleWork work) {
  __shared__ SamplePart warps[kSampleWarps];
  let_next_start();
  const SampleRow row(args);
  if (!row.live) {
    wait_for_previous();
    if (blockIdx.x == 0 && threadIdx.x == 0) work.plans[blockIdx.y].draws = 0;
    return;
  }
  const Output output(args, row);
  const float temperature = row.option(kTemperature);
  const bool is_forced = output.forced < row.vocabulary;
  const bool draws = !is_forced && temperature != 0.0f;
  wait_for_previous();
  SamplePart mine = no_part();
  for_each_id(row, work, [&](uint32_t id) {
    const float raw = row.raw[id];
    const float logit = row.changed(id, raw);
    add_part(mine, {order_key(-logit, id), raw, logit, raw,
                    raw == -INFINITY ? 0.0f : 1.0f});
  });
  if (draws) {
    if (blockIdx.x == 0 && threadIdx.x == 0) work.listed[blockIdx.y] = 0;
    const size_t first = static_cast<size_t>(blockIdx.y) * kBuckets;
    for (uint32_t i = blockIdx.x * kSampleThreads + threadIdx.x; i < kBuckets;
         i += gridDim.x * kSampleThreads) {
      work.counts[first + i] = 0;
      work.weights[first + i] = 0;
    }
  }
  mine = part_of_lanes(mine);
  if (lane_id() == 0) warps[warp_id()] = mine;
  __syncthreads();
  if (warp_id() != 0) return;
  mine = part_of_lanes(lane_id() < kSampleWarps ? warps[lane_id()] : no_part());
  SamplePart *parts =
      work.parts + static_cast<size_t>(blockIdx.y) * work.blocks;
  bool last = work.blocks == 1;
  if (!last) {
    if (lane_id() == 0) {
      parts[blockIdx.x] = mine;
      __threadfence();
      last = is_last_block(work);
    }
    // An exchange does not order memory: what the first lane wrote is seen by
    // the others from here on.
    __syncwarp();
    last = __shfl_sync(kAllLanes, last ? 1 : 0, 0) != 0;
    if (!last) return;
    __threadfence();
    mine = no_part();
    for (uint32_t b = lane_id(); b < work.blocks; b += 32) {
      SamplePart part;
      const auto *from = reinterpret_cast<const uint2 *>(parts + b);
      const uint2 key = __ldcg(from), logits = __ldcg(from + 1),
                  state = __ldcg(from + 2);
      part.key = static_cast<uint64_t>(key.y) << 32 | key.x;
      part.raw = __uint_as_float(logits.x);
      part.changed = __uint_as_float(logits.y);
      part.max = __uint_as_float(state.x);
      part.sum = __uint_as_float(state.y);
      add_part(mine, part);
    }
    mine = part_of_lanes(mine);
  }
  if (lane_id() != 0) return;
  SamplePlan plan = plan_of(row, mine);
  plan.draws = draws;
  work.plans[blockIdx.y] = plan;
  if (draws) return;
  const float raw = is_forced ? row.raw[output.forced] : mine.raw;
  finish_row(args, row, output, is_forced ? output.forced : plan.best,
             raw - plan.log_sum);
}
`,
  "lib/tile_cursor.cuh": `// The tiles of a warp in shared memory.
#pragma once

#include "attend_shape.cuh"

// One of them, where a lane reads and writes it. Addresses go from tile to
// tile: what is computed from the number of the lane for each of them takes 20
// instructions of 170.
template <int DIM>
struct TileCursor {
  // Its row of left operands: slots of keys, dimensions of values.
  const skv_cached *keys;
  const skv_cached *values;
  // The first line that it copies.
  skv_cached *lines;
  uint32_t stage = 0;

  __device__ explicit TileCursor(skv_cached *tile) {
    const uint32_t lane = lane_id(), chunks = DIM / 8;
    keys = tile + lane % 16 * kLinePitch<DIM> + lane / 16 * 8;
    values = tile + (kWarpSlots + lane % 8 + lane / 16 * 8) * kLinePitch<DIM> +
             lane / 8 % 2 * 8;
    lines = tile + lane / chunks * kLinePitch<DIM> + lane % chunks * 8;
  }

  // Turns to the next tile; after the last to the first.
  __device__ void advance() {
    constexpr int kLast = kStages<DIM> - 1;
    const int by =
        stage == kLast ? -kLast * kTileElements<DIM> : kTileElements<DIM>;
    stage = stage == kLast ? 0 : stage + 1;
    keys += by;
    values += by;
    lines += by;
  }
};
`,
  "lib/tile_fetcher.cuh": `// How the steps of a block's tiles get to shared memory: see
// lib/matrix_product.cuh.
#pragma once

#include "half_rows.cuh"
#include "matrix_shape.cuh"
#include "tile_shares.cuh"

// Copies the steps of a block's tiles to shared memory, in order.
template <class Shape, class Pairs>
class TileFetcher {
 public:
  __device__ TileFetcher(const Product &product, const HalfRows &rows,
                         const Pairs &pairs, const TileShares &shares,
                         uint32_t row_tiles, uint32_t end)
      : product_(product),
        rows_(rows),
        pairs_(pairs),
        shares_(shares),
        row_tiles_(row_tiles),
        end_(end),
        cursor_(shares, blockIdx.x),
        left_(cursor_.left(shares)),
        chunk_(threadIdx.x % kStepChunks),
        line_(threadIdx.x / kStepChunks),
        place_(chunk_place(line_, chunk_)) {
    if (left_ > 0) turn();
  }

  // Steps that are not fetched yet.
  __device__ uint32_t left() const { return left_; }

  // Fetches the weights of the present step in the background.
  __device__ void fetch_weights(skv_half *stage) const {
    const uint32_t column = cursor_.step * kStepColumns + 8 * chunk_;
    const bool exists = column < product_.weight.pitch;
#pragma unroll
    for (uint32_t i = 0; i < kWeights; i++) {
      copy_async(stage + place_ + i * (kLines * kStepColumns),
                 weights_[i] + column, exists);
    }
  }

  // The same for the rows.
  __device__ void fetch_rows(skv_half *stage) const {
    const uint32_t column = cursor_.step * kStepColumns + 8 * chunk_;
    const bool is_column = column < product_.weight.pitch;
    const size_t first =
        static_cast<size_t>(row_) * product_.weight.pitch + column;
#pragma unroll
    for (uint32_t half = 0; half < Shape::kHalves; half++) {
      const skv_half *from = (half == 0 ? rows_.high : rows_.low) + first;
      skv_half *to =
          stage + place_ + (kTileOutputs + half * Shape::kRows) * kStepColumns;
#pragma unroll
      for (uint32_t i = 0; i < Shape::kRows; i += kLines) {
        if (Shape::kRows < kLines && line_ >= Shape::kRows) break;
        const bool exists = is_column && row_ + i < end_;
        copy_async(to + i * kStepColumns,
                   from + static_cast<size_t>(i) * product_.weight.pitch,
                   exists);
      }
    }
  }

  // Goes on to the next step.
  __device__ void advance() {
    left_--;
    const uint32_t before = cursor_.tile;
    cursor_.advance(shares_, blockIdx.x, 1);
    if (left_ > 0 && cursor_.tile != before) turn();
  }

 private:
  // Lines that the block copies at a time.
  static constexpr uint32_t kLines = kMatrixThreads / kStepChunks;
  static constexpr uint32_t kWeights = kTileOutputs / kLines;

  // Finds the weights and rows of the cursor's tile.
  __device__ void turn() {
    const skv_matrix &weight = product_.weight;
    const uint32_t count = pairs_of(weight);
    const uint32_t first = cursor_.tile / row_tiles_ * (kTileOutputs / 2);
#pragma unroll
    for (uint32_t i = 0; i < kWeights; i++) {
      const uint32_t line = line_ + i * kLines;
      const uint32_t pair = min(first + line / 16 * 8 + line % 8, count - 1);
      const uint32_t row =
          min(pairs_.output(pair, line / 8 % 2), weight.rows - 1);
      weights_[i] = weight.data + static_cast<size_t>(row) * weight.pitch;
    }
    row_ = cursor_.tile % row_tiles_ * Shape::kRows + line_;
  }

  const Product &product_;
  const HalfRows &rows_;
  const Pairs &pairs_;
  const TileShares &shares_;
  const uint32_t row_tiles_;
  const uint32_t end_;
  TileCursor cursor_;
  uint32_t left_;
  // What this thread copies: a chunk of some lines, and where the first goes.
  const uint32_t chunk_;
  const uint32_t line_;
  const uint32_t place_;
  const skv_half *weights_[kWeights];
  uint32_t row_;
};
`,
  "lib/tile_products.cuh": `// Products of a tile of keys with queries and riders.
#pragma once

#include "query_operands.cuh"
#include "riders.cuh"

// What a lane has of it, for slots g and g + 8 of the tile.
template <int TILES>
struct TileProducts {
  // Raw logits of head 4u + t.
  float logits[TILES][2];
  // Where there are riders: products with rider t, and the squared lengths of
  // the keys.
  float riders[2];
  float squares[2];
};

// Multiplies a tile of keys, at a lane's operands; RIDES: with riders as well.
template <bool RIDES, int DIM, int TILES>
__device__ inline TileProducts<TILES> multiply_keys(
    const skv_cached *keys, const QueryOperands<DIM, TILES> &queries,
    const LaneRiders<DIM> &riders) {
  // Products wait for those of the same sum: two of each where that is all.
  constexpr int kSums = RIDES ? 1 : 2;
  float x[kSums][TILES][4] = {}, rode[4] = {}, own[2][4] = {};
#pragma unroll
  for (int step = 0; step < DIM / 16; step++) {
    const uint4 k = load_matrices(keys + 16 * step);
#pragma unroll
    for (int u = 0; u < TILES; u++) {
      const uint2 q = queries.steps[u][step];
      mma_cached(x[step % kSums][u], k, q.x, q.y);
    }
    if constexpr (RIDES) {
      mma_cached(rode, k, riders.steps[step].x, riders.steps[step].y);
      // Squared lengths are on the diagonal of the products of keys with each
      // other: as right operands keys are in the registers that they are in on
      // the left. By halves, since whole operands are two registers in a row,
      // and moving them takes longer.
      mma_cached_half(own[0], k.x, k.y, k.x);
      mma_cached_half(own[1], k.x, k.y, k.y);
      mma_cached_half(own[0], k.z, k.w, k.z);
      mma_cached_half(own[1], k.z, k.w, k.w);
    }
  }
  TileProducts<TILES> products;
  const uint32_t g = lane_id() / 4;
#pragma unroll
  for (int k = 0; k < 2; k++) {
#pragma unroll
    for (int u = 0; u < TILES; u++) {
      float high = x[0][u][2 * k], low = x[0][u][2 * k + 1];
      if constexpr (kSums == 2) {
        high += x[1][u][2 * k], low += x[1][u][2 * k + 1];
      }
      products.logits[u][k] = (high + low) * queries.inverse[u];
    }
    if constexpr (RIDES) {
      products.riders[k] = rode[2 * k];
      // Slot g of eight is in row and column g of these.
      const float square = g % 2 == 0 ? own[k][2 * k] : own[k][2 * k + 1];
      products.squares[k] = __shfl_sync(kAllLanes, square, 4 * g + g / 2);
    }
  }
  return products;
}

// Logits with the queries for sinks. Few tiles have sinks, so these operands
// wait nowhere: they are read for each. As long as nothing was evicted both
// queries are the same, and so are the sums, added up in the same order.
template <int DIM, int TILES>
__device__ inline void multiply_sinks(const skv_merge_attend_args &args,
                                      const HeadJob &job,
                                      const skv_cached *keys,
                                      float (&logits)[TILES][2]) {
#pragma unroll
  for (int u = 0; u < TILES; u++) {
    const QueryColumn column = query_column(args, job, args.sink_queries, u);
    float largest = 0.0f;
#pragma unroll 4
    for (int i = 0; i < DIM / 8; i++) {
      largest = fmaxf(largest, largest_of(column.pair(i / 2, i % 2)));
    }
    const Scale scale = column.scale_of_lanes(largest);
    float x[2][4] = {};
#pragma unroll 2
    for (int step = 0; step < DIM / 16; step++) {
      const uint2 q =
          column.split(column.pair(step, 0), column.pair(step, 1), scale.scale);
      mma_cached(x[step % 2], load_matrices(keys + 16 * step), q.x, q.y);
    }
    const float inverse = column.inverse(scale);
#pragma unroll
    for (int k = 0; k < 2; k++) {
      const float high = x[0][2 * k] + x[1][2 * k];
      const float low = x[0][2 * k + 1] + x[1][2 * k + 1];
      logits[u][k] = (high + low) * inverse;
    }
  }
}
`,
  "lib/tile_shares.cuh": `// How the blocks of a product share its tiles: each gets the same number of
// steps, give or take one, whatever the number of tiles.
//
// Whole tiles go round as long as every block gets one. The steps of the tiles
// that are left over are cut into one run of steps per block, so such a tile
// has contributions of several blocks (Osama et al., "Stream-K", 2023, section
// 4.3, arXiv 2301.03598). Where few are left over, the tiles of another round
// are shared as well: more than a few contributions cost more than they save.
#pragma once

#include <stdint.h>

struct TileShares {
  uint32_t tiles;
  // Steps of a tile.
  uint32_t steps;
  uint32_t blocks;
  // Tiles from 0 that several blocks share: less than 5 / 4 of the blocks.
  uint32_t shared_tiles;
  // Shared steps that every block has; the first \`longer\` ones have one more.
  uint32_t least;
  uint32_t longer;

  __device__ TileShares(uint32_t tiles, uint32_t steps, uint32_t blocks)
      : tiles(tiles), steps(steps), blocks(blocks) {
    shared_tiles = tiles % blocks;
    if (tiles > blocks && 4 * shared_tiles < blocks && shared_tiles > 0) {
      shared_tiles += blocks;
    }
    least = shared_tiles * steps / blocks;
    longer = shared_tiles * steps % blocks;
  }

  // The first shared step of a block.
  __device__ uint32_t begin(uint32_t block) const {
    return block * least + min(block, longer);
  }
  // The block that has a shared step.
  __device__ uint32_t block_of(uint32_t step) const {
    const uint32_t boundary = longer * (least + 1);
    return step < boundary ? step / (least + 1)
                           : longer + (step - boundary) / least;
  }
};

// A place on a block's way through its steps: shared ones first, then those of
// whole tiles.
struct TileCursor {
  uint32_t tile;
  uint32_t step;
  // Shared steps from here on, with this one.
  uint32_t shared;

  __device__ TileCursor(const TileShares &shares, uint32_t block) {
    const uint32_t begin = shares.begin(block);
    shared = shares.begin(block + 1) - begin;
    tile = shared > 0 ? begin / shares.steps : shares.shared_tiles + block;
    step = shared > 0 ? begin % shares.steps : 0;
  }
  // Steps of the block from here on.
  __device__ uint32_t left(const TileShares &shares) const {
    return shared +
           (shares.tiles - shares.shared_tiles) / shares.blocks * shares.steps;
  }
  // Steps of the tile from here on.
  __device__ uint32_t run(const TileShares &shares) const {
    const uint32_t rest = shares.steps - step;
    return shared > 0 ? min(rest, shared) : rest;
  }
  // Goes on by some steps of the tile, at most all.
  __device__ void advance(const TileShares &shares, uint32_t block,
                          uint32_t steps) {
    step += steps;
    if (shared > 0) {
      shared -= steps;
      if (shared == 0) {
        tile = shares.shared_tiles + block;
        step = 0;
      } else if (step == shares.steps) {
        tile++;
        step = 0;
      }
    } else if (step == shares.steps) {
      tile += shares.blocks;
      step = 0;
    }
  }
};
`,
  "lib/tile_sums.cuh": `// What happens to the sums of a tile, once they are complete: see
// lib/matrix_product.cuh.
//
// The block that made a tile hands it over through shared memory, in a stage
// that has been used up: neighbouring threads then finish neighbouring pairs of
// one row, in a loop that is short enough for the instruction cache. Where
// blocks share a tile, they leave their parts in global memory, and the last
// one to come adds them up, always in the same order.
#pragma once

#include "half_rows.cuh"
#include "matrix_shape.cuh"
#include "tile_shares.cuh"

template <class Shape>
using WarpSums = float[Shape::kOutputTiles][Shape::kRowTiles][4];

// Parts that a block has room for: of the first tile that it shares, and of the
// last one.
constexpr uint32_t kPartSlots = 2;

// Memory through which blocks that share tiles add up.
struct TileSums {
  // (blocks, kPartSlots, rows, kTilePairs)
  float2 *parts;
  // (2 blocks): how many parts of a shared tile are there.
  uint32_t *tickets;
};

// Rows that the threads of a block finish at a time: one per pair.
constexpr uint32_t kFinishRows = kMatrixThreads / kTilePairs;

// Parts that are on their way to a thread at a time, of one sum.
constexpr uint32_t kPartLoads = 8;

// Where a pair of sums is: the four rows that lanes of a warp have in their
// registers are in different banks.
__device__ inline uint32_t sum_place(uint32_t row, uint32_t pair) {
  return row * kTilePairs + (pair ^ row / 2 % 4 * 4);
}

// Leaves a warp's sums of COUNT slices from \`first\` at \`to\`.
template <class Shape, int COUNT>
__device__ inline void store_sums(const WarpSums<Shape> &sums, int first,
                                  float2 *to) {
  const uint32_t row = warp_row<Shape>() + lane_id() % 4 * 2;
  const uint32_t pair = warp_output<Shape>() / 2 + lane_id() / 4;
#pragma unroll
  for (int r = 0; r < COUNT; r++) {
#pragma unroll
    for (int o = 0; o < Shape::kOutputTiles; o++) {
      const float(&from)[4] = sums[o][first + r];
#pragma unroll
      for (uint32_t i = 0; i < 2; i++) {
        to[sum_place(row + r * Shape::kSliceRows + i, pair + 8 * o)] = {
            from[i], from[2 + i]};
      }
    }
  }
}

// The parts of a tile, which blocks \`first\` to \`last\` make.
template <class Shape>
struct TileParts {
  const TileShares &shares;
  const TileSums &memory;
  uint32_t tile;
  uint32_t first;
  uint32_t last;
  // Which slot of block \`first\` has its part; the others begin in this tile.
  uint32_t first_slot;

  __device__ TileParts(const TileShares &shares, const TileSums &memory,
                       uint32_t tile)
      : shares(shares),
        memory(memory),
        tile(tile),
        first(blockIdx.x),
        last(blockIdx.x),
        first_slot(0) {
    if (tile >= shares.shared_tiles) return;
    const uint32_t begin = tile * shares.steps;
    first = shares.block_of(begin);
    last = shares.block_of(begin + shares.steps - 1);
    first_slot = shares.begin(first) < begin ? 1 : 0;
  }

  __device__ bool is_shared() const { return first != last; }

  // Where a block's part is.
  __device__ float2 *at(uint32_t block) const {
    const uint32_t slot = block == first ? first_slot : 0;
    return memory.parts +
           static_cast<size_t>(kPartSlots * block + slot) * Shape::kSums;
  }
  // Keeps this block's part. Whether all are there now: the last block to come
  // sees them.
  __device__ bool complete(const WarpSums<Shape> &sums) const {
    __shared__ bool is_last;
    store_sums<Shape, Shape::kRowTiles>(sums, 0, at(blockIdx.x));
    __syncthreads();
    if (threadIdx.x == 0) {
      is_last = add_released(memory.tickets + tile, 1) == last - first;
      if (is_last) memory.tickets[tile] = 0;
    }
    __syncthreads();
    return is_last;
  }
  // Adds up the pairs that this thread finishes of the rows from \`row\`, in the
  // order of the blocks. All loads of a round are on their way together.
  __device__ void add(uint32_t row, float2 *to) const {
    constexpr uint32_t kRounds = Shape::kPassRows / kFinishRows;
#pragma unroll 2
    for (uint32_t i = 0; i < kRounds; i++) {
      const uint32_t place = sum_place(
          threadIdx.x / kTilePairs + i * kFinishRows, threadIdx.x % kTilePairs);
      float2 sum = {};
      for (uint32_t block = first; block <= last; block += kPartLoads) {
        float2 parts[kPartLoads];
#pragma unroll
        for (uint32_t k = 0; k < kPartLoads; k++) {
          const float2 *from = at(min(block + k, last)) + row * kTilePairs;
          parts[k] = __ldcg(from + place);
        }
#pragma unroll
        for (uint32_t k = 0; k < kPartLoads; k++) {
          if (block + k > last) break;
          sum.x += parts[k].x, sum.y += parts[k].y;
        }
      }
      to[place] = sum;
    }
  }
};

// What the products of a tile's rows must be multiplied by, in shared memory:
// nothing that finishing needs is on its way by then.
template <class Shape>
struct RowFactors {
  // Negative for rows that are not wanted.
  float factors[Shape::kRows];

  __device__ void load(const Product &product, const HalfRows &rows,
                       uint32_t row_tile) {
    for (uint32_t i = threadIdx.x; i < Shape::kRows; i += kMatrixThreads) {
      const uint32_t row = row_tile * Shape::kRows + i;
      const float inverse = rows.inverse[min(row, product.rows - 1)];
      const bool is_wanted = row < product.rows && product.is_wanted(row);
      factors[i] = is_wanted ? inverse : -1.0f;
    }
  }
};

// Rows of a pair that a thread finishes at a time.
constexpr uint32_t kHeldRows = 2;

// Hands over the sums at \`from\`: those of a pass over a tile's rows.
template <class Shape, class Pairs>
__device__ inline void finish_rows(const Product &product, const Pairs &pairs,
                                   const float *factors, const float2 *from,
                                   uint32_t first_row, uint32_t first_pair) {
  const uint32_t pair = threadIdx.x % kTilePairs;
  if (first_pair + pair >= pairs_of(product.weight)) return;
  const uint32_t first = threadIdx.x / kTilePairs;
#pragma unroll 1
  for (uint32_t begin = first; begin < Shape::kPassRows;
       begin += kHeldRows * kFinishRows) {
    // What finishing takes is on its way for some rows at a time.
    float row_factors[kHeldRows];
    typename Pairs::Held held[kHeldRows];
#pragma unroll
    for (uint32_t i = 0; i < kHeldRows; i++) {
      const uint32_t row = begin + i * kFinishRows;
      row_factors[i] = row < Shape::kPassRows ? factors[row] : -1.0f;
      if (row_factors[i] < 0.0f) continue;
      held[i] = pairs.hold(first_row + row, first_pair + pair);
    }
#pragma unroll
    for (uint32_t i = 0; i < kHeldRows; i++) {
      if (row_factors[i] < 0.0f) continue;
      const float2 x = from[sum_place(begin + i * kFinishRows, pair)];
      pairs.finish(held[i], x.x * row_factors[i], x.y * row_factors[i]);
    }
  }
}

// Finishes a tile or leaves this block's part of it. Every thread of the block
// calls it; \`memory\` is a stage that the block does not need any more.
template <class Shape, class Pairs>
__device__ inline void finish_tile(const Product &product, const Pairs &pairs,
                                   const TileParts<Shape> &parts,
                                   const WarpSums<Shape> &sums,
                                   const RowFactors<Shape> &rows,
                                   uint32_t row_tiles, skv_half *memory) {
  if (parts.is_shared() && !parts.complete(sums)) return;
  float2 *const products = reinterpret_cast<float2 *>(memory);
  const uint32_t first_pair = parts.tile / row_tiles * kTilePairs;
  const uint32_t first_row = parts.tile % row_tiles * Shape::kRows;
#pragma unroll
  for (int pass = 0; pass < Shape::kPasses; pass++) {
    const uint32_t row = pass * Shape::kPassRows;
    if (parts.is_shared()) {
      parts.add(row, products);
    } else {
      if (pass > 0) __syncthreads();
      store_sums<Shape, Shape::kPassTiles>(sums, pass * Shape::kPassTiles,
                                           products);
      __syncthreads();
    }
    finish_rows<Shape>(product, pairs, rows.factors + row, products,
                       first_row + row, first_pair);
  }
}
`,
  "lib/value_spread.cuh": `// How far the values of a head scatter: their mean squared distance from their
// mean, every slot counted once.
//
// Blocks share the slots: each leaves how many it had, their mean and the sum
// of their squared distances from that, and who needs the whole joins these. A
// sum of squares would lose what scatters little about a mean far from 0. The
// alternative that lost: one block per head, which waits for memory most of the
// time.
#pragma once

#include "select_smallest.cuh"
#include "slots.cuh"

constexpr uint32_t kSpreadThreads = 256;
constexpr uint32_t kSpreadWarps = kSpreadThreads / 32;

// Slots of a block.
constexpr uint32_t kSpreadSlots = 256;

__host__ __device__ inline uint32_t spread_parts(uint32_t slots) {
  return (slots + kSpreadSlots - 1) / kSpreadSlots;
}

// Floats that a block leaves: a count, a sum of squares, and the mean.
__host__ __device__ inline uint32_t spread_floats(uint32_t head_dim) {
  return 2 + head_dim;
}

struct SpreadShared {
  float sums[kSpreadWarps][kMaxHeadDim];
  float mean[kMaxHeadDim];
  SelectScratch select;
};

// Leaves part \`part\` of \`count\` slots; \`slot_of(i)\` may be free.
// Lanes have 8 elements of a value each, and warps as many values at a time as
// they have lanes for. Called by a whole block of kSpreadThreads.
template <bool ALIGNED, class SlotOf>
__device__ inline void spread_part(uint32_t part, uint32_t count,
                                   uint32_t head_dim, float *parts,
                                   SpreadShared &shared, SlotOf slot_of) {
  uint32_t row_lanes = 1;
  while (8 * row_lanes < head_dim) row_lanes *= 2;
  const uint32_t rows = 32 / row_lanes;
  const uint32_t row = lane_id() / row_lanes;
  const uint32_t d = lane_id() % row_lanes * 8;
  const uint32_t begin = part * kSpreadSlots;
  const uint32_t end = min(count, begin + kSpreadSlots);
  const uint32_t first = begin + warp_id() * rows + row;
  // Calls \`add\` with the elements of each value that is there.
  const auto each_value = [&](auto add) {
#pragma unroll 4
    for (uint32_t i = first; i < end; i += kSpreadWarps * rows) {
      const Slot slot = slot_of(i);
      uint32_t words[4];
      load_pairs<8, ALIGNED>(words, slot.value, d, head_dim);
      if (slot.word(kSlotTokens) == 0) continue;
      float x[8];
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const float2 pair = cached_floats(words[j]);
        x[2 * j] = pair.x, x[2 * j + 1] = pair.y;
      }
      add(x);
    }
  };
  float sums[8] = {};
  uint32_t mine = 0, held;
  each_value([&](const float(&x)[8]) {
#pragma unroll
    for (int j = 0; j < 8; j++) sums[j] += x[j];
    mine += d == 0 ? 1 : 0;
  });
#pragma unroll
  for (int j = 0; j < 8; j++) {
    for (uint32_t offset = row_lanes; offset < 32; offset *= 2) {
      sums[j] += __shfl_xor_sync(kAllLanes, sums[j], offset);
    }
    if (row == 0) shared.sums[warp_id()][d + j] = sums[j];
  }
  block_prefix(mine, held, shared.select.block);
  float *out = parts + part * spread_floats(head_dim);
  const float terms = static_cast<float>(max(1u, held));
  if (threadIdx.x < head_dim) {
    float mean = 0.0f;
    for (uint32_t w = 0; w < kSpreadWarps; w++) {
      mean += shared.sums[w][threadIdx.x];
    }
    mean /= terms;
    shared.mean[threadIdx.x] = mean;
    out[2 + threadIdx.x] = mean;
  }
  __syncthreads();
  float squares = 0.0f;
  each_value([&](const float(&x)[8]) {
#pragma unroll
    for (uint32_t j = 0; j < 8; j++) {
      if (d + j >= head_dim) continue;
      const float rest = x[j] - shared.mean[d + j];
      squares += rest * rest;
    }
  });
  squares = block_sum(squares, shared.select);
  if (threadIdx.x == 0) {
    out[0] = static_cast<float>(held);
    out[1] = squares;
  }
}

// Joins the parts of \`count\` slots. Called by a whole block of at least
// kMaxHeadDim threads; the same in all of them.
__device__ inline float join_spread(uint32_t count, uint32_t head_dim,
                                    const float *parts,
                                    SelectScratch &scratch) {
  const uint32_t pitch = spread_floats(head_dim);
  const uint32_t end = spread_parts(count) * pitch;
  float held = 0.0f, squares = 0.0f;
  for (uint32_t p = 0; p < end; p += pitch) {
    held += parts[p];
    squares += parts[p + 1];
  }
  if (held == 0.0f) return 0.0f;
  float between = 0.0f;
  if (threadIdx.x < head_dim) {
    const uint32_t d = 2 + threadIdx.x;
    float mean = 0.0f;
    for (uint32_t p = 0; p < end; p += pitch) {
      mean += parts[p] / held * parts[p + d];
    }
    for (uint32_t p = 0; p < end; p += pitch) {
      const float rest = parts[p + d] - mean;
      between += parts[p] * rest * rest;
    }
  }
  return (squares + block_sum(between, scratch)) / held;
}
`,
  "lib/vector_product.cuh": `// Products of one row of activations with a weight matrix whose rows are short:
// each weight is read once, 16 bytes per lane and load, straight to registers.
// For long rows see lib/stream_product.cuh.
//
// A warp makes two pairs of outputs. Where there are too few outputs to fill
// the device, \`parts\` warps of a block share the columns of an output and add
// up through shared memory. Eight loads per lane are in flight before the
// kernel in front has ended, and from then on those of the next round while one
// is multiplied.
//
// An RMS norm scales the whole row by one number, which is a factor of every
// product. So the squares are summed while the row streams by, and no pass or
// barrier of their own is needed: Σ w·(x·n) first, then times 1 / rms(x).
//
// The alternative that lost: activations in shared memory. They come from the
// L1 cache as fast, and no warp waits for another.
#pragma once

#include "overlap.cuh"
#include "product_args.cuh"
#include "reduce.cuh"

constexpr uint32_t kVectorWarps = 8;
constexpr uint32_t kVectorThreads = 32 * kVectorWarps;

// Outputs of one warp.
constexpr uint32_t kOutputs = 4;

// Loads of 16 bytes of each weight row that a lane has in flight.
constexpr int kUnroll = 2;

// Starts to load this lane's words of the weight rows; those beyond the end
// stay as they are.
__device__ inline void load_words(uint4 (&words)[kUnroll][kOutputs],
                                  const skv_half *const (&weights)[kOutputs],
                                  uint32_t first, uint32_t stride,
                                  uint32_t chunks) {
#pragma unroll
  for (int u = 0; u < kUnroll; u++) {
    const uint32_t chunk = first + u * stride;
    if (chunk >= chunks) continue;
#pragma unroll
    for (uint32_t o = 0; o < kOutputs; o++) {
      words[u][o] = load_weights(weights[o] + 8 * chunk);
    }
  }
}

// Sums of this warp's share of the columns, in every lane; the last one is that
// of the squares.
template <bool NORMED, bool ALIGNED>
__device__ inline void sum_columns(const Product &product,
                                   const skv_half *const (&weights)[kOutputs],
                                   uint32_t part, uint32_t parts,
                                   float (&sums)[kOutputs + 1]) {
  const uint32_t width = product.weight.columns;
  const uint32_t chunks = product.weight.pitch / 8;
  const uint32_t stride = 32 * parts;
  uint32_t first = 32 * part + lane_id();
  uint4 words[kUnroll][kOutputs];
  load_words(words, weights, first, stride, chunks);
  wait_for_previous();
  const float *row = product.row(0);
  while (first < chunks) {
    const uint32_t following = first + kUnroll * stride;
    uint4 next[kUnroll][kOutputs];
    load_words(next, weights, following, stride, chunks);
#pragma unroll
    for (int u = 0; u < kUnroll; u++) {
      const uint32_t chunk = first + u * stride;
      if (chunk >= chunks) continue;
      float x[8];
      load_floats<ALIGNED>(x, row, 8 * chunk, width);
      if constexpr (NORMED) {
        float n[8];
        load_floats<ALIGNED>(n, product.norm, 8 * chunk, width);
#pragma unroll
        for (int i = 0; i < 8; i++) {
          sums[kOutputs] += x[i] * x[i];
          x[i] *= n[i];
        }
      }
#pragma unroll
      for (uint32_t o = 0; o < kOutputs; o++) {
        add_eight(sums[o], words[u][o], x);
      }
    }
#pragma unroll
    for (int u = 0; u < kUnroll; u++) {
#pragma unroll
      for (uint32_t o = 0; o < kOutputs; o++) words[u][o] = next[u][o];
    }
    first = following;
  }
#pragma unroll
  for (uint32_t o = 0; o <= kOutputs; o++) {
    if (NORMED || o < kOutputs) sums[o] = warp_sum(sums[o]);
  }
}

template <class Pairs, bool NORMED>
__global__ void __launch_bounds__(kVectorThreads)
    vector_product_kernel(Product product, Pairs pairs, uint32_t parts) {
  __shared__ float shared[kVectorWarps][kOutputs + 1];
  let_next_start();
  const uint32_t part = warp_id() % parts;
  const uint32_t group =
      blockIdx.x * (kVectorWarps / parts) + warp_id() / parts;
  const uint32_t count = pairs_of(product.weight);
  const bool is_needed = 2 * group < count;
  // What two lanes take to finish a pair each is on its way before the products
  // are there.
  const uint32_t pair = 2 * group + lane_id();
  const bool finishes =
      part == 0 && lane_id() < 2 && pair < count && product.is_wanted(0);
  typename Pairs::Held held = {};
  if (finishes) held = pairs.hold(0, pair);
  float sums[kOutputs + 1] = {};
  if (is_needed) {
    const skv_half *weights[kOutputs];
#pragma unroll
    for (uint32_t o = 0; o < kOutputs; o++) {
      const uint32_t of = min(2 * group + o / 2, count - 1);
      const uint32_t row =
          min(pairs.output(of, o % 2), product.weight.rows - 1);
      weights[o] =
          product.weight.data + static_cast<size_t>(row) * product.weight.pitch;
    }
    if (product.weight.columns % 8 == 0) {
      sum_columns<NORMED, true>(product, weights, part, parts, sums);
    } else {
      sum_columns<NORMED, false>(product, weights, part, parts, sums);
    }
  } else {
    wait_for_previous();
  }
  if (parts > 1) {
    if (lane_id() == 0) {
#pragma unroll
      for (uint32_t o = 0; o <= kOutputs; o++) shared[warp_id()][o] = sums[o];
    }
    __syncthreads();
    if (part != 0) return;
    for (uint32_t p = 1; p < parts; p++) {
#pragma unroll
      for (uint32_t o = 0; o <= kOutputs; o++) {
        sums[o] += shared[warp_id() + p][o];
      }
    }
  }
  if (!finishes) return;
  const float scale =
      NORMED ? rsqrtf(sums[kOutputs] / product.weight.columns + product.epsilon)
             : 1.0f;
  const bool is_second = lane_id() == 1;
  pairs.finish(held, (is_second ? sums[2] : sums[0]) * scale,
               (is_second ? sums[3] : sums[1]) * scale);
}

template <class Pairs>
inline cudaError_t multiply_vector(const Product &product, const Pairs &pairs,
                                   const Launch &launch) {
  const uint32_t groups = (pairs_of(product.weight) + 1) / 2;
  // Every multiprocessor should have 16 warps, and each warp a full load.
  uint32_t parts = 1;
  while (parts < kVectorWarps && groups * parts < 16 * launch.multiprocessors &&
         product.weight.pitch / 8 > 32 * kUnroll * parts) {
    parts *= 2;
  }
  const uint32_t per_block = kVectorWarps / parts;
  const uint32_t blocks = (groups + per_block - 1) / per_block;
  return product.norm == nullptr
             ? launch_kernel(launch, vector_product_kernel<Pairs, false>,
                             blocks, kVectorThreads, 0, product, pairs, parts)
             : launch_kernel(launch, vector_product_kernel<Pairs, true>, blocks,
                             kVectorThreads, 0, product, pairs, parts);
}
`,
  "lib/weight_stream.cuh": `// The way of weights through shared memory in lib/stream_product.cuh: which
// weights a lane loads, and in what order.
#pragma once

#include "instructions.cuh"
#include "product_args.cuh"
#include "reduce.cuh"

constexpr uint32_t kStreamWarps = 8;
constexpr uint32_t kStreamThreads = 32 * kStreamWarps;

// Outputs of a warp at a time: two pairs.
constexpr uint32_t kStreamOutputs = 4;

// Loads of 16 bytes of each of them that a lane has on the way: more than half
// of a multiprocessor's shared memory in all, so that each has one block.
constexpr uint32_t kRing = 8;

// How the warps of a block share its work: \`parts\` warps the columns of a
// group of outputs, the others other groups.
struct StreamPlan {
  uint32_t parts;
  // Loads of a lane for each row.
  uint32_t steps;

  // Groups that a block makes at a time.
  __host__ __device__ uint32_t rows() const { return kStreamWarps / parts; }
};

// Halves of one load of a warp.
constexpr uint32_t kSlotHalves = kStreamOutputs * 32 * 8;

// The groups of a block.
struct GroupShare {
  uint32_t begin;
  uint32_t end;
};

__device__ inline GroupShare share_of_block(uint32_t groups) {
  const uint64_t all = groups;
  return {static_cast<uint32_t>(all * blockIdx.x / gridDim.x),
          static_cast<uint32_t>(all * (blockIdx.x + 1) / gridDim.x)};
}

// This lane's loads of the weights of its warp's groups, in order.
template <class Pairs>
class WeightStream {
 public:
  __device__ WeightStream(const Product &product, const Pairs &pairs,
                          const StreamPlan &plan, const GroupShare &share,
                          skv_half *ring)
      : product_(product),
        pairs_(pairs),
        plan_(plan),
        group_(share.begin + warp_id() / plan.parts),
        end_(share.end),
        left_(plan.steps),
        to_(ring) {
    turn();
  }

  // Starts the next load into place \`slot\` of the ring.
  __device__ void fetch(uint32_t slot) {
    if (group_ < end_) {
      const bool is_column = column_ < product_.weight.pitch;
      skv_half *to = to_ + slot * kSlotHalves;
#pragma unroll
      for (uint32_t o = 0; o < kStreamOutputs; o++) {
        copy_async(to + o * 256, rows_[o] + column_, is_column);
      }
      column_ += plan_.parts * 256;
      left_--;
      if (left_ == 0) {
        group_ += plan_.rows();
        left_ = plan_.steps;
        turn();
      }
    }
    commit_copies();
  }

 private:
  // Goes to the first column of the present group.
  __device__ void turn() {
    column_ = 8 * (32 * (warp_id() % plan_.parts) + lane_id());
    const skv_matrix &weight = product_.weight;
    const uint32_t last = pairs_of(weight) - 1;
#pragma unroll
    for (uint32_t o = 0; o < kStreamOutputs; o++) {
      const uint32_t pair = min(2 * group_ + o / 2, last);
      const uint32_t row = min(pairs_.output(pair, o % 2), weight.rows - 1);
      rows_[o] = weight.data + static_cast<size_t>(row) * weight.pitch;
    }
  }

  const Product &product_;
  const Pairs &pairs_;
  const StreamPlan plan_;
  uint32_t group_;
  const uint32_t end_;
  uint32_t left_;
  uint32_t column_;
  skv_half *const to_;
  const skv_half *rows_[kStreamOutputs];
};
`,
  "lib/wide_product.cuh": `// Products of 2 to 64 rows of activations with a weight matrix, on Hopper: an
// engine copies tiles of both to shared memory, and groups of four warps
// multiply them there. Beside instructions for that, nothing is left to do:
// weights come as fast as memory gives them.
//
// A block makes 128 outputs of all rows from a share of the columns, or 64
// where that puts more of the device to work. One warp asks for tiles, one or
// two groups multiply, 64 outputs each; barriers in shared memory say when a
// tile has come and when its place is free. The blocks of a cluster have the
// other columns, and each adds up a share of the outputs, always in the same
// order, through the shared memory of all. As in the form for one row, weights
// are on their way before the kernel in front has ended.
//
// The alternatives that lost, in microseconds for the up and gate weights of
// Llama 3.1 8B and 16 rows on an H200: threads that copy 16 bytes each and
// fetch their operands themselves, 95; the same with group products, 71;
// cuBLASLt, 60, and a kernel that finishes, 4. This one takes 64, and no
// boundary between kernels.
#pragma once

#include <algorithm>

#include "../runtime/clusters.cuh"
#include "half_rows.cuh"
#include "wide_tiles.cuh"

// Most rows of a step, and least bytes of weights for each 16 of them.
constexpr uint32_t kMostWideRows = 64;
constexpr size_t kLeastWideBytes = 24000000;

// Lines of activations beside tiles of 64 outputs.
constexpr uint32_t kNarrowLines = 16;

// Most blocks that share the columns, and the fewest steps that are worth a
// block.
constexpr uint32_t kMostCluster = 8;
constexpr uint32_t kLeastWideSteps = 4;

template <class Shape, class Pairs>
__global__ void __launch_bounds__(Shape::kThreads, 2)
    wide_product_kernel(Product product, Pairs pairs, const float *inverse,
                        uint32_t halves, uint32_t stage_count,
                        const __grid_constant__ TileMap weights,
                        const __grid_constant__ TileMap rows) {
  __shared__ uint64_t full[kMostStages], empty[kMostStages];
  let_next_start();
  // How many rows a chunk has is not known before; those of a batch are.
  const bool is_chunk = product.step.kind == SKV_PREFILL;
  if (is_chunk) wait_for_previous();
  const WideJob job(product, Shape::kOutputs);
  if (is_chunk && product.end() == 0) return;
  if (threadIdx.x == 0) {
    for (uint32_t i = 0; i < stage_count; i++) {
      init_barrier(full + i, 1);
      init_barrier(empty + i, Shape::kMultiplyingWarps);
    }
    show_barriers();
  }
  __syncthreads();
  const uint32_t skipped =
      -shared_address(dynamic_shared_memory()) % kTileAlignment;
  float *const memory = reinterpret_cast<float *>(
      reinterpret_cast<char *>(dynamic_shared_memory()) + skipped);
  const WideStages<Shape> stages = {shared_address(memory), stage_count, full,
                                    empty};
  if (warp_id() == Shape::kMultiplyingWarps) {
    fetch_tiles<Shape>(job, stages, weights, rows, halves, product.rows,
                       !is_chunk);
    __syncthreads();
  } else {
    LineSums<Shape> sums = {};
    multiply_tiles<Shape>(job, stages, sums);
    if (!is_chunk) wait_for_previous();
    // All tiles are used up.
    __syncthreads();
    store_lines<Shape>(sums, halves, memory);
  }
  meet_cluster();
  finish_lines<Shape>(product, pairs, job, memory, inverse);
  // What the others read of this block stays until they have.
  meet_cluster();
}

// Calls \`f\` with the shape for some lines.
template <class F>
inline auto with_wide_shape(uint32_t lines, const F &f) {
  if (lines <= 16) return f(WideShape<128, 16>());
  if (lines <= 32) return f(WideShape<128, 32>());
  return f(WideShape<128, 64>());
}

inline uint32_t wide_lines(const Product &product) {
  return takes_two_halves(product) ? 2 * product.rows : product.rows;
}

// How a product is cut, and how many stages its blocks have.
struct WidePlan {
  uint32_t tiles;
  // Blocks that share the columns of a tile.
  uint32_t cluster;
  uint32_t stages;
  size_t bytes;

  uint32_t blocks() const { return tiles * cluster; }
};

// The kernel with as much memory as \`resident\` blocks of a multiprocessor may
// have each.
template <class Shape>
inline void take_room(WidePlan &plan, uint32_t resident, const Launch &launch) {
  const size_t room = launch.shared_bytes / resident - kWideOwnBytes;
  plan.stages =
      std::min(kMostStages, static_cast<uint32_t>(room / Shape::kStageBytes));
  plan.bytes = size_t{plan.stages} * Shape::kStageBytes + kTileAlignment;
}

// As many blocks for each tile as leave all at work at a time, one on each
// multiprocessor; two where there are more tiles than that. Clusters are within
// groups of multiprocessors, which differ: an H200 has room for 30 clusters of
// four and for 39 of three. With four, two of the 32 tiles of o and down of
// Llama 3.1 8B wait until others are through: a step of 16 rows takes 5.1 ms in
// place of 4.7.
template <class Shape, class Pairs>
inline cudaError_t plan_wide(const Product &product, const Launch &launch,
                             WidePlan &plan) {
  const auto kernel = wide_product_kernel<Shape, Pairs>;
  const uint32_t steps =
      (product.weight.pitch + kTileColumns - 1) / kTileColumns;
  plan.tiles = (product.weight.rows + Shape::kOutputs - 1) / Shape::kOutputs;
  plan.cluster = 1;
  const bool is_one_wave = plan.tiles <= launch.multiprocessors;
  take_room<Shape>(plan, is_one_wave ? 1 : 2, launch);
  const cudaError_t status = allow_shared_memory(kernel, plan.bytes);
  if (status != cudaSuccess || !is_one_wave) return status;
  for (uint32_t cluster = 2; cluster <= kMostCluster; cluster++) {
    if (cluster * kLeastWideSteps > steps) break;
    int clusters = 0;
    const cudaError_t failed = most_clusters(
        launch, cluster, kernel, Shape::kThreads, plan.bytes, clusters);
    if (failed != cudaSuccess) return failed;
    if (static_cast<uint32_t>(clusters) < plan.tiles) break;
    plan.cluster = cluster;
  }
  return cudaSuccess;
}

// Whether this form is the fastest. What a block begins and ends with grows
// with the rows, and a library of NVIDIA's is better where that is not hidden:
// for 0.5B and 1.5B shapes with 64 rows, and from 128 rows on.
inline bool is_wide(const Product &product, const Launch &launch) {
  if (launch.tile_maps == nullptr || product.rows > kMostWideRows) return false;
  const size_t bytes =
      size_t{product.weight.rows} * product.weight.pitch * sizeof(skv_half);
  return launch.library == nullptr ||
         bytes >= kLeastWideBytes * std::max(1u, product.rows / 16);
}

// Multiplies by a plan, and says so in \`done\`.
template <class Shape, class Pairs>
inline cudaError_t multiply_planned(const WidePlan &plan,
                                    const Product &product, const Pairs &pairs,
                                    Scratch scratch, const Launch &launch,
                                    bool &done) {
  const skv_matrix &weight = product.weight;
  const uint32_t lines = wide_lines(product), halves = lines / product.rows;
  const HalfRows rows = place_half_rows(product, scratch);
  TileMap weight_map, row_map;
  done =
      launch.tile_maps->describe(
          {weight.data, weight.rows, weight.pitch, Shape::kOutputs},
          &weight_map) &&
      launch.tile_maps->describe(
          {rows.high, lines, weight.pitch, Shape::kLines / halves}, &row_map);
  if (!done) return cudaSuccess;
  const cudaError_t status = make_half_rows(product, rows, launch);
  if (status != cudaSuccess) return status;
  const cudaLaunchAttribute cluster = cluster_attribute(plan.cluster);
  return launch_as(launch, &cluster, wide_product_kernel<Shape, Pairs>,
                   dim3(plan.cluster, plan.tiles), Shape::kThreads, plan.bytes,
                   product, pairs, rows.inverse, halves, plan.stages,
                   weight_map, row_map);
}

// Multiplies if the device and the product are made for it, and says so in
// \`done\`. \`scratch\` has what is needed.
template <class Pairs>
inline cudaError_t multiply_wide(const Product &product, const Pairs &pairs,
                                 const Scratch &scratch, const Launch &launch,
                                 bool &done) {
  if (!is_wide(product, launch) || !pairs.has_tiles(128)) return cudaSuccess;
  return with_wide_shape(wide_lines(product), [&](auto shape) {
    using Shape = decltype(shape);
    WidePlan plan;
    cudaError_t status = plan_wide<Shape, Pairs>(product, launch, plan);
    if (status != cudaSuccess) return status;
    // Of o and down of Llama 3.1 8B, 64 tiles in clusters of two have 128
    // blocks, 32 in clusters of three 96: a step of 4 rows takes 4.47 ms in
    // place of 4.58. But tiles of activations come twice as often: with twice
    // as many lines, one of 16 rows would take 4.73 ms in place of 4.70.
    if constexpr (Shape::kLines == kNarrowLines) {
      using Narrow = WideShape<64, kNarrowLines>;
      WidePlan narrow;
      if (pairs.has_tiles(64) && plan.tiles <= launch.multiprocessors) {
        status = plan_wide<Narrow, Pairs>(product, launch, narrow);
        if (status != cudaSuccess) return status;
        if (narrow.tiles <= launch.multiprocessors &&
            narrow.blocks() > plan.blocks()) {
          return multiply_planned<Narrow>(narrow, product, pairs, scratch,
                                          launch, done);
        }
      }
    }
    return multiply_planned<Shape>(plan, product, pairs, scratch, launch, done);
  });
}
`,
  "lib/wide_tiles.cuh": `// The parts of lib/wide_product.cuh: what a block copies, multiplies and
// finishes.
#pragma once

#include "group_instructions.cuh"
#include "overlap.cuh"
#include "product_args.cuh"

// Most tiles on their way to a block, and more than the bytes of the kernel's
// own variables, the alignment and what a device keeps of each block's memory.
constexpr uint32_t kMostStages = 16;
constexpr size_t kWideOwnBytes = 2 * kTileAlignment + 512;

// Tiles of OUTPUTS outputs, 64 for each group of warps, and of LINES lines of
// activations: rows, or both halves of half as many.
template <uint32_t OUTPUTS, uint32_t LINES>
struct WideShape {
  static constexpr uint32_t kOutputs = OUTPUTS;
  static constexpr uint32_t kPairs = OUTPUTS / 2;
  static constexpr uint32_t kLines = LINES;
  static constexpr uint32_t kMultiplyingWarps = OUTPUTS / 16;
  static constexpr uint32_t kThreads = 32 * (kMultiplyingWarps + 1);
  static constexpr uint32_t kStageBytes = (OUTPUTS + LINES) * kLineBytes;
  // From one row's sums to the next: what lanes store is in different banks.
  // They are where the tiles were.
  static constexpr uint32_t kSumPitch = OUTPUTS + 4;
  static_assert(LINES * kSumPitch * sizeof(float) <= 2 * kStageBytes,
                "room for the sums in two stages");
};

// What a block copies and multiplies.
struct WideJob {
  // First output.
  uint32_t output;
  // Steps of kTileColumns columns.
  uint32_t begin;
  uint32_t count;

  __device__ WideJob(const Product &product, uint32_t outputs)
      : output(blockIdx.y * outputs) {
    const uint32_t steps =
        (product.weight.pitch + kTileColumns - 1) / kTileColumns;
    begin = steps * blockIdx.x / gridDim.x;
    count = steps * (blockIdx.x + 1) / gridDim.x - begin;
  }
};

// The stages that tiles go through.
template <class Shape>
struct WideStages {
  uint32_t memory;
  uint32_t count;
  uint64_t *full;
  uint64_t *empty;

  __device__ uint32_t at(uint32_t stage) const {
    return memory + stage * Shape::kStageBytes;
  }
};

// Asks for all tiles of a job, in one thread of a warp that calls this.
template <class Shape>
__device__ inline void fetch_tiles(const WideJob &job,
                                   const WideStages<Shape> &stages,
                                   const TileMap &weights, const TileMap &rows,
                                   uint32_t halves, uint32_t low_row,
                                   bool waits) {
  const auto fetch_weights = [&](uint32_t i, uint32_t stage) {
    arrive_expecting(stages.full + stage, Shape::kStageBytes);
    copy_tile(stages.at(stage), &weights, (job.begin + i) * kTileColumns,
              job.output, stages.full + stage);
  };
  const auto fetch_rows = [&](uint32_t i, uint32_t stage) {
    const uint32_t to = stages.at(stage) + Shape::kOutputs * kLineBytes;
    const uint32_t column = (job.begin + i) * kTileColumns;
    copy_tile(to, &rows, column, 0, stages.full + stage);
    if (halves == 1) return;
    copy_tile(to + Shape::kLines / 2 * kLineBytes, &rows, column, low_row,
              stages.full + stage);
  };
  const uint32_t early = min(job.count, stages.count);
  if (lane_id() == 0) {
    for (uint32_t i = 0; i < early; i++) fetch_weights(i, i);
  }
  __syncwarp();
  if (waits) wait_for_previous();
  if (lane_id() == 0) {
    for (uint32_t i = 0; i < early; i++) fetch_rows(i, i);
    uint32_t stage = 0, parity = 0;
    for (uint32_t i = stages.count; i < job.count; i++) {
      wait_barrier(stages.empty + stage, parity);
      fetch_weights(i, stage);
      fetch_rows(i, stage);
      if (++stage == stages.count) stage = 0, parity ^= 1;
    }
  }
  __syncwarp();
}

// Sums of a warp: 16 outputs times all lines.
template <class Shape>
using LineSums = float[Shape::kLines / 8][4];

// Multiplies all tiles of a job.
template <class Shape>
__device__ inline void multiply_tiles(const WideJob &job,
                                      const WideStages<Shape> &stages,
                                      LineSums<Shape> &sums) {
  const uint64_t weights =
      tile_descriptor(stages.memory + warp_id() / 4 * 64 * kLineBytes);
  const uint64_t rows =
      tile_descriptor(stages.memory + Shape::kOutputs * kLineBytes);
  uint32_t stage = 0, parity = 0, before = 0;
#pragma unroll 1
  for (uint32_t i = 0; i < job.count; i++) {
    wait_barrier(stages.full + stage, parity);
    const uint32_t at = stage * (Shape::kStageBytes / 16);
    begin_products();
#pragma unroll
    for (uint32_t k = 0; k < kTileColumns / 16; k++) {
      group_product<Shape::kLines>(sums, weights + at + 2 * k,
                                   rows + at + 2 * k);
    }
    commit_products();
    // The step in front is through: its place is free.
    wait_products<1>();
    if (i > 0 && lane_id() == 0) arrive(stages.empty + before);
    before = stage;
    if (++stage == stages.count) stage = 0, parity ^= 1;
  }
  wait_products<0>();
  // Nothing reads the sums before.
#pragma unroll
  for (uint32_t n = 0; n < Shape::kLines / 8; n++) {
#pragma unroll
    for (int i = 0; i < 4; i++) asm volatile("" : "+f"(sums[n][i])::"memory");
  }
}

// Leaves a warp's sums at \`to\`, by row and output, those of both halves of a
// row as one.
template <class Shape>
__device__ inline void store_lines(LineSums<Shape> &sums, uint32_t halves,
                                   float *to) {
  constexpr uint32_t kHalf = Shape::kLines / 16;
  if (halves == 2) {
#pragma unroll
    for (uint32_t n = 0; n < kHalf; n++) {
#pragma unroll
      for (uint32_t i = 0; i < 4; i++) sums[n][i] += sums[kHalf + n][i];
    }
  }
  to += lane_id() % 4 * 2 * Shape::kSumPitch + 16 * warp_id() + lane_id() / 4;
#pragma unroll
  for (uint32_t n = 0; n < Shape::kLines / 8; n++) {
    if (halves == 2 && n >= kHalf) break;
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) {
      to[(8 * n + i % 2) * Shape::kSumPitch + i / 2 * 8] = sums[n][i];
    }
  }
}

// Sums of other blocks that are on their way to a thread at a time.
constexpr uint32_t kPeersAtOnce = 4;

// Adds up this block's share of the cluster's outputs, and finishes them.
template <class Shape, class Pairs>
__device__ inline void finish_lines(const Product &product, const Pairs &pairs,
                                    const WideJob &job, const float *sums,
                                    const float *inverse) {
  const uint32_t count = pairs_of(product.weight);
  const uint32_t all = product.rows * Shape::kPairs;
  const uint32_t end = all * (blockIdx.x + 1) / gridDim.x;
#pragma unroll 1
  for (uint32_t i = all * blockIdx.x / gridDim.x + threadIdx.x; i < end;
       i += Shape::kThreads) {
    const uint32_t row = i / Shape::kPairs;
    const uint32_t pair = job.output / 2 + i % Shape::kPairs;
    if (pair >= count || !product.is_wanted(row)) continue;
    const auto held = pairs.hold(row, pair);
    float ends[2] = {};
    const float *const from = sums + row * Shape::kSumPitch - job.output;
    for (uint32_t first = 0; first < gridDim.x; first += kPeersAtOnce) {
      float x[kPeersAtOnce][2];
#pragma unroll
      for (uint32_t k = 0; k < kPeersAtOnce; k++) {
        const uint32_t rank = min(first + k, gridDim.x - 1);
        x[k][0] = read_peer(from + pairs.output(pair, 0), rank);
        x[k][1] = read_peer(from + pairs.output(pair, 1), rank);
      }
#pragma unroll
      for (uint32_t k = 0; k < kPeersAtOnce; k++) {
        if (first + k < gridDim.x) ends[0] += x[k][0], ends[1] += x[k][1];
      }
    }
    const float factor = inverse[row];
    pairs.finish(held, ends[0] * factor, ends[1] * factor);
  }
}
`,
  "lm_head.cu": `// Final RMS norm and the logits of every id.
//
// Streams the output embedding once, 2 bytes per element, where there are few
// rows: see lib/product.cuh. A prompt needs the logits after its last row
// alone, which is one row. The alternative that lost: all rows of a chunk for
// it.
#include "lib/product.cuh"

namespace {

struct LogitPairs {
  float *logits;
  uint32_t vocabulary;

  __device__ uint32_t output(uint32_t pair, uint32_t end) const {
    return 2 * pair + end;
  }
  static bool has_tiles(uint32_t outputs) { return outputs % 2 == 0; }
  struct Held {
    float *logits;
    uint32_t left;
  };
  __device__ Held hold(uint32_t row, uint32_t pair) const {
    return {logits + static_cast<size_t>(row) * vocabulary + 2 * pair,
            vocabulary - 2 * pair};
  }
  __device__ void finish(const Held &held, float a, float b) const {
    if (vocabulary % 2 == 0) {
      *reinterpret_cast<float2 *>(held.logits) = {a, b};
    } else {
      held.logits[0] = a;
      if (held.left > 1) held.logits[1] = b;
    }
  }
};

Product product_of(const skv_lm_head_args &args) {
  const bool last_row = args.last_row != 0;
  return {args.weight, args.hidden,
          args.norm,   args.sizes.norm_epsilon,
          args.step,   last_row ? 1 : args.step.rows,
          last_row,    true};
}

}  // namespace

Needs lm_head_needs(const skv_lm_head_args &args, uint32_t multiprocessors) {
  return product_needs(product_of(args), multiprocessors);
}

cudaError_t launch_lm_head(const skv_lm_head_args &args, const Launch &launch) {
  const LogitPairs pairs = {args.logits, args.weight.rows};
  return multiply(product_of(args), pairs, Scratch(launch.scratch), launch);
}
`,
  "merge_attend.cu": `// Attention of one new token per sequence over the voted slots of each KV head,
// softmax(q·k/√d + ln votes), then the policy's work on the head: scores, and
// one slot merged or dropped where the head is over its budget. The output is
// that of the uncompressed slots.
//
// Attention reads keys and values once, 4 head_dim bytes per slot, and the vote
// biases. The slots of a head are split over blocks, and by tiles over warps:
// see lib/attend_slots.cuh. The last block of a head to finish adds the parts
// up: see lib/attend_output.cuh. Where a merge will ask for the most similar
// key, it is looked for on the way, for slots that are likely to go: see
// lib/riders.cuh.
//
// The policy's work needs the softmax sums of the whole head, and nothing needs
// its result before the next step. So it is a kernel of its own on a stream
// beside the main one, which begins with the logits: see lib/evict_step.cuh and
// runtime/launcher.cuh. It reads logits and side fields, about 40
// bytes per slot, and all keys once more where another slot goes than those
// that were likely.
//
// The alternatives that lost: the policy's work by the last block of attention,
// which the rest of the layer then waits for: 17 µs per layer with 512 slots on
// an H200, a tenth of a step of an 8B model; and right after attention, beside
// the products of the layer: 7 µs.
#include "lib/attend_output.cuh"
#include "lib/evict_step.cuh"
#include "lib/leave_evidence.cuh"
#include "lib/overlap.cuh"
#include "runtime/launch.cuh"

namespace {

template <class Shape>
__global__ void __launch_bounds__(kAttendThreads, Shape::kBlocks)
    attend_kernel(skv_merge_attend_args args, AttendParts parts,
                  Evidence evidence) {
  constexpr int kDim = Shape::kDim;
  uint4 *shared_memory = dynamic_shared_memory();
  AttendShared<kDim> &shared =
      *reinterpret_cast<AttendShared<kDim> *>(shared_memory);
  let_next_start();
  // What is read here is as it was before the step: see lib/overlap.cuh. All of
  // it is on its way before any of it is looked at.
  const Row row = row_of(args.step, blockIdx.z);
  const HeadJob job = job_of(args, row);
  WarpAttention<Shape> warp;
  if constexpr (Shape::kRides) warp.riders.read(evidence.riders, job.index);
  if (!row.live) {
    wait_for_previous();
    if (blockIdx.x == 0 && job.first_head == 0 && threadIdx.x == 0) {
      evidence.rows[job.index] = {};
    }
    return;
  }
  const uint32_t splits = splits_of(parts, job.high);
  if (blockIdx.x >= splits) {
    wait_for_previous();
    return;
  }
  const size_t first_logit =
      static_cast<size_t>(job.index) * job.group + job.first_head;
  warp.run(args, job, share_of(job.high, splits), shared.tiles[warp_id()][0],
           evidence.logits + first_logit * args.cache.max_capacity);
  if (blockIdx.x == 0) keep_queries(args, job, evidence);
  gather_warps(job, warp, shared);
  const bool rode = warp.has_riders(job);
  if (rode) leave_nearest(job, evidence.riders, shared);
  uint2 counts;
  if (splits == 1) {
    counts = finish_alone<kDim>(args, job, evidence, shared);
  } else {
    if (!publish(job, parts, splits, shared)) return;
    counts = combine<kDim>(args, job, parts, evidence, splits, shared);
  }
  leave_evidence(job, evidence, counts, rode ? splits : 0, shared);
}

// How the slots of a head are split, and the sizes that follow.
struct Plan {
  uint32_t heads;
  uint32_t group;
  uint32_t dim;
  uint32_t wanted_splits;
  uint32_t few_splits;
  uint32_t most_splits;
  // Parts of all heads; none where a head is always in one.
  size_t parts;
};

// Splits of each of \`heads\` for a device that runs \`blocks\` blocks at a time:
// one wave of them. A block begins with waiting for its first slots and ends
// with adding up, so more waves, with a last one that is nearly full, would do
// that more often; a wave that is not full still has enough bytes on their way.
uint32_t splits_for(uint32_t heads, uint32_t blocks) {
  return min(kMaxSplits, max(1u, blocks / heads));
}

Plan plan_of(const skv_merge_attend_args &args, uint32_t multiprocessors) {
  Plan plan;
  plan.heads = args.step.rows * args.sizes.kv_heads;
  plan.group = args.sizes.heads / args.sizes.kv_heads;
  plan.dim = padded_width(args.sizes.head_dim);
  const int tiles = column_tiles(args.sizes.head_dim, plan.group);
  const uint32_t blocks = multiprocessors * resident_blocks(plan.dim, tiles);
  const uint32_t heads = plan.heads * head_tiles(plan.group);
  plan.wanted_splits = splits_for(heads, blocks);
  plan.few_splits = splits_for(heads, multiprocessors);
  // No block without slots.
  plan.most_splits =
      max(1u, min(plan.wanted_splits,
                  (args.cache.max_capacity + kBlockSlots - 1) / kBlockSlots));
  plan.parts = plan.most_splits == 1
                   ? 0
                   : static_cast<size_t>(plan.heads) * plan.most_splits;
  return plan;
}

template <class Shape>
cudaError_t launch_attend(const skv_merge_attend_args &args,
                          const AttendParts &parts, const Evidence &evidence,
                          const Launch &launch) {
  const auto kernel = attend_kernel<Shape>;
  const size_t bytes = sizeof(AttendShared<Shape::kDim>);
  const cudaError_t status = allow_shared_memory(kernel, bytes);
  if (status != cudaSuccess) return status;
  const uint32_t tiles = head_tiles(args.sizes.heads / args.sizes.kv_heads);
  const dim3 grid(parts.most_splits, args.sizes.kv_heads * tiles,
                  args.step.rows);
  return launch_kernel(launch, kernel, grid, kAttendThreads, bytes, args, parts,
                       evidence);
}

template <int DIM, int TILES, bool EXACT>
cudaError_t launch_exact(const skv_merge_attend_args &args,
                         const AttendParts &parts, const Evidence &evidence,
                         const Launch &launch) {
  if constexpr (DIM <= kMaxRiderWidth) {
    if (evidence.riders.slots != nullptr) {
      return launch_attend<AttendShape<DIM, TILES, EXACT, true>>(
          args, parts, evidence, launch);
    }
  }
  return launch_attend<AttendShape<DIM, TILES, EXACT, false>>(args, parts,
                                                              evidence, launch);
}

template <int DIM>
cudaError_t launch_wide(const skv_merge_attend_args &args,
                        const AttendParts &parts, const Evidence &evidence,
                        const Launch &launch) {
  if (!is_exact(args.sizes.head_dim)) {
    return launch_exact<DIM, 2, false>(args, parts, evidence, launch);
  }
  const uint32_t group = args.sizes.heads / args.sizes.kv_heads;
  return column_tiles(DIM, group) == 1
             ? launch_exact<DIM, 1, true>(args, parts, evidence, launch)
             : launch_exact<DIM, 2, true>(args, parts, evidence, launch);
}

cudaError_t launch_any(const skv_merge_attend_args &args, const Plan &plan,
                       const AttendParts &parts, const Evidence &evidence,
                       const Launch &launch) {
  return with_width(plan.dim, [&](auto width) {
    return launch_wide<decltype(width)::value>(args, parts, evidence, launch);
  });
}

// What a call leaves for the policy, in its own memory.
Evidence evidence_of(const skv_merge_attend_args &args, const Plan &plan,
                     const Launch &launch) {
  Evidence evidence;
  take_evidence(args, launch.multiprocessors, plan.most_splits, launch.own,
                &evidence);
  return evidence;
}

}  // namespace

Needs merge_attend_needs(const skv_merge_attend_args &args,
                         uint32_t multiprocessors) {
  const Plan plan = plan_of(args, multiprocessors);
  Evidence evidence;
  Needs needs;
  needs.scratch =
      aligned_bytes(plan.parts * plan.group * plan.dim * sizeof(float)) +
      aligned_bytes(plan.parts * kMaxGroup * sizeof(float2)) +
      aligned_bytes(plan.parts * sizeof(uint2));
  needs.tickets = plan.parts == 0 ? 0 : plan.heads * head_tiles(plan.group);
  needs.own = take_evidence(args, multiprocessors, plan.most_splits, nullptr,
                            &evidence);
  return needs;
}

cudaError_t launch_merge_attend(const skv_merge_attend_args &args,
                                const Launch &launch) {
  const Plan plan = plan_of(args, launch.multiprocessors);
  const Evidence evidence = evidence_of(args, plan, launch);
  Scratch scratch(launch.scratch);
  AttendParts parts;
  parts.values = scratch.take<float>(plan.parts * plan.group * plan.dim);
  parts.states = scratch.take<float2>(plan.parts * kMaxGroup);
  parts.counts = scratch.take<uint2>(plan.parts);
  parts.tickets = launch.tickets;
  parts.most_splits = plan.most_splits;
  parts.wanted_splits = plan.wanted_splits;
  parts.few_splits = plan.few_splits;
  return launch_any(args, plan, parts, evidence, launch);
}

cudaError_t merge_late(const skv_merge_attend_args &args,
                       const Launch &launch) {
  const Plan plan = plan_of(args, launch.multiprocessors);
  const Evidence evidence = evidence_of(args, plan, launch);
  return args.sizes.head_dim % 8 == 0
             ? launch_policy<true>(args, evidence, launch)
             : launch_policy<false>(args, evidence, launch);
}
`,
  "observe.cu": `// Adds the attention of the chunk's observed rows to the scores of the slots
// and of the staged rows, row by row. Logits are computed again from queries
// and keys: attention never stores them.
//
// Reads each key once, and the observed queries once per tile of 64 slots. A
// block owns the slots of a tile: it makes their logits for as many (row, query
// head) pairs as fit, on tensor cores, and then each slot's thread adds the
// rows in order, because the moving sum depends on it. Most policies observe
// few rows, so what counts is how often a warp waits. The alternative that
// lost: keeping the logits of prefill_attend, (rows, heads, slots) floats.
#include "lib/group_observe.cuh"
#include "lib/overlap.cuh"
#include "lib/query_rows.cuh"
#include "lib/row_tiles.cuh"
#include "lib/scores.cuh"
#include "runtime/launch.cuh"

namespace {

template <int DIM>
constexpr int kWarps = DIM == 256 ? 2 : 4;

template <int DIM>
constexpr int kPairs = 16 * kWarps<DIM>;

constexpr uint32_t kTile = 64;

// Queries that a warp reads at a time.
constexpr uint32_t kQueryBatch = 4;

// Odd, so that the threads of a warp read a column without conflicts.
constexpr uint32_t kLogitPitch = kTile + 1;

template <int DIM>
struct Shared {
  uint4 high[kWarps<DIM>][DIM / 16 * 32];
  uint4 low[kWarps<DIM>][DIM / 16 * 32];
  skv_cached keys[kTile * kLinePitch<DIM>];
  float logits[kPairs<DIM> * kLogitPitch];
  float log_sums[kPairs<DIM>];
  float biases[kMaxGroup][kTile];
  bool is_sink[kTile];
};

// Raw logits of the pairs of \`rows\` rows from \`first_row\` with the tile's
// slots, for queries of one kind and the slots that they are for.
template <int DIM>
__device__ inline void make_logits(const skv_chunk_args &args,
                                   const float *queries, bool for_sinks,
                                   uint32_t kv_head, uint32_t first_row,
                                   uint32_t rows, Shared<DIM> &shared) {
  const skv_sizes &sizes = args.sizes;
  const uint32_t group = sizes.heads / sizes.kv_heads;
  const uint32_t warp = warp_id();
  const uint32_t g = lane_id() / 4, t = lane_id() % 4;
  const float root = rsqrtf(static_cast<float>(sizes.head_dim));
  float inverse[2] = {};
  // The operands of the call before are no longer read.
  __syncwarp();
#pragma unroll 1
  for (uint32_t first = 0; first < 16; first += kQueryBatch) {
    QueryRow<DIM> parts[kQueryBatch];
#pragma unroll
    for (uint32_t k = 0; k < kQueryBatch; k++) {
      const uint32_t pair = 16 * warp + first + k;
      const size_t query =
          static_cast<size_t>(first_row + pair / group) * sizes.heads +
          kv_head * group + pair % group;
      parts[k].load(
          pair < rows * group ? queries + query * sizes.head_dim : nullptr,
          sizes.head_dim);
    }
#pragma unroll
    for (uint32_t k = 0; k < kQueryBatch; k++) {
      const uint32_t i = first + k;
      const float scale =
          parts[k].split(i, shared.high[warp], shared.low[warp]);
      if (i == g) inverse[0] = scale * root;
      if (i == g + 8) inverse[1] = scale * root;
    }
  }
  __syncwarp();
  float x[kTile / 8][4] = {};
#pragma unroll
  for (int step = 0; step < DIM / 16; step++) {
    const uint4 h = shared.high[warp][step * 32 + lane_id()];
    const uint4 l = shared.low[warp][step * 32 + lane_id()];
#pragma unroll
    for (int n = 0; n < static_cast<int>(kTile) / 8; n += 2) {
      const uint4 k = key_operands<DIM>(shared.keys, 8 * n, 16 * step);
      mma_cached(x[n], l, k.x, k.y);
      mma_cached(x[n + 1], l, k.z, k.w);
      mma_cached(x[n], h, k.x, k.y);
      mma_cached(x[n + 1], h, k.z, k.w);
    }
  }
#pragma unroll
  for (int n = 0; n < static_cast<int>(kTile) / 8; n++) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const uint32_t slot = 8 * n + 2 * t + i % 2;
      const uint32_t pair = 16 * warp + g + i / 2 * 8;
      if (shared.is_sink[slot] != for_sinks) continue;
      shared.logits[pair * kLogitPitch + slot] = x[n][i] * inverse[i / 2];
    }
  }
}

template <int DIM>
__global__ void __launch_bounds__(32 * kWarps<DIM>)
    observe_kernel(skv_chunk_args args) {
  uint4 *shared_memory = dynamic_shared_memory();
  begin_kernel();
  Shared<DIM> &shared = *reinterpret_cast<Shared<DIM> *>(shared_memory);
  const skv_sizes &sizes = args.sizes;
  const skv_cache &cache = args.cache;
  const skv_policy &policy = args.policy;
  const uint32_t group = sizes.heads / sizes.kv_heads;
  const uint32_t kv_head = blockIdx.y;
  const ObservedTile tile = observed_tile(args, kv_head, blockIdx.x, kTile);
  if (tile.count == 0) return;
  const skv_slots &home = tile.home(cache);
  const bool has_sinks = args.sink_queries != nullptr;

  load_lines<DIM>(shared.keys, kTile, sizes.head_dim, [&](uint32_t i) {
    return i < tile.count
               ? home.keys + static_cast<size_t>(tile.base + tile.first + i) *
                                 sizes.head_dim
               : nullptr;
  });
  bool any_sink = false;
  // With fewer threads than slots, none would do for some of them.
  static_assert(32 * kWarps<DIM> >= kTile, "a thread for each slot");
  const uint32_t mine = threadIdx.x;
  const Slot slot = slot_at(
      home, tile.base + tile.first + min(mine, tile.count - 1), sizes.head_dim);
  const bool owns =
      mine < tile.count && (tile.staged || slot.word(kSlotTokens) != 0);
  if (mine < kTile) {
    for (uint32_t lane = 0; lane < cache.lanes; lane++) {
      shared.biases[lane][mine] = slot.get(kSlotBias + lane);
    }
    any_sink = has_sinks && mine < tile.count &&
               slot.word(kSlotPosition) < policy.sinks;
    shared.is_sink[mine] = any_sink;
  }
  any_sink = __syncthreads_or(any_sink);

  const ObservedRows observed(args);
  uint32_t first_row = observed.first;
  // Rows before the first staged one of the tile do not see any of it.
  if (tile.staged) first_row = max(first_row, tile.first);
  const uint32_t budget = head_words(
      cache, sizes, args.step.chunk[kChunkSequence], kv_head)[kHeadBudget];
  const uint32_t rows_per_pass = kPairs<DIM> / group;
  Scores scores = {};
  if (owns) scores = load_scores(slot);
  for (uint32_t row = first_row; row < observed.end; row += rows_per_pass) {
    const uint32_t rows = min(rows_per_pass, observed.end - row);
    if (threadIdx.x < rows * group) {
      const size_t query =
          static_cast<size_t>(row + threadIdx.x / group) * sizes.heads +
          kv_head * group + threadIdx.x % group;
      shared.log_sums[threadIdx.x] = args.log_sums[query];
    }
    make_logits<DIM>(args, args.queries, false, kv_head, row, rows, shared);
    if (any_sink) {
      make_logits<DIM>(args, args.sink_queries, true, kv_head, row, rows,
                       shared);
    }
    __syncthreads();
    for (uint32_t r = 0; owns && r < rows; r++) {
      if (tile.staged && tile.first + mine > row + r) continue;
      const float *log_sums = shared.log_sums + r * group;
      const uint32_t position = args.step.chunk[kChunkPosition] + row + r;
      const float gain = score_gain(policy, position, budget);
      observe_row(
          scores, policy, group, position,
          [&](uint32_t first, auto &logits, auto &biases) {
#pragma unroll
            for (uint32_t k = 0; k < kRowHeads; k++) {
              const uint32_t g = min(first + k, group - 1);
              logits[k] =
                  gain * shared.logits[(r * group + g) * kLogitPitch + mine];
              biases[k] = gain * shared.biases[cache.lanes == 1 ? 0 : g][mine];
            }
          },
          [&](uint32_t g) { return log_sums[g]; });
    }
    __syncthreads();
  }
  if (owns) store_scores(slot, scores);
}

template <int DIM>
cudaError_t launch_width(const skv_chunk_args &args, const Launch &launch) {
  if constexpr (kHasGroupTiles<DIM>) {
    if (launch.has_groups && is_group_observed<DIM>(args)) {
      return launch_group_observe<DIM>(args, launch);
    }
  }
  const auto kernel = observe_kernel<DIM>;
  const size_t bytes = sizeof(Shared<DIM>);
  const cudaError_t status = allow_shared_memory(kernel, bytes);
  if (status != cudaSuccess) return status;
  const dim3 grid(observed_tiles(args.cache, kTile), args.sizes.kv_heads);
  return launch_kernel(launch, kernel, grid, 32 * kWarps<DIM>, bytes, args);
}

}  // namespace

Needs observe_needs(const skv_chunk_args &args, uint32_t) {
  return with_width(args.sizes.head_dim, [&](auto width) -> Needs {
    return {group_observe_bytes<decltype(width)::value>(args)};
  });
}

cudaError_t launch_observe(const skv_chunk_args &args, const Launch &launch) {
  // What nothing reads is not kept.
  if (!args.policy.observe || args.policy.probe == SKV_PROBE_NONE) {
    return cudaSuccess;
  }
  return with_width(args.sizes.head_dim, [&](auto width) {
    return launch_width<decltype(width)::value>(args, launch);
  });
}
`,
  "prefill_attend.cu": `// Causal attention of a chunk: each row attends to the voted slots of its
// sequence and to the rows of the chunk up to itself, which are staged.
//
// Reads keys and values once per tile of queries. A block has a tile of (row,
// query head) pairs that share a KV head, so that one read serves the group;
// the softmax runs along while tiles of slots go by, and the attention matrix
// is never in memory (Dao, "FlashAttention-2", 2023, section 3, arXiv
// 2307.08691). Keys are on their way while values are multiplied, and values
// while keys are: one tile of each is enough, and two blocks take turns on a
// multiprocessor. Blocks of late rows have more to do and start first.
//
// Queries are kept in shared memory: registers are full of sums and logits.
// Those of sinks are read from memory for the few tiles that have any.
//
// The alternative that lost: a tile of rows of one query head, which reads keys
// and values once per query head. Another: 16 pairs to a warp, which reads
// operands of twice as many bytes from shared memory as a multiprocessor
// delivers while it multiplies.
#include "lib/chunk_share.cuh"
#include "lib/group_attend.cuh"
#include "lib/half_rows.cuh"
#include "lib/overlap.cuh"
#include "lib/prefill_sinks.cuh"
#include "lib/prefill_state.cuh"
#include "lib/scores.cuh"
#include "runtime/launch.cuh"

namespace {

template <int DIM, PrefillForm FORM>
__global__ void __launch_bounds__((PrefillShape<DIM, FORM>::kThreads), 2)
    prefill_attend_kernel(skv_chunk_args args) {
  using Shape = PrefillShape<DIM, FORM>;
  constexpr uint32_t kSlots = Shape::kSlots;
  uint4 *shared_memory = dynamic_shared_memory();
  begin_kernel();
  auto &shared = *reinterpret_cast<PrefillShared<DIM, FORM> *>(shared_memory);
  const skv_cache &cache = args.cache;
  const uint32_t head_dim = args.sizes.head_dim;
  const ChunkShare<kSlots> share(args, Shape::kPairs);
  if (share.rows == 0) return;
  const bool has_sinks = !Shape::kIsPlain && args.sink_queries != nullptr;
  const bool gains =
      !Shape::kIsPlain && args.policy.score == SKV_SCORE_STEP_GAIN;
  // Starts to copy keys or values of a tile.
  const auto fetch = [&](uint32_t tile, bool keys) {
    const TilePlace place = share.place(tile);
    const skv_cached *all = keys ? place.home.keys : place.home.values;
    copy_lines<DIM, kSlots, Shape::kThreads>(
        keys ? shared.keys : shared.values,
        all + static_cast<size_t>(place.base) * head_dim, place.count,
        head_dim);
    commit_copies();
  };
  // Side fields of this thread's slot of a tile, which it stores later.
  static_assert(kSlots <= Shape::kThreads, "a thread for each slot");
  float bias_ahead = kFreeBias;
  bool sink_ahead = false;
  const auto slot_ahead = [&](const TilePlace &place) {
    return slot_at(place.home, place.base + threadIdx.x, head_dim);
  };
  const auto look_ahead = [&](uint32_t tile) {
    const TilePlace place = share.place(tile);
    const bool exists = threadIdx.x < place.count;
    bias_ahead = exists ? slot_ahead(place).get(kSlotBias) : kFreeBias;
    sink_ahead = has_sinks && exists &&
                 slot_ahead(place).word(kSlotPosition) < args.policy.sinks;
  };
  const auto store_ahead = [&](uint32_t tile) {
    if (threadIdx.x >= kSlots) return;
    shared.biases[0][threadIdx.x] = bias_ahead * kLog2E;
    if constexpr (!Shape::kIsPlain) {
      const TilePlace place = share.place(tile);
      shared.is_sink[threadIdx.x] = sink_ahead;
      for (uint32_t lane = 1; lane < cache.lanes; lane++) {
        const float bias = threadIdx.x < place.count
                               ? slot_ahead(place).get(kSlotBias + lane)
                               : kFreeBias;
        shared.biases[lane][threadIdx.x] = bias * kLog2E;
      }
    }
  };
  // A block has rows, hence tiles.
  fetch(0, true);
  look_ahead(0);
  const PairQueries queries = share.queries(args.queries, args.sizes);
  const PairQueries sinks = share.queries(args.sink_queries, args.sizes);
  round_queries<DIM>(queries, shared);
  if constexpr (!Shape::kIsPlain) {
    if (has_sinks) scale_sinks<DIM, FORM>(sinks, shared);
  }
  store_ahead(0);

  const uint32_t t = lane_id() % 4;
  PrefillState<DIM, FORM> state;
  if (gains) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      state.gain[0][h] = score_gain(
          args.policy,
          args.step.chunk[kChunkPosition] + queries.row(state.pair_of(0, h)),
          share.budget);
    }
  }
  for (uint32_t tile = 0; tile < share.tiles; tile++) {
    wait_copies<0>();
    // Keys are there, and nobody reads the values before any more.
    bool any_sink = false;
    if constexpr (Shape::kIsPlain) {
      __syncthreads();
    } else {
      any_sink = __syncthreads_or(sink_ahead);
    }
    fetch(tile, false);
    if (tile + 1 < share.tiles) look_ahead(tile + 1);

    float x[Shape::kTiles][kSlots / 8][4] = {};
    state.multiply_keys(shared, x);
#pragma unroll
    for (int m = 0; m < Shape::kTiles; m++) {
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const uint32_t pair = state.pair_of(m, h);
        const float inverse = shared.inverse[pair];
        const uint32_t lane =
            Shape::kIsPlain || cache.lanes == 1 ? 0 : pair % share.group;
#pragma unroll
        for (int n = 0; n < static_cast<int>(kSlots) / 8; n++) {
#pragma unroll
          for (int i = 0; i < 2; i++) {
            const float bias = shared.biases[lane][8 * n + 2 * t + i];
            float &logit = x[m][n][2 * h + i];
            logit = logit * inverse + bias;
          }
        }
      }
    }
    if constexpr (!Shape::kIsPlain) {
      if (any_sink) replace_sinks<DIM, FORM>(sinks, shared, cache.lanes, x);
      // Weights of free slots are zero without this; at a scale of their own
      // they are not.
      if (gains) {
#pragma unroll
        for (int n = 0; n < static_cast<int>(kSlots) / 8; n++) {
#pragma unroll
          for (int i = 0; i < 4; i++) {
            if (x[0][n][i] < kLiveBias) x[0][n][i] = -INFINITY;
          }
        }
      }
    }
    // Only the last tiles have rows that come after some of the block's.
    const TilePlace place = share.place(tile);
    if (share.has_later(place)) {
#pragma unroll
      for (int m = 0; m < Shape::kTiles; m++) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
          const uint32_t row = queries.row(state.pair_of(m, h));
#pragma unroll
          for (int n = 0; n < static_cast<int>(kSlots) / 8; n++) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
              if (place.first + 8 * n + 2 * t + i > row) {
                x[m][n][2 * h + i] = -INFINITY;
              }
            }
          }
        }
      }
    }
    wait_copies<0>();
    // Values are there, and nobody reads these keys and biases any more.
    __syncthreads();
    if (tile + 1 < share.tiles) {
      fetch(tile + 1, true);
      store_ahead(tile + 1);
    }
    state.weigh(x, gains);
    state.multiply_values(shared, x);
  }

  state.store(args, queries, gains);
}

template <int DIM, PrefillForm FORM>
cudaError_t launch_form(const skv_chunk_args &args, const Launch &launch) {
  const auto kernel = prefill_attend_kernel<DIM, FORM>;
  constexpr size_t kBytes = sizeof(PrefillShared<DIM, FORM>);
  static_assert(kBytes <= kLeastSharedBytes, "a form for all devices");
  const cudaError_t status = allow_shared_memory(kernel, kBytes);
  if (status != cudaSuccess) return status;
  const dim3 grid(args.sizes.kv_heads,
                  row_blocks<PrefillShape<DIM, FORM>>(args));
  return launch_kernel(launch, kernel, grid, PrefillShape<DIM, FORM>::kThreads,
                       kBytes, args);
}

template <int DIM>
cudaError_t launch_width(const skv_chunk_args &args, const Launch &launch) {
  if (args.step.rows <= kMostExactRows) {
    return launch_form<DIM, PrefillForm::kExact>(args, launch);
  }
  const bool is_plain = args.sink_queries == nullptr && args.cache.lanes == 1 &&
                        args.policy.score != SKV_SCORE_STEP_GAIN;
  if (is_plain) {
    bool done = false;
    const cudaError_t status = launch_group_attend<DIM>(args, launch, done);
    if (status != cudaSuccess || done) return status;
  }
  // Blocks of the plain form are twice as large: half as many do as well, fewer
  // do not.
  const uint32_t blocks =
      row_blocks<PrefillShape<DIM, PrefillForm::kPlain>>(args) *
      args.sizes.kv_heads;
  return is_plain && 2 * blocks >= launch.multiprocessors
             ? launch_form<DIM, PrefillForm::kPlain>(args, launch)
             : launch_form<DIM, PrefillForm::kGeneral>(args, launch);
}

}  // namespace

Needs prefill_attend_needs(const skv_chunk_args &, uint32_t) { return {}; }

cudaError_t launch_prefill_attend(const skv_chunk_args &args,
                                  const Launch &launch) {
  return with_width(args.sizes.head_dim, [&](auto width) {
    return launch_width<decltype(width)::value>(args, launch);
  });
}
`,
  "project_add.cu": `// hidden += input · weightᵀ + bias.
//
// Streams the weight once, 2 bytes per element, where there are few rows: see
// lib/product.cuh. Each output is added by one thread, so that results are the
// same from run to run. The alternative that lost: splitting the columns over
// blocks that add atomically.
#include "lib/product.cuh"

namespace {

struct AddPairs {
  float *hidden;
  const float *bias;
  uint32_t width;

  __device__ uint32_t output(uint32_t pair, uint32_t end) const {
    return 2 * pair + end;
  }
  static bool has_tiles(uint32_t outputs) { return outputs % 2 == 0; }
  struct Held {
    float *hidden;
    float bias[2];
    bool is_pair;
  };
  __device__ Held hold(uint32_t row, uint32_t pair) const {
    const uint32_t i = 2 * pair;
    Held held = {
        hidden + static_cast<size_t>(row) * width + i, {}, i + 1 < width};
    if (bias != nullptr) {
      held.bias[0] = bias[i];
      if (held.is_pair) held.bias[1] = bias[i + 1];
    }
    return held;
  }
  // Nobody waits for an addition whose result is not asked for.
  __device__ static void finish(const Held &held, float a, float b) {
    atomicAdd(held.hidden, a + held.bias[0]);
    if (held.is_pair) atomicAdd(held.hidden + 1, b + held.bias[1]);
  }
};

Product product_of(const skv_project_add_args &args) {
  return {args.weight, args.input,     nullptr, 0.0f,
          args.step,   args.step.rows, false};
}

}  // namespace

Needs project_add_needs(const skv_project_add_args &args,
                        uint32_t multiprocessors) {
  return product_needs(product_of(args), multiprocessors);
}

cudaError_t launch_project_add(const skv_project_add_args &args,
                               const Launch &launch) {
  const AddPairs pairs = {args.hidden, args.bias, args.weight.rows};
  return multiply(product_of(args), pairs, Scratch(launch.scratch), launch);
}
`,
  "qkv_rope_append.cu": `// RMS norm, the q|k|v product with its bias, per-head norms, RoPE, and one new
// slot per KV head that holds the token: the head's next free slot in a decode
// step, a staged row in a prefill step.
//
// Streams the weight once, 2 bytes per element, where there are few rows: see
// lib/product.cuh; writes 4 bytes per query element and 2 per key and value
// element. Both ends of a RoPE pair are made together and finished where they
// are made. Where the model norms heads, products go to scratch memory and
// \`append\` finishes one head per block. The alternative that lost: \`append\` for
// all, one launch per layer more.
#include "lib/product.cuh"
#include "lib/rope.cuh"
#include "lib/slots.cuh"

namespace {

// Where a row's products go.
struct Target {
  Row row;
  // Index of the row in the step.
  uint32_t index;

  // Number of tokens in the cache before this one: its place there.
  __device__ uint32_t place(const skv_qkv_rope_append_args &args,
                            uint32_t kv_head) const {
    const uint32_t live =
        head_words(args.cache, args.sizes, row.sequence, kv_head)[kHeadLive];
    return args.step.kind == SKV_DECODE ? live : live + index;
  }

  // The slot that takes the token. False if the head is full.
  __device__ bool slot(const skv_qkv_rope_append_args &args, uint32_t kv_head,
                       Slot &out) const {
    const skv_cache &cache = args.cache;
    if (args.step.kind == SKV_PREFILL) {
      out = slot_at(cache.stage, kv_head * cache.stage_rows + index,
                    args.sizes.head_dim);
      return true;
    }
    const uint32_t *head = head_words(cache, args.sizes, row.sequence, kv_head);
    out = slot_at(cache.slots, head[kHeadOffset] + head[kHeadNext],
                  args.sizes.head_dim);
    return head[kHeadNext] < head[kHeadCapacity];
  }
};

// Where the pair (pair, pair + half) of a head goes, and how far it turns: a
// query, a key or a value.
struct PairTarget {
  float2 turn;
  // Of queries.
  float2 sink_turn;
  size_t at;
  // Of keys and values, null where the head is full.
  skv_cached *half_row;
  bool is_query;
  bool is_key;
  // Where the side fields are, if this pair is the first of a key, and the
  // position that they get.
  Slot slot;
  uint32_t position;
  bool is_first;
};

__device__ inline PairTarget target_of(const skv_qkv_rope_append_args &args,
                                       const Target &target, uint32_t head,
                                       uint32_t pair) {
  const skv_sizes &sizes = args.sizes;
  const uint32_t half = sizes.head_dim / 2;
  PairTarget to = {};
  to.turn = rotation(args.rope, half, pair, target.row.position);
  to.position = target.row.position;
  to.is_query = head < sizes.heads;
  if (to.is_query) {
    to.at = (static_cast<size_t>(target.index) * sizes.heads + head) *
                sizes.head_dim +
            pair;
    if (args.sink_queries == nullptr) return to;
    const uint32_t kv_head = head / (sizes.heads / sizes.kv_heads);
    to.sink_turn = rotation(args.rope, half, pair, target.place(args, kv_head));
    return to;
  }
  to.is_key = head < sizes.heads + sizes.kv_heads;
  if (!target.slot(args, (head - sizes.heads) % sizes.kv_heads, to.slot)) {
    return to;
  }
  to.half_row = (to.is_key ? to.slot.key : to.slot.value) + pair;
  // Whoever makes the first pair of the key also makes the side fields.
  to.is_first = to.is_key && pair == 0;
  return to;
}

__device__ inline void store_pair(const skv_qkv_rope_append_args &args,
                                  const PairTarget &to, float2 x) {
  const uint32_t half = args.sizes.head_dim / 2;
  if (to.is_query) {
    const float2 query = turned(x, to.turn);
    args.queries[to.at] = query.x;
    args.queries[to.at + half] = query.y;
    if (args.sink_queries == nullptr) return;
    const float2 sink = turned(x, to.sink_turn);
    args.sink_queries[to.at] = sink.x;
    args.sink_queries[to.at + half] = sink.y;
    return;
  }
  if (to.half_row == nullptr) return;
  const float2 kept = to.is_key ? turned(x, to.turn) : x;
  to.half_row[0] = to_cached(kept.x);
  to.half_row[half] = to_cached(kept.y);
  if (to.is_first) initialise_slot(to.slot, to.position, args.cache.lanes);
}

// Pairs of RoPE, numbered through all heads.
struct RopePairs {
  skv_qkv_rope_append_args args;

  __device__ uint32_t output(uint32_t pair, uint32_t end) const {
    const uint32_t half = args.sizes.head_dim / 2;
    return pair / half * (2 * half) + pair % half + end * half;
  }
  bool has_tiles(uint32_t outputs) const {
    return outputs % args.sizes.head_dim == 0;
  }
  struct Held {
    PairTarget target;
    float bias[2];
  };
  __device__ Held hold(uint32_t row, uint32_t pair) const {
    const uint32_t half = args.sizes.head_dim / 2;
    const Target target = {row_of(args.step, row), row};
    Held held = {target_of(args, target, pair / half, pair % half), {}};
    if (args.bias != nullptr) {
      held.bias[0] = args.bias[output(pair, 0)];
      held.bias[1] = args.bias[output(pair, 1)];
    }
    return held;
  }
  __device__ void finish(const Held &held, float a, float b) const {
    store_pair(args, held.target, {a + held.bias[0], b + held.bias[1]});
  }
};

// Neighbours, left in scratch memory.
struct ProductPairs {
  float *products;
  uint32_t width;

  __device__ uint32_t output(uint32_t pair, uint32_t end) const {
    return 2 * pair + end;
  }
  static bool has_tiles(uint32_t outputs) { return outputs % 2 == 0; }
  using Held = float2 *;
  __device__ Held hold(uint32_t row, uint32_t pair) const {
    // Heads are even, and so is the number of outputs.
    return reinterpret_cast<float2 *>(
        products + static_cast<size_t>(row) * width + 2 * pair);
  }
  __device__ static void finish(const Held &held, float a, float b) {
    *held = {a, b};
  }
};

constexpr uint32_t kAppendThreads = 128;

// Finishes the products of one head of one row.
__global__ void __launch_bounds__(kAppendThreads)
    append_kernel(skv_qkv_rope_append_args args, const float *products) {
  __shared__ float shared[kAppendThreads / 32];
  begin_kernel();
  const skv_sizes &sizes = args.sizes;
  const Target target = {row_of(args.step, blockIdx.y), blockIdx.y};
  if (!target.row.forwarded) return;
  const uint32_t head = blockIdx.x;
  const uint32_t head_dim = sizes.head_dim, half = head_dim / 2;
  const float *from = products +
                      static_cast<size_t>(target.index) * args.weight.rows +
                      head * head_dim;
  const float *bias =
      args.bias == nullptr ? nullptr : args.bias + head * head_dim;
  const float *norm = head < sizes.heads                    ? args.query_norm
                      : head < sizes.heads + sizes.kv_heads ? args.key_norm
                                                            : nullptr;
  const auto product = [&](uint32_t i) {
    return from[i] + (bias == nullptr ? 0.0f : bias[i]);
  };
  float scale = 1.0f;
  if (norm != nullptr) {
    float squares = 0.0f;
    for (uint32_t i = threadIdx.x; i < head_dim; i += kAppendThreads) {
      squares += product(i) * product(i);
    }
    squares = warp_sum(squares);
    if (lane_id() == 0) shared[warp_id()] = squares;
    __syncthreads();
    squares = 0.0f;
    for (uint32_t w = 0; w < kAppendThreads / 32; w++) squares += shared[w];
    scale = rsqrtf(squares / static_cast<float>(head_dim) + sizes.norm_epsilon);
  }
  for (uint32_t pair = threadIdx.x; pair < half; pair += kAppendThreads) {
    float2 x = {product(pair) * scale, product(pair + half) * scale};
    if (norm != nullptr) x.x *= norm[pair], x.y *= norm[pair + half];
    store_pair(args, target_of(args, target, head, pair), x);
  }
}

Product product_of(const skv_qkv_rope_append_args &args) {
  return {args.weight, args.hidden,    args.norm, args.sizes.norm_epsilon,
          args.step,   args.step.rows, false};
}

bool is_fused(const skv_qkv_rope_append_args &args) {
  return args.query_norm == nullptr && args.key_norm == nullptr;
}

// Floats of the products of all rows.
size_t product_count(const skv_qkv_rope_append_args &args) {
  return static_cast<size_t>(args.step.rows) * args.weight.rows;
}

}  // namespace

Needs qkv_rope_append_needs(const skv_qkv_rope_append_args &args,
                            uint32_t multiprocessors) {
  Needs needs = product_needs(product_of(args), multiprocessors);
  if (!is_fused(args)) {
    const size_t bytes = aligned_bytes(product_count(args) * sizeof(float));
    needs.scratch += bytes;
    if (needs.library_scratch > 0) needs.library_scratch += bytes;
  }
  return needs;
}

cudaError_t launch_qkv_rope_append(const skv_qkv_rope_append_args &args,
                                   const Launch &launch) {
  Scratch scratch(launch.scratch);
  if (is_fused(args)) {
    return multiply(product_of(args), RopePairs{args}, scratch, launch);
  }
  float *products = scratch.take<float>(product_count(args));
  const ProductPairs pairs = {products, args.weight.rows};
  const cudaError_t status = multiply(product_of(args), pairs, scratch, launch);
  if (status != cudaSuccess) return status;
  const dim3 grid(args.sizes.heads + 2 * args.sizes.kv_heads, args.step.rows);
  return launch_kernel(launch, append_kernel, grid, kAppendThreads, 0, args,
                       products);
}
`,
  "query_statistics.cu": `// For each query head, the mean of its unrotated queries and, per RoPE pair,
// the mean of their squared distances from it, over the text so far; then the
// mean and the variance of the queries that are expected after the last row,
// rotated like keys.
//
// Reads the queries of the step once, 4 bytes per element, and moves 28 bytes
// per pair and query head of statistics. A block has a query head: its threads
// share the pairs, and the rows of a chunk, whose statistics they join in the
// end. The alternative that lost: counting queries in qkv_rope_append before it
// turns them, whose blocks own rows, not heads.
#include "lib/overlap.cuh"
#include "lib/rope.cuh"
#include "lib/statistics.cuh"
#include "lib/step.cuh"
#include "runtime/launch.cuh"

namespace {

constexpr uint32_t kThreads = 512;

// How many queries there were, their mean, and how far they scatter.
struct Moments {
  float count = 0.0f;
  float scatter = 0.0f;
  float2 mean = {0.0f, 0.0f};

  // Takes others in. Differences from the mean are summed up, not squares,
  // since queries may scatter little about a mean far from 0.
  __device__ void join(const Moments &other) {
    if (other.count == 0.0f) return;
    count += other.count;
    const float share = other.count / count;
    const float2 change = {other.mean.x - mean.x, other.mean.y - mean.y};
    const float between =
        (1.0f - share) * (change.x * change.x + change.y * change.y);
    scatter += share * (other.scatter - scatter + between);
    mean.x += share * change.x;
    mean.y += share * change.y;
  }
};

__global__ void __launch_bounds__(kThreads)
    count_kernel(skv_query_statistics_args args) {
  __shared__ Moments shared[kThreads];
  begin_kernel();
  const skv_sizes &sizes = args.sizes;
  const uint32_t head = blockIdx.x, first = blockIdx.y;
  const bool decodes = args.step.kind == SKV_DECODE;
  const Row first_row = row_of(args.step, first);
  if (!first_row.live) return;
  const uint32_t rows = decodes ? 1 : row_end(args.step);
  const uint32_t half = sizes.head_dim / 2;
  const QueryStatistics own =
      statistics_of(args.cache, sizes, first_row.sequence, head);
  // A thread has a pair and every \`parts\`th row.
  const uint32_t parts = blockDim.x / half;
  const uint32_t part = threadIdx.x / half, pair = threadIdx.x % half;
  Moments moments;
  for (uint32_t r = part; part < parts && r < rows; r += parts) {
    const uint32_t position = first_row.position + r;
    if (position < args.sinks) continue;
    const float *query =
        args.queries +
        (static_cast<size_t>(first + r) * sizes.heads + head) * sizes.head_dim;
    const float2 angle = rotation(args.rope, half, pair, position);
    // The table may scale what it turns.
    const float square = angle.x * angle.x + angle.y * angle.y;
    const float2 back = {angle.x / square, -angle.y / square};
    Moments one;
    one.count = 1.0f;
    one.mean = turned({query[pair], query[pair + half]}, back);
    moments.join(one);
  }
  shared[threadIdx.x] = moments;
  const float counted = *own.count();
  // Everybody has read the count before one writes it.
  __syncthreads();
  if (part > 0) return;
  moments.count = counted;
  moments.scatter = own.scatter()[pair];
  moments.mean = {own.mean()[pair], own.mean()[pair + half]};
  for (uint32_t p = 0; p < parts; p++) moments.join(shared[p * half + pair]);
  own.mean()[pair] = moments.mean.x;
  own.mean()[pair + half] = moments.mean.y;
  own.scatter()[pair] = moments.scatter;
  if (pair == 0) *own.count() = moments.count;
  const float2 ahead = reinterpret_cast<const float2 *>(args.ahead)[pair];
  const float2 angle = turned(
      rotation(args.rope, half, pair, first_row.position + rows - 1), ahead);
  const float2 future = turned(moments.mean, angle);
  own.future()[pair] = future.x;
  own.future()[pair + half] = future.y;
  own.variance()[pair] =
      (angle.x * angle.x + angle.y * angle.y) * moments.scatter / 2.0f;
}

}  // namespace

Needs query_statistics_needs(const skv_query_statistics_args &, uint32_t) {
  return {};
}

cudaError_t launch_query_statistics(const skv_query_statistics_args &args,
                                    const Launch &launch) {
  // A row of a decode step leaves nothing to share.
  const bool decodes = args.step.kind == SKV_DECODE;
  const dim3 grid(args.sizes.heads, decodes ? args.step.rows : 1);
  const uint32_t half = args.sizes.head_dim / 2;
  const uint32_t threads = decodes ? (half + 31) / 32 * 32 : kThreads;
  return launch_kernel(launch, count_kernel, grid, threads, 0, args);
}
`,
  "runtime/clusters.cuh": `// Clusters: blocks side by side that run at the same time and read each other's
// shared memory.
#pragma once

#include "launch.cuh"

inline cudaLaunchAttribute cluster_attribute(uint32_t blocks) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = blocks;
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  return attribute;
}

// How many clusters of \`blocks\` blocks the device has room for at a time.
template <class Kernel>
inline cudaError_t most_clusters(const Launch &launch, uint32_t blocks,
                                 Kernel kernel, uint32_t threads,
                                 size_t shared_bytes, int &clusters) {
  cudaLaunchAttribute attribute = cluster_attribute(blocks);
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(blocks, launch.multiprocessors);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.attrs = &attribute;
  config.numAttrs = 1;
  return cudaOccupancyMaxActiveClusters(&clusters, kernel, &config);
}
`,
  "runtime/context.cu": `// Opening a device, its memory, and what is said when something fails.
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <new>

#include "../lib/cached.cuh"
#include "context.cuh"

namespace {

// The sentence about the last skv_open that failed on this thread.
thread_local char open_error[sizeof(skv_context::error)] = "";

// Text of the architectures that this library holds code for.
#define SKV_TEXT(...) #__VA_ARGS__
#define SKV_LIST(...) SKV_TEXT(__VA_ARGS__)

// "900,1000" becomes "9.0, 10.0".
void describe_architectures(char *text, size_t capacity) {
  size_t length = 0;
  for (const char *at = SKV_LIST(__CUDA_ARCH_LIST__); *at != '\\0';) {
    int number = 0, used = 0;
    if (sscanf(at, "%d%n", &number, &used) != 1) break;
    at += used;
    if (*at == ',') at++;
    const int written =
        snprintf(text + length, capacity - length, "%s%d.%d",
                 length == 0 ? "" : ", ", number / 100, number / 10 % 10);
    if (written < 0 || length + written >= capacity) break;
    length += written;
  }
}

skv_status status_of(cudaError_t error) {
  switch (error) {
    case cudaErrorMemoryAllocation:
      return SKV_OUT_OF_MEMORY;
    case cudaErrorNoDevice:
    case cudaErrorInvalidDevice:
    case cudaErrorInsufficientDriver:
    case cudaErrorInitializationError:
    case cudaErrorSystemDriverMismatch:
    case cudaErrorSystemNotReady:
    case cudaErrorCompatNotSupportedOnDevice:
    case cudaErrorStubLibrary:
      return SKV_NO_DEVICE;
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorUnsupportedPtxVersion:
    case cudaErrorInvalidKernelImage:
      return SKV_ARCHITECTURE;
    case cudaErrorIllegalAddress:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorHardwareStackError:
    case cudaErrorLaunchFailure:
    case cudaErrorLaunchTimeout:
    case cudaErrorAssert:
      return SKV_KERNEL;
    case cudaErrorInvalidValue:
    case cudaErrorInvalidConfiguration:
    case cudaErrorLaunchOutOfResources:
      return SKV_INVALID;
    default:
      return SKV_DEVICE_LOST;
  }
}

// Fails where the driver is missing or too old for the runtime in here.
int32_t check_driver() {
  int driver = 0, runtime = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  if (driver == 0) {
    return fail(nullptr, SKV_NO_DEVICE, "there is no NVIDIA driver");
  }
  if (driver / 1000 < runtime / 1000) {
    return fail(nullptr, SKV_NO_DEVICE,
                "the NVIDIA driver supports CUDA %d.%d, but the library was "
                "built with %d.%d",
                driver / 1000, driver % 1000 / 10, runtime / 1000,
                runtime % 1000 / 10);
  }
  return SKV_OK;
}

// Exists to be asked for: it has code for a device if all kernels have.
__global__ void probe_kernel() {}

int32_t check_architecture(int index) {
  cudaFuncAttributes attributes;
  const cudaError_t error = cudaFuncGetAttributes(&attributes, probe_kernel);
  if (status_of(error) != SKV_ARCHITECTURE) {
    return check(nullptr, error, "load the kernels");
  }
  cudaDeviceProp properties;
  cudaGetDeviceProperties(&properties, index);
  char built[64] = "";
  describe_architectures(built, sizeof(built));
  return fail(nullptr, SKV_ARCHITECTURE,
              "the library was built for compute capability %s, but %s has "
              "%d.%d",
              built, properties.name, properties.major, properties.minor);
}

// Asks for the device's properties, and creates what work is enqueued on.
cudaError_t create_streams(skv_context *context) {
  const int device = context->device;
  int multiprocessors = 0, major = 0, shared_bytes = 0;
  cudaError_t error = cudaDeviceGetAttribute(
      &multiprocessors, cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor,
                                   device);
  }
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(
        &shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  }
  context->shared_bytes = static_cast<size_t>(shared_bytes);
  context->multiprocessors = static_cast<uint32_t>(multiprocessors);
  context->overlaps = major >= 9;
  context->has_groups = major == 9;
  context->tile_maps = TileMaps::open(major);
  if (error == cudaSuccess) {
    error = cudaStreamCreateWithFlags(&context->stream, cudaStreamNonBlocking);
  }
  for (cudaStream_t &side : context->sides.streams) {
    if (error != cudaSuccess) break;
    error = cudaStreamCreateWithFlags(&side, cudaStreamNonBlocking);
  }
  if (error == cudaSuccess) {
    error =
        cudaEventCreateWithFlags(&context->sides.event, cudaEventDisableTiming);
  }
  return error;
}

}  // namespace

int32_t fail(skv_context *context, skv_status status, const char *format, ...) {
  char text[sizeof(open_error)];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof(text), format, arguments);
  va_end(arguments);
  if (context == nullptr) {
    memcpy(open_error, text, sizeof(text));
  } else {
    const std::lock_guard<std::mutex> lock(context->mutex);
    memcpy(context->error, text, sizeof(text));
  }
  return status;
}

int32_t check(skv_context *context, cudaError_t error, const char *what) {
  if (error == cudaSuccess) return SKV_OK;
  // Errors that a call merely returns must not be found by the next one.
  cudaGetLastError();
  return fail(context, status_of(error), "cannot %s: %s", what,
              cudaGetErrorString(error));
}

int32_t enter(skv_context *context) {
  return check(context, cudaSetDevice(context->device), "use the device");
}

uint32_t skv_abi_version(void) { return SKV_ABI_VERSION; }

uint32_t skv_cache_type(void) {
  return kCachesHalves ? SKV_CACHE_IS_HALF : SKV_CACHE_IS_BFLOAT16;
}

void skv_last_error(skv_context *context, uint8_t *text, uint64_t capacity) {
  if (capacity == 0) return;
  char *to = reinterpret_cast<char *>(text);
  if (context == nullptr) {
    snprintf(to, capacity, "%s", open_error);
    return;
  }
  const std::lock_guard<std::mutex> lock(context->mutex);
  snprintf(to, capacity, "%s", context->error);
}

int32_t skv_open(uint32_t index, uint32_t flags, skv_context **context) {
  *context = nullptr;
  int32_t status = check_driver();
  if (status != SKV_OK) return status;
  int count = 0;
  status = check(nullptr, cudaGetDeviceCount(&count), "find a GPU");
  if (status != SKV_OK) return status;
  if (index >= static_cast<uint32_t>(count)) {
    return fail(nullptr, SKV_NO_DEVICE,
                "there is no GPU %u: the driver finds %d", index, count);
  }
  const int device = static_cast<int>(index);
  status = check(nullptr, cudaSetDevice(device), "use the device");
  if (status != SKV_OK) return status;
  status = check_architecture(device);
  if (status != SKV_OK) return status;
  auto *opened = new (std::nothrow) skv_context;
  if (opened == nullptr) {
    return fail(nullptr, SKV_OUT_OF_MEMORY, "the host has no memory left");
  }
  opened->device = device;
  opened->flags = flags;
  status = check(nullptr, create_streams(opened), "create streams");
  if (status != SKV_OK) {
    delete opened;
    return status;
  }
  *context = opened;
  return SKV_OK;
}

void skv_close(skv_context *context) {
  if (context == nullptr) return;
  // After a fault these fail too, and the driver frees what is left.
  cudaSetDevice(context->device);
  cudaStreamSynchronize(context->stream);
  for (void *allocation : context->allocations) cudaFree(allocation);
  context->library.reset();
  context->writes.release();
  context->reads.release();
  for (const cudaStream_t side : context->sides.streams) {
    cudaStreamDestroy(side);
  }
  cudaEventDestroy(context->sides.event);
  cudaStreamDestroy(context->stream);
  cudaGetLastError();
  delete context;
}

int32_t skv_describe(skv_context *context, skv_device_info *info) {
  cudaDeviceProp properties;
  int driver = 0, runtime = 0;
  cudaError_t error = cudaGetDeviceProperties(&properties, context->device);
  if (error == cudaSuccess) error = cudaDriverGetVersion(&driver);
  if (error == cudaSuccess) error = cudaRuntimeGetVersion(&runtime);
  if (error != cudaSuccess) return check(context, error, "ask for the device");
  *info = {};
  info->memory_bytes = properties.totalGlobalMem;
  info->multiprocessors = context->multiprocessors;
  info->compute_capability =
      static_cast<uint32_t>(10 * properties.major + properties.minor);
  info->runtime_version = static_cast<uint32_t>(runtime);
  info->driver_version = static_cast<uint32_t>(driver);
  snprintf(reinterpret_cast<char *>(info->name), sizeof(info->name), "%s",
           properties.name);
  return SKV_OK;
}

int32_t skv_allocate(skv_context *context, uint64_t bytes, uint64_t *address) {
  int32_t status = enter(context);
  if (status != SKV_OK) return status;
  void *memory = nullptr;
  const cudaError_t error = cudaMalloc(&memory, bytes);
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    size_t free = 0, total = 0;
    cudaMemGetInfo(&free, &total);
    return fail(context, SKV_OUT_OF_MEMORY,
                "the device has %zu of its %zu bytes free", free, total);
  }
  if (error != cudaSuccess) return check(context, error, "allocate memory");
  context->allocations.insert(memory);
  *address = reinterpret_cast<uint64_t>(memory);
  return check(context, cudaMemsetAsync(memory, 0, bytes, context->stream),
               "clear memory");
}

int32_t skv_free(skv_context *context, uint64_t address) {
  const int32_t status = enter(context);
  if (status != SKV_OK) return status;
  void *memory = reinterpret_cast<void *>(address);
  if (context->allocations.erase(memory) == 0) {
    return fail(context, SKV_INVALID, "cannot free memory that is not there");
  }
  return check(context, cudaFree(memory), "free memory");
}

int32_t skv_synchronize(skv_context *context) {
  const int32_t status = enter(context);
  if (status != SKV_OK) return status;
  return check(context, cudaStreamSynchronize(context->stream),
               "wait for the device");
}
`,
  "runtime/context.cuh": `// A context: one device, one stream, and what was allocated on them.
#pragma once

#include <cuda_runtime.h>

#include <memory>
#include <mutex>
#include <set>

#include "../steadykv.h"
#include "launch.cuh"
#include "matrix_library.cuh"
#include "staging.cuh"
#include "tile_maps.cuh"

struct skv_context {
  int device = 0;
  uint32_t flags = 0;
  uint32_t multiprocessors = 0;
  // Most shared memory of a block.
  size_t shared_bytes = 0;
  cudaStream_t stream = nullptr;
  Sides sides;
  // Whether the device can start a kernel before the one in front has ended.
  bool overlaps = false;
  // Whether the device has products of groups of warps.
  bool has_groups = false;
  // Null where the device has no engines that copy tiles.
  std::unique_ptr<TileMaps> tile_maps;
  // Whether the library was looked for, and what was found.
  bool has_looked = false;
  std::unique_ptr<MatrixLibrary> library;
  std::set<void *> allocations;
  WriteRing writes;
  ReadPool reads;
  // Guards \`error\`, and the pool of reads, which other threads wait for.
  std::mutex mutex;
  char error[512] = {};
};

// Remembers what went wrong, printf-like, and returns the status. A null
// context stands for skv_open.
int32_t fail(skv_context *context, skv_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

// Turns what CUDA says into a status; \`what\` was being done.
int32_t check(skv_context *context, cudaError_t error, const char *what);

// Makes the context's device that of this thread.
int32_t enter(skv_context *context);
`,
  "runtime/kernel_call.cuh": `// What a recorded program keeps of a call: the kernel and its arguments.
#pragma once

#include <stddef.h>

#include "launch.cuh"

constexpr size_t kMaxArgs = 512;

// What a recorded program knows about a kernel.
struct Kernel {
  const char *name;
  size_t size;
  Needs (*needs)(const void *args, uint32_t multiprocessors);
  cudaError_t (*launch)(const void *args, const Launch &launch);
  // Launches work that no later call of the program waits for; null where there
  // is none.
  cudaError_t (*launch_late)(const void *args, const Launch &launch) = nullptr;
  // Whether late work begins beside this call.
  bool has_time = false;
};

template <class Args, Needs (*NEEDS)(const Args &, uint32_t),
          cudaError_t (*LAUNCH)(const Args &, const Launch &)>
constexpr Kernel kernel(const char *name) {
  static_assert(sizeof(Args) <= kMaxArgs, "room for the arguments");
  return {name, sizeof(Args),
          [](const void *args, uint32_t multiprocessors) {
            return NEEDS(*static_cast<const Args *>(args), multiprocessors);
          },
          [](const void *args, const Launch &launch) {
            return LAUNCH(*static_cast<const Args *>(args), launch);
          }};
}

template <class Args, cudaError_t (*LATE)(const Args &, const Launch &)>
constexpr Kernel with_late(Kernel kernel) {
  kernel.launch_late = [](const void *args, const Launch &launch) {
    return LATE(*static_cast<const Args *>(args), launch);
  };
  return kernel;
}

constexpr Kernel with_time(Kernel kernel) {
  kernel.has_time = true;
  return kernel;
}

struct Call {
  const Kernel *kernel;
  // Where its own memory begins.
  size_t own = 0;
  alignas(8) unsigned char args[kMaxArgs];
};
`,
  "runtime/launch.cuh": `// What a kernel's host side needs to know: the stream, scratch memory and the
// device. A kernel's file defines two functions that src/backends/cuda never
// sees: \`<name>_needs\`, how much scratch a call takes, and \`launch_<name>\`.
#pragma once

#include <cuda_runtime.h>
#include <stddef.h>
#include <stdint.h>

#include "../steadykv.h"

// Rounds up, so that whatever follows is aligned.
inline size_t aligned_bytes(size_t bytes) { return (bytes + 255) / 256 * 256; }

// Scratch memory, handed out from the front.
class Scratch {
 public:
  explicit Scratch(char *memory) : memory_(memory) {}

  template <class T>
  T *take(size_t count) {
    T *const taken = reinterpret_cast<T *>(memory_);
    memory_ += aligned_bytes(count * sizeof(T));
    return taken;
  }

  // Bytes since \`memory\`.
  size_t taken(const char *memory) const {
    return static_cast<size_t>(memory_ - memory);
  }

 private:
  char *memory_;
};

// Device memory that a call takes beside its arguments.
struct Needs {
  // Bytes that the next call may overwrite.
  size_t scratch = 0;
  // The same where the library multiplies; 0 where it has no part in the call.
  size_t library_scratch = 0;
  // Words that are zero before each call and that the kernel leaves zero.
  size_t tickets = 0;
  // Bytes that no other call of the program overwrites.
  size_t own = 0;
};

class MatrixLibrary;
class TileMaps;

// Streams for work that the rest of the program does not wait for.
struct Sides {
  static constexpr int kCount = 32;

  cudaStream_t streams[kCount] = {};
  cudaEvent_t event = nullptr;
  // How many of the streams were used since the last join.
  int used = 0;
  int next = 0;
};

// How to launch a call.
struct Launch {
  cudaStream_t stream;
  char *scratch;
  char *own;
  uint32_t *tickets;
  uint32_t multiprocessors;
  // Most shared memory that a block may have, that of the kernel's own
  // variables included.
  size_t shared_bytes;
  // Whether a kernel may start before the one in front of it has ended. All
  // kernels wait for it themselves: see lib/overlap.cuh.
  bool overlaps;
  // Null where everything runs in order.
  Sides *sides;
  // Null where all products are ours.
  MatrixLibrary *library;
  // Whether groups of four warps multiply: see lib/group_instructions.cuh.
  bool has_groups;
  // Null where tiles are copied by threads.
  const TileMaps *tile_maps;
};

// A launch on a stream that goes on beside the main one, from here on; the end
// of the program waits for it.
cudaError_t fork(const Launch &launch, Launch *side);

// Makes the main stream wait for the others.
cudaError_t join(const Launch &launch);

// Launches a kernel; \`form\` is one more attribute of the launch, or null.
template <class... Parameters, class... Arguments>
inline cudaError_t launch_as(const Launch &launch,
                             const cudaLaunchAttribute *form,
                             void (*kernel)(Parameters...), dim3 grid,
                             uint32_t threads, size_t shared_bytes,
                             const Arguments &...arguments) {
  cudaLaunchAttribute attributes[2] = {};
  uint32_t count = 0;
  if (launch.overlaps) {
    cudaLaunchAttribute &overlap = attributes[count++];
    overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlap.val.programmaticStreamSerializationAllowed = 1;
  }
  if (form != nullptr) attributes[count++] = *form;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = launch.stream;
  config.attrs = attributes;
  config.numAttrs = count;
  return cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
}

// The same for most kernels.
template <class... Parameters, class... Arguments>
inline cudaError_t launch_kernel(const Launch &launch,
                                 void (*kernel)(Parameters...), dim3 grid,
                                 uint32_t threads, size_t shared_bytes,
                                 const Arguments &...arguments) {
  return launch_as(launch, nullptr, kernel, grid, threads, shared_bytes,
                   arguments...);
}

// Launches a kernel that starts when everything in front of it has ended.
template <class... Parameters, class... Arguments>
inline cudaError_t start_kernel(cudaStream_t stream,
                                void (*kernel)(Parameters...), dim3 grid,
                                uint32_t threads,
                                const Arguments &...arguments) {
  Launch launch = {};
  launch.stream = stream;
  return launch_kernel(launch, kernel, grid, threads, 0, arguments...);
}

// What every device from compute capability 8.0 on gives a block: 8.6 gives no
// more, 8.0 gives 163 KiB, 9.0 gives 227 KiB.
constexpr size_t kLeastSharedBytes = 99 * 1024;

// Lets a kernel have more shared memory than blocks get unasked: 48 KiB, those
// of its own variables included. What it was given before stays: programs that
// were recorded rely on it.
template <class Kernel>
inline cudaError_t allow_shared_memory(Kernel kernel, size_t bytes) {
  constexpr size_t kUnasked = 48 * 1024;
  cudaFuncAttributes attributes;
  const cudaError_t status = cudaFuncGetAttributes(&attributes, kernel);
  if (status != cudaSuccess) return status;
  if (attributes.sharedSizeBytes + bytes <= kUnasked) return cudaSuccess;
  const size_t given =
      static_cast<size_t>(attributes.maxDynamicSharedSizeBytes);
  if (given > kUnasked && given >= bytes) return cudaSuccess;
  return cudaFuncSetAttribute(kernel,
                              cudaFuncAttributeMaxDynamicSharedMemorySize,
                              static_cast<int>(bytes));
}

// The kernels: see src/backends/backend.ts for what each computes.
Needs embed_needs(const skv_embed_args &args, uint32_t multiprocessors);
cudaError_t launch_embed(const skv_embed_args &args, const Launch &launch);
Needs qkv_rope_append_needs(const skv_qkv_rope_append_args &args,
                            uint32_t multiprocessors);
cudaError_t launch_qkv_rope_append(const skv_qkv_rope_append_args &args,
                                   const Launch &launch);
Needs value_norms_needs(const skv_value_norms_args &args,
                        uint32_t multiprocessors);
cudaError_t launch_value_norms(const skv_value_norms_args &args,
                               const Launch &launch);
Needs query_statistics_needs(const skv_query_statistics_args &args,
                             uint32_t multiprocessors);
cudaError_t launch_query_statistics(const skv_query_statistics_args &args,
                                    const Launch &launch);
Needs merge_attend_needs(const skv_merge_attend_args &args,
                         uint32_t multiprocessors);
cudaError_t launch_merge_attend(const skv_merge_attend_args &args,
                                const Launch &launch);
// What the policy does with what attention left: the next step waits for it.
cudaError_t merge_late(const skv_merge_attend_args &args, const Launch &launch);
Needs prefill_attend_needs(const skv_chunk_args &args,
                           uint32_t multiprocessors);
cudaError_t launch_prefill_attend(const skv_chunk_args &args,
                                  const Launch &launch);
Needs observe_needs(const skv_chunk_args &args, uint32_t multiprocessors);
cudaError_t launch_observe(const skv_chunk_args &args, const Launch &launch);
Needs compress_needs(const skv_chunk_args &args, uint32_t multiprocessors);
cudaError_t launch_compress(const skv_chunk_args &args, const Launch &launch);
Needs project_add_needs(const skv_project_add_args &args,
                        uint32_t multiprocessors);
cudaError_t launch_project_add(const skv_project_add_args &args,
                               const Launch &launch);
Needs gate_up_needs(const skv_gate_up_args &args, uint32_t multiprocessors);
cudaError_t launch_gate_up(const skv_gate_up_args &args, const Launch &launch);
Needs lm_head_needs(const skv_lm_head_args &args, uint32_t multiprocessors);
cudaError_t launch_lm_head(const skv_lm_head_args &args, const Launch &launch);
Needs sample_needs(const skv_sample_args &args, uint32_t multiprocessors);
cudaError_t launch_sample(const skv_sample_args &args, const Launch &launch);
`,
  "runtime/launcher.cuh": `// The order in which the calls of a program are launched.
#pragma once

#include <vector>

#include "kernel_call.cuh"

// Launches the calls of a program: all in order where they are waited for, else
// late work beside a long call near the end. There it is many small blocks on
// all multiprocessors. Beside each layer's products it would hold up a few of
// these, and with them all others, which have equal shares: with 512 slots of
// an 8B model on an H200, a merge in each layer took 6 % of a step that way,
// and takes 2 %.
class Launcher {
 public:
  // \`own\` is the memory that calls have parts of. \`waits\` says whether all runs
  // in order.
  Launcher(const Launch &launch, char *own, bool waits)
      : launch_(launch), own_(own), waits_(waits) {}

  // Launches everything but late work.
  cudaError_t run(const Call &call) {
    if (call.kernel->has_time) {
      const cudaError_t status = run_late();
      if (status != cudaSuccess) return status;
    }
    const cudaError_t status = call.kernel->launch(call.args, launch_of(call));
    if (status != cudaSuccess || call.kernel->launch_late == nullptr) {
      return status;
    }
    late_.push_back(&call);
    return waits_ ? run_late() : cudaSuccess;
  }

  // Launches late work.
  cudaError_t run_late() {
    cudaError_t status = cudaSuccess;
    for (const Call *call : late_) {
      if (status != cudaSuccess) break;
      status = call->kernel->launch_late(call->args, launch_of(*call));
    }
    late_.clear();
    return status;
  }

  cudaError_t end() {
    const cudaError_t status = run_late();
    return status == cudaSuccess ? join(launch_) : status;
  }

 private:
  const Launch &launch_of(const Call &call) {
    launch_.own = own_ + call.own;
    return launch_;
  }

  Launch launch_;
  char *const own_;
  const bool waits_;
  std::vector<const Call *> late_;
};
`,
  "runtime/matrix_library.cu": `// cuBLASLt by its documented binary interface: the library of any version from
// 11 to 13 has these functions and numbers.
#include <dlfcn.h>
#include <stdlib.h>

#include "matrix_library.cuh"

namespace {

using Status = int;
using Handle = void *;
using Description = void *;
using Layout = void *;
using Preference = void *;

constexpr Status kSuccess = 0;

// cudaDataType_t and cublasComputeType_t.
constexpr int kFloat = 0;
constexpr int kHalf = 2;
constexpr int kComputeFloat = 68;

// Attributes of a product's description: what is done to its left matrix.
constexpr int kTransposeLeft = 3;
constexpr int32_t kTransposed = 1;

// Attributes of a preference.
constexpr int kMaxWorkspaceBytes = 1;

// How a product is made, as the heuristics propose it.
struct Proposal {
  uint64_t algorithm[8];
  size_t workspace_bytes;
  Status status;
  float waves;
  int reserved[4];
};
static_assert(sizeof(Proposal) == 96, "as the library writes it");

}  // namespace

struct MatrixLibrary::Functions {
  Status (*create)(Handle *);
  Status (*destroy)(Handle);
  Status (*create_description)(Description *, int compute, int scale);
  Status (*destroy_description)(Description);
  Status (*set_description)(Description, int attribute, const void *value,
                            size_t bytes);
  Status (*create_layout)(Layout *, int type, uint64_t rows, uint64_t columns,
                          int64_t pitch);
  Status (*destroy_layout)(Layout);
  Status (*create_preference)(Preference *);
  Status (*destroy_preference)(Preference);
  Status (*set_preference)(Preference, int attribute, const void *value,
                           size_t bytes);
  Status (*propose)(Handle, Description, Layout a, Layout b, Layout c, Layout d,
                    Preference, int wanted, Proposal *proposals, int *found);
  Status (*multiply)(Handle, Description, const void *alpha, const void *a,
                     Layout, const void *b, Layout, const void *beta,
                     const void *c, Layout, void *d, Layout,
                     const uint64_t *algorithm, void *workspace,
                     size_t workspace_bytes, cudaStream_t);
};

namespace {

template <class Function>
bool find(void *file, const char *name, Function &function) {
  function = reinterpret_cast<Function>(dlsym(file, name));
  return function != nullptr;
}

void *open_file() {
  const char *named = getenv("STEADYKV_CUBLASLT");
  if (named != nullptr && *named != '\\0') {
    return dlopen(named, RTLD_NOW | RTLD_LOCAL);
  }
  static const char *const kNames[] = {"libcublasLt.so.13", "libcublasLt.so.12",
                                       "/usr/local/cuda/lib64/libcublasLt.so"};
  for (const char *name : kNames) {
    void *file = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (file != nullptr) return file;
  }
  return nullptr;
}

// Something of the library's that is destroyed at the end of a block.
template <class T>
class Owned {
 public:
  explicit Owned(Status (*destroy)(T)) : destroy_(destroy) {}
  ~Owned() {
    if (it_ != nullptr) destroy_(it_);
  }
  Owned(const Owned &) = delete;
  Owned &operator=(const Owned &) = delete;

  T *address() { return &it_; }
  T get() const { return it_; }

 private:
  T it_ = nullptr;
  Status (*destroy_)(T);
};

}  // namespace

MatrixLibrary::MatrixLibrary() = default;

std::unique_ptr<MatrixLibrary> MatrixLibrary::open() {
  std::unique_ptr<MatrixLibrary> library(new MatrixLibrary);
  void *file = open_file();
  if (file == nullptr) return nullptr;
  library->functions_ = std::make_unique<Functions>();
  Functions &f = *library->functions_;
  const bool complete =
      find(file, "cublasLtCreate", f.create) &&
      find(file, "cublasLtDestroy", f.destroy) &&
      find(file, "cublasLtMatmulDescCreate", f.create_description) &&
      find(file, "cublasLtMatmulDescDestroy", f.destroy_description) &&
      find(file, "cublasLtMatmulDescSetAttribute", f.set_description) &&
      find(file, "cublasLtMatrixLayoutCreate", f.create_layout) &&
      find(file, "cublasLtMatrixLayoutDestroy", f.destroy_layout) &&
      find(file, "cublasLtMatmulPreferenceCreate", f.create_preference) &&
      find(file, "cublasLtMatmulPreferenceDestroy", f.destroy_preference) &&
      find(file, "cublasLtMatmulPreferenceSetAttribute", f.set_preference) &&
      find(file, "cublasLtMatmulAlgoGetHeuristic", f.propose) &&
      find(file, "cublasLtMatmul", f.multiply);
  if (!complete || f.create(&library->handle_) != kSuccess) return nullptr;
  return library;
}

// The file stays open: libraries that use the device are not made to be closed
// before the process ends.
MatrixLibrary::~MatrixLibrary() {
  if (handle_ != nullptr) functions_->destroy(handle_);
}

// The library's matrices go down their columns. So the weights are a matrix of
// \`pitch\` rows, which is transposed, and input and output have a column for
// each of our rows.
bool MatrixLibrary::multiply(const LibraryProduct &product, void *workspace,
                             cudaStream_t stream) {
  const Functions &f = *functions_;
  const skv_matrix &weight = product.weight;
  Owned<Description> description(f.destroy_description);
  Owned<Layout> left(f.destroy_layout), right(f.destroy_layout),
      result(f.destroy_layout);
  Owned<Preference> preference(f.destroy_preference);
  const size_t workspace_bytes = kWorkspaceBytes;
  Proposal proposal = {};
  int found = 0;
  const bool is_planned =
      f.create_description(description.address(), kComputeFloat, kFloat) ==
          kSuccess &&
      f.set_description(description.get(), kTransposeLeft, &kTransposed,
                        sizeof(kTransposed)) == kSuccess &&
      f.create_layout(left.address(), kHalf, weight.pitch, weight.rows,
                      weight.pitch) == kSuccess &&
      f.create_layout(right.address(), kHalf, weight.pitch, product.rows,
                      weight.pitch) == kSuccess &&
      f.create_layout(result.address(), kFloat, weight.rows, product.rows,
                      weight.rows) == kSuccess &&
      f.create_preference(preference.address()) == kSuccess &&
      f.set_preference(preference.get(), kMaxWorkspaceBytes, &workspace_bytes,
                       sizeof(workspace_bytes)) == kSuccess &&
      f.propose(handle_, description.get(), left.get(), right.get(),
                result.get(), result.get(), preference.get(), 1, &proposal,
                &found) == kSuccess &&
      found > 0 && proposal.status == kSuccess;
  if (!is_planned) return false;
  const float one = 1.0f, zero = 0.0f;
  return f.multiply(handle_, description.get(), &one, weight.data, left.get(),
                    product.input, right.get(), &zero, product.output,
                    result.get(), product.output, result.get(),
                    proposal.algorithm, workspace, kWorkspaceBytes,
                    stream) == kSuccess;
}
`,
  "runtime/matrix_library.cuh": `// Products of large matrices by NVIDIA's cuBLASLt, where it is installed: it is
// opened when the first program needs it, and nothing is linked.
#pragma once

#include <cuda_runtime.h>
#include <stddef.h>
#include <stdint.h>

#include <memory>

#include "../steadykv.h"

// output = input · weightᵀ, in halves with f32 sums.
struct LibraryProduct {
  // (rows, weight.rows)
  float *output;
  // (rows, weight.pitch)
  const skv_half *input;
  skv_matrix weight;
  uint32_t rows;
};

class MatrixLibrary {
 public:
  // Device memory that a product may use beside its matrices.
  static constexpr size_t kWorkspaceBytes = size_t{1} << 25;

  // Opens the library: the file that STEADYKV_CUBLASLT names, or else the one
  // that the system finds. Null where there is none.
  static std::unique_ptr<MatrixLibrary> open();
  ~MatrixLibrary();
  MatrixLibrary(const MatrixLibrary &) = delete;
  MatrixLibrary &operator=(const MatrixLibrary &) = delete;

  // Enqueues a product. False where the library has no way to make it, and
  // nothing was enqueued. \`workspace\` has kWorkspaceBytes.
  bool multiply(const LibraryProduct &product, void *workspace,
                cudaStream_t stream);

 private:
  struct Functions;

  MatrixLibrary();

  std::unique_ptr<Functions> functions_;
  void *handle_ = nullptr;
};
`,
  "runtime/program.cu": `// Programs: kernel calls are kept while a program is recorded, and captured
// into a graph when it ends, in one go and by one thread. Nothing else happens
// on the stream meanwhile, and scratch memory is allocated once its size is
// known.
#include <stdio.h>
#include <string.h>

#include <algorithm>
#include <new>
#include <vector>

#include "context.cuh"
#include "launcher.cuh"

struct skv_program {
  skv_context *context = nullptr;
  std::vector<Call> calls;
  // One allocation: tickets, shared scratch memory, and that of single calls.
  uint32_t *tickets = nullptr;
  char *scratch = nullptr;
  char *own = nullptr;
  cudaGraphExec_t graph = nullptr;
  bool recorded = false;
};

namespace {

int32_t add_call(skv_program *program, const Kernel &kernel, const void *args,
                 uint64_t size) {
  skv_context *context = program->context;
  if (size != kernel.size) {
    return fail(context, SKV_INVALID,
                "cannot record %s: its arguments take %zu bytes, not %llu",
                kernel.name, kernel.size,
                static_cast<unsigned long long>(size));
  }
  if (program->recorded) {
    return fail(context, SKV_INVALID,
                "cannot record %s: the recording has ended", kernel.name);
  }
  Call call;
  call.kernel = &kernel;
  memcpy(call.args, args, size);
  program->calls.push_back(call);
  return SKV_OK;
}

bool has_flag(const skv_context *context, uint32_t flag) {
  return (context->flags & flag) != 0;
}

// The library, looked for when the first program wants it.
const MatrixLibrary *library_of(skv_context *context) {
  if (!context->has_looked && !has_flag(context, SKV_OWN_PRODUCTS)) {
    context->library = MatrixLibrary::open();
  }
  context->has_looked = true;
  return context->library.get();
}

// Launches all calls; waits for each where the context is to check them. No
// side stream is left to be joined, whatever fails.
int32_t launch_calls(skv_program *program) {
  skv_context *context = program->context;
  const bool checks = has_flag(context, SKV_CHECK_EVERY_KERNEL);
  Launch launch = {};
  launch.stream = context->stream;
  launch.scratch = program->scratch;
  launch.tickets = program->tickets;
  launch.multiprocessors = context->multiprocessors;
  launch.shared_bytes = context->shared_bytes;
  launch.overlaps = !checks && context->overlaps;
  launch.sides = checks ? nullptr : &context->sides;
  launch.library = context->library.get();
  launch.has_groups = context->has_groups;
  launch.tile_maps = context->tile_maps.get();
  Launcher launcher(launch, program->own, checks);
  const auto fail_with = [&](cudaError_t error, const char *what) {
    // Nobody joins what this program began: the next one must not either.
    context->sides.used = context->sides.next = 0;
    return check(context, error, what);
  };
  for (const Call &call : program->calls) {
    cudaError_t error = launcher.run(call);
    if (error == cudaSuccess && checks) {
      error = cudaStreamSynchronize(context->stream);
    }
    if (error != cudaSuccess) {
      char what[64];
      snprintf(what, sizeof(what), "run kernel %s", call.kernel->name);
      return fail_with(error, what);
    }
  }
  const cudaError_t error = launcher.end();
  return error == cudaSuccess ? SKV_OK : fail_with(error, "end a program");
}

int32_t capture(skv_program *program) {
  skv_context *context = program->context;
  // Relaxed: kernels are loaded when they are first launched, which may be now.
  cudaError_t error =
      cudaStreamBeginCapture(context->stream, cudaStreamCaptureModeRelaxed);
  if (error != cudaSuccess) return check(context, error, "start a capture");
  const int32_t status = launch_calls(program);
  cudaGraph_t graph = nullptr;
  error = cudaStreamEndCapture(context->stream, &graph);
  if (status == SKV_OK && error == cudaSuccess) {
    error = cudaGraphInstantiate(&program->graph, graph, 0);
    if (error == cudaSuccess) {
      error = cudaGraphUpload(program->graph, context->stream);
    }
  }
  if (graph != nullptr) cudaGraphDestroy(graph);
  if (status != SKV_OK) {
    cudaGetLastError();
    return status;
  }
  return check(context, error, "make a graph");
}

}  // namespace

#define SKV_CALL(name, type, ...)                                             \\
  int32_t skv_##name(skv_program *program, const type *args, uint64_t size) { \\
    static constexpr Kernel entry = __VA_ARGS__;                              \\
    return add_call(program, entry, args, size);                              \\
  }
#define SKV_KERNEL(name, type) kernel<type, name##_needs, launch_##name>(#name)
#define SKV_KERNEL_CALL(name, type) SKV_CALL(name, type, SKV_KERNEL(name, type))

SKV_KERNEL_CALL(embed, skv_embed_args)
SKV_KERNEL_CALL(qkv_rope_append, skv_qkv_rope_append_args)
SKV_KERNEL_CALL(value_norms, skv_value_norms_args)
SKV_KERNEL_CALL(query_statistics, skv_query_statistics_args)
SKV_CALL(merge_attend, skv_merge_attend_args,
         with_late<skv_merge_attend_args, merge_late>(
             SKV_KERNEL(merge_attend, skv_merge_attend_args)))
SKV_KERNEL_CALL(prefill_attend, skv_chunk_args)
SKV_KERNEL_CALL(observe, skv_chunk_args)
SKV_KERNEL_CALL(compress, skv_chunk_args)
SKV_KERNEL_CALL(project_add, skv_project_add_args)
SKV_KERNEL_CALL(gate_up, skv_gate_up_args)
SKV_CALL(lm_head, skv_lm_head_args,
         with_time(SKV_KERNEL(lm_head, skv_lm_head_args)))
SKV_KERNEL_CALL(sample, skv_sample_args)

#undef SKV_KERNEL_CALL
#undef SKV_KERNEL
#undef SKV_CALL

int32_t skv_begin_record(skv_context *context, skv_program **program) {
  auto *started = new (std::nothrow) skv_program;
  if (started == nullptr) {
    return fail(context, SKV_OUT_OF_MEMORY, "the host has no memory left");
  }
  started->context = context;
  *program = started;
  return SKV_OK;
}

int32_t skv_end_record(skv_program *program, uint64_t *scratch_bytes) {
  skv_context *context = program->context;
  int32_t status = enter(context);
  if (status != SKV_OK) return status;
  program->recorded = true;
  Needs most;
  for (Call &call : program->calls) {
    const Needs needs = call.kernel->needs(call.args, context->multiprocessors);
    most.scratch = std::max(most.scratch, needs.scratch);
    if (needs.library_scratch > 0 && library_of(context) != nullptr) {
      most.scratch = std::max(most.scratch, needs.library_scratch);
    }
    most.tickets = std::max(most.tickets, needs.tickets);
    call.own = most.own;
    most.own += aligned_bytes(needs.own);
  }
  const size_t tickets = aligned_bytes(most.tickets * sizeof(uint32_t));
  *scratch_bytes = tickets + most.scratch + most.own;
  if (*scratch_bytes > 0) {
    uint64_t address = 0;
    status = skv_allocate(context, *scratch_bytes, &address);
    if (status != SKV_OK) return status;
    program->tickets = reinterpret_cast<uint32_t *>(address);
    program->scratch = reinterpret_cast<char *>(address + tickets);
    program->own = program->scratch + most.scratch;
  }
  return has_flag(context, SKV_CHECK_EVERY_KERNEL) ? SKV_OK : capture(program);
}

int32_t skv_run(skv_program *program, uint32_t times) {
  skv_context *context = program->context;
  int32_t status = enter(context);
  for (uint32_t i = 0; status == SKV_OK && i < times; i++) {
    status =
        program->graph == nullptr
            ? launch_calls(program)
            : check(context, cudaGraphLaunch(program->graph, context->stream),
                    "run a program");
  }
  return status;
}

void skv_dispose(skv_program *program) {
  if (program == nullptr) return;
  skv_context *context = program->context;
  cudaSetDevice(context->device);
  if (program->graph != nullptr) cudaGraphExecDestroy(program->graph);
  if (program->tickets != nullptr) {
    skv_free(context, reinterpret_cast<uint64_t>(program->tickets));
  }
  cudaGetLastError();
  delete program;
}
`,
  "runtime/side_streams.cu": `// Streams beside that of a program: see Sides.
#include <algorithm>

#include "launch.cuh"

cudaError_t fork(const Launch &launch, Launch *side) {
  *side = launch;
  side->overlaps = false;
  Sides *sides = launch.sides;
  if (sides == nullptr) return cudaSuccess;
  side->stream = sides->streams[sides->next];
  sides->next = (sides->next + 1) % Sides::kCount;
  sides->used = std::min(sides->used + 1, Sides::kCount);
  const cudaError_t status = cudaEventRecord(sides->event, launch.stream);
  if (status != cudaSuccess) return status;
  return cudaStreamWaitEvent(side->stream, sides->event);
}

cudaError_t join(const Launch &launch) {
  Sides *sides = launch.sides;
  if (sides == nullptr) return cudaSuccess;
  cudaError_t status = cudaSuccess;
  for (int i = 0; i < sides->used && status == cudaSuccess; i++) {
    status = cudaEventRecord(sides->event, sides->streams[i]);
    if (status == cudaSuccess) {
      status = cudaStreamWaitEvent(launch.stream, sides->event);
    }
  }
  sides->used = sides->next = 0;
  return status;
}
`,
  "runtime/staging.cu": `#include "staging.cuh"

cudaError_t WriteRing::retire() {
  const Piece piece = pieces_.front();
  const cudaError_t status = cudaEventSynchronize(piece.event);
  if (status != cudaSuccess) return status;
  pieces_.pop_front();
  events_.push_back(piece.event);
  return cudaSuccess;
}

cudaError_t WriteRing::take(size_t bytes, void **piece) {
  cudaError_t status = cudaSuccess;
  if (memory_ == nullptr) {
    status = cudaHostAlloc(reinterpret_cast<void **>(&memory_), kBytes,
                           cudaHostAllocPortable | cudaHostAllocMapped);
    if (status != cudaSuccess) return status;
  }
  size_t begin = next_;
  if (begin + bytes > kBytes) begin = 0;
  const size_t end = begin + (bytes + 255) / 256 * 256;
  // The oldest pieces lie right after the newest one.
  while (!pieces_.empty()) {
    const Piece &oldest = pieces_.front();
    const bool wrapped = begin < next_ && oldest.begin >= next_;
    const bool overlaps = oldest.begin < end && begin < oldest.end;
    if (!wrapped && !overlaps) break;
    status = retire();
    if (status != cudaSuccess) return status;
  }
  cudaEvent_t event;
  if (events_.empty()) {
    status = cudaEventCreateWithFlags(
        &event, cudaEventDisableTiming | cudaEventBlockingSync);
    if (status != cudaSuccess) return status;
  } else {
    event = events_.back();
    events_.pop_back();
  }
  taken_ = {begin, end, event};
  next_ = end;
  *piece = memory_ + begin;
  return cudaSuccess;
}

cudaError_t WriteRing::keep(cudaStream_t stream) {
  const cudaError_t status = cudaEventRecord(taken_.event, stream);
  if (status == cudaSuccess) {
    pieces_.push_back(taken_);
  } else {
    events_.push_back(taken_.event);
  }
  return status;
}

void WriteRing::release() {
  for (const Piece &piece : pieces_) cudaEventDestroy(piece.event);
  for (const cudaEvent_t event : events_) cudaEventDestroy(event);
  pieces_.clear();
  events_.clear();
  if (memory_ != nullptr) cudaFreeHost(memory_);
  memory_ = nullptr;
  next_ = 0;
}

cudaError_t ReadPool::take(size_t bytes, uint32_t *ticket) {
  // The smallest that is large enough, or else any idle one.
  PendingRead *chosen = nullptr;
  for (PendingRead &read : reads_) {
    if (read.busy) continue;
    const bool fits = read.capacity >= bytes;
    const bool better =
        chosen == nullptr || (fits && (chosen->capacity < bytes ||
                                       read.capacity < chosen->capacity));
    if (better) chosen = &read;
  }
  cudaError_t status = cudaSuccess;
  if (chosen == nullptr) {
    PendingRead read = {};
    status = cudaEventCreateWithFlags(
        &read.event, cudaEventDisableTiming | cudaEventBlockingSync);
    if (status != cudaSuccess) return status;
    reads_.push_back(read);
    chosen = &reads_.back();
  }
  if (chosen->capacity < bytes) {
    if (chosen->memory != nullptr) cudaFreeHost(chosen->memory);
    chosen->memory = nullptr;
    chosen->capacity = 0;
    const size_t capacity = (bytes + 4095) / 4096 * 4096;
    status = cudaHostAlloc(reinterpret_cast<void **>(&chosen->memory), capacity,
                           cudaHostAllocPortable | cudaHostAllocMapped);
    if (status != cudaSuccess) return status;
    chosen->capacity = capacity;
  }
  chosen->bytes = bytes;
  chosen->busy = true;
  for (size_t i = 0; i < reads_.size(); i++) {
    if (&reads_[i] == chosen) *ticket = static_cast<uint32_t>(i);
  }
  return cudaSuccess;
}

PendingRead *ReadPool::find(uint32_t ticket) {
  if (ticket >= reads_.size() || !reads_[ticket].busy) return nullptr;
  return &reads_[ticket];
}

void ReadPool::give_back(uint32_t ticket) {
  PendingRead &read = reads_[ticket];
  read.busy = false;
  if (read.capacity <= kKeptBytes) return;
  cudaFreeHost(read.memory);
  read.memory = nullptr;
  read.capacity = 0;
}

void ReadPool::release() {
  for (const PendingRead &read : reads_) {
    cudaEventDestroy(read.event);
    if (read.memory != nullptr) cudaFreeHost(read.memory);
  }
  reads_.clear();
}
`,
  "runtime/staging.cuh": `// Pinned host memory that writes and reads go through, so that neither waits
// for the device.
#pragma once

#include <cuda_runtime.h>
#include <stddef.h>
#include <stdint.h>

#include <deque>
#include <vector>

// A ring of pinned memory. A piece is in use until the event behind it is
// reached.
class WriteRing {
 public:
  // Most bytes of one piece.
  static constexpr size_t kPieceBytes = size_t{1} << 22;

  // A piece of \`bytes\` bytes, at most kPieceBytes. Waits where the ring is
  // full.
  cudaError_t take(size_t bytes, void **piece);
  // Keeps the piece taken last until what is in the stream now is done.
  cudaError_t keep(cudaStream_t stream);
  void release();

 private:
  static constexpr size_t kBytes = 4 * kPieceBytes;

  struct Piece {
    size_t begin;
    size_t end;
    cudaEvent_t event;
  };

  cudaError_t retire();

  char *memory_ = nullptr;
  size_t next_ = 0;
  Piece taken_ = {};
  std::deque<Piece> pieces_;
  std::vector<cudaEvent_t> events_;
};

// One read that is under way, or pinned memory for the next one.
struct PendingRead {
  char *memory;
  size_t capacity;
  size_t bytes;
  cudaEvent_t event;
  bool busy;
};

// Reads by their ticket.
class ReadPool {
 public:
  // Finds or makes room for \`bytes\` bytes.
  cudaError_t take(size_t bytes, uint32_t *ticket);
  // The read of a ticket, or null.
  PendingRead *find(uint32_t ticket);
  // Gives a ticket back. Large memory is freed.
  void give_back(uint32_t ticket);
  void release();

 private:
  // Pinned memory that is kept for later reads.
  static constexpr size_t kKeptBytes = size_t{1} << 20;

  // A deque: a read stays where it is while others are added.
  std::deque<PendingRead> reads_;
};
`,
  "runtime/tile_maps.cu": `// The driver's function by its documented binary interface: it is looked for
// where the runtime has opened the driver, and nothing is linked.
#include <dlfcn.h>

#include "tile_maps.cuh"

namespace {

constexpr int kSuccess = 0;

// CUtensorMapDataType, CUtensorMapInterleave, CUtensorMapSwizzle,
// CUtensorMapL2promotion and CUtensorMapFloatOOBfill.
constexpr int kHalf = 6;
constexpr int kNotInterleaved = 0;
constexpr int kSwizzled128 = 3;
constexpr int kPromoted256 = 3;
constexpr int kZeroFilled = 0;

}  // namespace

std::unique_ptr<TileMaps> TileMaps::open(int compute_capability_major) {
  // Products of such tiles are Hopper's.
  if (compute_capability_major != 9) return nullptr;
  void *driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (driver == nullptr) return nullptr;
  const auto encode =
      reinterpret_cast<Encode>(dlsym(driver, "cuTensorMapEncodeTiled"));
  if (encode == nullptr) return nullptr;
  return std::unique_ptr<TileMaps>(new TileMaps(encode));
}

bool TileMaps::describe(const TiledMatrix &matrix, TileMap *map) const {
  const uint64_t sizes[2] = {matrix.pitch, matrix.rows};
  const uint64_t strides[1] = {uint64_t{matrix.pitch} * sizeof(skv_half)};
  const uint32_t tile_sizes[2] = {kTileColumns, matrix.tile_rows};
  const uint32_t tile_strides[2] = {1, 1};
  return encode_(map, kHalf, 2, const_cast<skv_half *>(matrix.data), sizes,
                 strides, tile_sizes, tile_strides, kNotInterleaved,
                 kSwizzled128, kPromoted256, kZeroFilled) == kSuccess;
}
`,
  "runtime/tile_maps.cuh": `// Descriptions of matrices for the copy engines of multiprocessors, which bring
// whole tiles to shared memory by themselves: see lib/group_instructions.cuh.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <memory>

#include "../steadykv.h"

// A description, in the device's own form.
struct alignas(64) TileMap {
  uint64_t words[16];
};

// Columns of a tile: lines of 128 bytes.
constexpr uint32_t kTileColumns = 64;

// A matrix of halves and the tiles that are taken from it: kTileColumns columns
// of some rows.
struct TiledMatrix {
  const skv_half *data;
  uint32_t rows;
  // Columns, zeros included: a multiple of 8.
  uint32_t pitch;
  uint32_t tile_rows;
};

class TileMaps {
 public:
  // Null where the driver cannot describe matrices, or where the device is not
  // made for products of such tiles.
  static std::unique_ptr<TileMaps> open(int compute_capability_major);

  // Describes a matrix. False if the driver refuses.
  bool describe(const TiledMatrix &matrix, TileMap *map) const;

 private:
  using Encode = int (*)(TileMap *map, int type, uint32_t dimensions,
                         void *data, const uint64_t *sizes,
                         const uint64_t *strides, const uint32_t *tile_sizes,
                         const uint32_t *tile_strides, int interleave,
                         int swizzle, int promotion, int fill);

  explicit TileMaps(Encode encode) : encode_(encode) {}

  const Encode encode_;
};
`,
  "runtime/transfer.cu": `// Writes and reads, and kernels that convert to and from 16 bits on the way:
// straight from and to pinned host memory, so that no memory of the device is
// needed for it.
#include <math.h>
#include <string.h>

#include "../lib/cached.cuh"
#include "context.cuh"

namespace {

constexpr uint32_t kThreads = 256;

uint32_t blocks_for(uint64_t count) {
  const uint64_t blocks = (count + kThreads - 1) / kThreads;
  return static_cast<uint32_t>(blocks < 4096 ? blocks : 4096);
}

__device__ inline void store(skv_half &to, float x) { to = to_half(x); }
__device__ inline void store(skv_cached &to, float x) { to = to_cached(x); }

template <class T>
__global__ void __launch_bounds__(kThreads)
    store_rows(T *to, const float *from, skv_rows rows) {
  const uint64_t count = static_cast<uint64_t>(rows.rows) * rows.columns;
  for (uint64_t i = blockIdx.x * kThreads + threadIdx.x; i < count;
       i += static_cast<uint64_t>(gridDim.x) * kThreads) {
    store(to[rows.offset + i / rows.columns * rows.pitch + i % rows.columns],
          from[i]);
  }
}

__global__ void __launch_bounds__(kThreads)
    load_floats(float *to, const skv_cached *from, uint64_t count) {
  for (uint64_t i = blockIdx.x * kThreads + threadIdx.x; i < count;
       i += static_cast<uint64_t>(gridDim.x) * kThreads) {
    to[i] = to_float(from[i]);
  }
}

// The finalizer of MurmurHash3 in 64 bits: every bit reaches every bit.
__device__ inline uint64_t hashed(uint64_t x) {
  x = (x ^ (x >> 33)) * 0xff51afd7ed558ccdull;
  x = (x ^ (x >> 33)) * 0xc4ceb9fe1a85ec53ull;
  return x ^ (x >> 33);
}

__global__ void __launch_bounds__(kThreads)
    fill_normal(skv_half *to, skv_rows rows, float deviation, uint64_t seed) {
  const uint64_t count = static_cast<uint64_t>(rows.rows) * rows.columns;
  for (uint64_t i = blockIdx.x * kThreads + threadIdx.x; i < count;
       i += static_cast<uint64_t>(gridDim.x) * kThreads) {
    const uint64_t bits = hashed(seed * 0x9e3779b97f4a7c15ull + i);
    // Box and Muller: a radius and an angle.
    const float u = (static_cast<float>(bits >> 40) + 0.5f) * 0x1p-24f;
    const float v = static_cast<float>(bits & 0xffffff) * 0x1p-24f;
    const float normal = sqrtf(-2.0f * logf(u)) * cospif(2.0f * v);
    to[rows.offset + i / rows.columns * rows.pitch + i % rows.columns] =
        to_half(normal * deviation);
  }
}

__global__ void __launch_bounds__(kThreads)
    read_everything(const uint4 *from, uint64_t count, uint32_t *never) {
  uint32_t bits = 0;
  const uint64_t stride = static_cast<uint64_t>(gridDim.x) * kThreads;
#pragma unroll 8
  for (uint64_t i = blockIdx.x * kThreads + threadIdx.x; i < count;
       i += stride) {
    const uint4 v = load_weights(reinterpret_cast<const skv_half *>(from + i));
    bits |= v.x | v.y | v.z | v.w;
  }
  // The memory is zero; the compiler does not know.
  if (bits != 0) *never = bits;
}

// Without an exit in the loop, so that it runs on vectors.
bool are_below(float limit, const float *data, uint64_t count) {
  bool good = true;
  for (uint64_t i = 0; i < count; i++) good &= fabsf(data[i]) < limit;
  return good;
}

// Writes one piece of rows that lie \`pitch\` apart.
template <class T>
int32_t write_piece(skv_context *context, T *to, const float *data,
                    const skv_rows &rows) {
  const size_t count = static_cast<size_t>(rows.rows) * rows.columns;
  void *piece = nullptr;
  cudaError_t error = context->writes.take(count * sizeof(float), &piece);
  if (error != cudaSuccess) return check(context, error, "stage a write");
  memcpy(piece, data, count * sizeof(float));
  void *on_device = nullptr;
  error = cudaHostGetDevicePointer(&on_device, piece, 0);
  if (error != cudaSuccess) return check(context, error, "stage a write");
  error =
      start_kernel(context->stream, store_rows<T>, blocks_for(count), kThreads,
                   to, static_cast<const float *>(on_device), rows);
  if (error == cudaSuccess) error = context->writes.keep(context->stream);
  return check(context, error, "write rows");
}

// Writes rows, in as many pieces as it takes.
template <class T>
int32_t write_rows(skv_context *context, T *to, const float *data,
                   const skv_rows &rows) {
  const uint64_t columns = rows.columns;
  int32_t status = SKV_OK;
  constexpr uint64_t kMost = WriteRing::kPieceBytes / sizeof(float);
  if (columns > kMost) {
    // A row that is longer than a piece goes in parts.
    for (uint64_t row = 0; row < rows.rows; row++) {
      for (uint64_t at = 0; status == SKV_OK && at < columns; at += kMost) {
        const uint64_t left = columns - at;
        const skv_rows part = {
            rows.offset + row * rows.pitch + at, 1,
            static_cast<uint32_t>(left < kMost ? left : kMost), 0};
        status = write_piece(context, to, data + row * columns + at, part);
      }
    }
    return status;
  }
  const uint64_t most = columns == 0 ? 0 : kMost / columns;
  for (uint64_t row = 0; status == SKV_OK && row < rows.rows && most > 0;
       row += most) {
    const uint64_t left = rows.rows - row;
    const skv_rows part = {rows.offset + row * rows.pitch,
                           static_cast<uint32_t>(left < most ? left : most),
                           rows.columns, rows.pitch};
    status = write_piece(context, to, data + row * columns, part);
  }
  return status;
}

}  // namespace

int32_t skv_write(skv_context *context, uint64_t address, const uint8_t *data,
                  uint64_t bytes) {
  int32_t status = enter(context);
  for (uint64_t done = 0; status == SKV_OK && done < bytes;) {
    const uint64_t left = bytes - done;
    const size_t size =
        left < WriteRing::kPieceBytes ? left : WriteRing::kPieceBytes;
    void *piece = nullptr;
    cudaError_t error = context->writes.take(size, &piece);
    if (error == cudaSuccess) {
      memcpy(piece, data + done, size);
      error = cudaMemcpyAsync(reinterpret_cast<void *>(address + done), piece,
                              size, cudaMemcpyHostToDevice, context->stream);
    }
    if (error == cudaSuccess) error = context->writes.keep(context->stream);
    status = check(context, error, "write");
    done += size;
  }
  return status;
}

int32_t skv_write_rows(skv_context *context, uint64_t address,
                       const float *data, const skv_rows *rows,
                       uint32_t element) {
  const int32_t status = enter(context);
  if (status != SKV_OK) return status;
  const uint64_t count = static_cast<uint64_t>(rows->rows) * rows->columns;
  const bool cached = element == SKV_CACHED;
  if (!are_below(cached ? kCacheOverflow : kHalfOverflow, data, count)) {
    return fail(context, SKV_TOO_LARGE,
                cached && !kCachesHalves
                    ? "expected a number that a bfloat16 can hold, at most "
                      "3.39e38"
                    : "expected a number that a 16-bit float can hold, at most "
                      "65504");
  }
  void *to = reinterpret_cast<void *>(address);
  return cached
             ? write_rows(context, static_cast<skv_cached *>(to), data, *rows)
             : write_rows(context, static_cast<skv_half *>(to), data, *rows);
}

int32_t skv_read(skv_context *context, uint64_t address, uint64_t count,
                 uint32_t element, uint32_t *ticket) {
  int32_t status = enter(context);
  if (status != SKV_OK) return status;
  const size_t bytes = count * sizeof(float);
  PendingRead *read = nullptr;
  cudaError_t error;
  {
    const std::lock_guard<std::mutex> lock(context->mutex);
    error = context->reads.take(bytes == 0 ? 1 : bytes, ticket);
    if (error == cudaSuccess) read = context->reads.find(*ticket);
  }
  if (error != cudaSuccess) return check(context, error, "stage a read");
  if (count > 0 && element == SKV_CACHED) {
    void *on_device = nullptr;
    error = cudaHostGetDevicePointer(&on_device, read->memory, 0);
    if (error == cudaSuccess) {
      error =
          start_kernel(context->stream, load_floats, blocks_for(count),
                       kThreads, static_cast<float *>(on_device),
                       reinterpret_cast<const skv_cached *>(address), count);
    }
  } else if (count > 0) {
    error = cudaMemcpyAsync(read->memory, reinterpret_cast<void *>(address),
                            bytes, cudaMemcpyDeviceToHost, context->stream);
  }
  if (error == cudaSuccess)
    error = cudaEventRecord(read->event, context->stream);
  if (error != cudaSuccess) {
    const std::lock_guard<std::mutex> lock(context->mutex);
    context->reads.give_back(*ticket);
  }
  return check(context, error, "read");
}

int32_t skv_wait(skv_context *context, uint32_t ticket, uint8_t *data,
                 uint64_t bytes) {
  int32_t status = enter(context);
  if (status != SKV_OK) return status;
  PendingRead *read;
  {
    const std::lock_guard<std::mutex> lock(context->mutex);
    read = context->reads.find(ticket);
  }
  if (read == nullptr) {
    return fail(context, SKV_INVALID, "cannot wait for a read that is over");
  }
  const cudaError_t error = cudaEventSynchronize(read->event);
  if (error == cudaSuccess) {
    memcpy(data, read->memory, bytes < read->bytes ? bytes : read->bytes);
  }
  {
    const std::lock_guard<std::mutex> lock(context->mutex);
    context->reads.give_back(ticket);
  }
  return check(context, error, "run kernels");
}

int32_t skv_fill_normal(skv_context *context, uint64_t address,
                        const skv_rows *rows, float deviation, uint64_t seed) {
  const int32_t status = enter(context);
  if (status != SKV_OK) return status;
  const uint64_t count = static_cast<uint64_t>(rows->rows) * rows->columns;
  if (count == 0) return SKV_OK;
  return check(context,
               start_kernel(context->stream, fill_normal, blocks_for(count),
                            kThreads, reinterpret_cast<skv_half *>(address),
                            *rows, deviation, seed),
               "fill memory");
}

int32_t skv_measure_read(skv_context *context, uint64_t bytes, uint32_t times,
                         double *bytes_per_second) {
  uint64_t address = 0;
  int32_t status = skv_allocate(context, bytes, &address);
  if (status != SKV_OK) return status;
  cudaEvent_t begin = nullptr, end = nullptr;
  cudaError_t error = cudaEventCreate(&begin);
  if (error == cudaSuccess) error = cudaEventCreate(&end);
  const uint64_t count = bytes / sizeof(uint4);
  const uint32_t blocks = context->multiprocessors * 8;
  for (uint32_t i = 0; error == cudaSuccess && i <= times; i++) {
    // The first time warms up.
    if (i == 1) error = cudaEventRecord(begin, context->stream);
    if (error == cudaSuccess) {
      error = start_kernel(context->stream, read_everything, blocks, kThreads,
                           reinterpret_cast<const uint4 *>(address), count,
                           reinterpret_cast<uint32_t *>(address));
    }
  }
  float milliseconds = 0.0f;
  if (error == cudaSuccess) error = cudaEventRecord(end, context->stream);
  if (error == cudaSuccess) error = cudaEventSynchronize(end);
  if (error == cudaSuccess) {
    error = cudaEventElapsedTime(&milliseconds, begin, end);
  }
  if (begin != nullptr) cudaEventDestroy(begin);
  if (end != nullptr) cudaEventDestroy(end);
  const int32_t freed = skv_free(context, address);
  status = check(context, error, "measure the memory");
  if (status != SKV_OK) return status;
  *bytes_per_second = static_cast<double>(count * sizeof(uint4)) * times /
                      (milliseconds * 1e-3);
  return freed;
}
`,
  "sample.cu": `// Repetition penalty, temperature, top-k, top-p, min-p and one draw, or the
// most likely id where the temperature is 0. Writes the id to the output ring
// and moves the sequence on.
//
// Three kernels, each of which reads the logits once, 4 bytes per id, with many
// blocks per sequence; the last block of a sequence to finish adds up what the
// others found. The first finds the most likely id and the softmax sum, and
// ends the step where nothing is drawn. The second counts ids and weights by
// coarse ranks, which leaves a narrow range for the thresholds. The third lists
// the ids of that range; its last block finds the thresholds among them, and
// then the block of ids, and the id, that the draw falls on.
//
// Weights are summed as whole numbers, so a draw is the same from run to run.
// The alternatives that lost: one block that reads the logits once per digit of
// a threshold, 85 µs for 128 thousand ids on an H200; sorting the logits.
#include "lib/count_ranks.cuh"
#include "lib/draw_id.cuh"
#include "lib/survey_logits.cuh"
#include "runtime/launch.cuh"

namespace {

// Ids that are worth a block.
constexpr uint32_t kLeastIds = 1024;

uint32_t rows_of(const skv_sample_args &args) {
  return args.step.kind == SKV_PREFILL ? 1 : args.step.rows;
}

SampleWork take_work(const skv_sample_args &args, uint32_t multiprocessors,
                     Scratch *scratch) {
  const uint32_t vocabulary = args.sizes.vocabulary;
  const size_t rows = rows_of(args);
  SampleWork work = {};
  const uint32_t wanted = 4 * multiprocessors / rows_of(args);
  const uint32_t most = (vocabulary + kLeastIds - 1) / kLeastIds;
  work.blocks = max(1u, min(min(wanted, most), kMostBlocks));
  work.slice = (vocabulary + work.blocks - 1) / work.blocks;
  work.plans = scratch->take<SamplePlan>(rows);
  work.parts = scratch->take<SamplePart>(rows * work.blocks);
  work.counts = scratch->take<uint32_t>(rows * kBuckets);
  work.weights = scratch->take<uint64_t>(rows * kBuckets);
  work.sums = scratch->take<uint64_t>(rows * work.blocks);
  work.listed = scratch->take<uint32_t>(rows);
  work.list = scratch->take<uint32_t>(rows * kMostListed);
  return work;
}

}  // namespace

Needs sample_needs(const skv_sample_args &args, uint32_t multiprocessors) {
  Scratch scratch(nullptr);
  take_work(args, multiprocessors, &scratch);
  Needs needs;
  needs.scratch = scratch.taken(nullptr);
  needs.tickets = rows_of(args);
  return needs;
}

cudaError_t launch_sample(const skv_sample_args &args, const Launch &launch) {
  Scratch scratch(launch.scratch);
  SampleWork work = take_work(args, launch.multiprocessors, &scratch);
  work.tickets = launch.tickets;
  const dim3 grid(work.blocks, rows_of(args));
  cudaError_t status =
      launch_kernel(launch, survey_kernel, grid, kSampleThreads, 0, args, work);
  if (status != cudaSuccess) return status;
  status =
      launch_kernel(launch, count_kernel, grid, kSampleThreads, 0, args, work);
  if (status != cudaSuccess) return status;
  return launch_kernel(launch, draw_kernel, grid, kSampleThreads, 0, args,
                       work);
}
`,
  "steadykv.h": `/**
 * SteadyKV's CUDA library, seen from outside.
 *
 * A context is one device and one stream. Memory is named by its address on the
 * device. A program is a list of kernel calls, recorded once and turned into a
 * CUDA graph; running it \`times\` times is one call of this interface.
 *
 * Functions return a status. Any but SKV_OK leaves a sentence for
 * skv_last_error. Every function sets the device first, so any thread may call;
 * one context takes one caller at a time, but for skv_wait, which may run on
 * other threads, several at once.
 *
 * Pointers in argument structs are addresses on the device. The structs are
 * described again in src/backends/cuda/structs.ts; a test compares the two.
 */
#pragma once

#include <stdint.h>

#if defined(__GNUC__)
#define SKV_API __attribute__((visibility("default")))
#else
#define SKV_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/** Version of this interface; a library of another version is not used. */
#define SKV_ABI_VERSION 5

/** What a function returns. */
enum skv_status {
  SKV_OK = 0,
  /** An argument is out of range. */
  SKV_INVALID = 1,
  /** The device or the host has not enough memory. */
  SKV_OUT_OF_MEMORY = 2,
  /** A number is too large for the 16 bits that it would have. */
  SKV_TOO_LARGE = 3,
  /** There is no driver or no device. */
  SKV_NO_DEVICE = 4,
  /** The library holds no code for the device. */
  SKV_ARCHITECTURE = 5,
  /** A kernel failed; the process cannot use the device any more. */
  SKV_KERNEL = 6,
  /** The device is gone. */
  SKV_DEVICE_LOST = 7
};

/** One device and one stream. */
typedef struct skv_context skv_context;

/** A recorded list of kernel calls. */
typedef struct skv_program skv_program;

/** A 16-bit float, by its bits. */
typedef uint16_t skv_half;

/**
 * An element of a key or a value, by its bits: a 16-bit float, or a bfloat16 in
 * a library that was built for caches of that type.
 */
typedef struct skv_cached {
  uint16_t bits;
} skv_cached;

/** What caches hold, for skv_cache_type. */
enum skv_cache_type_id { SKV_CACHE_IS_HALF = 0, SKV_CACHE_IS_BFLOAT16 = 1 };

/** What a buffer or a matrix holds. */
enum skv_element { SKV_WORD = 0, SKV_HALF = 1, SKV_CACHED = 2 };

/** Flag of skv_open: every kernel is waited for, so that faults have a name. */
#define SKV_CHECK_EVERY_KERNEL 1u

/** Flag of skv_open: no product is left to NVIDIA's library. */
#define SKV_OWN_PRODUCTS 2u

/** A weight matrix, one row per output. */
typedef struct skv_matrix {
  /** (rows, pitch) */
  skv_half *data;
  uint32_t rows;
  uint32_t columns;
  /** Halves from one row to the next: columns rounded up to 8, zero filled. */
  uint32_t pitch;
  uint32_t reserved;
} skv_matrix;

/** Sizes of a model: see ModelSizes. */
typedef struct skv_sizes {
  uint32_t hidden;
  uint32_t heads;
  uint32_t kv_heads;
  uint32_t head_dim;
  uint32_t ffn;
  uint32_t vocabulary;
  float norm_epsilon;
  uint32_t reserved;
} skv_sizes;

/** What a step is. */
enum skv_step_kind { SKV_DECODE = 0, SKV_PREFILL = 1 };

/** The rows that a program works on: see Step, ChunkWord and StateWord. */
typedef struct skv_step {
  /** (rows) */
  uint32_t *tokens;
  /** (4) */
  uint32_t *chunk;
  /** (sequences, 8) */
  uint32_t *state;
  uint32_t kind;
  uint32_t rows;
} skv_step;

/** Slots of a layer, or staged rows: see Slots and SlotField. */
typedef struct skv_slots {
  /** (total, head_dim) */
  skv_cached *keys;
  /** (total, head_dim) */
  skv_cached *values;
  /** (6 + lanes, total) floats and words; two fields more where slots
   * remember a partner */
  float *side;
  uint32_t total;
  uint32_t reserved;
} skv_slots;

/** One layer of the cache: see CacheLayer and HeadWord. */
typedef struct skv_cache {
  skv_slots slots;
  /** (kv_heads, stage_rows) slots */
  skv_slots stage;
  /** (layers, sequences, kv_heads, 16) */
  uint32_t *table;
  /** (sequences, heads, 3 head_dim + 1), or null */
  float *statistics;
  uint32_t layer;
  uint32_t sequences;
  uint32_t lanes;
  uint32_t max_capacity;
  uint32_t stage_rows;
  uint32_t reserved;
} skv_cache;

/** Parts of a policy: see Policy. */
enum skv_probe {
  SKV_PROBE_NONE = 0,
  SKV_PROBE_ALL = 1,
  SKV_PROBE_LAST = 2,
  SKV_PROBE_INSTRUCTION = 3
};
enum skv_score {
  SKV_SCORE_POSITION = 0,
  SKV_SCORE_ACCUMULATED = 1,
  SKV_SCORE_EMA = 2,
  SKV_SCORE_MEAN = 3,
  SKV_SCORE_LAST = 4,
  SKV_SCORE_AGE = 5,
  SKV_SCORE_KEY_DISTANCE = 6,
  SKV_SCORE_STEP_GAIN = 7,
  SKV_SCORE_EXPECTED = 8
};
enum skv_pool { SKV_POOL_NONE = 0, SKV_POOL_MEAN = 1, SKV_POOL_MAX = 2 };
enum skv_merge {
  SKV_MERGE_NEVER = 0,
  SKV_MERGE_DROP = 1,
  SKV_MERGE_VOTES = 2,
  SKV_MERGE_RIGHT_NEIGHBOUR = 3,
  SKV_MERGE_PAIR = 4,
  SKV_MERGE_COSINE = 5,
  SKV_MERGE_NEXT_VALUES = 6,
  SKV_MERGE_SEGMENTS = 7
};
enum skv_key {
  SKV_KEY_ZIP = 0,
  SKV_KEY_MIN_NORM = 1,
  SKV_KEY_REAL_VOTES = 2,
  SKV_KEY_CONVEX = 3
};

/** A policy's numbers. */
typedef struct skv_policy {
  uint32_t probe;
  uint32_t probe_rows;
  uint32_t score;
  /** ln alpha and ln (1 - alpha) of the moving sum; -1e30 stands for ln 0. */
  float log_alpha;
  float log_rest;
  uint32_t raw_scale;
  uint32_t count_votes;
  uint32_t sinks;
  uint32_t merge;
  uint32_t key;
  float threshold;
  uint32_t merge_first;
  float guard_low;
  float guard_high;
  /** Whether anything reads the scores of slots. */
  uint32_t observe;
  /** Whether scores count times the norms of values. */
  uint32_t count_values;
  /** Power of the norms. */
  uint32_t value_power;
  /** What is added to scores then, and its logarithm. */
  float value_epsilon;
  float log_value_epsilon;
  /** Share of the slots with room that stay by their scores alone. */
  float first_stage;
  uint32_t pool;
  uint32_t pool_reach;
  /** Whether the heads of a layer share the mean of their scores. */
  uint32_t layer_scope;
  /** Whether a right neighbour's value keeps the current output exactly. */
  uint32_t exact_values;
  float ratio_cap;
  /** Whether compress gives the heads their budgets, and the even share. */
  uint32_t adaptive;
  uint32_t floor_parts;
  /** Steps from one search for partners to the next, at most; 0 where slots
   * remember none. And slots of a head's budget for each of these. */
  uint32_t search_every;
  uint32_t search_slots;
  /** Rounds of pairing that a chunk gets. */
  uint32_t rounds;
  /** Whether distances of keys and values are multiplied or added. */
  uint32_t product_distance;
  /** What squared distances of keys count, the root of the width in it. */
  float key_weight;
  float value_weight;
  /** Weight of the past in the threshold of cosines. */
  float threshold_keep;
  /** Positions after a slot that take its value in. */
  uint32_t next_count;
  /** Whether the probability of that stands for a draw, and the seed of it. */
  uint32_t expected_values;
  uint32_t draw_seed;
  /** Share of the slots that stay which is not merged into segments. */
  float heavy;
} skv_policy;

/** Arguments of the kernels: see the interfaces of the same names. */
typedef struct skv_embed_args {
  /** (rows, hidden) */
  float *hidden;
  /** (sequences, ceil(vocabulary / 32)) */
  uint32_t *seen;
  skv_matrix embedding;
  skv_step step;
  skv_sizes sizes;
} skv_embed_args;

typedef struct skv_qkv_rope_append_args {
  /** (rows, heads, head_dim) */
  float *queries;
  /** The same for sinks, or null. */
  float *sink_queries;
  /** (rows, hidden) */
  const float *hidden;
  /** (hidden) */
  const float *norm;
  /** ((heads + 2 kv_heads) head_dim), or null */
  const float *bias;
  /** (head_dim), or null */
  const float *query_norm;
  /** (head_dim), or null */
  const float *key_norm;
  /** (3, 256, head_dim / 2, 2) */
  const float *rope;
  skv_matrix weight;
  skv_cache cache;
  skv_step step;
  skv_sizes sizes;
} skv_qkv_rope_append_args;

typedef struct skv_value_norms_args {
  /** (hidden, heads * head_dim); no data for norms of the values themselves */
  skv_matrix weight;
  skv_cache cache;
  skv_step step;
  skv_sizes sizes;
} skv_value_norms_args;

typedef struct skv_query_statistics_args {
  /** (rows, heads, head_dim) */
  const float *queries;
  /** (3, 256, head_dim / 2, 2) */
  const float *rope;
  /** (head_dim / 2, 2): mean of the rotations by the next positions */
  const float *ahead;
  skv_cache cache;
  skv_step step;
  skv_sizes sizes;
  /** First tokens of the text, whose queries do not count. */
  uint32_t sinks;
  uint32_t reserved;
} skv_query_statistics_args;

typedef struct skv_merge_attend_args {
  /** (rows, heads, head_dim) */
  float *output;
  /** (rows, heads, head_dim) */
  const float *queries;
  /** The same for sinks, or null. */
  const float *sink_queries;
  skv_cache cache;
  skv_step step;
  skv_sizes sizes;
  skv_policy policy;
} skv_merge_attend_args;

/** Arguments of prefill_attend, observe and compress. */
typedef struct skv_chunk_args {
  /** (rows, heads, head_dim); of prefill_attend alone */
  float *output;
  /** (rows, heads): ln of the softmax sums; written by prefill_attend */
  float *log_sums;
  /** (rows, heads, head_dim) */
  const float *queries;
  /** The same for sinks, or null. */
  const float *sink_queries;
  skv_cache cache;
  skv_step step;
  skv_sizes sizes;
  skv_policy policy;
} skv_chunk_args;

typedef struct skv_project_add_args {
  /** (rows, weight.rows) */
  float *hidden;
  /** (rows, weight.columns) */
  const float *input;
  /** (weight.rows), or null */
  const float *bias;
  skv_matrix weight;
  skv_step step;
} skv_project_add_args;

typedef struct skv_gate_up_args {
  /** (rows, ffn) */
  float *output;
  /** (rows, hidden) */
  const float *hidden;
  /** (hidden) */
  const float *norm;
  /** (2 ffn), or null */
  const float *bias;
  skv_matrix weight;
  skv_step step;
  skv_sizes sizes;
} skv_gate_up_args;

typedef struct skv_lm_head_args {
  /** (rows, vocabulary), or (1, vocabulary) where last_row is set */
  float *logits;
  /** (rows, hidden) */
  const float *hidden;
  /** (hidden) */
  const float *norm;
  skv_matrix weight;
  skv_step step;
  skv_sizes sizes;
  /** Whether only the last live row of a chunk is computed. */
  uint32_t last_row;
  uint32_t reserved;
} skv_lm_head_args;

typedef struct skv_sample_args {
  /** (sequences) */
  uint32_t *next_tokens;
  /** (sequences, ring, 2): id and its log-probability */
  uint32_t *output;
  /** (sequences, ring): ids to take, 0xffffffff where none is forced */
  const uint32_t *forced;
  /** (rows, vocabulary), or (1, vocabulary) in a prefill step */
  const float *logits;
  /** (sequences, 32): see SamplingWord */
  const uint32_t *sampling;
  /** (sequences, ceil(vocabulary / 32)) */
  const uint32_t *seen;
  skv_step step;
  skv_sizes sizes;
  uint32_t ring;
  uint32_t reserved;
} skv_sample_args;

/** What a device is. */
typedef struct skv_device_info {
  uint64_t memory_bytes;
  uint32_t multiprocessors;
  /** 10 times the major version plus the minor one. */
  uint32_t compute_capability;
  /** Version of the CUDA runtime in the library, e.g. 13000. */
  uint32_t runtime_version;
  /** Version that the driver supports. */
  uint32_t driver_version;
  /** UTF-8, ends with 0. */
  uint8_t name[64];
} skv_device_info;

/** Rows of 32-bit floats to store in 16 bits each. */
typedef struct skv_rows {
  /** Elements that lie before the first row. */
  uint64_t offset;
  uint32_t rows;
  uint32_t columns;
  /** Elements from the start of one row to the start of the next. */
  uint64_t pitch;
} skv_rows;

/** Version of the interface that the library was built for. */
SKV_API uint32_t skv_abi_version(void);

/** What caches hold here: see enum skv_cache_type_id. */
SKV_API uint32_t skv_cache_type(void);

/**
 * Copies the sentence that belongs to the last failure, ended by 0, cut to
 * \`capacity\` bytes. Null stands for failures of skv_open.
 */
SKV_API void skv_last_error(skv_context *context, uint8_t *text,
                            uint64_t capacity);

/** Opens device \`index\`, and writes the context. */
SKV_API int32_t skv_open(uint32_t index, uint32_t flags, skv_context **context);

/** Waits for the device and frees the context and all its memory. */
SKV_API void skv_close(skv_context *context);

/** Describes the device. */
SKV_API int32_t skv_describe(skv_context *context, skv_device_info *info);

/** Allocates \`bytes\` zeroed bytes, and writes their address. */
SKV_API int32_t skv_allocate(skv_context *context, uint64_t bytes,
                             uint64_t *address);

/** Frees what skv_allocate gave. */
SKV_API int32_t skv_free(skv_context *context, uint64_t address);

/** Enqueues a write of \`bytes\` bytes; \`data\` may be changed afterwards. */
SKV_API int32_t skv_write(skv_context *context, uint64_t address,
                          const uint8_t *data, uint64_t bytes);

/** The same for floats that are stored as SKV_HALF or as SKV_CACHED. */
SKV_API int32_t skv_write_rows(skv_context *context, uint64_t address,
                               const float *data, const skv_rows *rows,
                               uint32_t element);

/**
 * Enqueues the read of \`count\` elements, words or what caches hold, and writes
 * a ticket for skv_wait. What caches hold arrives as 32-bit floats.
 */
SKV_API int32_t skv_read(skv_context *context, uint64_t address, uint64_t count,
                         uint32_t element, uint32_t *ticket);

/** Waits for a read and copies \`bytes\` bytes of it. Redeems the ticket. */
SKV_API int32_t skv_wait(skv_context *context, uint32_t ticket, uint8_t *data,
                         uint64_t bytes);

/** Waits for everything that was enqueued. */
SKV_API int32_t skv_synchronize(skv_context *context);

/**
 * Fills rows with normal numbers of a standard deviation, from a seed: weights
 * for measurements, without a file.
 */
SKV_API int32_t skv_fill_normal(skv_context *context, uint64_t address,
                                const skv_rows *rows, float deviation,
                                uint64_t seed);

/**
 * Reads \`bytes\` bytes of device memory \`times\` times, and writes how many bytes
 * a second that were: what no kernel can exceed. Waits for the device.
 */
SKV_API int32_t skv_measure_read(skv_context *context, uint64_t bytes,
                                 uint32_t times, double *bytes_per_second);

/** Starts to record a program. */
SKV_API int32_t skv_begin_record(skv_context *context, skv_program **program);

/**
 * The kernels: each adds one call to a program that is being recorded. \`size\`
 * is that of the struct.
 */
SKV_API int32_t skv_embed(skv_program *program, const skv_embed_args *args,
                          uint64_t size);
SKV_API int32_t skv_qkv_rope_append(skv_program *program,
                                    const skv_qkv_rope_append_args *args,
                                    uint64_t size);
SKV_API int32_t skv_value_norms(skv_program *program,
                                const skv_value_norms_args *args,
                                uint64_t size);
SKV_API int32_t skv_query_statistics(skv_program *program,
                                     const skv_query_statistics_args *args,
                                     uint64_t size);
SKV_API int32_t skv_merge_attend(skv_program *program,
                                 const skv_merge_attend_args *args,
                                 uint64_t size);
SKV_API int32_t skv_prefill_attend(skv_program *program,
                                   const skv_chunk_args *args, uint64_t size);
SKV_API int32_t skv_observe(skv_program *program, const skv_chunk_args *args,
                            uint64_t size);
SKV_API int32_t skv_compress(skv_program *program, const skv_chunk_args *args,
                             uint64_t size);
SKV_API int32_t skv_project_add(skv_program *program,
                                const skv_project_add_args *args,
                                uint64_t size);
SKV_API int32_t skv_gate_up(skv_program *program, const skv_gate_up_args *args,
                            uint64_t size);
SKV_API int32_t skv_lm_head(skv_program *program, const skv_lm_head_args *args,
                            uint64_t size);
SKV_API int32_t skv_sample(skv_program *program, const skv_sample_args *args,
                           uint64_t size);

/**
 * Ends the recording: allocates scratch memory, captures the graph, and writes
 * the bytes that the device holds for it beside the graph.
 */
SKV_API int32_t skv_end_record(skv_program *program, uint64_t *scratch_bytes);

/** Enqueues a program \`times\` times. */
SKV_API int32_t skv_run(skv_program *program, uint32_t times);

/** Frees a program, recorded to its end or not. */
SKV_API void skv_dispose(skv_program *program);

#ifdef __cplusplus
}
#endif
`,
  "value_norms.cu": `// The norm of each value that qkv_rope_append has just written: the mean over
// the query heads of the group of ‖v · W_O[h]‖₁, W_O[h] being the head's
// columns of the output projection; or ‖v‖₂.
//
// Streams the projection once per tile of 16 rows, 2 bytes per element, from
// memory to the registers of the tensor cores: columns are dealt to the lanes
// as they come, which a dot product does not notice. A block leaves a sum of
// absolute products per row; \`collect\` adds them up in a fixed order. The
// alternative that lost: the Gram matrix of each head's projection, which takes
// fewer products but gives the L2 norm, and memory in each layer.
//
// The projection is halves. Where caches hold something else, a block turns its
// values into halves, scaled.
#include "lib/overlap.cuh"
#include "lib/row_tiles.cuh"
#include "lib/slots.cuh"
#include "lib/step.cuh"
#include "runtime/launch.cuh"

namespace {

constexpr uint32_t kWarps = 8;
constexpr uint32_t kThreads = 32 * kWarps;
constexpr uint32_t kTileRows = 16;
// Outputs of a block: eight per warp at a time.
constexpr uint32_t kTileOutputs = 256;

// The slot that a row's value was written to; false if there is none.
__device__ inline bool appended_slot(const skv_value_norms_args &args,
                                     uint32_t index, uint32_t kv_head,
                                     Slot &out) {
  const skv_cache &cache = args.cache;
  const Row row = row_of(args.step, index);
  if (!row.live) return false;
  if (args.step.kind == SKV_PREFILL) {
    out = slot_at(cache.stage, kv_head * cache.stage_rows + index,
                  args.sizes.head_dim);
    return true;
  }
  const uint32_t *head = head_words(cache, args.sizes, row.sequence, kv_head);
  if (head[kHeadNext] >= head[kHeadCapacity]) return false;
  out = slot_at(cache.slots, head[kHeadOffset] + head[kHeadNext],
                args.sizes.head_dim);
  return true;
}

// Turns what a lane and the three next to it have of a value into halves,
// scaled by a power of two: what is within 2^-31 of the largest element stays
// exact. Returns what products must be multiplied by.
template <int COUNT>
__device__ inline float scale_to_halves(uint32_t (&pairs)[COUNT][4]) {
  if constexpr (kCachesHalves) return 1.0f;
  float largest = 0.0f;
#pragma unroll
  for (int i = 0; i < 4 * COUNT; i++) {
    const float2 x = cached_floats(pairs[i / 4][i % 4]);
    largest = fmaxf(largest, fmaxf(fabsf(x.x), fabsf(x.y)));
  }
  largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 1));
  largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 2));
  const Scale scale = scale_for(largest);
#pragma unroll
  for (int i = 0; i < 4 * COUNT; i++) {
    uint32_t &pair = pairs[i / 4][i % 4];
    const float2 x = cached_floats(pair);
    pair = to_halves(x.x * scale.scale, x.y * scale.scale);
  }
  return scale.inverse;
}

// Sums of absolute products of a tile of rows with a tile of outputs of a query
// head: (rows, heads, parts).
template <int DIM, bool ALIGNED>
__global__ void __launch_bounds__(kThreads)
    project_kernel(skv_value_norms_args args, float *partials) {
  __shared__ float shared[kWarps][kTileRows];
  begin_kernel();
  const skv_sizes &sizes = args.sizes;
  const uint32_t head = blockIdx.y, head_dim = sizes.head_dim;
  const uint32_t kv_head = head / (sizes.heads / sizes.kv_heads);
  const uint32_t first_row = blockIdx.z * kTileRows;
  if (first_row >= row_end(args.step)) return;
  const uint32_t g = lane_id() / 4, t = lane_id() % 4;
  // Words of rows g and g + 8: see \`a\` of mma().
  uint32_t values[2][DIM / 32][4] = {};
#pragma unroll
  for (int h = 0; h < 2; h++) {
    Slot slot;
    if (!appended_slot(args, first_row + g + 8 * h, kv_head, slot)) continue;
#pragma unroll
    for (int c = 0; c < DIM / 32; c++) {
      load_pairs<8, ALIGNED>(values[h][c], slot.value, 32 * c + 8 * t,
                             head_dim);
    }
  }
  const float inverse[2] = {scale_to_halves(values[0]),
                            scale_to_halves(values[1])};
  const uint32_t outputs = args.weight.rows;
  const uint32_t begin = blockIdx.x * kTileOutputs;
  const uint32_t end = min(outputs, begin + kTileOutputs);
  float sums[2] = {};
  for (uint32_t first = begin + 8 * warp_id(); first < end;
       first += 8 * kWarps) {
    const uint32_t output = min(first + g, outputs - 1);
    const skv_half *row = args.weight.data +
                          static_cast<size_t>(output) * args.weight.pitch +
                          head * head_dim;
    float products[4] = {};
#pragma unroll
    for (int c = 0; c < DIM / 32; c++) {
      uint32_t w[4];
      load_pairs<8, ALIGNED>(w, row, 32 * c + 8 * t, head_dim);
#pragma unroll
      for (int s = 0; s < 2; s++) {
        const uint4 a = {values[0][c][2 * s], values[1][c][2 * s],
                         values[0][c][2 * s + 1], values[1][c][2 * s + 1]};
        mma(products, a, w[2 * s], w[2 * s + 1]);
      }
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
      if (first + 2 * t + i % 2 < end) sums[i / 2] += fabsf(products[i]);
    }
  }
#pragma unroll
  for (int h = 0; h < 2; h++) {
    sums[h] += __shfl_xor_sync(kAllLanes, sums[h], 1);
    sums[h] += __shfl_xor_sync(kAllLanes, sums[h], 2);
    if (t == 0) shared[warp_id()][g + 8 * h] = sums[h] * inverse[h];
  }
  __syncthreads();
  const uint32_t row = first_row + threadIdx.x;
  if (threadIdx.x >= kTileRows || row >= args.step.rows) return;
  float sum = 0.0f;
  for (uint32_t w = 0; w < kWarps; w++) sum += shared[w][threadIdx.x];
  const size_t query = static_cast<size_t>(row) * sizes.heads + head;
  partials[query * gridDim.x + blockIdx.x] = sum;
}

// Writes the norm of one value; one warp.
__global__ void __launch_bounds__(32)
    collect_kernel(skv_value_norms_args args, const float *partials,
                   uint32_t parts) {
  begin_kernel();
  const skv_sizes &sizes = args.sizes;
  const uint32_t kv_head = blockIdx.x, row = blockIdx.y;
  Slot slot;
  if (!appended_slot(args, row, kv_head, slot)) return;
  const uint32_t group = sizes.heads / sizes.kv_heads;
  float sum = 0.0f;
  if (partials != nullptr) {
    const float *own =
        partials +
        (static_cast<size_t>(row) * sizes.heads + kv_head * group) * parts;
    for (uint32_t i = lane_id(); i < group * parts; i += 32) sum += own[i];
  } else {
    for (uint32_t d = lane_id(); d < sizes.head_dim; d += 32) {
      const float x = to_float(slot.value[d]);
      sum += x * x;
    }
  }
  sum = warp_sum(sum);
  if (lane_id() != 0) return;
  slot.set(kSlotValueNorm,
           partials == nullptr ? sqrtf(sum) : sum / static_cast<float>(group));
}

bool projects(const skv_value_norms_args &args) {
  return args.weight.data != nullptr;
}

uint32_t parts_of(const skv_value_norms_args &args) {
  return (args.weight.rows + kTileOutputs - 1) / kTileOutputs;
}

template <int DIM>
cudaError_t launch_width(const skv_value_norms_args &args, float *partials,
                         const Launch &launch) {
  const dim3 grid(parts_of(args), args.sizes.heads,
                  (args.step.rows + kTileRows - 1) / kTileRows);
  const auto kernel = args.sizes.head_dim % 8 == 0 ? project_kernel<DIM, true>
                                                   : project_kernel<DIM, false>;
  return launch_kernel(launch, kernel, grid, kThreads, 0, args, partials);
}

cudaError_t launch_project(const skv_value_norms_args &args, float *partials,
                           const Launch &launch) {
  return with_width(args.sizes.head_dim, [&](auto width) {
    return launch_width<decltype(width)::value>(args, partials, launch);
  });
}

}  // namespace

Needs value_norms_needs(const skv_value_norms_args &args, uint32_t) {
  if (!projects(args)) return {};
  return {static_cast<size_t>(args.step.rows) * args.sizes.heads *
          parts_of(args) * sizeof(float)};
}

cudaError_t launch_value_norms(const skv_value_norms_args &args,
                               const Launch &launch) {
  float *partials = nullptr;
  if (projects(args)) {
    partials = reinterpret_cast<float *>(launch.scratch);
    const cudaError_t status = launch_project(args, partials, launch);
    if (status != cudaSuccess) return status;
  }
  const dim3 grid(args.sizes.kv_heads, args.step.rows);
  return launch_kernel(launch, collect_kernel, grid, 32, 0, args,
                       static_cast<const float *>(partials),
                       projects(args) ? parts_of(args) : 0u);
}
`,
};

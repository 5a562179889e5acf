// Runs: items that all go, in the order of their positions, up to the kept one
// to their right, which takes their values. `runWeights` in
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
  // What is left of a value with this mean attention once `i` is merged into
  // it.
  __device__ float left_by(uint32_t i, float mean) const {
    const float own = mean_attention(slot(i));
    return own + mean == 0.0f ? 0.5f : mean / (own + mean);
  }
  // What the items from `i` leftwards leave of a value: those that go before
  // `limit` and after `last`, as long as no nearer one takes them.
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

// Merges the run whose last member is `last` into the slot to its right; called
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

// The end of a chunk's compression: victims leave, and the staged rows that are
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

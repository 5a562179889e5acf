// The search for similar keys on Hopper: lib/search_keys.cuh with products of
// groups of four warps.
//
// A block has one multiprocessor: two groups with 128 queries each, which go
// through tiles of 128 candidates. A group has sums for two halves of its
// queries, and compares those of one while the other's products are made.
#pragma once

#include "group_instructions.cuh"
#include "search_candidates.cuh"

// Widths of heads whose tiles are whole lines of 128 bytes.
template <int DIM>
constexpr bool kHasGroupSearch = DIM == 64 || DIM == 128;

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

// Starts to copy LINES lines to a tile as products want it: see
// tile_descriptor(). `line(i)` is where line i is in memory, or null for zeros.
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

// Starts to multiply 64 queries from `query` on with a tile of candidates.
template <int DIM>
__device__ inline void begin_tile(
    const typename GroupSearch<DIM>::Shared &shared, uint32_t query,
    uint32_t stage, typename GroupSearch<DIM>::Products &x) {
  begin_products();
#pragma unroll
  for (int k = 0; k < DIM / 16; k++) {
    const uint32_t part = 16 * k / kTileColumns;
    const uint32_t column = 16 * k % kTileColumns;
    const uint64_t left = lines_at(&shared.queries[part][query][column]);
    const uint64_t right = lines_at(&shared.candidates[stage][part][0][column]);
    if (k == 0) {
      group_product_new<GroupSearch<DIM>::kCandidates>(x, left, right);
    } else {
      group_product_cached<GroupSearch<DIM>::kCandidates>(x, left, right);
    }
  }
  commit_products();
}

// Searches one share: see lib/search_keys.cuh.
template <int DIM>
__device__ inline void search_group_share(
    const KeyLists &lists, const SearchShares &share, bool is_among,
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
  SearchShares share(all_work, args.sizes.kv_heads, Form::kQueries,
                     Form::kCandidates);
  while (share.next()) {
    const KeyLists lists(args, all_work, share.kv_head);
    search_group_share<DIM>(lists, share, is_among, all_work.part_pitch(),
                            shared);
    // Nobody reads the last tiles any more.
    __syncthreads();
  }
}

// Searches if the device and the heads are made for it, and says so in `done`.
template <int DIM>
inline cudaError_t launch_group_search(const skv_chunk_args &args,
                                       const CompressWork &work, bool is_among,
                                       const Launch &launch, bool &done) {
  if constexpr (kHasGroupSearch<DIM>) {
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

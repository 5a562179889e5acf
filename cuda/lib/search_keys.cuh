// For each query of a chunk's items, the candidate with the most similar key.
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

// Searches one share. `is_among` says whether queries and candidates are the
// same list. Called by the whole block.
template <int DIM>
__device__ inline void search_share(const KeyLists &lists,
                                    const SearchShares &share, bool is_among,
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
  SearchShares share(all_work, args.sizes.kv_heads, Form::kQueries,
                     Form::kCandidates);
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

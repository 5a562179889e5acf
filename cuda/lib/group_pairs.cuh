// The search for the cheapest pairs of a chunk on Hopper: lib/search.cuh with
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

// Searches if the device and the heads are made for it, and says so in `done`.
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

// Scores of many rows of a chunk on Hopper: observe.cu with products of groups
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

// Scores of many rows of a chunk on Hopper: observe.cu with products of groups
// of four warps.
//
// The moving sum of a slot after rows r of n is
//
//   E = αⁿ E + (1 − α) / heads · Σ α^(n − 1 − r) exp(logit)
//
// so its terms need no order: each thread adds those of its part of the rows,
// with α's power in the exponent, at a reference of its own, as a softmax does.
// The alternative that lost, by ten times: row after row, with a logarithm each
// (observe.cu), which few rows are not worth avoiding.
#pragma once

#include "../runtime/launch.cuh"
#include "gather_tile.cuh"
#include "half_rows.cuh"
#include "observed.cuh"
#include "overlap.cuh"
#include "prefill_form.cuh"
#include "scores.cuh"

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

  // Adds them to the scores of the slot of row h, which `rows` rows observed.
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
#pragma unroll
    for (int k = 0; k < DIM / 16; k++) {
      const uint32_t part = 16 * k / kTileColumns;
      const uint32_t column = 16 * k % kTileColumns;
      const uint64_t left =
          lines_at(&shared.keys[part][64 * (threadIdx.x / 128)][column]);
      const uint64_t right = lines_at(&shared.queries[stage][part][0][column]);
      if (k == 0) {
        group_product_new<Form::kPairs>(x, left, right);
      } else {
        group_product_cached<Form::kPairs>(x, left, right);
      }
    }
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
  return (DIM == 64 || DIM == 128) && args.sizes.head_dim % 8 == 0 &&
         args.sink_queries == nullptr && args.cache.lanes == 1 && !is_ordered &&
         rows > kMostExactRows;
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
  constexpr uint32_t kWarps = kRoundThreads / 32;
  const dim3 pairs((queries.pairs + kWarps - 1) / kWarps, args.sizes.kv_heads);
  cudaError_t status = launch_kernel(launch, round_pairs_kernel<DIM>, pairs,
                                     kRoundThreads, 0, args, queries);
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

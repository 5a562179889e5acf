// For each query of a list, the cheapest of some candidates to merge with.
//
// A block has a tile of queries and goes through the tiles of one part of the
// candidates: all products of the two lists on tensor cores, exact because keys
// and values are operands as they are, with the best candidate kept per query.
// Candidates are read once per tile of queries. Squared distances follow from
// products and squares. The alternative that lost: one warp per query, which
// reads all candidates for each of them.
//
// Who searches passes a `Source`, whose `view()` a block asks for
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

template <int DIM, class Source>
__global__ void __launch_bounds__(32 * kSearchWarps<DIM>)
    search_kernel(Source source, PairSearch pairs, uint32_t head_dim) {
  constexpr uint32_t kQueries = kQueryTile<DIM>;
  constexpr int kTiles = kCandidateTile / 8;
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
  const PairCosts costs(pairs.policy, view.spread());

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
    const bool exists = c < candidates;
    const uint32_t number = exists ? view.candidate(c) : kNoItem;
    shared.numbers[threadIdx.x] = number;
    if (!exists) return;
    const Slot slot = view.slot(number);
    shared.positions[threadIdx.x] = slot.word(kSlotPosition);
    shared.weights[threadIdx.x] = log_weight(slot, pairs.policy, pairs.lanes);
  };
  // Called by the whole block, for which all that was started is there then.
  const auto wait_for_tiles = [] {
    commit_copies();
    wait_copies<0>();
    __syncthreads();
  };
  copy_queries(shared.queries, true);
  copy_queries(shared.query_values, false);
  if (begin < end) start_tile(begin);
  const uint32_t g = lane_id() / 4, t = lane_id() % 4;
  uint32_t queries[2], numbers[2], positions[2] = {};
  float weights[2] = {};
  Neighbour best[2] = {kNoNeighbour, kNoNeighbour};
#pragma unroll
  for (int h = 0; h < 2; h++) {
    queries[h] = first_query + 16 * warp_id() + g + 8 * h;
    numbers[h] = kNoItem;
    if (queries[h] >= view.queries) continue;
    numbers[h] = view.query(queries[h]);
    const Slot slot = view.slot(numbers[h]);
    positions[h] = slot.word(kSlotPosition);
    weights[h] = log_weight(slot, pairs.policy, pairs.lanes);
  }
  wait_for_tiles();
  square_lines<DIM>(shared.queries, kQueries, shared.query_squares[0]);
  square_lines<DIM>(shared.query_values, kQueries, shared.query_squares[1]);
  for (uint32_t tile = begin; tile < end; tile++) {
    const uint32_t first = tile * kCandidateTile;
    if (tile != begin) {
      __syncthreads();
      start_tile(tile);
      wait_for_tiles();
    }
    float x[kTiles][4] = {};
    float key_distances[kTiles][4];
    // Squared distances of keys first, then the same of values.
    const auto measure = [&](const skv_cached *own, const skv_cached *theirs,
                             int kind) {
      square_lines<DIM>(theirs, kCandidateTile, shared.squares);
      multiply_lines<DIM>(own, theirs, x);
      __syncthreads();
#pragma unroll
      for (int n = 0; n < kTiles; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const float mine =
              shared.query_squares[kind][16 * warp_id() + g + i / 2 * 8];
          const float other = shared.squares[8 * n + 2 * t + i % 2];
          x[n][i] = fmaxf(0.0f, mine + other - 2.0f * x[n][i]);
        }
      }
    };
    measure(shared.queries, keys, 0);
#pragma unroll
    for (int n = 0; n < kTiles; n++) {
#pragma unroll
      for (int i = 0; i < 4; i++) key_distances[n][i] = x[n][i], x[n][i] = 0.0f;
    }
    __syncthreads();
    if constexpr (!kBoth) {
      copy_candidates(values, first, false);
      wait_for_tiles();
    }
    measure(shared.query_values, values, 1);
#pragma unroll
    for (int n = 0; n < kTiles; n++) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const uint32_t c = 8 * n + 2 * t + i % 2;
        const uint32_t number = shared.numbers[c];
        const int h = i / 2;
        if (number == kNoItem || number == numbers[h]) continue;
        const float weight = shared.weights[c];
        const bool is_heavier =
            weight > weights[h] ||
            (weight == weights[h] && shared.positions[c] < positions[h]);
        if (pairs.heavier && !is_heavier) continue;
        const float distance = costs.distance(key_distances[n][i], x[n][i]);
        const Neighbour candidate = {
            -PairCosts::cost(weights[h], weight, distance), shared.positions[c],
            number};
        if (candidate.beats(best[h])) best[h] = candidate;
      }
    }
  }
#pragma unroll
  for (int h = 0; h < 2; h++) best[h] = nearest_of_lanes<2>(best[h]);
#pragma unroll
  for (int h = 0; h < 2; h++) {
    if (t == 0 && queries[h] < view.queries) view.store(queries[h], best[h]);
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

// Searches for up to `most` queries of each head; `blocks` are those that share
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

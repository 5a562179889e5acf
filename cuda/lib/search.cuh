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

// Tiles of queries and candidates of a search in shared memory, and what is
// made of them: see lib/search.cuh.
#pragma once

#include "neighbour.cuh"
#include "pair_costs.cuh"
#include "row_tiles.cuh"

constexpr uint32_t kCandidateTile = 64;

// What is looked for: the cheapest to merge with, or the nearest by key and
// value, whatever the weights.
enum class Search { kCheapest, kNearest };

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
  // Of the queries' keys and values, and of what is in `candidates`.
  float query_squares[2][kQueries];
  float squares[kCandidateTile];
  float weights[kCandidateTile];
  uint32_t positions[kCandidateTile];
  uint32_t numbers[kCandidateTile];
};

// Squares of `lines` lines of a tile. Called by the whole block, whose threads
// are once or twice as many.
template <int DIM>
__device__ inline void square_lines(const skv_cached *tile, uint32_t lines,
                                    float *squares) {
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
  if (threadIdx.x % per_line == 0) squares[line] = sum;
}

// Products of a warp's queries with all candidates of the tile.
template <int DIM>
__device__ inline void multiply_lines(const skv_cached *queries,
                                      const skv_cached *candidates,
                                      float (&x)[kCandidateTile / 8][4]) {
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

// Compares the queries of a warp with the slots that they remember, four
// or eight at a time, so that their keys and values are on their way together;
// a lane has 8 elements of a key or of a value at a time.
template <int DIM, class View>
__device__ inline void compare_remembered(
    const View &view, const PairCosts &costs, uint32_t first_query,
    uint32_t head_dim, const SearchShared<DIM> &shared, Neighbour (&best)[2]) {
  constexpr uint32_t kChunks = DIM / 8;
  constexpr uint32_t kSteps = (2 * kChunks + 31) / 32;
  constexpr uint32_t kBatch = DIM == 256 ? 4 : 8;
#pragma unroll 1
  for (uint32_t first = 0; first < 16; first += kBatch) {
    uint32_t others[kBatch];
    uint32_t theirs[kBatch][kSteps][4];
#pragma unroll
    for (uint32_t b = 0; b < kBatch; b++) {
      const uint32_t q = first_query + 16 * warp_id() + first + b;
      others[b] = q < view.queries ? view.remembered(q) : kNoItem;
      // What has nothing to remember reads slot 0 and forgets it.
      const Slot slot = view.slot(others[b] == kNoItem ? 0 : others[b]);
#pragma unroll
      for (uint32_t step = 0; step < kSteps; step++) {
        const uint32_t chunk = 32 * step + lane_id();
        const skv_cached *from = chunk < kChunks ? slot.key : slot.value;
        // Zeros come back from beyond the end.
        const uint32_t d = chunk < 2 * kChunks ? chunk % kChunks * 8 : DIM;
        if (head_dim % 8 == 0) {
          load_pairs<8, true>(theirs[b][step], from, d, head_dim);
        } else {
          load_pairs<8, false>(theirs[b][step], from, d, head_dim);
        }
      }
    }
#pragma unroll
    for (uint32_t b = 0; b < kBatch; b++) {
      if (others[b] == kNoItem) continue;
      const uint32_t r = first + b, line = 16 * warp_id() + r;
      float squares[2] = {};
#pragma unroll
      for (uint32_t step = 0; step < kSteps; step++) {
        const uint32_t chunk = 32 * step + lane_id();
        if (chunk >= 2 * kChunks) continue;
        const bool is_key = chunk < kChunks;
        const skv_cached *own = is_key ? shared.queries : shared.query_values;
        const uint4 words = *reinterpret_cast<const uint4 *>(
            own + line * kLinePitch<DIM> + chunk % kChunks * 8);
        const uint32_t mine[4] = {words.x, words.y, words.z, words.w};
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const float2 x = cached_floats(mine[i]);
          const float2 y = cached_floats(theirs[b][step][i]);
          sum += (x.x - y.x) * (x.x - y.x) + (x.y - y.y) * (x.y - y.y);
        }
        squares[0] += is_key ? sum : 0.0f;
        squares[1] += is_key ? 0.0f : sum;
      }
      const float distance =
          costs.distance(warp_sum(squares[0]), warp_sum(squares[1]));
      const Neighbour known = {
          -distance, view.slot(others[b]).word(kSlotPosition), others[b]};
#pragma unroll
      for (uint32_t h = 0; h < 2; h++) {
        const bool is_mine = lane_id() / 4 + 8 * h == r;
        if (is_mine && known.beats(best[h])) best[h] = known;
      }
    }
  }
}

// Tiles of queries and candidates of a search in shared memory, and what is
// made of them: see lib/search.cuh.
#pragma once

#include "cheapest_pairs.cuh"
#include "row_tiles.cuh"

constexpr uint32_t kCandidateTile = 64;

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
  // Of the queries' keys and values.
  float query_squares[2][kQueries];
  // Of what is in `candidates`.
  PairSide<kCandidateTile> side;
};

// Calls `use(line, square)` for the squares of `lines` lines of a tile. Called
// by the whole block, whose threads are once or twice as many.
template <int DIM, class Use>
__device__ inline void square_lines(const skv_cached *tile, uint32_t lines,
                                    Use use) {
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
  if (threadIdx.x % per_line == 0) use(line, sum);
}

// Products of a warp's queries with all candidates of the tile.
template <int DIM>
__device__ inline void multiply_lines(const skv_cached *queries,
                                      const skv_cached *candidates,
                                      float (&x)[kCandidateTile / 8][4]) {
#pragma unroll
  for (int n = 0; n < static_cast<int>(kCandidateTile) / 8; n++) {
#pragma unroll
    for (int i = 0; i < 4; i++) x[n][i] = 0.0f;
  }
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

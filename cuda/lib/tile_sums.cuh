// What happens to the sums of a tile, once they are complete: see
// lib/matrix_product.cuh.
//
// The block that made a tile hands it over through shared memory, in a stage
// that has been used up: neighbouring threads then finish neighbouring pairs of
// one row, in a loop that is short enough for the instruction cache. Where
// blocks share a tile, they leave their parts in global memory, and the last
// one to come adds them up, always in the same order.
#pragma once

#include "half_rows.cuh"
#include "matrix_shape.cuh"
#include "tile_shares.cuh"

template <class Shape>
using WarpSums = float[Shape::kOutputTiles][Shape::kRowTiles][4];

// Parts that a block has room for: of the first tile that it shares, and of the
// last one.
constexpr uint32_t kPartSlots = 2;

// Memory through which blocks that share tiles add up.
struct TileSums {
  // (blocks, kPartSlots, rows, kTilePairs)
  float2 *parts;
  // (2 blocks): how many parts of a shared tile are there.
  uint32_t *tickets;
};

// Rows that the threads of a block finish at a time: one per pair.
constexpr uint32_t kFinishRows = kMatrixThreads / kTilePairs;

// Parts that are on their way to a thread at a time, of one sum.
constexpr uint32_t kPartLoads = 8;

// Where a pair of sums is: the four rows that lanes of a warp have in their
// registers are in different banks.
__device__ inline uint32_t sum_place(uint32_t row, uint32_t pair) {
  return row * kTilePairs + (pair ^ row / 2 % 4 * 4);
}

// Leaves a warp's sums of COUNT slices from `first` at `to`.
template <class Shape, int COUNT>
__device__ inline void store_sums(const WarpSums<Shape> &sums, int first,
                                  float2 *to) {
  const uint32_t row = warp_row<Shape>() + lane_id() % 4 * 2;
  const uint32_t pair = warp_output<Shape>() / 2 + lane_id() / 4;
#pragma unroll
  for (int r = 0; r < COUNT; r++) {
#pragma unroll
    for (int o = 0; o < Shape::kOutputTiles; o++) {
      const float(&from)[4] = sums[o][first + r];
#pragma unroll
      for (uint32_t i = 0; i < 2; i++) {
        to[sum_place(row + r * Shape::kSliceRows + i, pair + 8 * o)] = {
            from[i], from[2 + i]};
      }
    }
  }
}

// The parts of a tile, which blocks `first` to `last` make.
template <class Shape>
struct TileParts {
  const TileShares &shares;
  const TileSums &memory;
  uint32_t tile;
  uint32_t first;
  uint32_t last;
  // Which slot of block `first` has its part; the others begin in this tile.
  uint32_t first_slot;

  __device__ TileParts(const TileShares &shares, const TileSums &memory,
                       uint32_t tile)
      : shares(shares),
        memory(memory),
        tile(tile),
        first(blockIdx.x),
        last(blockIdx.x),
        first_slot(0) {
    if (tile >= shares.shared_tiles) return;
    const uint32_t begin = tile * shares.steps;
    first = shares.block_of(begin);
    last = shares.block_of(begin + shares.steps - 1);
    first_slot = shares.begin(first) < begin ? 1 : 0;
  }

  __device__ bool is_shared() const { return first != last; }

  // Where a block's part is.
  __device__ float2 *at(uint32_t block) const {
    const uint32_t slot = block == first ? first_slot : 0;
    return memory.parts +
           static_cast<size_t>(kPartSlots * block + slot) * Shape::kSums;
  }
  // Keeps this block's part. Whether all are there now: the last block to come
  // sees them.
  __device__ bool complete(const WarpSums<Shape> &sums) const {
    __shared__ bool is_last;
    store_sums<Shape, Shape::kRowTiles>(sums, 0, at(blockIdx.x));
    __syncthreads();
    if (threadIdx.x == 0) {
      is_last = add_released(memory.tickets + tile, 1) == last - first;
      if (is_last) memory.tickets[tile] = 0;
    }
    __syncthreads();
    return is_last;
  }
  // Adds up the pairs that this thread finishes of the rows from `row`, in the
  // order of the blocks. All loads of a round are on their way together.
  __device__ void add(uint32_t row, float2 *to) const {
    constexpr uint32_t kRounds = Shape::kPassRows / kFinishRows;
#pragma unroll 2
    for (uint32_t i = 0; i < kRounds; i++) {
      const uint32_t place = sum_place(
          threadIdx.x / kTilePairs + i * kFinishRows, threadIdx.x % kTilePairs);
      float2 sum = {};
      for (uint32_t block = first; block <= last; block += kPartLoads) {
        float2 parts[kPartLoads];
#pragma unroll
        for (uint32_t k = 0; k < kPartLoads; k++) {
          const float2 *from = at(min(block + k, last)) + row * kTilePairs;
          parts[k] = __ldcg(from + place);
        }
#pragma unroll
        for (uint32_t k = 0; k < kPartLoads; k++) {
          if (block + k > last) break;
          sum.x += parts[k].x, sum.y += parts[k].y;
        }
      }
      to[place] = sum;
    }
  }
};

// What the products of a tile's rows must be multiplied by, in shared memory:
// nothing that finishing needs is on its way by then.
template <class Shape>
struct RowFactors {
  // Negative for rows that are not wanted.
  float factors[Shape::kRows];

  __device__ void load(const Product &product, const HalfRows &rows,
                       uint32_t row_tile) {
    for (uint32_t i = threadIdx.x; i < Shape::kRows; i += kMatrixThreads) {
      const uint32_t row = row_tile * Shape::kRows + i;
      const float inverse = rows.inverse[min(row, product.rows - 1)];
      const bool is_wanted = row < product.rows && product.is_wanted(row);
      factors[i] = is_wanted ? inverse : -1.0f;
    }
  }
};

// Rows of a pair that a thread finishes at a time.
constexpr uint32_t kHeldRows = 2;

// Hands over the sums at `from`: those of a pass over a tile's rows.
template <class Shape, class Pairs>
__device__ inline void finish_rows(const Product &product, const Pairs &pairs,
                                   const float *factors, const float2 *from,
                                   uint32_t first_row, uint32_t first_pair) {
  const uint32_t pair = threadIdx.x % kTilePairs;
  if (first_pair + pair >= pairs_of(product.weight)) return;
  const uint32_t first = threadIdx.x / kTilePairs;
#pragma unroll 1
  for (uint32_t begin = first; begin < Shape::kPassRows;
       begin += kHeldRows * kFinishRows) {
    // What finishing takes is on its way for some rows at a time.
    float row_factors[kHeldRows];
    typename Pairs::Held held[kHeldRows];
#pragma unroll
    for (uint32_t i = 0; i < kHeldRows; i++) {
      const uint32_t row = begin + i * kFinishRows;
      row_factors[i] = row < Shape::kPassRows ? factors[row] : -1.0f;
      if (row_factors[i] < 0.0f) continue;
      held[i] = pairs.hold(first_row + row, first_pair + pair);
    }
#pragma unroll
    for (uint32_t i = 0; i < kHeldRows; i++) {
      if (row_factors[i] < 0.0f) continue;
      const float2 x = from[sum_place(begin + i * kFinishRows, pair)];
      pairs.finish(held[i], x.x * row_factors[i], x.y * row_factors[i]);
    }
  }
}

// Finishes a tile or leaves this block's part of it. Every thread of the block
// calls it; `memory` is a stage that the block does not need any more.
template <class Shape, class Pairs>
__device__ inline void finish_tile(const Product &product, const Pairs &pairs,
                                   const TileParts<Shape> &parts,
                                   const WarpSums<Shape> &sums,
                                   const RowFactors<Shape> &rows,
                                   uint32_t row_tiles, skv_half *memory) {
  if (parts.is_shared() && !parts.complete(sums)) return;
  float2 *const products = reinterpret_cast<float2 *>(memory);
  const uint32_t first_pair = parts.tile / row_tiles * kTilePairs;
  const uint32_t first_row = parts.tile % row_tiles * Shape::kRows;
#pragma unroll
  for (int pass = 0; pass < Shape::kPasses; pass++) {
    const uint32_t row = pass * Shape::kPassRows;
    if (parts.is_shared()) {
      parts.add(row, products);
    } else {
      if (pass > 0) __syncthreads();
      store_sums<Shape, Shape::kPassTiles>(sums, pass * Shape::kPassTiles,
                                           products);
      __syncthreads();
    }
    finish_rows<Shape>(product, pairs, rows.factors + row, products,
                       first_row + row, first_pair);
  }
}

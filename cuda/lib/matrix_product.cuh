// Products of several rows of activations with a weight matrix, for batches and
// prefill chunks: tensor cores, and both operands on their way to shared memory
// several steps before they are needed.
//
// A tile is 64 pairs of outputs by 8 to 256 rows (lib/matrix_shape.cuh); a step
// of it takes 64 columns, in which every lane of a warp finds the operands of
// two products in 16 consecutive bytes: a dot product does not care about the
// order of its terms, so both sides may deal the columns alike. Blocks stay for
// all their tiles and share them evenly (lib/tile_shares.cuh), so that memory
// never waits for a last wave of blocks. As in the form for one row, weights
// are on their way before the kernel in front has ended.
//
// The alternatives that lost: weights from memory straight to registers, which
// leaves none for the sums of many rows; tf32 numbers, which need no scale but
// twice the products, and a conversion of every weight; partial sums that
// blocks add atomically, which are not the same from run to run.
#pragma once

#include <algorithm>

#include "half_rows.cuh"
#include "matrix_shape.cuh"
#include "mma.cuh"
#include "overlap.cuh"
#include "product_args.cuh"
#include "tile_fetcher.cuh"
#include "tile_shares.cuh"
#include "tile_sums.cuh"

// Most blocks that share a tile where there are fewer tiles than blocks, and
// least steps of a block: the last block of a tile reads what all others made.
constexpr uint32_t kMostSharers = 8;
constexpr uint32_t kLeastSteps = 2;

// Adds the products of one step.
template <class Shape>
__device__ inline void add_step(const skv_half *stage, WarpSums<Shape> &sums) {
  const uint32_t lane = lane_id();
  // Places of the lane's lines in the first operands of a step; the chunks of
  // others differ by bits that are the same for all lines.
  const uint32_t left = chunk_place(lane % 16, lane / 16);
  const uint32_t right = chunk_place(lane % 8, lane / 8);
  const skv_half *weights = stage + warp_output<Shape>() * kStepColumns;
  const skv_half *rows =
      stage + (kTileOutputs + warp_row<Shape>()) * kStepColumns;
#pragma unroll
  for (uint32_t part = 0; part < kStepColumns / 32; part++) {
    uint4 w[2][Shape::kOutputTiles];
#pragma unroll
    for (uint32_t k = 0; k < 2; k++) {
#pragma unroll
      for (int o = 0; o < Shape::kOutputTiles; o++) {
        w[k][o] = load_matrices(weights + (left ^ (2 * part + k) * 16) +
                                16 * o * kStepColumns);
      }
    }
#pragma unroll
    for (int r = 0; r < Shape::kRowTiles; r++) {
      // The small halves first.
#pragma unroll
      for (int half = Shape::kHalves - 1; half >= 0; half--) {
        const uint4 x = load_matrices(
            rows + (right ^ part * 32) +
            (half * Shape::kRows + r * Shape::kSliceRows) * kStepColumns);
#pragma unroll
        for (int o = 0; o < Shape::kOutputTiles; o++) {
          mma(sums[o][r], w[0][o], x.x, x.y);
        }
#pragma unroll
        for (int o = 0; o < Shape::kOutputTiles; o++) {
          mma(sums[o][r], w[1][o], x.z, x.w);
        }
      }
    }
  }
}

template <class Shape, class Pairs>
__global__ void __launch_bounds__(kMatrixThreads, Shape::kResident)
    matrix_product_kernel(Product product, HalfRows rows, Pairs pairs,
                          TileSums memory) {
  __shared__ RowFactors<Shape> factors;
  skv_half *const stages =
      reinterpret_cast<skv_half *>(dynamic_shared_memory());
  let_next_start();
  // How many rows a chunk has is not known before; those of a batch are.
  const bool is_chunk = product.step.kind == SKV_PREFILL;
  if (is_chunk) wait_for_previous();
  const uint32_t end = is_chunk ? product.end() : product.rows;
  const uint32_t row_tiles = (end + Shape::kRows - 1) / Shape::kRows;
  const uint32_t output_tiles =
      (product.weight.rows + kTileOutputs - 1) / kTileOutputs;
  const TileShares shares(
      output_tiles * row_tiles,
      (product.weight.pitch + kStepColumns - 1) / kStepColumns, gridDim.x);
  TileFetcher<Shape, Pairs> fetcher(product, rows, pairs, shares, row_tiles,
                                    end);
  uint32_t left = fetcher.left();
  constexpr uint32_t kAhead = Shape::kStages - 1;
  auto early = fetcher;
  for (uint32_t stage = 0; stage < kAhead && early.left() > 0; stage++) {
    early.fetch_weights(stages + stage * Shape::kStageHalves);
    early.advance();
  }
  if (!is_chunk) wait_for_previous();
  for (uint32_t stage = 0; stage < kAhead && fetcher.left() > 0; stage++) {
    fetcher.fetch_rows(stages + stage * Shape::kStageHalves);
    fetcher.advance();
  }
  commit_copies();
  TileCursor now(shares, blockIdx.x);
  uint32_t row_tile = 0;
  if (left > 0) {
    row_tile = now.tile % row_tiles;
    factors.load(product, rows, row_tile);
  }
  wait_copies<0>();

  const skv_half *const end_stage =
      stages + Shape::kStages * Shape::kStageHalves;
  skv_half *full = stages;
  skv_half *free = stages + kAhead * Shape::kStageHalves;
  while (left > 0) {
    const uint32_t run = now.run(shares);
    WarpSums<Shape> sums = {};
    for (uint32_t i = 0; i < run; i++) {
      wait_copies<Shape::kStages - 2>();
      __syncthreads();
      if (fetcher.left() > 0) {
        fetcher.fetch_weights(free);
        fetcher.fetch_rows(free);
        fetcher.advance();
      }
      commit_copies();
      add_step<Shape>(full, sums);
      free = full;
      full += Shape::kStageHalves;
      if (full == end_stage) full = stages;
    }
    // All warps have used the stage up, and the factors of the tile before.
    __syncthreads();
    if (now.tile % row_tiles != row_tile) {
      row_tile = now.tile % row_tiles;
      factors.load(product, rows, row_tile);
    }
    finish_tile<Shape>(product, pairs,
                       TileParts<Shape>(shares, memory, now.tile), sums,
                       factors, row_tiles, free);
    now.advance(shares, blockIdx.x, run);
    left -= run;
  }
  wait_copies<0>();
}

template <class Shape>
inline uint32_t matrix_tiles(const Product &product) {
  return (product.weight.rows + kTileOutputs - 1) / kTileOutputs *
         ((product.rows + Shape::kRows - 1) / Shape::kRows);
}

template <class Shape>
inline uint32_t matrix_blocks(const Product &product,
                              uint32_t multiprocessors) {
  const uint64_t tiles = matrix_tiles<Shape>(product);
  const uint64_t steps =
      (product.weight.pitch + kStepColumns - 1) / kStepColumns;
  const uint64_t useful =
      std::min(tiles * kMostSharers, tiles * steps / kLeastSteps);
  return static_cast<uint32_t>(
      std::max(uint64_t{1},
               std::min(uint64_t{multiprocessors} * Shape::kResident, useful)));
}

// What both the best shape and the one for all devices need.
inline Needs matrix_product_needs(const Product &product,
                                  uint32_t multiprocessors) {
  Needs needs;
  for (const size_t shared_bytes : {kLeastSharedBytes, SIZE_MAX}) {
    with_matrix_shape(product, shared_bytes, [&](auto shape) {
      using Shape = decltype(shape);
      const size_t blocks = matrix_blocks<Shape>(product, multiprocessors);
      const size_t parts = kPartSlots * blocks * Shape::kSums;
      const size_t scratch =
          half_rows_bytes(product) + aligned_bytes(parts * sizeof(float2));
      needs.scratch = std::max(needs.scratch, scratch);
      needs.tickets = std::max(needs.tickets, 2 * blocks);
    });
  }
  return needs;
}

// Multiplies the rows of a step. `scratch` has what is needed.
template <class Pairs>
inline cudaError_t multiply_matrix(const Product &product, const Pairs &pairs,
                                   Scratch scratch, const Launch &launch) {
  const HalfRows rows = place_half_rows(product, scratch);
  const cudaError_t status = make_half_rows(product, rows, launch);
  if (status != cudaSuccess) return status;
  return with_matrix_shape(product, launch.shared_bytes, [&](auto shape) {
    using Shape = decltype(shape);
    const uint32_t blocks =
        matrix_blocks<Shape>(product, launch.multiprocessors);
    const TileSums memory = {
        scratch.take<float2>(size_t{kPartSlots} * blocks * Shape::kSums),
        launch.tickets};
    const auto kernel = matrix_product_kernel<Shape, Pairs>;
    const cudaError_t allowed = allow_shared_memory(kernel, Shape::kBytes);
    if (allowed != cudaSuccess) return allowed;
    return launch_kernel(launch, kernel, blocks, kMatrixThreads, Shape::kBytes,
                         product, rows, pairs, memory);
  });
}

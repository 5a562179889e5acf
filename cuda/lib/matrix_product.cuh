// Products of several rows of activations with a weight matrix, for batches and
// prefill chunks: tensor cores, and both operands on their way to shared memory
// several steps before they are needed.
//
// A tile is 64 pairs of outputs by 8 to 256 rows; a step of it takes 64
// columns, in which every lane of a warp finds the operands of two products in
// 16 consecutive bytes: a dot product does not care about the order of its
// terms, so both sides may deal the columns alike. Blocks stay for all their
// tiles and share them evenly (lib/tile_shares.cuh), so that memory never waits
// for a last wave of blocks. As in the form for one row, weights are on their
// way before the kernel in front has ended.
//
// The alternatives that lost: weights from memory straight to registers, which
// leaves none for the sums of many rows; tf32 numbers, which need no scale but
// twice the products, and a conversion of every weight; partial sums that
// blocks add atomically, which are not the same from run to run.
#pragma once

#include <algorithm>

#include "half_rows.cuh"
#include "mma.cuh"
#include "overlap.cuh"
#include "product_args.cuh"
#include "tile_shares.cuh"

constexpr uint32_t kMatrixThreads = 256;
constexpr uint32_t kTileOutputs = 128;
constexpr uint32_t kStepColumns = 64;

// Chunks of eight columns in a step.
constexpr uint32_t kStepChunks = kStepColumns / 8;

// Most blocks that share a tile, and least steps of a block: the last block of
// a tile reads what all others made.
constexpr uint32_t kMostSharers = 8;
constexpr uint32_t kLeastSteps = 2;

// A tile of ROWS rows, of one or two halves each.
template <uint32_t ROWS, bool TWO_HALVES>
struct MatrixShape {
  static constexpr uint32_t kRows = ROWS;
  static constexpr uint32_t kHalves = TWO_HALVES ? 2 : 1;
  // Warps side by side over the rows, and over the outputs.
  static constexpr uint32_t kRowWarps = ROWS <= 16 ? 1 : ROWS <= 128 ? 2 : 4;
  static constexpr uint32_t kOutputWarps = 8 / kRowWarps;
  // Tiles of 16 outputs and of 8 rows that a warp makes.
  static constexpr int kOutputTiles = kTileOutputs / 16 / kOutputWarps;
  static constexpr int kRowTiles = ROWS / 8 / kRowWarps;
  static constexpr uint32_t kStageHalves =
      (kTileOutputs + kHalves * ROWS) * kStepColumns;
  // Two blocks fit on a multiprocessor, but for the widest tile: the second
  // is another one of a product that is bound by its arithmetic, or the first
  // of the next product.
  static constexpr int kStages = ROWS <= 16    ? 5
                                 : ROWS <= 64  ? 4
                                 : ROWS <= 128 ? 3
                                               : 4;
  static constexpr uint32_t kResident = ROWS <= 128 ? 2 : 1;
  static constexpr uint32_t kBlocks = ROWS == 128 ? 2 : 1;
  static constexpr uint32_t kBytes = kStages * kStageHalves * 2;
  static constexpr uint32_t kSums = kOutputTiles * kRowTiles * 4;
};

// Memory through which blocks that share tiles add up.
struct TileSums {
  // (blocks, 2, kSums / 4, kMatrixThreads) of four floats: a block's part of
  // the first tile that it shares, and of the last one.
  float4 *parts;
  // (blocks): how many parts of a shared tile are there.
  uint32_t *tickets;
};

// Where chunk `chunk` of line `line` is in a stage, in halves. Lines of odd and
// even numbers have the halves of their columns in different banks, so that
// the eight lanes that are served at once, four on each of two lines, never
// meet in one.
__device__ inline uint32_t chunk_place(uint32_t line, uint32_t chunk) {
  return line * kStepColumns + (chunk ^ (line & 1) * 4) * 8;
}

// Copies steps of tiles to shared memory.
template <class Shape, class Pairs>
class TileFetcher {
 public:
  __device__ TileFetcher(const Product &product, const HalfRows &rows,
                         const Pairs &pairs, uint32_t end, skv_half *stages)
      : product_(product),
        rows_(rows),
        pairs_(pairs),
        end_(end),
        stages_(stages) {}

  // Starts on another tile of outputs.
  __device__ void turn_to(uint32_t output_tile) {
    const uint32_t count = pairs_of(product_.weight);
#pragma unroll
    for (uint32_t i = 0; i < kWeights; i++) {
      const uint32_t line = threadIdx.x / kStepChunks + i * kLines;
      const uint32_t pair =
          output_tile * (kTileOutputs / 2) + line / 16 * 8 + line % 8;
      const uint32_t row =
          min(pairs_.output(min(pair, count - 1), line / 8 % 2),
              product_.weight.rows - 1);
      weights_[i] = product_.weight.data +
                    static_cast<size_t>(row) * product_.weight.pitch;
    }
  }

  __device__ void fetch_weights(uint32_t stage, uint32_t step) const {
    skv_half *to = stages_ + stage * Shape::kStageHalves;
    const uint32_t chunk = threadIdx.x % kStepChunks;
    const uint32_t column = step * kStepColumns + 8 * chunk;
    const bool exists = column < product_.weight.pitch;
#pragma unroll
    for (uint32_t i = 0; i < kWeights; i++) {
      const uint32_t line = threadIdx.x / kStepChunks + i * kLines;
      copy_async(to + chunk_place(line, chunk),
                 exists ? weights_[i] + column : product_.weight.data, exists);
    }
  }

  // The same for the rows: in the background, or at once.
  template <bool ASYNC>
  __device__ void fetch_rows(uint32_t stage, uint32_t row_tile,
                             uint32_t step) const {
    skv_half *to =
        stages_ + stage * Shape::kStageHalves + kTileOutputs * kStepColumns;
    const uint32_t chunk = threadIdx.x % kStepChunks;
    const uint32_t column = step * kStepColumns + 8 * chunk;
#pragma unroll
    for (uint32_t half = 0; half < Shape::kHalves; half++) {
      const skv_half *from = half == 0 ? rows_.high : rows_.low;
#pragma unroll
      for (uint32_t i = 0; i < Shape::kRows; i += kLines) {
        const uint32_t line = threadIdx.x / kStepChunks + i;
        if (Shape::kRows < kLines && line >= Shape::kRows) break;
        const uint32_t row = row_tile * Shape::kRows + line;
        const bool exists = row < end_ && column < product_.weight.pitch;
        const skv_half *source =
            exists ? from + static_cast<size_t>(row) * product_.weight.pitch +
                         column
                   : from;
        skv_half *target = to + chunk_place(half * Shape::kRows + line, chunk);
        if constexpr (ASYNC) {
          copy_async(target, source, exists);
        } else {
          *reinterpret_cast<uint4 *>(target) =
              exists ? __ldcg(reinterpret_cast<const uint4 *>(source))
                     : uint4{};
        }
      }
    }
  }

 private:
  // Lines that the block copies at a time.
  static constexpr uint32_t kLines = kMatrixThreads / kStepChunks;
  static constexpr uint32_t kWeights = kTileOutputs / kLines;

  const Product &product_;
  const HalfRows &rows_;
  const Pairs &pairs_;
  const uint32_t end_;
  skv_half *const stages_;
  const skv_half *weights_[kWeights];
};

template <class Shape>
using WarpSums = float[Shape::kOutputTiles][Shape::kRowTiles][4];

// The first output and the first row of a warp, in its tile.
template <class Shape>
__device__ inline uint32_t warp_output() {
  return warp_id() % Shape::kOutputWarps * Shape::kOutputTiles * 16;
}
template <class Shape>
__device__ inline uint32_t warp_row() {
  return warp_id() / Shape::kOutputWarps * Shape::kRowTiles * 8;
}

template <class Shape>
__device__ inline void clear_sums(WarpSums<Shape> &sums) {
#pragma unroll
  for (int o = 0; o < Shape::kOutputTiles; o++) {
#pragma unroll
    for (int r = 0; r < Shape::kRowTiles; r++) {
#pragma unroll
      for (int i = 0; i < 4; i++) sums[o][r][i] = 0.0f;
    }
  }
}

// Adds the products of one step.
template <class Shape>
__device__ inline void add_step(const skv_half *stage, WarpSums<Shape> &sums) {
  const uint32_t g = lane_id() / 4, t = lane_id() % 4;
  const auto load = [&](uint32_t line, uint32_t part) {
    return *reinterpret_cast<const uint4 *>(
        stage + chunk_place(line + g, 4 * part + t));
  };
#pragma unroll
  for (uint32_t part = 0; part < kStepColumns / 32; part++) {
    uint4 w[Shape::kOutputTiles][2];
#pragma unroll
    for (int o = 0; o < Shape::kOutputTiles; o++) {
      const uint32_t line = warp_output<Shape>() + 16 * o;
      w[o][0] = load(line, part);
      w[o][1] = load(line + 8, part);
    }
#pragma unroll
    for (int r = 0; r < Shape::kRowTiles; r++) {
      const uint32_t line = kTileOutputs + warp_row<Shape>() + 8 * r;
      // The small halves first.
#pragma unroll
      for (int half = Shape::kHalves - 1; half >= 0; half--) {
        const uint4 x = load(line + half * Shape::kRows, part);
#pragma unroll
        for (int o = 0; o < Shape::kOutputTiles; o++) {
          mma(sums[o][r], {w[o][0].x, w[o][1].x, w[o][0].y, w[o][1].y}, x.x,
              x.y);
        }
#pragma unroll
        for (int o = 0; o < Shape::kOutputTiles; o++) {
          mma(sums[o][r], {w[o][0].z, w[o][1].z, w[o][0].w, w[o][1].w}, x.z,
              x.w);
        }
      }
    }
  }
}

// Adds up the parts that blocks made of a shared tile. Whether this block has
// the sums now: the last one to come does, and adds in the order of the blocks.
template <class Shape>
__device__ inline bool join_parts(const TileShares &shares,
                                  const TileSums &memory, uint32_t tile,
                                  WarpSums<Shape> &sums) {
  __shared__ bool is_last;
  constexpr uint32_t kVectors = Shape::kSums / 4;
  const auto part = [&](uint32_t block) {
    const uint32_t slot = shares.begin(block) / shares.steps == tile ? 0 : 1;
    return memory.parts + (2 * block + slot) * (kVectors * kMatrixThreads) +
           threadIdx.x;
  };
  float4 *mine = part(blockIdx.x);
#pragma unroll
  for (uint32_t i = 0; i < kVectors; i++) {
    const float(&from)[4] = sums[i / Shape::kRowTiles][i % Shape::kRowTiles];
    mine[i * kMatrixThreads] = {from[0], from[1], from[2], from[3]};
  }
  const uint32_t first = shares.block_of(tile * shares.steps);
  const uint32_t last = shares.block_of((tile + 1) * shares.steps - 1);
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    is_last = atomicAdd(memory.tickets + tile, 1u) == last - first;
    if (is_last) memory.tickets[tile] = 0;
    __threadfence();
  }
  __syncthreads();
  if (!is_last) return false;
  clear_sums<Shape>(sums);
  for (uint32_t block = first; block <= last; block++) {
    const float4 *from = part(block);
#pragma unroll
    for (uint32_t i = 0; i < kVectors; i++) {
      const float4 x = __ldcg(from + i * kMatrixThreads);
      float(&to)[4] = sums[i / Shape::kRowTiles][i % Shape::kRowTiles];
      to[0] += x.x, to[1] += x.y, to[2] += x.z, to[3] += x.w;
    }
  }
  return true;
}

// Hands the products of a tile over.
template <class Shape, class Pairs>
__device__ inline void finish_tile(const Product &product, const HalfRows &rows,
                                   const Pairs &pairs, uint32_t output_tile,
                                   uint32_t row_tile,
                                   const WarpSums<Shape> &sums) {
  const uint32_t g = lane_id() / 4, t = lane_id() % 4;
  const uint32_t count = pairs_of(product.weight);
  const uint32_t first =
      (output_tile * kTileOutputs + warp_output<Shape>()) / 2 + g;
#pragma unroll
  for (int r = 0; r < Shape::kRowTiles; r++) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const uint32_t row =
          row_tile * Shape::kRows + warp_row<Shape>() + 8 * r + 2 * t + i;
      if (row >= product.rows || !product.is_wanted(row)) continue;
      const float inverse = rows.inverse[row];
#pragma unroll
      for (int o = 0; o < Shape::kOutputTiles; o++) {
        const uint32_t pair = first + 8 * o;
        if (pair >= count) continue;
        pairs.finish(row, pair, sums[o][r][i] * inverse,
                     sums[o][r][2 + i] * inverse);
      }
    }
  }
}

template <class Shape, class Pairs>
__global__ void __launch_bounds__(kMatrixThreads, Shape::kResident)
    matrix_product_kernel(Product product, HalfRows rows, Pairs pairs,
                          TileSums memory) {
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
  const TileShares shares = {
      output_tiles * row_tiles,
      (product.weight.pitch + kStepColumns - 1) / kStepColumns, gridDim.x};
  TileCursor ahead(shares, blockIdx.x);
  TileCursor now = ahead;
  const uint32_t count = now.left(shares);
  TileFetcher<Shape, Pairs> fetcher(product, rows, pairs, end, stages);

  // Tiles of the same outputs follow each other.
  uint32_t fetched = 0;
  const auto step_ahead = [&]() {
    fetched++;
    const uint32_t tile = ahead.tile;
    ahead.advance(shares, blockIdx.x);
    if (fetched < count && ahead.tile / row_tiles != tile / row_tiles) {
      fetcher.turn_to(ahead.tile / row_tiles);
    }
  };
  constexpr uint32_t kAhead = Shape::kStages - 1;
  if (count > 0) fetcher.turn_to(ahead.tile / row_tiles);
  const TileCursor start = ahead;
  for (uint32_t stage = 0; stage < kAhead; stage++) {
    if (fetched < count) {
      fetcher.fetch_weights(stage, ahead.step);
      step_ahead();
    }
    commit_copies();
  }
  if (!is_chunk) wait_for_previous();
  // The rows of these steps come in front of further weights.
  TileCursor early = start;
#pragma unroll
  for (uint32_t stage = 0; stage < kAhead; stage++) {
    if (stage >= count) break;
    fetcher.template fetch_rows<false>(stage, early.tile % row_tiles,
                                       early.step);
    early.advance(shares, blockIdx.x);
  }

  WarpSums<Shape> sums = {};
  uint32_t first_step = now.step;
  uint32_t stage = 0;
  for (uint32_t i = 0; i < count; i++) {
    wait_copies<Shape::kStages - 2>();
    __syncthreads();
    if (fetched < count) {
      const uint32_t free = stage == 0 ? kAhead : stage - 1;
      fetcher.fetch_weights(free, ahead.step);
      fetcher.template fetch_rows<true>(free, ahead.tile % row_tiles,
                                        ahead.step);
      step_ahead();
    }
    commit_copies();
    add_step<Shape>(stages + stage * Shape::kStageHalves, sums);
    stage = stage + 1 == Shape::kStages ? 0 : stage + 1;
    if (!now.is_last(shares)) {
      now.advance(shares, blockIdx.x);
      continue;
    }
    const bool is_whole = first_step == 0 && now.step + 1 == shares.steps;
    if (is_whole || join_parts<Shape>(shares, memory, now.tile, sums)) {
      finish_tile<Shape>(product, rows, pairs, now.tile / row_tiles,
                         now.tile % row_tiles, sums);
    }
    clear_sums<Shape>(sums);
    now.advance(shares, blockIdx.x);
    first_step = now.step;
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
               std::min(uint64_t{multiprocessors} * Shape::kBlocks, useful)));
}

// Calls `f` with the shape for a product's rows.
template <class F>
inline auto with_matrix_shape(const Product &product, const F &f) {
  static_assert(kMostExactRows == 32, "shapes with two halves");
  if (product.rows <= 8) return f(MatrixShape<8, true>());
  if (product.rows <= 16) return f(MatrixShape<16, true>());
  if (product.rows <= 32) return f(MatrixShape<32, true>());
  if (product.rows <= 64) return f(MatrixShape<64, false>());
  if (product.rows <= 128) return f(MatrixShape<128, false>());
  return f(MatrixShape<256, false>());
}

inline Needs matrix_product_needs(const Product &product,
                                  uint32_t multiprocessors) {
  return with_matrix_shape(product, [&](auto shape) {
    using Shape = decltype(shape);
    const uint32_t blocks = matrix_blocks<Shape>(product, multiprocessors);
    const size_t parts = size_t{2} * blocks * Shape::kSums * kMatrixThreads;
    Needs needs;
    needs.scratch =
        half_rows_bytes(product) + aligned_bytes(parts * sizeof(float));
    needs.tickets = blocks;
    return needs;
  });
}

// Multiplies the rows of a step. `scratch` has what is needed.
template <class Pairs>
inline cudaError_t multiply_matrix(const Product &product, const Pairs &pairs,
                                   Scratch scratch, const Launch &launch) {
  HalfRows rows;
  const cudaError_t status = make_half_rows(product, scratch, launch, rows);
  if (status != cudaSuccess) return status;
  return with_matrix_shape(product, [&](auto shape) {
    using Shape = decltype(shape);
    const uint32_t blocks =
        matrix_blocks<Shape>(product, launch.multiprocessors);
    const TileSums memory = {
        scratch.take<float4>(size_t{2} * blocks * Shape::kSums / 4 *
                             kMatrixThreads),
        launch.tickets};
    const auto kernel = matrix_product_kernel<Shape, Pairs>;
    const cudaError_t allowed = allow_shared_memory(kernel, Shape::kBytes);
    if (allowed != cudaSuccess) return allowed;
    return launch_kernel(launch, kernel, blocks, kMatrixThreads, Shape::kBytes,
                         product, rows, pairs, memory);
  });
}

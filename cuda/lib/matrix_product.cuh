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

// Parts that a block has room for: of the first tile that it shares, of the
// last one, and of one that it makes alone.
constexpr uint32_t kPartSlots = 3;

// Memory through which blocks that share tiles add up.
struct TileSums {
  // (blocks, kPartSlots, row tiles, output tiles, threads) of four floats
  float4 *parts;
  // (blocks): how many parts of a shared tile are there.
  uint32_t *tickets;
};

// Where chunk `chunk` of line `line` is in a stage, in halves: eight lines have
// a chunk in different banks.
__device__ inline uint32_t chunk_place(uint32_t line, uint32_t chunk) {
  return line * kStepColumns + (chunk ^ line % 8) * 8;
}

// Copies the steps of a block's tiles to shared memory, in order.
template <class Shape, class Pairs>
class TileFetcher {
 public:
  __device__ TileFetcher(const Product &product, const HalfRows &rows,
                         const Pairs &pairs, const TileShares &shares,
                         uint32_t row_tiles, uint32_t end)
      : product_(product),
        rows_(rows),
        pairs_(pairs),
        shares_(shares),
        row_tiles_(row_tiles),
        end_(end),
        cursor_(shares, blockIdx.x),
        left_(cursor_.left(shares)),
        chunk_(threadIdx.x % kStepChunks),
        line_(threadIdx.x / kStepChunks),
        place_(chunk_place(line_, chunk_)) {
    if (left_ > 0) turn();
  }

  // Steps that are not fetched yet.
  __device__ uint32_t left() const { return left_; }

  // Fetches the weights of the present step in the background.
  __device__ void fetch_weights(skv_half *stage) const {
    const uint32_t column = cursor_.step * kStepColumns + 8 * chunk_;
    const bool exists = column < product_.weight.pitch;
#pragma unroll
    for (uint32_t i = 0; i < kWeights; i++) {
      copy_async(stage + place_ + i * (kLines * kStepColumns),
                 weights_[i] + column, exists);
    }
  }

  // The same for the rows.
  __device__ void fetch_rows(skv_half *stage) const {
    const uint32_t column = cursor_.step * kStepColumns + 8 * chunk_;
    const bool is_column = column < product_.weight.pitch;
    const size_t first =
        static_cast<size_t>(row_) * product_.weight.pitch + column;
#pragma unroll
    for (uint32_t half = 0; half < Shape::kHalves; half++) {
      const skv_half *from = (half == 0 ? rows_.high : rows_.low) + first;
      skv_half *to =
          stage + place_ + (kTileOutputs + half * Shape::kRows) * kStepColumns;
#pragma unroll
      for (uint32_t i = 0; i < Shape::kRows; i += kLines) {
        if (Shape::kRows < kLines && line_ >= Shape::kRows) break;
        const bool exists = is_column && row_ + i < end_;
        copy_async(to + i * kStepColumns,
                   from + static_cast<size_t>(i) * product_.weight.pitch,
                   exists);
      }
    }
  }

  // Goes on to the next step.
  __device__ void advance() {
    left_--;
    const uint32_t before = cursor_.tile;
    cursor_.advance(shares_, blockIdx.x, 1);
    if (left_ > 0 && cursor_.tile != before) turn();
  }

 private:
  // Lines that the block copies at a time.
  static constexpr uint32_t kLines = kMatrixThreads / kStepChunks;
  static constexpr uint32_t kWeights = kTileOutputs / kLines;

  // Finds the weights and rows of the cursor's tile.
  __device__ void turn() {
    const skv_matrix &weight = product_.weight;
    const uint32_t count = pairs_of(weight);
    const uint32_t first = cursor_.tile / row_tiles_ * (kTileOutputs / 2);
#pragma unroll
    for (uint32_t i = 0; i < kWeights; i++) {
      const uint32_t line = line_ + i * kLines;
      const uint32_t pair = min(first + line / 16 * 8 + line % 8, count - 1);
      const uint32_t row =
          min(pairs_.output(pair, line / 8 % 2), weight.rows - 1);
      weights_[i] = weight.data + static_cast<size_t>(row) * weight.pitch;
    }
    row_ = cursor_.tile % row_tiles_ * Shape::kRows + line_;
  }

  const Product &product_;
  const HalfRows &rows_;
  const Pairs &pairs_;
  const TileShares &shares_;
  const uint32_t row_tiles_;
  const uint32_t end_;
  TileCursor cursor_;
  uint32_t left_;
  // What this thread copies: a chunk of some lines, and where the first goes.
  const uint32_t chunk_;
  const uint32_t line_;
  const uint32_t place_;
  const skv_half *weights_[kWeights];
  uint32_t row_;
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
        const uint4 x =
            load_matrices(rows + (right ^ part * 32) +
                          (half * static_cast<int>(Shape::kRows) + 8 * r) *
                              static_cast<int>(kStepColumns));
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

// Sums of a warp for eight rows.
template <class Shape>
using SliceSums = float[Shape::kOutputTiles][4];

// The parts of a tile, which blocks `first` to `last` make: one, where the tile
// is not shared. Sums leave the registers in any case: what is done with them
// need not be unrolled then, and leaves all registers to the products.
template <class Shape>
struct TileParts {
  const TileShares &shares;
  const TileSums &memory;
  uint32_t tile;
  uint32_t first;
  uint32_t last;

  __device__ TileParts(const TileShares &shares, const TileSums &memory,
                       uint32_t tile)
      : shares(shares),
        memory(memory),
        tile(tile),
        first(blockIdx.x),
        last(blockIdx.x) {
    if (tile >= shares.shared_tiles()) return;
    first = shares.block_of(tile * shares.steps);
    last = shares.block_of((tile + 1) * shares.steps - 1);
  }

  // Where this thread's part of a block's slice is.
  __device__ float4 *at(uint32_t block, int slice) const {
    const uint32_t slot = tile >= shares.shared_tiles()                ? 2
                          : shares.begin(block) / shares.steps == tile ? 0
                                                                       : 1;
    return memory.parts +
           ((kPartSlots * block + slot) * Shape::kRowTiles + slice) *
               (Shape::kOutputTiles * kMatrixThreads) +
           threadIdx.x;
  }
  // Keeps this block's part.
  __device__ void keep(const WarpSums<Shape> &sums) const {
    float4 *const to = at(blockIdx.x, 0);
#pragma unroll
    for (int r = 0; r < Shape::kRowTiles; r++) {
#pragma unroll
      for (int o = 0; o < Shape::kOutputTiles; o++) {
        const float(&from)[4] = sums[o][r];
        to[(r * Shape::kOutputTiles + o) * kMatrixThreads] = {from[0], from[1],
                                                              from[2], from[3]};
      }
    }
  }
  // Whether all parts are there now: the last block to come sees them.
  __device__ bool is_complete() const {
    __shared__ bool is_last;
    if (first == last) return true;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
      is_last = atomicAdd(memory.tickets + tile, 1u) == last - first;
      if (is_last) memory.tickets[tile] = 0;
      __threadfence();
    }
    __syncthreads();
    return is_last;
  }
  // Adds up a slice, in the order of the blocks.
  __device__ void add(int r, SliceSums<Shape> &slice) const {
#pragma unroll
    for (int o = 0; o < Shape::kOutputTiles; o++) {
      slice[o][0] = slice[o][1] = slice[o][2] = slice[o][3] = 0.0f;
    }
#pragma unroll 4
    for (uint32_t block = first; block <= last; block++) {
      const float4 *from = at(block, r);
#pragma unroll
      for (int o = 0; o < Shape::kOutputTiles; o++) {
        const float4 x = __ldcg(from + o * kMatrixThreads);
        slice[o][0] += x.x, slice[o][1] += x.y;
        slice[o][2] += x.z, slice[o][3] += x.w;
      }
    }
  }
};

// Hands the products of a tile over.
template <class Shape, class Pairs>
__device__ inline void finish_tile(const Product &product, const HalfRows &rows,
                                   const Pairs &pairs,
                                   const TileParts<Shape> &parts,
                                   uint32_t row_tiles) {
  const uint32_t g = lane_id() / 4, t = lane_id() % 4;
  const uint32_t count = pairs_of(product.weight);
  const uint32_t first =
      (parts.tile / row_tiles * kTileOutputs + warp_output<Shape>()) / 2 + g;
  const uint32_t first_row =
      parts.tile % row_tiles * Shape::kRows + warp_row<Shape>() + 2 * t;
#pragma unroll 1
  for (int r = 0; r < Shape::kRowTiles; r++) {
    SliceSums<Shape> slice;
    parts.add(r, slice);
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const uint32_t row = first_row + 8 * r + i;
      if (row >= product.rows || !product.is_wanted(row)) continue;
      const float inverse = rows.inverse[row];
#pragma unroll
      for (int o = 0; o < Shape::kOutputTiles; o++) {
        const uint32_t pair = first + 8 * o;
        if (pair >= count) continue;
        pairs.finish(pairs.hold(row, pair), slice[o][i] * inverse,
                     slice[o][2 + i] * inverse);
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
  wait_copies<0>();

  const skv_half *const end_stage =
      stages + Shape::kStages * Shape::kStageHalves;
  skv_half *full = stages;
  skv_half *free = stages + kAhead * Shape::kStageHalves;
  TileCursor now(shares, blockIdx.x);
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
    const TileParts<Shape> parts(shares, memory, now.tile);
    parts.keep(sums);
    if (parts.is_complete()) {
      finish_tile<Shape>(product, rows, pairs, parts, row_tiles);
    }
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
               std::min(uint64_t{multiprocessors} * Shape::kBlocks, useful)));
}

// Bytes of the kernel's own variables, and more than that.
constexpr size_t kMatrixOwnBytes = 256;

// Whether blocks that may have `shared_bytes` have room for a shape's stages.
template <class Shape>
constexpr bool fits_matrix(size_t shared_bytes) {
  return Shape::kBytes + kMatrixOwnBytes <= shared_bytes;
}

// Calls `f` with the shape for a product's rows, or with the next best one
// where it does not fit.
template <class F>
inline auto with_matrix_shape(const Product &product, size_t shared_bytes,
                              const F &f) {
  using Rows8 = MatrixShape<8, true>;
  using Rows16 = MatrixShape<16, true>;
  using Rows32 = MatrixShape<32, true>;
  using Rows64 = MatrixShape<64, false>;
  using Rows128 = MatrixShape<128, false>;
  using Rows256 = MatrixShape<256, false>;
  static_assert(kMostExactRows == 32, "shapes with two halves");
  static_assert(fits_matrix<Rows8>(kLeastSharedBytes) &&
                    fits_matrix<Rows32>(kLeastSharedBytes) &&
                    fits_matrix<Rows64>(kLeastSharedBytes) &&
                    fits_matrix<Rows128>(kLeastSharedBytes),
                "shapes for all devices");
  const bool has_16 = fits_matrix<Rows16>(shared_bytes);
  const bool has_256 = fits_matrix<Rows256>(shared_bytes);
  if (product.rows <= 8) return f(Rows8());
  if (product.rows <= 16 && has_16) return f(Rows16());
  if (product.rows <= 32) return f(Rows32());
  if (product.rows <= 64) return f(Rows64());
  if (product.rows <= 128 || !has_256) return f(Rows128());
  return f(Rows256());
}

// What both the best shape and the one for all devices need.
inline Needs matrix_product_needs(const Product &product,
                                  uint32_t multiprocessors) {
  Needs needs;
  for (const size_t shared_bytes : {kLeastSharedBytes, SIZE_MAX}) {
    with_matrix_shape(product, shared_bytes, [&](auto shape) {
      using Shape = decltype(shape);
      const size_t blocks = matrix_blocks<Shape>(product, multiprocessors);
      const size_t parts = kPartSlots * blocks * Shape::kSums * kMatrixThreads;
      const size_t scratch =
          half_rows_bytes(product) + aligned_bytes(parts * sizeof(float));
      needs.scratch = std::max(needs.scratch, scratch);
      needs.tickets = std::max(needs.tickets, blocks);
    });
  }
  return needs;
}

// Multiplies the rows of a step. `scratch` has what is needed.
template <class Pairs>
inline cudaError_t multiply_matrix(const Product &product, const Pairs &pairs,
                                   Scratch scratch, const Launch &launch) {
  HalfRows rows;
  const cudaError_t status = make_half_rows(product, scratch, launch, rows);
  if (status != cudaSuccess) return status;
  return with_matrix_shape(product, launch.shared_bytes, [&](auto shape) {
    using Shape = decltype(shape);
    const uint32_t blocks =
        matrix_blocks<Shape>(product, launch.multiprocessors);
    const TileSums memory = {
        scratch.take<float4>(size_t{kPartSlots} * blocks * Shape::kSums / 4 *
                             kMatrixThreads),
        launch.tickets};
    const auto kernel = matrix_product_kernel<Shape, Pairs>;
    const cudaError_t allowed = allow_shared_memory(kernel, Shape::kBytes);
    if (allowed != cudaSuccess) return allowed;
    return launch_kernel(launch, kernel, blocks, kMatrixThreads, Shape::kBytes,
                         product, rows, pairs, memory);
  });
}

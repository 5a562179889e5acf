// Shapes of the tiles of lib/matrix_product.cuh: how many rows and outputs, who
// makes which of them, and how much is on its way meanwhile.
#pragma once

#include "half_rows.cuh"
#include "product_args.cuh"
#include "reduce.cuh"

constexpr uint32_t kMatrixThreads = 256;
constexpr uint32_t kTileOutputs = 128;
constexpr uint32_t kTilePairs = kTileOutputs / 2;
constexpr uint32_t kStepColumns = 64;

// Chunks of eight columns in a step.
constexpr uint32_t kStepChunks = kStepColumns / 8;

// A tile of ROWS rows, of one or two halves each.
template <uint32_t ROWS, bool TWO_HALVES>
struct MatrixShape {
  static constexpr uint32_t kRows = ROWS;
  static constexpr uint32_t kHalves = TWO_HALVES ? 2 : 1;
  // Warps side by side over the rows, and over the outputs.
  static constexpr uint32_t kRowWarps = ROWS <= 16 ? 1 : ROWS <= 128 ? 2 : 4;
  static constexpr uint32_t kOutputWarps = 8 / kRowWarps;
  // Tiles of 16 outputs and of 8 rows that a warp makes. Those of rows go
  // round the warps, so that slices of all of them are rows in a row.
  static constexpr int kOutputTiles = kTileOutputs / 16 / kOutputWarps;
  static constexpr int kRowTiles = ROWS / 8 / kRowWarps;
  static constexpr uint32_t kSliceRows = 8 * kRowWarps;
  static constexpr uint32_t kStageHalves =
      (kTileOutputs + kHalves * ROWS) * kStepColumns;
  // Two blocks are on a multiprocessor, but for the widest tile: one multiplies
  // while the other waits. With one, products of 16 rows took 1.2 times as
  // long.
  static constexpr int kStages = ROWS <= 16    ? 5
                                 : ROWS <= 64  ? 4
                                 : ROWS <= 128 ? 3
                                               : 4;
  static constexpr uint32_t kResident = ROWS <= 128 ? 2 : 1;
  static constexpr uint32_t kBytes = kStages * kStageHalves * 2;
  // Sums of a tile, in pairs. A stage has room for those of some slices.
  static constexpr uint32_t kSums = ROWS * kTilePairs;
  static constexpr int kPasses = ROWS <= 32 ? 1 : ROWS <= 128 ? 2 : 4;
  static constexpr int kPassTiles = kRowTiles / kPasses;
  static constexpr uint32_t kPassRows = ROWS / kPasses;
  static_assert(kPassRows * kTilePairs * sizeof(float2) <= kStageHalves * 2,
                "a stage for the sums of a pass");
};

// Bytes of the kernel's own variables, and more than that.
template <class Shape>
constexpr size_t kMatrixOwnBytes = Shape::kRows * sizeof(float) + 128;

// Whether blocks that may have `shared_bytes` have room for a shape's stages.
template <class Shape>
constexpr bool fits_matrix(size_t shared_bytes) {
  return Shape::kBytes + kMatrixOwnBytes<Shape> <= shared_bytes;
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

// Where chunk `chunk` of line `line` is in a stage, in halves: eight lines have
// a chunk in different banks.
__device__ inline uint32_t chunk_place(uint32_t line, uint32_t chunk) {
  return line * kStepColumns + (chunk ^ line % 8) * 8;
}

// The first output and the first row of a warp, in its tile.
template <class Shape>
__device__ inline uint32_t warp_output() {
  return warp_id() % Shape::kOutputWarps * Shape::kOutputTiles * 16;
}
template <class Shape>
__device__ inline uint32_t warp_row() {
  return warp_id() / Shape::kOutputWarps * 8;
}

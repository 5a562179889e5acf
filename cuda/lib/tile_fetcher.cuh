// How the steps of a block's tiles get to shared memory: see
// lib/matrix_product.cuh.
#pragma once

#include "half_rows.cuh"
#include "matrix_shape.cuh"
#include "tile_shares.cuh"

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

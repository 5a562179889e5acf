// The parts of lib/wide_product.cuh: what a block copies, multiplies and
// finishes.
#pragma once

#include "group_instructions.cuh"
#include "overlap.cuh"
#include "product_args.cuh"

// Most tiles on their way to a block, and more than the bytes of the kernel's
// own variables, the alignment and what a device keeps of each block's memory.
constexpr uint32_t kMostStages = 16;
constexpr size_t kWideOwnBytes = 2 * kTileAlignment + 512;

// Tiles of OUTPUTS outputs, 64 for each group of warps, and of LINES lines of
// activations: rows, or both halves of half as many.
template <uint32_t OUTPUTS, uint32_t LINES>
struct WideShape {
  static constexpr uint32_t kOutputs = OUTPUTS;
  static constexpr uint32_t kPairs = OUTPUTS / 2;
  static constexpr uint32_t kLines = LINES;
  static constexpr uint32_t kMultiplyingWarps = OUTPUTS / 16;
  static constexpr uint32_t kThreads = 32 * (kMultiplyingWarps + 1);
  static constexpr uint32_t kStageBytes = (OUTPUTS + LINES) * kLineBytes;
  // From one row's sums to the next: what lanes store is in different banks.
  // They are where the tiles were.
  static constexpr uint32_t kSumPitch = OUTPUTS + 4;
  static_assert(LINES * kSumPitch * sizeof(float) <= 2 * kStageBytes,
                "room for the sums in two stages");
};

// What a block copies and multiplies.
struct WideJob {
  // First output.
  uint32_t output;
  // Steps of kTileColumns columns.
  uint32_t begin;
  uint32_t count;

  __device__ WideJob(const Product &product, uint32_t outputs)
      : output(blockIdx.y * outputs) {
    const uint32_t steps =
        (product.weight.pitch + kTileColumns - 1) / kTileColumns;
    begin = steps * blockIdx.x / gridDim.x;
    count = steps * (blockIdx.x + 1) / gridDim.x - begin;
  }
};

// The stages that tiles go through.
template <class Shape>
struct WideStages {
  uint32_t memory;
  uint32_t count;
  uint64_t *full;
  uint64_t *empty;

  __device__ uint32_t at(uint32_t stage) const {
    return memory + stage * Shape::kStageBytes;
  }
};

// Asks for all tiles of a job, in one thread of a warp that calls this.
template <class Shape>
__device__ inline void fetch_tiles(const WideJob &job,
                                   const WideStages<Shape> &stages,
                                   const TileMap &weights, const TileMap &rows,
                                   uint32_t halves, uint32_t low_row,
                                   bool waits) {
  const auto fetch_weights = [&](uint32_t i, uint32_t stage) {
    arrive_expecting(stages.full + stage, Shape::kStageBytes);
    copy_tile(stages.at(stage), &weights, (job.begin + i) * kTileColumns,
              job.output, stages.full + stage);
  };
  const auto fetch_rows = [&](uint32_t i, uint32_t stage) {
    const uint32_t to = stages.at(stage) + Shape::kOutputs * kLineBytes;
    const uint32_t column = (job.begin + i) * kTileColumns;
    copy_tile(to, &rows, column, 0, stages.full + stage);
    if (halves == 1) return;
    copy_tile(to + Shape::kLines / 2 * kLineBytes, &rows, column, low_row,
              stages.full + stage);
  };
  const uint32_t early = min(job.count, stages.count);
  if (lane_id() == 0) {
    for (uint32_t i = 0; i < early; i++) fetch_weights(i, i);
  }
  __syncwarp();
  if (waits) wait_for_previous();
  if (lane_id() == 0) {
    for (uint32_t i = 0; i < early; i++) fetch_rows(i, i);
    uint32_t stage = 0, parity = 0;
    for (uint32_t i = stages.count; i < job.count; i++) {
      wait_barrier(stages.empty + stage, parity);
      fetch_weights(i, stage);
      fetch_rows(i, stage);
      if (++stage == stages.count) stage = 0, parity ^= 1;
    }
  }
  __syncwarp();
}

// Sums of a warp: 16 outputs times all lines.
template <class Shape>
using LineSums = float[Shape::kLines / 8][4];

// Multiplies all tiles of a job.
template <class Shape>
__device__ inline void multiply_tiles(const WideJob &job,
                                      const WideStages<Shape> &stages,
                                      LineSums<Shape> &sums) {
  const uint64_t weights =
      tile_descriptor(stages.memory + warp_id() / 4 * 64 * kLineBytes);
  const uint64_t rows =
      tile_descriptor(stages.memory + Shape::kOutputs * kLineBytes);
  uint32_t stage = 0, parity = 0, before = 0;
#pragma unroll 1
  for (uint32_t i = 0; i < job.count; i++) {
    wait_barrier(stages.full + stage, parity);
    const uint32_t at = stage * (Shape::kStageBytes / 16);
    begin_products();
#pragma unroll
    for (uint32_t k = 0; k < kTileColumns / 16; k++) {
      group_product<Shape::kLines>(sums, weights + at + 2 * k,
                                   rows + at + 2 * k);
    }
    commit_products();
    // The step in front is through: its place is free.
    wait_products<1>();
    if (i > 0 && lane_id() == 0) arrive(stages.empty + before);
    before = stage;
    if (++stage == stages.count) stage = 0, parity ^= 1;
  }
  wait_products<0>();
  // Nothing reads the sums before.
#pragma unroll
  for (uint32_t n = 0; n < Shape::kLines / 8; n++) {
#pragma unroll
    for (int i = 0; i < 4; i++) asm volatile("" : "+f"(sums[n][i])::"memory");
  }
}

// Leaves a warp's sums at `to`, by row and output, those of both halves of a
// row as one.
template <class Shape>
__device__ inline void store_lines(LineSums<Shape> &sums, uint32_t halves,
                                   float *to) {
  constexpr uint32_t kHalf = Shape::kLines / 16;
  if (halves == 2) {
#pragma unroll
    for (uint32_t n = 0; n < kHalf; n++) {
#pragma unroll
      for (uint32_t i = 0; i < 4; i++) sums[n][i] += sums[kHalf + n][i];
    }
  }
  to += lane_id() % 4 * 2 * Shape::kSumPitch + 16 * warp_id() + lane_id() / 4;
#pragma unroll
  for (uint32_t n = 0; n < Shape::kLines / 8; n++) {
    if (halves == 2 && n >= kHalf) break;
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) {
      to[(8 * n + i % 2) * Shape::kSumPitch + i / 2 * 8] = sums[n][i];
    }
  }
}

// Sums of other blocks that are on their way to a thread at a time.
constexpr uint32_t kPeersAtOnce = 4;

// Adds up this block's share of the cluster's outputs, and finishes them.
template <class Shape, class Pairs>
__device__ inline void finish_lines(const Product &product, const Pairs &pairs,
                                    const WideJob &job, const float *sums,
                                    const float *inverse) {
  const uint32_t count = pairs_of(product.weight);
  const uint32_t all = product.rows * Shape::kPairs;
  const uint32_t end = all * (blockIdx.x + 1) / gridDim.x;
#pragma unroll 1
  for (uint32_t i = all * blockIdx.x / gridDim.x + threadIdx.x; i < end;
       i += Shape::kThreads) {
    const uint32_t row = i / Shape::kPairs;
    const uint32_t pair = job.output / 2 + i % Shape::kPairs;
    if (pair >= count || !product.is_wanted(row)) continue;
    const auto held = pairs.hold(row, pair);
    float ends[2] = {};
    const float *const from = sums + row * Shape::kSumPitch - job.output;
    for (uint32_t first = 0; first < gridDim.x; first += kPeersAtOnce) {
      float x[kPeersAtOnce][2];
#pragma unroll
      for (uint32_t k = 0; k < kPeersAtOnce; k++) {
        const uint32_t rank = min(first + k, gridDim.x - 1);
        x[k][0] = read_peer(from + pairs.output(pair, 0), rank);
        x[k][1] = read_peer(from + pairs.output(pair, 1), rank);
      }
#pragma unroll
      for (uint32_t k = 0; k < kPeersAtOnce; k++) {
        if (first + k < gridDim.x) ends[0] += x[k][0], ends[1] += x[k][1];
      }
    }
    const float factor = inverse[row];
    pairs.finish(held, ends[0] * factor, ends[1] * factor);
  }
}

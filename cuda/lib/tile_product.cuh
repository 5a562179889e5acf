// Products of many rows of activations with a weight matrix, for prefill chunks
// and large batches: tensor cores, tiles of weights and activations in shared
// memory, three of them under way.
//
// Activations are normed, scaled and split into two halves once, by a kernel of
// their own (see mma.cuh), because every tile of outputs reads them again. The
// alternative that lost: products of tf32 numbers, half as fast for the same
// precision.
#pragma once

#include "mma.cuh"
#include "overlap.cuh"
#include "product_args.cuh"

// Activations as halves: see mma.cuh.
struct SplitRows {
  // (rows, weight.pitch) each
  skv_half *high;
  skv_half *low;
  // (rows): what the products of a row must be multiplied by
  float *inverse;
};

constexpr uint32_t kSplitThreads = 256;

// Norms, scales and splits one row per block.
static __global__ void __launch_bounds__(kSplitThreads)
    split_rows_kernel(Product product, SplitRows split) {
  __shared__ float shared[2][kSplitThreads / 32];
  begin_kernel();
  const uint32_t row = blockIdx.x;
  if (!product.is_wanted(row)) return;
  const uint32_t width = product.weight.columns;
  const float *input = product.row(row);
  const auto value = [&](uint32_t i) {
    return product.norm == nullptr ? input[i] : input[i] * product.norm[i];
  };
  float squares = 0.0f, largest = 0.0f;
  for (uint32_t i = threadIdx.x; i < width; i += kSplitThreads) {
    squares += input[i] * input[i];
    largest = fmaxf(largest, fabsf(value(i)));
  }
  squares = warp_sum(squares);
  largest = warp_max(largest);
  if (lane_id() == 0) {
    shared[0][warp_id()] = squares;
    shared[1][warp_id()] = largest;
  }
  __syncthreads();
  squares = 0.0f;
  for (uint32_t w = 0; w < kSplitThreads / 32; w++) {
    squares += shared[0][w];
    largest = fmaxf(largest, shared[1][w]);
  }
  const float rms =
      product.norm == nullptr
          ? 1.0f
          : rsqrtf(squares / static_cast<float>(width) + product.epsilon);
  const Scale scale = scale_for(largest);
  const size_t base = static_cast<size_t>(row) * product.weight.pitch;
  for (uint32_t i = threadIdx.x; i < product.weight.pitch; i += kSplitThreads) {
    const Split parts = split_float(i < width ? value(i) * scale.scale : 0.0f);
    split.high[base + i] = parts.high;
    split.low[base + i] = parts.low;
  }
  if (threadIdx.x == 0) split.inverse[row] = scale.inverse * rms;
}

constexpr int kTileColumns = 32;
constexpr int kTilePitch = kTileColumns + 8;
constexpr int kTileStages = 3;

// A tile of OUTPUTS x ROWS by WARPS_O x WARPS_R warps.
template <int OUTPUTS, int ROWS, int WARPS_O, int WARPS_R>
struct TileShape {
  static constexpr int kOutputs = OUTPUTS;
  static constexpr int kRows = ROWS;
  static constexpr int kThreads = 32 * WARPS_O * WARPS_R;
  static constexpr int kWarpsOutputs = WARPS_O;
  static constexpr int kOutputTiles = OUTPUTS / WARPS_O / 16;
  static constexpr int kRowTiles = ROWS / WARPS_R / 8;
  static constexpr int kStageHalves = (OUTPUTS + 2 * ROWS) * kTilePitch;
  static constexpr int kResultPitch = OUTPUTS + 2;
  static constexpr int kStagesBytes = kTileStages * kStageHalves * 2;
  static constexpr int kResultBytes = ROWS * kResultPitch * 4;
  static constexpr int kBytes =
      kStagesBytes > kResultBytes ? kStagesBytes : kResultBytes;
  static_assert(kOutputTiles > 0 && kRowTiles % 2 == 0, "whole fragments");
};

// Makes one tile. Pairs are neighbours.
template <class Shape, class Pairs>
__global__ void __launch_bounds__(Shape::kThreads)
    tile_product_kernel(Product product, SplitRows split, Pairs pairs) {
  uint4 *tile_memory = dynamic_shared_memory();
  begin_kernel();
  skv_half *stages = reinterpret_cast<skv_half *>(tile_memory);
  const uint32_t first_output = blockIdx.x * Shape::kOutputs;
  const uint32_t first_row = blockIdx.y * Shape::kRows;
  const uint32_t end_row = product.end();
  if (first_row >= end_row) return;
  const skv_matrix &weight = product.weight;
  const uint32_t steps = (weight.pitch + kTileColumns - 1) / kTileColumns;

  const auto fetch = [&](uint32_t step) {
    if (step < steps) {
      skv_half *stage = stages + step % kTileStages * Shape::kStageHalves;
      constexpr int kChunks = kTileColumns / 8;
      constexpr int kTotal = (Shape::kOutputs + 2 * Shape::kRows) * kChunks;
#pragma unroll
      for (int i = 0; i < kTotal; i += Shape::kThreads) {
        const uint32_t chunk = i + threadIdx.x;
        if (kTotal % Shape::kThreads != 0 && chunk >= kTotal) break;
        const uint32_t line = chunk / kChunks;
        const uint32_t column = step * kTileColumns + chunk % kChunks * 8;
        const skv_half *from;
        bool wanted = column < weight.pitch;
        if (line < Shape::kOutputs) {
          const uint32_t row = first_output + line;
          wanted = wanted && row < weight.rows;
          from = weight.data + static_cast<size_t>(row) * weight.pitch;
        } else {
          const bool is_low = line >= Shape::kOutputs + Shape::kRows;
          const uint32_t row =
              first_row + line - Shape::kOutputs - (is_low ? Shape::kRows : 0);
          wanted = wanted && row < end_row;
          from = (is_low ? split.low : split.high) +
                 static_cast<size_t>(row) * weight.pitch;
        }
        copy_async(stage + line * kTilePitch + chunk % kChunks * 8,
                   wanted ? from + column : weight.data, wanted);
      }
    }
    commit_copies();
  };

  const uint32_t lane = lane_id();
  const uint32_t warp_output =
      warp_id() % Shape::kWarpsOutputs * Shape::kOutputTiles * 16;
  const uint32_t warp_row =
      warp_id() / Shape::kWarpsOutputs * Shape::kRowTiles * 8;
  float sums[Shape::kOutputTiles][Shape::kRowTiles][4] = {};
  for (int step = 0; step < kTileStages - 1; step++) fetch(step);
  for (uint32_t step = 0; step < steps; step++) {
    wait_copies<kTileStages - 2>();
    __syncthreads();
    fetch(step + kTileStages - 1);
    const skv_half *stage = stages + step % kTileStages * Shape::kStageHalves;
    const skv_half *high = stage + Shape::kOutputs * kTilePitch;
    const skv_half *low = high + Shape::kRows * kTilePitch;
#pragma unroll
    for (int column = 0; column < kTileColumns; column += 16) {
      uint4 a[Shape::kOutputTiles];
#pragma unroll
      for (int o = 0; o < Shape::kOutputTiles; o++) {
        a[o] = load_matrices(stage +
                             (warp_output + 16 * o + lane % 16) * kTilePitch +
                             column + lane / 16 * 8);
      }
#pragma unroll
      for (int r = 0; r < Shape::kRowTiles; r += 2) {
        const uint32_t at =
            (warp_row + 8 * r + lane % 8 + lane / 16 * 8) * kTilePitch +
            column + lane / 8 % 2 * 8;
        const uint4 h = load_matrices(high + at);
        const uint4 l = load_matrices(low + at);
#pragma unroll
        for (int o = 0; o < Shape::kOutputTiles; o++) {
          mma(sums[o][r], a[o], l.x, l.y);
          mma(sums[o][r + 1], a[o], l.z, l.w);
          mma(sums[o][r], a[o], h.x, h.y);
          mma(sums[o][r + 1], a[o], h.z, h.w);
        }
      }
    }
  }
  wait_copies<0>();
  __syncthreads();

  // Through shared memory, so that neighbours in memory are written together.
  float *result = reinterpret_cast<float *>(tile_memory);
#pragma unroll
  for (int o = 0; o < Shape::kOutputTiles; o++) {
#pragma unroll
    for (int r = 0; r < Shape::kRowTiles; r++) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const uint32_t output = warp_output + 16 * o + lane / 4 + i / 2 * 8;
        const uint32_t row = warp_row + 8 * r + lane % 4 * 2 + i % 2;
        result[row * Shape::kResultPitch + output] = sums[o][r][i];
      }
    }
  }
  __syncthreads();
  constexpr uint32_t kPairs = Shape::kOutputs / 2;
  for (uint32_t i = threadIdx.x; i < Shape::kRows * kPairs;
       i += Shape::kThreads) {
    const uint32_t row = i / kPairs, pair = i % kPairs * 2;
    if (first_output + pair >= weight.rows) continue;
    if (!product.is_wanted(first_row + row)) continue;
    const float inverse = split.inverse[first_row + row];
    const float *values = result + row * Shape::kResultPitch + pair;
    pairs.finish(first_row + row, (first_output + pair) / 2,
                 values[0] * inverse, values[1] * inverse);
  }
}

// Scratch memory of a product.
inline size_t tile_product_bytes(const Product &product) {
  return aligned_bytes(static_cast<size_t>(product.rows) *
                       product.weight.pitch * 2) *
             2 +
         aligned_bytes(product.rows * sizeof(float));
}

template <class Shape, class Pairs>
inline cudaError_t launch_tile_shape(const Product &product,
                                     const SplitRows &split, const Pairs &pairs,
                                     const Launch &launch) {
  const dim3 grid((product.weight.rows + Shape::kOutputs - 1) / Shape::kOutputs,
                  (product.rows + Shape::kRows - 1) / Shape::kRows);
  const auto kernel = tile_product_kernel<Shape, Pairs>;
  const cudaError_t status = allow_shared_memory(kernel, Shape::kBytes);
  if (status != cudaSuccess) return status;
  return launch_kernel(launch, kernel, grid, Shape::kThreads, Shape::kBytes,
                       product, split, pairs);
}

// Multiplies the rows of a step. `scratch` has tile_product_bytes.
template <class Pairs>
inline cudaError_t multiply_tiles(const Product &product, const Pairs &pairs,
                                  Scratch scratch, const Launch &launch) {
  const uint32_t rows = product.rows;
  const size_t halves = static_cast<size_t>(rows) * product.weight.pitch;
  SplitRows split;
  split.high = scratch.take<skv_half>(halves);
  split.low = scratch.take<skv_half>(halves);
  split.inverse = scratch.take<float>(rows);
  const cudaError_t status = launch_kernel(launch, split_rows_kernel, rows,
                                           kSplitThreads, 0, product, split);
  if (status != cudaSuccess) return status;
  const uint32_t large =
      (product.weight.rows + 127) / 128 * ((rows + 127) / 128);
  if (rows <= 64 || large < launch.multiprocessors) {
    using Shape = TileShape<64, 64, 2, 2>;
    return launch_tile_shape<Shape>(product, split, pairs, launch);
  }
  using Shape = TileShape<128, 128, 2, 4>;
  return launch_tile_shape<Shape>(product, split, pairs, launch);
}

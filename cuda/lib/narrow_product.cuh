// Products of up to 16 rows of activations with a weight matrix of few columns,
// for batches of small models, whose products are over before a kernel in front
// of them or an exchange between blocks would have begun to pay.
//
// A block turns all rows into halves itself, in shared memory, while its first
// weights are on their way, and multiplies them with 16 outputs at a time. Its
// warps share the columns and add up through shared memory. Weights go straight
// to registers: lane 4 g + t loads 16 bytes of line g, which are its operands
// of two products if both sides deal the columns alike (lib/mma.cuh).
//
// The alternative that lost: tiles of 128 outputs that blocks share, as in
// lib/matrix_product.cuh, with a handful of steps per block.
#pragma once

#include <algorithm>

#include "mma.cuh"
#include "narrow_rows.cuh"
#include "overlap.cuh"

constexpr uint32_t kNarrowPairs = 8;

// Most rows, most columns, and most tiles of a block: with more of them the
// passes over the rows are what a tile of more outputs saves.
constexpr uint32_t kMostNarrowRows = 16;
constexpr uint32_t kMostNarrowColumns = 2048;
constexpr uint32_t kMostNarrowTiles = 8;

template <class Shape>
using StripWords = uint4[Shape::kStrips][2];

// Strip `i` of this warp.
__device__ inline uint32_t strip_of(int i) {
  return i / 2 * (2 * kNarrowWarps) + 2 * warp_id() + i % 2;
}

// Starts to load this lane's words of a tile.
template <class Shape, class Pairs>
__device__ inline void load_strips(StripWords<Shape> &words,
                                   const Product &product, const Pairs &pairs,
                                   uint32_t tile) {
  const skv_matrix &weight = product.weight;
  const uint32_t pair =
      min(tile * kNarrowPairs + lane_id() / 4, pairs_of(weight) - 1);
#pragma unroll
  for (uint32_t end = 0; end < 2; end++) {
    const uint32_t row = min(pairs.output(pair, end), weight.rows - 1);
    const skv_half *from =
        weight.data + static_cast<size_t>(row) * weight.pitch;
#pragma unroll
    for (int i = 0; i < Shape::kStrips; i++) {
      const uint32_t column = strip_of(i) * kStripColumns + lane_id() % 4 * 8;
      words[i][end] =
          column < weight.pitch ? load_weights(from + column) : uint4{};
    }
  }
}

// Sums of a warp over its columns, for all rows.
template <class Shape>
using NarrowSums = float[Shape::kRowTiles][4];

template <class Shape>
__device__ inline void add_strips(const StripWords<Shape> &words,
                                  const skv_half *rows, uint32_t chunks,
                                  NarrowSums<Shape> &sums) {
#pragma unroll
  for (int i = 0; i < Shape::kStrips; i++) {
    const uint32_t chunk = strip_of(i) * kStripChunks + lane_id() % 4;
    if (chunk >= chunks) break;
    const uint4 a = words[i][0], b = words[i][1];
    // The small halves first.
#pragma unroll
    for (int half = 1; half >= 0; half--) {
#pragma unroll
      for (int r = 0; r < Shape::kRowTiles; r++) {
        const uint4 x = *reinterpret_cast<const uint4 *>(
            rows + narrow_place(8 * r + lane_id() / 4, chunk, chunks, half));
        mma(sums[r], {a.x, b.x, a.y, b.y}, x.x, x.y);
        mma(sums[r], {a.z, b.z, a.w, b.w}, x.z, x.w);
      }
    }
  }
}

// Adds up the warps' sums, at `parts`, in their order, and hands them over.
template <class Shape, class Pairs>
__device__ inline void finish_narrow(const Product &product, const Pairs &pairs,
                                     const NarrowSums<Shape> &sums,
                                     const float *factors, float4 *parts,
                                     uint32_t tile) {
  constexpr uint32_t kLines = 32 * Shape::kRowTiles;
  __syncthreads();
#pragma unroll
  for (int r = 0; r < Shape::kRowTiles; r++) {
    parts[warp_id() * kLines + 32 * r + lane_id()] = {sums[r][0], sums[r][1],
                                                      sums[r][2], sums[r][3]};
  }
  __syncthreads();
  const uint32_t row = threadIdx.x / kNarrowPairs;
  const uint32_t pair = threadIdx.x % kNarrowPairs;
  if (row >= Shape::kRows) return;
  const float factor = factors[row];
  const uint32_t whole = tile * kNarrowPairs + pair;
  if (factor < 0.0f || whole >= pairs_of(product.weight)) return;
  // Who had them: see `mma`.
  const float *from = reinterpret_cast<const float *>(parts + row / 8 * 32 +
                                                      4 * pair + row % 8 / 2) +
                      row % 2;
  float a = 0.0f, b = 0.0f;
#pragma unroll
  for (uint32_t w = 0; w < kNarrowWarps; w++) {
    a += from[4 * kLines * w];
    b += from[4 * kLines * w + 2];
  }
  pairs.finish(pairs.hold(row, whole), a * factor, b * factor);
}

template <class Shape, class Pairs>
__global__ void __launch_bounds__(kNarrowThreads, Shape::kResident)
    narrow_product_kernel(Product product, Pairs pairs, uint32_t tiles) {
  __shared__ float factors[Shape::kRows];
  let_next_start();
  const uint32_t chunks =
      (product.weight.pitch + kStripColumns - 1) / kStripColumns * kStripChunks;
  float4 *const parts = reinterpret_cast<float4 *>(dynamic_shared_memory());
  float4 *const norms = parts + kNarrowWarps * Shape::kRowTiles * 32;
  skv_half *const rows = reinterpret_cast<skv_half *>(norms + 2 * chunks);
  StripWords<Shape> words;
  load_strips<Shape>(words, product, pairs, blockIdx.x);
  load_norms(product, chunks, norms);
  // The rows of a chunk are known no earlier than their elements are.
  const bool is_chunk = product.step.kind == SKV_PREFILL;
  if (is_chunk) wait_for_previous();
  find_wanted<Shape>(product, factors);
  __syncthreads();
  if (!is_chunk) wait_for_previous();
  make_narrow_rows<Shape>(product, norms, chunks, rows, factors);
  __syncthreads();
  for (uint32_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    StripWords<Shape> next = {};
    if (tile + gridDim.x < tiles) {
      load_strips<Shape>(next, product, pairs, tile + gridDim.x);
    }
    NarrowSums<Shape> sums = {};
    add_strips<Shape>(words, rows, chunks, sums);
    finish_narrow<Shape>(product, pairs, sums, factors, parts, tile);
#pragma unroll
    for (int i = 0; i < Shape::kStrips; i++) {
      words[i][0] = next[i][0], words[i][1] = next[i][1];
    }
  }
}

inline uint32_t narrow_tiles(const Product &product) {
  return (pairs_of(product.weight) + kNarrowPairs - 1) / kNarrowPairs;
}

// Bytes of shared memory for products of 8 or 16 rows.
inline size_t narrow_bytes(const Product &product) {
  const size_t rows = product.rows <= 8 ? 8 : 16;
  const size_t columns = (product.weight.pitch + kStripColumns - 1) /
                         kStripColumns * kStripColumns;
  const size_t parts = kNarrowWarps * rows / 8 * 32 * sizeof(float4);
  const size_t norms = columns * sizeof(float);
  return parts + norms + rows * columns * 2 * sizeof(skv_half);
}

// Whether a product is one of these.
inline bool is_narrow(const Product &product, const Launch &launch) {
  constexpr size_t kOwnBytes = 128;
  return product.rows <= kMostNarrowRows && product.weight.columns % 8 == 0 &&
         product.weight.pitch <= kMostNarrowColumns &&
         narrow_tiles(product) <= kMostNarrowTiles * launch.multiprocessors &&
         narrow_bytes(product) + kOwnBytes <= launch.shared_bytes;
}

template <class Shape, class Pairs>
inline cudaError_t launch_narrow(const Product &product, const Pairs &pairs,
                                 const Launch &launch) {
  const uint32_t tiles = narrow_tiles(product);
  const auto kernel = narrow_product_kernel<Shape, Pairs>;
  const size_t bytes = narrow_bytes(product);
  const cudaError_t allowed = allow_shared_memory(kernel, bytes);
  if (allowed != cudaSuccess) return allowed;
  return launch_kernel(launch, kernel, std::min(tiles, launch.multiprocessors),
                       kNarrowThreads, bytes, product, pairs, tiles);
}

// Multiplies the rows of a step.
template <class Pairs>
inline cudaError_t multiply_narrow(const Product &product, const Pairs &pairs,
                                   const Launch &launch) {
  const bool is_short = product.weight.pitch <= 1024;
  if (product.rows <= 8) {
    return is_short ? launch_narrow<NarrowShape<1, 4>>(product, pairs, launch)
                    : launch_narrow<NarrowShape<1, 8>>(product, pairs, launch);
  }
  return is_short ? launch_narrow<NarrowShape<2, 4>>(product, pairs, launch)
                  : launch_narrow<NarrowShape<2, 8>>(product, pairs, launch);
}

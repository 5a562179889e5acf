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

#include "half_rows.cuh"
#include "mma.cuh"
#include "overlap.cuh"
#include "product_args.cuh"

constexpr uint32_t kNarrowWarps = 8;
constexpr uint32_t kNarrowThreads = 32 * kNarrowWarps;
constexpr uint32_t kNarrowPairs = 8;

// Columns of a strip: a lane's 16 bytes of each line, four lanes wide.
constexpr uint32_t kStripChunks = 4;
constexpr uint32_t kStripColumns = 8 * kStripChunks;

// Most rows, most columns, and most tiles of a block: with more of them the
// passes over the rows are what a tile of more outputs saves.
constexpr uint32_t kMostNarrowRows = 16;
constexpr uint32_t kMostNarrowColumns = 2048;
constexpr uint32_t kMostNarrowTiles = 8;

// ROW_TILES · 8 rows of up to CHUNKS · 256 columns.
template <int ROW_TILES, int CHUNKS>
struct NarrowShape {
  static constexpr uint32_t kRows = 8 * ROW_TILES;
  static constexpr int kRowTiles = ROW_TILES;
  // Chunks of eight columns of a row that a lane turns into halves.
  static constexpr int kChunks = CHUNKS;
  // Neighbouring strips of a warp, two at a time: whole lines of the cache.
  static constexpr int kStrips = CHUNKS;
  // Two blocks fit on a multiprocessor, but for the widest rows: the second is
  // the first of the next product.
  static constexpr uint32_t kResident = CHUNKS <= 4 ? 2 : 1;
  static_assert(kStrips * kStripChunks * kNarrowWarps == CHUNKS * 32,
                "as many columns on both sides");
};

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

// Where a chunk of a row is, in halves: its other half is in the other 16 of
// 32 bytes, and neighbouring rows have the same half in different banks.
__device__ inline uint32_t narrow_place(uint32_t row, uint32_t chunk,
                                        uint32_t chunks, uint32_t half) {
  return (row * chunks + chunk) * 16 + (row + half) % 2 * 8;
}

// Copies the weights of the norm, ones where there is none, to shared memory:
// they need not wait for the kernel in front, and take no registers meanwhile.
__device__ inline void load_norms(const Product &product, uint32_t chunks,
                                  float4 *norms) {
  for (uint32_t chunk = threadIdx.x; chunk < chunks; chunk += kNarrowThreads) {
    float x[8] = {1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f};
    if (product.norm != nullptr) {
      load_floats<true>(x, product.norm, 8 * chunk, product.weight.columns);
    }
    norms[2 * chunk] = {x[0], x[1], x[2], x[3]};
    norms[2 * chunk + 1] = {x[4], x[5], x[6], x[7]};
  }
}

// Notes which rows are wanted: factors of the others are negative.
template <class Shape>
__device__ inline void find_wanted(const Product &product, float *factors) {
  const uint32_t row = threadIdx.x;
  if (row >= Shape::kRows) return;
  factors[row] = row < product.rows && product.is_wanted(row) ? 0.0f : -1.0f;
}

// Turns all rows into halves. The factors of wanted ones get what their
// products must be multiplied by. A row is one warp's.
template <class Shape>
__device__ inline void make_narrow_rows(const Product &product,
                                        const float4 *norms, uint32_t chunks,
                                        skv_half *rows, float *factors) {
  constexpr int kAtOnce = Shape::kChunks > 4 ? 1 : Shape::kRowTiles;
#pragma unroll
  for (int first = 0; first < Shape::kRowTiles; first += kAtOnce) {
    float x[kAtOnce][Shape::kChunks][8];
#pragma unroll
    for (int k = 0; k < kAtOnce; k++) {
      const float *from = product.row(warp_id() + kNarrowWarps * (first + k));
#pragma unroll
      for (int i = 0; i < Shape::kChunks; i++) {
        load_floats<true>(x[k][i], from, 8 * (lane_id() + 32 * i),
                          product.weight.columns);
      }
    }
#pragma unroll
    for (int k = 0; k < kAtOnce; k++) {
      const uint32_t row = warp_id() + kNarrowWarps * (first + k);
      float squares = 0.0f, largest = 0.0f;
#pragma unroll
      for (int i = 0; i < Shape::kChunks; i++) {
        const uint32_t chunk = lane_id() + 32 * i;
        if (chunk >= chunks) break;
        const float4 low = norms[2 * chunk], high = norms[2 * chunk + 1];
        const float n[8] = {low.x,  low.y,  low.z,  low.w,
                            high.x, high.y, high.z, high.w};
#pragma unroll
        for (int j = 0; j < 8; j++) {
          squares += x[k][i][j] * x[k][i][j];
          x[k][i][j] *= n[j];
          largest = fmaxf(largest, fabsf(x[k][i][j]));
        }
      }
      const Scale scale = scale_for(warp_max(largest));
#pragma unroll
      for (int i = 0; i < Shape::kChunks; i++) {
        const uint32_t chunk = lane_id() + 32 * i;
        if (chunk >= chunks) break;
        store_chunk(rows + narrow_place(row, chunk, chunks, 0),
                    rows + narrow_place(row, chunk, chunks, 1), x[k][i],
                    scale.scale);
      }
      const float rms = inverse_rms(product, warp_sum(squares));
      if (lane_id() == 0 && !(factors[row] < 0.0f)) {
        factors[row] = scale.inverse * rms;
      }
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

// Products of 2 to 64 rows of activations with a weight matrix, on Hopper: an
// engine copies tiles of both to shared memory, and groups of four warps
// multiply them there. Beside instructions for that, nothing is left to do:
// weights come as fast as memory gives them.
//
// A block makes 128 outputs of all rows from a share of the columns, or 64
// where that puts more of the device to work. One warp asks for tiles, one or
// two groups multiply, 64 outputs each; barriers in shared memory say when a
// tile has come and when its place is free. The blocks of a cluster have the
// other columns, and each adds up a share of the outputs, always in the same
// order, through the shared memory of all. As in the form for one row, weights
// are on their way before the kernel in front has ended.
//
// The alternatives that lost, in microseconds for the up and gate weights of
// Llama 3.1 8B and 16 rows on an H200: threads that copy 16 bytes each and
// fetch their operands themselves, 95; the same with group products, 71;
// cuBLASLt, 60, and a kernel that finishes, 4. This one takes 64, and no
// boundary between kernels.
#pragma once

#include <algorithm>

#include "../runtime/clusters.cuh"
#include "half_rows.cuh"
#include "wide_tiles.cuh"

// Most rows of a step, and least bytes of weights for each 16 of them.
constexpr uint32_t kMostWideRows = 64;
constexpr size_t kLeastWideBytes = 24000000;

// Lines of activations beside tiles of 64 outputs.
constexpr uint32_t kNarrowLines = 16;

// Most blocks that share the columns, and the fewest steps that are worth a
// block.
constexpr uint32_t kMostCluster = 8;
constexpr uint32_t kLeastWideSteps = 4;

template <class Shape, class Pairs>
__global__ void __launch_bounds__(Shape::kThreads, 2)
    wide_product_kernel(Product product, Pairs pairs, const float *inverse,
                        uint32_t halves, uint32_t stage_count,
                        const __grid_constant__ TileMap weights,
                        const __grid_constant__ TileMap rows) {
  __shared__ uint64_t full[kMostStages], empty[kMostStages];
  let_next_start();
  // How many rows a chunk has is not known before; those of a batch are.
  const bool is_chunk = product.step.kind == SKV_PREFILL;
  if (is_chunk) wait_for_previous();
  const WideJob job(product, Shape::kOutputs);
  if (is_chunk && product.end() == 0) return;
  if (threadIdx.x == 0) {
    for (uint32_t i = 0; i < stage_count; i++) {
      init_barrier(full + i, 1);
      init_barrier(empty + i, Shape::kMultiplyingWarps);
    }
    show_barriers();
  }
  __syncthreads();
  const uint32_t skipped =
      -shared_address(dynamic_shared_memory()) % kTileAlignment;
  float *const memory = reinterpret_cast<float *>(
      reinterpret_cast<char *>(dynamic_shared_memory()) + skipped);
  const WideStages<Shape> stages = {shared_address(memory), stage_count, full,
                                    empty};
  if (warp_id() == Shape::kMultiplyingWarps) {
    fetch_tiles<Shape>(job, stages, weights, rows, halves, product.rows,
                       !is_chunk);
    __syncthreads();
  } else {
    LineSums<Shape> sums = {};
    multiply_tiles<Shape>(job, stages, sums);
    if (!is_chunk) wait_for_previous();
    // All tiles are used up.
    __syncthreads();
    store_lines<Shape>(sums, halves, memory);
  }
  meet_cluster();
  finish_lines<Shape>(product, pairs, job, memory, inverse);
  // What the others read of this block stays until they have.
  meet_cluster();
}

// Calls `f` with the shape for some lines.
template <class F>
inline auto with_wide_shape(uint32_t lines, const F &f) {
  if (lines <= 16) return f(WideShape<128, 16>());
  if (lines <= 32) return f(WideShape<128, 32>());
  return f(WideShape<128, 64>());
}

inline uint32_t wide_lines(const Product &product) {
  return takes_two_halves(product) ? 2 * product.rows : product.rows;
}

// How a product is cut, and how many stages its blocks have.
struct WidePlan {
  uint32_t tiles;
  // Blocks that share the columns of a tile.
  uint32_t cluster;
  uint32_t stages;
  size_t bytes;

  uint32_t blocks() const { return tiles * cluster; }
};

// The kernel with as much memory as `resident` blocks of a multiprocessor may
// have each.
template <class Shape>
inline void take_room(WidePlan &plan, uint32_t resident, const Launch &launch) {
  const size_t room = launch.shared_bytes / resident - kWideOwnBytes;
  plan.stages =
      std::min(kMostStages, static_cast<uint32_t>(room / Shape::kStageBytes));
  plan.bytes = size_t{plan.stages} * Shape::kStageBytes + kTileAlignment;
}

// As many blocks for each tile as leave all at work at a time, one on each
// multiprocessor; two where there are more tiles than that. Clusters are within
// groups of multiprocessors, which differ: an H200 has room for 30 clusters of
// four and for 39 of three. With four, two of the 32 tiles of o and down of
// Llama 3.1 8B wait until others are through: a step of 16 rows takes 5.1 ms in
// place of 4.7.
template <class Shape, class Pairs>
inline cudaError_t plan_wide(const Product &product, const Launch &launch,
                             WidePlan &plan) {
  const auto kernel = wide_product_kernel<Shape, Pairs>;
  const uint32_t steps =
      (product.weight.pitch + kTileColumns - 1) / kTileColumns;
  plan.tiles = (product.weight.rows + Shape::kOutputs - 1) / Shape::kOutputs;
  plan.cluster = 1;
  const bool is_one_wave = plan.tiles <= launch.multiprocessors;
  take_room<Shape>(plan, is_one_wave ? 1 : 2, launch);
  const cudaError_t status = allow_shared_memory(kernel, plan.bytes);
  if (status != cudaSuccess || !is_one_wave) return status;
  for (uint32_t cluster = 2; cluster <= kMostCluster; cluster++) {
    if (cluster * kLeastWideSteps > steps) break;
    int clusters = 0;
    const cudaError_t failed = most_clusters(
        launch, cluster, kernel, Shape::kThreads, plan.bytes, clusters);
    if (failed != cudaSuccess) return failed;
    if (static_cast<uint32_t>(clusters) < plan.tiles) break;
    plan.cluster = cluster;
  }
  return cudaSuccess;
}

// Whether this form is the fastest. What a block begins and ends with grows
// with the rows, and a library of NVIDIA's is better where that is not hidden:
// for 0.5B and 1.5B shapes with 64 rows, and from 128 rows on.
inline bool is_wide(const Product &product, const Launch &launch) {
  if (launch.tile_maps == nullptr || product.rows > kMostWideRows) return false;
  const size_t bytes =
      size_t{product.weight.rows} * product.weight.pitch * sizeof(skv_half);
  return launch.library == nullptr ||
         bytes >= kLeastWideBytes * std::max(1u, product.rows / 16);
}

// Multiplies by a plan, and says so in `done`.
template <class Shape, class Pairs>
inline cudaError_t multiply_planned(const WidePlan &plan,
                                    const Product &product, const Pairs &pairs,
                                    Scratch scratch, const Launch &launch,
                                    bool &done) {
  const skv_matrix &weight = product.weight;
  const uint32_t lines = wide_lines(product), halves = lines / product.rows;
  const HalfRows rows = place_half_rows(product, scratch);
  TileMap weight_map, row_map;
  done =
      launch.tile_maps->describe(
          {weight.data, weight.rows, weight.pitch, Shape::kOutputs},
          &weight_map) &&
      launch.tile_maps->describe(
          {rows.high, lines, weight.pitch, Shape::kLines / halves}, &row_map);
  if (!done) return cudaSuccess;
  const cudaError_t status = make_half_rows(product, rows, launch);
  if (status != cudaSuccess) return status;
  const cudaLaunchAttribute cluster = cluster_attribute(plan.cluster);
  return launch_as(launch, &cluster, wide_product_kernel<Shape, Pairs>,
                   dim3(plan.cluster, plan.tiles), Shape::kThreads, plan.bytes,
                   product, pairs, rows.inverse, halves, plan.stages,
                   weight_map, row_map);
}

// Multiplies if the device and the product are made for it, and says so in
// `done`. `scratch` has what is needed.
template <class Pairs>
inline cudaError_t multiply_wide(const Product &product, const Pairs &pairs,
                                 const Scratch &scratch, const Launch &launch,
                                 bool &done) {
  if (!is_wide(product, launch) || !pairs.has_tiles(128)) return cudaSuccess;
  return with_wide_shape(wide_lines(product), [&](auto shape) {
    using Shape = decltype(shape);
    WidePlan plan;
    cudaError_t status = plan_wide<Shape, Pairs>(product, launch, plan);
    if (status != cudaSuccess) return status;
    // Of o and down of Llama 3.1 8B, 64 tiles in clusters of two have 128
    // blocks, 32 in clusters of three 96: a step of 4 rows takes 4.47 ms in
    // place of 4.58. But tiles of activations come twice as often: with twice
    // as many lines, one of 16 rows would take 4.73 ms in place of 4.70.
    if constexpr (Shape::kLines == kNarrowLines) {
      using Narrow = WideShape<64, kNarrowLines>;
      WidePlan narrow;
      if (pairs.has_tiles(64) && plan.tiles <= launch.multiprocessors) {
        status = plan_wide<Narrow, Pairs>(product, launch, narrow);
        if (status != cudaSuccess) return status;
        if (narrow.tiles <= launch.multiprocessors &&
            narrow.blocks() > plan.blocks()) {
          return multiply_planned<Narrow>(narrow, product, pairs, scratch,
                                          launch, done);
        }
      }
    }
    return multiply_planned<Shape>(plan, product, pairs, scratch, launch, done);
  });
}

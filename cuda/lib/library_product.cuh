// Products of several rows by a library of NVIDIA's
// (runtime/matrix_library.cuh): it multiplies the halves into scratch memory,
// and a kernel of ours does what belongs to the outputs. Where rows are in two
// halves, the small ones are rows of their own.
#pragma once

#include "../runtime/matrix_library.cuh"
#include "half_rows.cuh"
#include "overlap.cuh"
#include "product_args.cuh"

constexpr uint32_t kFinishThreads = 256;

// Pairs that a thread finishes.
constexpr uint32_t kFinishPairs = 4;

template <class Pairs>
__global__ void __launch_bounds__(kFinishThreads)
    finish_pairs_kernel(Product product, Pairs pairs, const float *products,
                        const float *small, const float *inverse) {
  begin_kernel();
  const uint32_t row = blockIdx.y;
  if (!product.is_wanted(row)) return;
  const uint32_t outputs = product.weight.rows;
  const uint32_t count = pairs_of(product.weight);
  const size_t first_output = static_cast<size_t>(row) * outputs;
  const float scale = inverse[row];
  const uint32_t first =
      blockIdx.x * (kFinishThreads * kFinishPairs) + threadIdx.x;
  float ends[kFinishPairs][2];
#pragma unroll
  for (uint32_t i = 0; i < kFinishPairs; i++) {
    const uint32_t pair = min(first + i * kFinishThreads, count - 1);
#pragma unroll
    for (uint32_t end = 0; end < 2; end++) {
      const size_t at =
          first_output + min(pairs.output(pair, end), outputs - 1);
      ends[i][end] = products[at];
      if (small != nullptr) ends[i][end] += small[at];
    }
  }
#pragma unroll
  for (uint32_t i = 0; i < kFinishPairs; i++) {
    const uint32_t pair = first + i * kFinishThreads;
    if (pair >= count) return;
    pairs.finish(pairs.hold(row, pair), ends[i][0] * scale, ends[i][1] * scale);
  }
}

// Rows that the library multiplies.
inline uint32_t library_rows(const Product &product) {
  return takes_two_halves(product) ? 2 * product.rows : product.rows;
}

inline size_t library_product_bytes(const Product &product) {
  const size_t outputs =
      static_cast<size_t>(library_rows(product)) * product.weight.rows;
  return half_rows_bytes(product) + aligned_bytes(outputs * sizeof(float)) +
         MatrixLibrary::kWorkspaceBytes;
}

// Multiplies if the library can, and says so in `done`.
template <class Pairs>
inline cudaError_t multiply_with_library(const Product &product,
                                         const Pairs &pairs, Scratch scratch,
                                         const Launch &launch, bool &done) {
  const size_t outputs =
      static_cast<size_t>(product.rows) * product.weight.rows;
  const uint32_t multiplied = library_rows(product);
  const HalfRows rows = place_half_rows(product, scratch);
  cudaError_t status = make_half_rows(product, rows, launch);
  if (status != cudaSuccess) return status;
  float *products = scratch.take<float>(static_cast<size_t>(multiplied) *
                                        product.weight.rows);
  void *workspace = scratch.take<char>(MatrixLibrary::kWorkspaceBytes);
  done = launch.library->multiply(
      {products, rows.high, product.weight, multiplied}, workspace,
      launch.stream);
  if (!done) return cudaSuccess;
  const uint32_t per_block = kFinishThreads * kFinishPairs;
  const dim3 grid((pairs_of(product.weight) + per_block - 1) / per_block,
                  product.rows);
  return launch_kernel(launch, finish_pairs_kernel<Pairs>, grid, kFinishThreads,
                       0, product, pairs, products,
                       rows.low == nullptr ? nullptr : products + outputs,
                       rows.inverse);
}

// Activations as halves, for products with tensor cores: normed, scaled and
// rounded once, by a kernel of their own, because every tile of outputs reads
// them again.
//
// A row is scaled by a power of two that takes its largest element to
// [2^14, 2^15). One half of an element has an error of 2^-11 of itself down to
// 2^-28 of the largest; a second one, of what the first left over, takes that
// to 2^-22 (see mma.cuh). The alternative that lost: bf16, which needs no scale
// and has an error of 2^-8.
#pragma once

#include "mma.cuh"
#include "overlap.cuh"
#include "product_args.cuh"

struct HalfRows {
  // (rows, weight.pitch), zeros beyond the width
  skv_half *high;
  // The same, right behind, or null where one half is enough.
  skv_half *low;
  // (rows): what the products of a row must be multiplied by
  float *inverse;
};

// Most rows that are kept in two halves. Products are bound by the weights'
// bytes up to here, and the second half is free; beyond, it would double the
// work that bounds them.
constexpr uint32_t kMostExactRows = 32;

inline bool takes_two_halves(const Product &product) {
  return product.rows <= kMostExactRows;
}

inline size_t half_rows_bytes(const Product &product) {
  const size_t halves =
      static_cast<size_t>(product.rows) * product.weight.pitch * 2;
  return aligned_bytes(takes_two_halves(product) ? 2 * halves : halves) +
         aligned_bytes(product.rows * sizeof(float));
}

constexpr uint32_t kHalfRowThreads = 512;

// Chunks of eight elements that a thread keeps in registers between the two
// passes over a row; it reads further ones again.
constexpr uint32_t kHeldChunks = 4;

// Stores eight elements as halves; `low` may be null.
__device__ inline void store_chunk(skv_half *high, skv_half *low,
                                   const float (&x)[8], float scale) {
  SplitPair pairs[4];
#pragma unroll
  for (int i = 0; i < 4; i++) {
    pairs[i] = split_pair(x[2 * i] * scale, x[2 * i + 1] * scale);
  }
  *reinterpret_cast<uint4 *>(high) = {pairs[0].high, pairs[1].high,
                                      pairs[2].high, pairs[3].high};
  if (low == nullptr) return;
  *reinterpret_cast<uint4 *>(low) = {pairs[0].low, pairs[1].low, pairs[2].low,
                                     pairs[3].low};
}

// What the norm in front multiplies a row by, given its sum of squares.
__device__ inline float inverse_rms(const Product &product, float squares) {
  if (product.norm == nullptr) return 1.0f;
  return rsqrtf(squares / static_cast<float>(product.weight.columns) +
                product.epsilon);
}

// One row per block.
template <bool ALIGNED>
__global__ void __launch_bounds__(kHalfRowThreads, 2)
    half_rows_kernel(Product product, HalfRows to) {
  __shared__ float shared[2][kHalfRowThreads / 32];
  let_next_start();
  const uint32_t row = blockIdx.x;
  // The rows of a chunk are known no earlier than their elements are.
  const bool is_chunk = product.step.kind == SKV_PREFILL;
  const bool is_early = !is_chunk && product.is_wanted(row);
  wait_for_previous();
  if (!(is_chunk ? product.is_wanted(row) : is_early)) return;
  const uint32_t chunks = product.weight.pitch / 8;
  const float *from = product.row(row);
  float squares = 0.0f, largest = 0.0f;
  float held[kHeldChunks][8];
#pragma unroll
  for (uint32_t i = 0; i < kHeldChunks; i++) {
    const uint32_t chunk = threadIdx.x + i * kHalfRowThreads;
    if (chunk >= chunks) break;
    load_normed<ALIGNED>(held[i], product, from, 8 * chunk, squares);
#pragma unroll
    for (int k = 0; k < 8; k++) largest = fmaxf(largest, fabsf(held[i][k]));
  }
  for (uint32_t chunk = threadIdx.x + kHeldChunks * kHalfRowThreads;
       chunk < chunks; chunk += kHalfRowThreads) {
    float x[8];
    load_normed<ALIGNED>(x, product, from, 8 * chunk, squares);
#pragma unroll
    for (int k = 0; k < 8; k++) largest = fmaxf(largest, fabsf(x[k]));
  }
  squares = warp_sum(squares);
  largest = warp_max(largest);
  if (lane_id() == 0) {
    shared[0][warp_id()] = squares;
    shared[1][warp_id()] = largest;
  }
  __syncthreads();
  const bool exists = lane_id() < kHalfRowThreads / 32;
  squares = warp_sum(exists ? shared[0][lane_id()] : 0.0f);
  largest = warp_max(exists ? shared[1][lane_id()] : 0.0f);
  const Scale scale = scale_for(largest);
  const size_t base = static_cast<size_t>(row) * product.weight.pitch;
  const auto store = [&](uint32_t column, const float(&x)[8]) {
    const size_t at = base + column;
    store_chunk(to.high + at, to.low == nullptr ? nullptr : to.low + at, x,
                scale.scale);
  };
#pragma unroll
  for (uint32_t i = 0; i < kHeldChunks; i++) {
    const uint32_t chunk = threadIdx.x + i * kHalfRowThreads;
    if (chunk >= chunks) break;
    store(8 * chunk, held[i]);
  }
  for (uint32_t chunk = threadIdx.x + kHeldChunks * kHalfRowThreads;
       chunk < chunks; chunk += kHalfRowThreads) {
    float x[8], ignored = 0.0f;
    load_normed<ALIGNED>(x, product, from, 8 * chunk, ignored);
    store(8 * chunk, x);
  }
  if (threadIdx.x == 0) {
    to.inverse[row] = scale.inverse * inverse_rms(product, squares);
  }
}

// Takes memory for the halves of a product's rows.
inline HalfRows place_half_rows(const Product &product, Scratch &scratch) {
  const size_t halves =
      static_cast<size_t>(product.rows) * product.weight.pitch;
  const bool has_low = takes_two_halves(product);
  HalfRows rows;
  rows.high = scratch.take<skv_half>(has_low ? 2 * halves : halves);
  rows.low = has_low ? rows.high + halves : nullptr;
  rows.inverse = scratch.take<float>(product.rows);
  return rows;
}

// Makes them.
inline cudaError_t make_half_rows(const Product &product, const HalfRows &to,
                                  const Launch &launch) {
  const auto kernel = product.weight.columns % 8 == 0 ? half_rows_kernel<true>
                                                      : half_rows_kernel<false>;
  return launch_kernel(launch, kernel, product.rows, kHalfRowThreads, 0,
                       product, to);
}

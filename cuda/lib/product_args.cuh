// What all forms of a product share: see lib/product.cuh.
#pragma once

#include "../runtime/launch.cuh"
#include "half.cuh"
#include "step.cuh"

struct Product {
  skv_matrix weight;
  // (step.rows, weight.columns)
  const float *input;
  // (weight.columns): weights of the RMS norm in front, or null
  const float *norm;
  float epsilon;
  skv_step step;
  // Rows that are multiplied: those of the step, or the last live one alone.
  uint32_t rows;
  bool last_row;
  // Whether guests have no part in it.
  bool text_only = false;

  __device__ uint32_t first_row() const {
    const uint32_t end = last_row ? row_end(step) : 0;
    return end > 0 ? end - 1 : 0;
  }
  __device__ bool is_wanted(uint32_t row) const {
    const Row wanted = row_of(step, first_row() + row);
    return text_only ? wanted.live : wanted.forwarded;
  }
  // Rows from 0 that may be wanted.
  __device__ uint32_t end() const {
    return text_only ? row_end(step) : forward_end(step);
  }
  // Row `row` of the activations; one that exists, whatever the row.
  __device__ const float *row(uint32_t row) const {
    return input + static_cast<size_t>(first_row() + min(row, rows - 1)) *
                       weight.columns;
  }
};

__host__ __device__ inline uint32_t pairs_of(const skv_matrix &weight) {
  return (weight.rows + 1) / 2;
}

// Eight floats from `first`, zeros beyond the width.
template <bool ALIGNED>
__device__ inline void load_floats(float (&out)[8], const float *row,
                                   uint32_t first, uint32_t width) {
  if constexpr (ALIGNED) {
    const float4 zeros = {};
    const bool exists = first < width;
    const float4 *from = reinterpret_cast<const float4 *>(row + first);
    const float4 a = exists ? from[0] : zeros;
    const float4 b = exists ? from[1] : zeros;
    out[0] = a.x, out[1] = a.y, out[2] = a.z, out[3] = a.w;
    out[4] = b.x, out[5] = b.y, out[6] = b.z, out[7] = b.w;
  } else {
#pragma unroll
    for (int i = 0; i < 8; i++) {
      out[i] = first + i < width ? row[first + i] : 0.0f;
    }
  }
}

// Loads eight elements, adds up their squares, and norms them.
template <bool ALIGNED>
__device__ inline void load_normed(float (&x)[8], const Product &product,
                                   const float *row, uint32_t first,
                                   float &squares) {
  const uint32_t width = product.weight.columns;
  load_floats<ALIGNED>(x, row, first, width);
  if (product.norm == nullptr) return;
  float norms[8];
  load_floats<ALIGNED>(norms, product.norm, first, width);
#pragma unroll
  for (int i = 0; i < 8; i++) {
    squares += x[i] * x[i];
    x[i] *= norms[i];
  }
}

// Adds eight weights times eight activations.
__device__ inline void add_eight(float &sum, const uint4 &weights,
                                 const float (&x)[8]) {
  const uint32_t pairs[4] = {weights.x, weights.y, weights.z, weights.w};
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const float2 pair = to_floats(pairs[i]);
    sum += pair.x * x[2 * i];
    sum += pair.y * x[2 * i + 1];
  }
}

// Products of activations with a weight matrix, in one of six forms by the
// number of rows: lib/vector_product.cuh or, where the matrix is large,
// lib/stream_product.cuh for one; for some, lib/narrow_product.cuh where the
// matrix is small and lib/wide_product.cuh where it is large and the device is
// a Hopper; lib/library_product.cuh for more where there is that library, and
// lib/matrix_product.cuh where there is none.
//
// Outputs come in pairs that are finished together: neighbours, such as a gate
// and its up value, or the two ends of a RoPE pair. A kernel describes them as
//
//   struct Pairs {
//     // Weight row of an end, 0 or 1, of a pair.
//     __device__ uint32_t output(uint32_t pair, uint32_t end) const;
//     // Whether any `outputs` weight rows from a multiple of that on are the
//     // ends of as many pairs, of half that multiple on.
//     bool has_tiles(uint32_t outputs) const;
//     // What finishing a pair of a row takes beside its products. Loads what
//     // no kernel of the step has written, so that it can be called before
//     // the kernel in front has ended: see lib/overlap.cuh.
//     struct Held;
//     __device__ Held hold(uint32_t row, uint32_t pair) const;
//     // Takes the products of a live row. The second end of the last pair may
//     // not exist.
//     __device__ void finish(const Held &held, float a, float b) const;
//   };
#pragma once

#include "library_product.cuh"
#include "matrix_product.cuh"
#include "narrow_product.cuh"
#include "stream_product.cuh"
#include "vector_product.cuh"
#include "wide_product.cuh"

// Device memory that a product takes, however much shared memory there is.
inline Needs product_needs(const Product &product, uint32_t multiprocessors) {
  if (product.rows == 1) return {};
  Needs needs = matrix_product_needs(product, multiprocessors);
  needs.library_scratch = library_product_bytes(product);
  return needs;
}

// Multiplies. `scratch` has what is needed.
template <class Pairs>
inline cudaError_t multiply(const Product &product, const Pairs &pairs,
                            const Scratch &scratch, const Launch &launch) {
  if (product.rows == 1) {
    return is_streamed(product, launch)
               ? multiply_stream(product, pairs, launch)
               : multiply_vector(product, pairs, launch);
  }
  bool done = false;
  cudaError_t status = multiply_wide(product, pairs, scratch, launch, done);
  if (status != cudaSuccess || done) return status;
  if (is_narrow(product, launch)) {
    return multiply_narrow(product, pairs, launch);
  }
  if (launch.library != nullptr) {
    status = multiply_with_library(product, pairs, scratch, launch, done);
    if (status != cudaSuccess || done) return status;
  }
  return multiply_matrix(product, pairs, scratch, launch);
}

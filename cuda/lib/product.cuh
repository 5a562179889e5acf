// Products of activations with a weight matrix, in one of three forms by the
// number of rows: lib/vector_product.cuh for one, lib/stream_product.cuh for
// the few of a batch, lib/tile_product.cuh for the many of a chunk.
//
// Outputs come in pairs that are finished together: neighbours, such as a gate
// and its up value, or the two ends of a RoPE pair. A kernel describes them as
//
//   struct Pairs {
//     // Weight row of an end, 0 or 1, of a pair.
//     __device__ uint32_t output(uint32_t pair, uint32_t end) const;
//     // Takes the products of a live row. The second end of the last pair may
//     // not exist.
//     __device__ void finish(uint32_t row, uint32_t pair, float a,
//                            float b) const;
//   };
#pragma once

#include "stream_product.cuh"
#include "tile_product.cuh"
#include "vector_product.cuh"

// Scratch memory of a product.
inline size_t product_bytes(const Product &product) {
  return product.rows <= kMostStreamRows ? 0 : tile_product_bytes(product);
}

// Whether pairs may be other than neighbours: tiles have no other.
inline bool takes_any_pairs(const Product &product) {
  return product.rows <= kMostStreamRows;
}

// Multiplies. `scratch` has product_bytes.
template <class Pairs>
inline cudaError_t multiply(const Product &product, const Pairs &pairs,
                            const Scratch &scratch, const Launch &launch) {
  if (product.rows == 1) return multiply_vector(product, pairs, launch);
  if (product.rows <= kMostStreamRows) {
    return multiply_stream(product, pairs, launch);
  }
  return multiply_tiles(product, pairs, scratch, launch);
}

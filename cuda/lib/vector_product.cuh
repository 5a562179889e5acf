// Products of one row of activations with a weight matrix whose rows are short:
// each weight is read once, 16 bytes per lane and load, straight to registers.
// For long rows see lib/stream_product.cuh.
//
// A warp makes two pairs of outputs. Where there are too few outputs to fill
// the device, `parts` warps of a block share the columns of an output and add
// up through shared memory. Eight loads per lane are in flight before the
// kernel in front has ended, and from then on those of the next round while one
// is multiplied.
//
// An RMS norm scales the whole row by one number, which is a factor of every
// product. So the squares are summed while the row streams by, and no pass or
// barrier of their own is needed: Σ w·(x·n) first, then times 1 / rms(x).
//
// The alternative that lost: activations in shared memory. They come from the
// L1 cache as fast, and no warp waits for another.
#pragma once

#include "overlap.cuh"
#include "product_args.cuh"
#include "reduce.cuh"

constexpr uint32_t kVectorWarps = 8;
constexpr uint32_t kVectorThreads = 32 * kVectorWarps;

// Outputs of one warp.
constexpr uint32_t kOutputs = 4;

// Loads of 16 bytes of each weight row that a lane has in flight.
constexpr int kUnroll = 2;

// Starts to load this lane's words of the weight rows; those beyond the end
// stay as they are.
__device__ inline void load_words(uint4 (&words)[kUnroll][kOutputs],
                                  const skv_half *const (&weights)[kOutputs],
                                  uint32_t first, uint32_t stride,
                                  uint32_t chunks) {
#pragma unroll
  for (int u = 0; u < kUnroll; u++) {
    const uint32_t chunk = first + u * stride;
    if (chunk >= chunks) continue;
#pragma unroll
    for (uint32_t o = 0; o < kOutputs; o++) {
      words[u][o] = load_weights(weights[o] + 8 * chunk);
    }
  }
}

// Sums of this warp's share of the columns, in every lane; the last one is that
// of the squares.
template <bool NORMED, bool ALIGNED>
__device__ inline void sum_columns(const Product &product,
                                   const skv_half *const (&weights)[kOutputs],
                                   uint32_t part, uint32_t parts,
                                   float (&sums)[kOutputs + 1]) {
  const uint32_t width = product.weight.columns;
  const uint32_t chunks = product.weight.pitch / 8;
  const uint32_t stride = 32 * parts;
  uint32_t first = 32 * part + lane_id();
  uint4 words[kUnroll][kOutputs];
  load_words(words, weights, first, stride, chunks);
  wait_for_previous();
  const float *row = product.row(0);
  while (first < chunks) {
    const uint32_t following = first + kUnroll * stride;
    uint4 next[kUnroll][kOutputs];
    load_words(next, weights, following, stride, chunks);
#pragma unroll
    for (int u = 0; u < kUnroll; u++) {
      const uint32_t chunk = first + u * stride;
      if (chunk >= chunks) continue;
      float x[8];
      load_floats<ALIGNED>(x, row, 8 * chunk, width);
      if constexpr (NORMED) {
        float n[8];
        load_floats<ALIGNED>(n, product.norm, 8 * chunk, width);
#pragma unroll
        for (int i = 0; i < 8; i++) {
          sums[kOutputs] += x[i] * x[i];
          x[i] *= n[i];
        }
      }
#pragma unroll
      for (uint32_t o = 0; o < kOutputs; o++) {
        add_eight(sums[o], words[u][o], x);
      }
    }
#pragma unroll
    for (int u = 0; u < kUnroll; u++) {
#pragma unroll
      for (uint32_t o = 0; o < kOutputs; o++) words[u][o] = next[u][o];
    }
    first = following;
  }
#pragma unroll
  for (uint32_t o = 0; o <= kOutputs; o++) {
    if (NORMED || o < kOutputs) sums[o] = warp_sum(sums[o]);
  }
}

template <class Pairs, bool NORMED>
__global__ void __launch_bounds__(kVectorThreads)
    vector_product_kernel(Product product, Pairs pairs, uint32_t parts) {
  __shared__ float shared[kVectorWarps][kOutputs + 1];
  let_next_start();
  const uint32_t part = warp_id() % parts;
  const uint32_t group =
      blockIdx.x * (kVectorWarps / parts) + warp_id() / parts;
  const uint32_t count = pairs_of(product.weight);
  const bool is_needed = 2 * group < count;
  // What two lanes take to finish a pair each is on its way before the products
  // are there.
  const uint32_t pair = 2 * group + lane_id();
  const bool finishes =
      part == 0 && lane_id() < 2 && pair < count && product.is_wanted(0);
  typename Pairs::Held held = {};
  if (finishes) held = pairs.hold(0, pair);
  float sums[kOutputs + 1] = {};
  if (is_needed) {
    const skv_half *weights[kOutputs];
#pragma unroll
    for (uint32_t o = 0; o < kOutputs; o++) {
      const uint32_t of = min(2 * group + o / 2, count - 1);
      const uint32_t row =
          min(pairs.output(of, o % 2), product.weight.rows - 1);
      weights[o] =
          product.weight.data + static_cast<size_t>(row) * product.weight.pitch;
    }
    if (product.weight.columns % 8 == 0) {
      sum_columns<NORMED, true>(product, weights, part, parts, sums);
    } else {
      sum_columns<NORMED, false>(product, weights, part, parts, sums);
    }
  } else {
    wait_for_previous();
  }
  if (parts > 1) {
    if (lane_id() == 0) {
#pragma unroll
      for (uint32_t o = 0; o <= kOutputs; o++) shared[warp_id()][o] = sums[o];
    }
    __syncthreads();
    if (part != 0) return;
    for (uint32_t p = 1; p < parts; p++) {
#pragma unroll
      for (uint32_t o = 0; o <= kOutputs; o++) {
        sums[o] += shared[warp_id() + p][o];
      }
    }
  }
  if (!finishes) return;
  const float scale =
      NORMED ? rsqrtf(sums[kOutputs] / product.weight.columns + product.epsilon)
             : 1.0f;
  const bool is_second = lane_id() == 1;
  pairs.finish(held, (is_second ? sums[2] : sums[0]) * scale,
               (is_second ? sums[3] : sums[1]) * scale);
}

template <class Pairs>
inline cudaError_t multiply_vector(const Product &product, const Pairs &pairs,
                                   const Launch &launch) {
  const uint32_t groups = (pairs_of(product.weight) + 1) / 2;
  // Every multiprocessor should have 16 warps, and each warp a full load.
  uint32_t parts = 1;
  while (parts < kVectorWarps && groups * parts < 16 * launch.multiprocessors &&
         product.weight.pitch / 8 > 32 * kUnroll * parts) {
    parts *= 2;
  }
  const uint32_t per_block = kVectorWarps / parts;
  const uint32_t blocks = (groups + per_block - 1) / per_block;
  return product.norm == nullptr
             ? launch_kernel(launch, vector_product_kernel<Pairs, false>,
                             blocks, kVectorThreads, 0, product, pairs, parts)
             : launch_kernel(launch, vector_product_kernel<Pairs, true>, blocks,
                             kVectorThreads, 0, product, pairs, parts);
}

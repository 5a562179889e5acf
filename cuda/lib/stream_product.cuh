// Products of a few rows of activations with a weight matrix, for decode steps
// of a batch: each weight is read once, 16 bytes per lane and load, and goes
// from memory to the registers of the tensor cores.
//
// A warp makes eight pairs of outputs of all rows. `parts` warps of a block
// share the columns and add up through shared memory. As in the form for one
// row, weights are on their way before the kernel in front has ended, and the
// squares of an RMS norm are summed along the way.
//
// Weights are halves, which tf32 numbers hold exactly; activations are split
// into two tf32 numbers, which keep 21 bits and need no scale. The alternative
// that lost: activations as halves, which need a pass of their own to be
// scaled.
#pragma once

#include "instructions.cuh"
#include "overlap.cuh"
#include "product_args.cuh"
#include "reduce.cuh"

// Most rows that go this way: beyond, splitting them takes longer than reading
// the weights.
constexpr uint32_t kMostStreamRows = 32;

constexpr uint32_t kStreamWarps = 8;
constexpr uint32_t kStreamThreads = 32 * kStreamWarps;

// Pairs of outputs of one warp.
constexpr uint32_t kStreamPairs = 8;

// Columns that the lanes of a row load at a time, and how many times in a row.
constexpr uint32_t kStreamColumns = 32;
constexpr int kStreamUnroll = 4;

// The part of a float that a tf32 number holds.
__device__ inline float tf32_part(float x) {
  return __uint_as_float(__float_as_uint(x) & 0xffffe000u);
}

// Words of a round: both ends of the lane's pair.
struct StreamWords {
  uint4 ends[kStreamUnroll][2];
};

__device__ inline void load_round(StreamWords &words,
                                  const skv_half *const (&weights)[2],
                                  uint32_t first, uint32_t pitch) {
#pragma unroll
  for (int u = 0; u < kStreamUnroll; u++) {
    const uint32_t column = first + u * kStreamColumns;
#pragma unroll
    for (int end = 0; end < 2; end++) {
      words.ends[u][end] = {};
      if (column < pitch) {
        words.ends[u][end] = load_weights(weights[end] + column);
      }
    }
  }
}

// Sums of this warp's share of the columns. `squares` are those of row 8 n + g.
template <int TILES, bool NORMED, bool ALIGNED>
__device__ inline void sum_stream(const Product &product,
                                  const skv_half *const (&weights)[2],
                                  uint32_t part, uint32_t parts,
                                  float (&sums)[TILES][4],
                                  float (&squares)[TILES]) {
  const uint32_t g = lane_id() / 4, t = lane_id() % 4;
  const uint32_t width = product.weight.columns, pitch = product.weight.pitch;
  constexpr uint32_t kRound = kStreamColumns * kStreamUnroll;
  uint32_t first = part * kRound + 8 * t;
  StreamWords words;
  load_round(words, weights, first, pitch);
  wait_for_previous();
  const float *rows[TILES];
#pragma unroll
  for (int n = 0; n < TILES; n++) rows[n] = product.row(8 * n + g);
  // All lanes of a warp go through the same rounds.
  for (uint32_t round = part * kRound; round < pitch; round += parts * kRound) {
    StreamWords next;
    load_round(next, weights, first + parts * kRound, pitch);
#pragma unroll
    for (int u = 0; u < kStreamUnroll; u++) {
      const uint32_t column = first + u * kStreamColumns;
      float norms[8];
      if constexpr (NORMED) {
        load_floats<ALIGNED>(norms, product.norm, column, width);
      }
      const uint4 w[2] = {words.ends[u][0], words.ends[u][1]};
      const uint32_t halves[2][4] = {{w[0].x, w[0].y, w[0].z, w[0].w},
                                     {w[1].x, w[1].y, w[1].z, w[1].w}};
#pragma unroll
      for (int n = 0; n < TILES; n++) {
        float x[8];
        load_floats<ALIGNED>(x, rows[n], column, width);
        if constexpr (NORMED) {
#pragma unroll
          for (int i = 0; i < 8; i++) {
            squares[n] += x[i] * x[i];
            x[i] *= norms[i];
          }
        }
        // The terms of a sum may come in any order: each step takes two
        // neighbours of every lane.
#pragma unroll
        for (int s = 0; s < 4; s++) {
          const float2 a = to_floats(halves[0][s]);
          const float2 b = to_floats(halves[1][s]);
          const float operand[4] = {a.x, b.x, a.y, b.y};
          const float x0 = tf32_part(x[2 * s]), x1 = tf32_part(x[2 * s + 1]);
          mma_tf32(sums[n], operand, x[2 * s] - x0, x[2 * s + 1] - x1);
          mma_tf32(sums[n], operand, x0, x1);
        }
      }
    }
    words = next;
    first += parts * kRound;
  }
}

template <int TILES, bool NORMED, class Pairs>
__global__ void __launch_bounds__(kStreamThreads)
    stream_product_kernel(Product product, Pairs pairs, uint32_t parts) {
  __shared__ float shared[kStreamWarps][TILES * 5][32];
  let_next_start();
  const uint32_t g = lane_id() / 4, t = lane_id() % 4;
  const uint32_t part = warp_id() % parts;
  const uint32_t tile = blockIdx.x * (kStreamWarps / parts) + warp_id() / parts;
  const uint32_t count = pairs_of(product.weight);
  const bool is_needed = tile * kStreamPairs < count;
  const uint32_t pair = tile * kStreamPairs + g;
  float sums[TILES][4] = {};
  float squares[TILES] = {};
  if (is_needed) {
    const skv_half *weights[2];
#pragma unroll
    for (uint32_t end = 0; end < 2; end++) {
      const uint32_t row =
          min(pairs.output(min(pair, count - 1), end), product.weight.rows - 1);
      weights[end] =
          product.weight.data + static_cast<size_t>(row) * product.weight.pitch;
    }
    if (product.weight.columns % 8 == 0) {
      sum_stream<TILES, NORMED, true>(product, weights, part, parts, sums,
                                      squares);
    } else {
      sum_stream<TILES, NORMED, false>(product, weights, part, parts, sums,
                                       squares);
    }
  } else {
    wait_for_previous();
  }
  if (parts > 1) {
    if (part != 0) {
#pragma unroll
      for (int n = 0; n < TILES; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
          shared[warp_id()][5 * n + i][lane_id()] = sums[n][i];
        }
        shared[warp_id()][5 * n + 4][lane_id()] = squares[n];
      }
    }
    __syncthreads();
    if (part != 0) return;
    for (uint32_t p = 1; p < parts; p++) {
#pragma unroll
      for (int n = 0; n < TILES; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
          sums[n][i] += shared[warp_id() + p][5 * n + i][lane_id()];
        }
        squares[n] += shared[warp_id() + p][5 * n + 4][lane_id()];
      }
    }
  }
  if (!is_needed) return;
#pragma unroll
  for (int n = 0; n < TILES; n++) {
    float scale = 1.0f;
    if constexpr (NORMED) {
      float sum = squares[n];
      sum += __shfl_xor_sync(kAllLanes, sum, 1);
      sum += __shfl_xor_sync(kAllLanes, sum, 2);
      scale = rsqrtf(sum / product.weight.columns + product.epsilon);
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const uint32_t inner = 2 * t + i;
      // The scale of a row is in the lanes of its number.
      const float factor =
          NORMED ? __shfl_sync(kAllLanes, scale, 4 * inner) : 1.0f;
      const uint32_t row = 8 * n + inner;
      if (pair >= count || row >= product.rows || !product.is_wanted(row)) {
        continue;
      }
      pairs.finish(row, pair, sums[n][i] * factor, sums[n][2 + i] * factor);
    }
  }
}

template <int TILES, class Pairs>
inline cudaError_t launch_stream(const Product &product, const Pairs &pairs,
                                 const Launch &launch) {
  const uint32_t tiles =
      (pairs_of(product.weight) + kStreamPairs - 1) / kStreamPairs;
  // Every multiprocessor should have 8 warps, and each warp a round to do.
  uint32_t parts = 1;
  while (parts < kStreamWarps && tiles * parts < 8 * launch.multiprocessors &&
         product.weight.pitch > kStreamColumns * kStreamUnroll * parts) {
    parts *= 2;
  }
  const uint32_t per_block = kStreamWarps / parts;
  const uint32_t blocks = (tiles + per_block - 1) / per_block;
  return product.norm == nullptr
             ? launch_kernel(launch, stream_product_kernel<TILES, false, Pairs>,
                             blocks, kStreamThreads, 0, product, pairs, parts)
             : launch_kernel(launch, stream_product_kernel<TILES, true, Pairs>,
                             blocks, kStreamThreads, 0, product, pairs, parts);
}

template <class Pairs>
inline cudaError_t multiply_stream(const Product &product, const Pairs &pairs,
                                   const Launch &launch) {
  if (product.rows <= 8) return launch_stream<1>(product, pairs, launch);
  if (product.rows <= 16) return launch_stream<2>(product, pairs, launch);
  return launch_stream<4>(product, pairs, launch);
}

// The attention of one warp's tile of (row, query head) pairs while tiles of
// slots go by: a running softmax, and its products on tensor cores.
#pragma once

#include "row_tiles.cuh"
#include "softmax_state.cuh"

template <int DIM>
constexpr int kWarps = DIM == 256 ? 2 : 4;

// (row, query head) pairs of a block.
template <int DIM>
constexpr int kPairs = 16 * kWarps<DIM>;

// Slots of a tile.
template <int DIM>
constexpr int kTile = DIM == 256 ? 32 : 64;

// Operands of the queries of one warp, in words of 16 bytes.
template <int DIM>
constexpr int kOperands = DIM / 16 * 32;

template <int DIM, bool GAINED>
struct Attention {
  SoftmaxState state[2] = {init_softmax(), init_softmax()};
  float values[DIM / 8][4] = {};
  // What logits are multiplied with for scores, and the softmax sum then.
  float gain[2] = {1.0f, 1.0f};
  float gained[2] = {};

  // Adds a tile of logits to the sum of row `h` at the scale of scores.
  __device__ void add_gained(int h, const float (&x)[kTile<DIM> / 8][4],
                             float max) {
    const auto scale = [&](float from) {
      return from == -INFINITY ? 0.0f : expf(gain[h] * (from - max));
    };
    gained[h] *= scale(state[h].max);
#pragma unroll
    for (int n = 0; n < kTile<DIM> / 8; n++) {
      gained[h] += scale(x[n][2 * h]) + scale(x[n][2 * h + 1]);
    }
  }

  // Adds a tile of weights' logits, which become weights.
  __device__ void add(float (&x)[kTile<DIM> / 8][4], const skv_half *tile) {
    float keep[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float top = -INFINITY;
#pragma unroll
      for (int n = 0; n < kTile<DIM> / 8; n++) {
        top = fmaxf(top, fmaxf(x[n][2 * h], x[n][2 * h + 1]));
      }
      top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 1));
      top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 2));
      const float max = fmaxf(state[h].max, top - kHeadroom);
      keep[h] = softmax_scale(state[h].max, max);
      if constexpr (GAINED) add_gained(h, x, max);
      state[h].max = max;
      state[h].sum *= keep[h];
#pragma unroll
      for (int n = 0; n < kTile<DIM> / 8; n++) {
#pragma unroll
        for (int i = 2 * h; i < 2 * h + 2; i++) {
          x[n][i] = softmax_scale(x[n][i], max);
          state[h].sum += x[n][i];
        }
      }
    }
#pragma unroll
    for (int d = 0; d < DIM / 8; d++) {
      values[d][0] *= keep[0], values[d][1] *= keep[0];
      values[d][2] *= keep[1], values[d][3] *= keep[1];
    }
#pragma unroll
    for (int j = 0; j < kTile<DIM> / 16; j++) {
      const SplitPair a = split_pair(x[2 * j][0], x[2 * j][1]);
      const SplitPair b = split_pair(x[2 * j][2], x[2 * j][3]);
      const SplitPair c = split_pair(x[2 * j + 1][0], x[2 * j + 1][1]);
      const SplitPair d = split_pair(x[2 * j + 1][2], x[2 * j + 1][3]);
      const uint4 high = {a.high, b.high, c.high, d.high};
      const uint4 low = {a.low, b.low, c.low, d.low};
#pragma unroll
      for (int column = 0; column < DIM; column += 16) {
        const uint4 v = value_operands<DIM>(tile, 16 * j, column);
        mma(values[column / 8], low, v.x, v.y);
        mma(values[column / 8 + 1], low, v.z, v.w);
        mma(values[column / 8], high, v.x, v.y);
        mma(values[column / 8 + 1], high, v.z, v.w);
      }
    }
  }
};

// Raw logits of a tile, without the scale of the queries.
template <int DIM>
__device__ inline void multiply_keys(const uint4 *high, const uint4 *low,
                                     const skv_half *tile,
                                     float (&x)[kTile<DIM> / 8][4]) {
#pragma unroll
  for (int step = 0; step < DIM / 16; step++) {
    const uint4 h = high[step * 32 + lane_id()];
    const uint4 l = low[step * 32 + lane_id()];
#pragma unroll
    for (int n = 0; n < kTile<DIM> / 8; n += 2) {
      const uint4 k = key_operands<DIM>(tile, 8 * n, 16 * step);
      mma(x[n], l, k.x, k.y);
      mma(x[n + 1], l, k.z, k.w);
      mma(x[n], h, k.x, k.y);
      mma(x[n + 1], h, k.z, k.w);
    }
  }
}

// The attention of one warp's (row, query head) pairs while tiles of slots go
// by: a running softmax, and its products on tensor cores.
//
// Logits are in units of ln 2 here, so that a weight is a power of two.
#pragma once

#include "prefill_form.cuh"

template <int DIM, PrefillForm FORM>
struct PrefillState {
  using Shape = PrefillShape<DIM, FORM>;
  using Shared = PrefillShared<DIM, FORM>;
  static constexpr int kTiles = Shape::kTiles;
  static constexpr int kSlots = Shape::kSlots;

  // Of rows g and g + 8 of each tile of pairs.
  float max[kTiles][2];
  float sum[kTiles][2];
  float values[kTiles][DIM / 8][4] = {};
  // Where scores have a scale of their own: that, and the softmax sum then.
  float gain[kTiles][2];
  float gained[kTiles][2];

  __device__ PrefillState() {
#pragma unroll
    for (int m = 0; m < kTiles; m++) {
#pragma unroll
      for (int h = 0; h < 2; h++) {
        max[m][h] = -INFINITY;
        sum[m][h] = gained[m][h] = 0.0f;
        gain[m][h] = 1.0f;
      }
    }
  }

  // The pair of row 8h + g of a warp's tile m.
  __device__ static uint32_t pair_of(int m, int h) {
    return Shape::kWarpPairs * warp_id() + 16 * m + 8 * h + lane_id() / 4;
  }

  // Adds the products of the pairs with a tile of keys.
  __device__ static void multiply_keys(const Shared &shared,
                                       float (&x)[kTiles][kSlots / 8][4]) {
#pragma unroll
    for (int step = 0; step < DIM / 16; step++) {
      uint4 q[Shape::kSplits][kTiles];
#pragma unroll
      for (int s = 0; s < Shape::kSplits; s++) {
#pragma unroll
        for (int m = 0; m < kTiles; m++) {
          q[s][m] = line_operands<DIM>(shared.queries[s],
                                       Shape::kWarpPairs * warp_id() + 16 * m,
                                       16 * step);
        }
      }
#pragma unroll
      for (int n = 0; n < kSlots / 8; n += 2) {
        const uint4 k = key_operands<DIM>(shared.keys, 8 * n, 16 * step);
        // Low parts first.
#pragma unroll
        for (int s = Shape::kSplits - 1; s >= 0; s--) {
#pragma unroll
          for (int m = 0; m < kTiles; m++) {
            mma_cached(x[m][n], q[s][m], k.x, k.y);
            mma_cached(x[m][n + 1], q[s][m], k.z, k.w);
          }
        }
      }
    }
  }

  // Adds a tile of logits to the sums at the scale of scores; `to` is the
  // softmax's next reference.
  __device__ void add_gained(int m, int h,
                             const float (&x)[kTiles][kSlots / 8][4],
                             float to) {
    const auto weight = [&](float from) {
      return from == -INFINITY ? 0.0f : exp2_fast(gain[m][h] * (from - to));
    };
    gained[m][h] *= weight(max[m][h]);
#pragma unroll
    for (int n = 0; n < kSlots / 8; n++) {
      gained[m][h] += weight(x[m][n][2 * h]) + weight(x[m][n][2 * h + 1]);
    }
  }

  // Turns a tile of logits into weights, at the references of their rows, which
  // may grow.
  __device__ void weigh(float (&x)[kTiles][kSlots / 8][4], bool gains) {
    float keep[kTiles][2];
    bool grows = false;
#pragma unroll
    for (int m = 0; m < kTiles; m++) {
#pragma unroll
      for (int h = 0; h < 2; h++) {
        float top = -INFINITY;
#pragma unroll
        for (int n = 0; n < kSlots / 8; n++) {
          top = fmaxf(top, fmaxf(x[m][n][2 * h], x[m][n][2 * h + 1]));
        }
        top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 1));
        top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 2));
        const float to = fmaxf(max[m][h], top - kHeadroomBits);
        const float reference = finite(to);
        keep[m][h] = exp2_fast(max[m][h] - reference);
        grows = grows || to != max[m][h];
        if constexpr (!Shape::kIsPlain) {
          if (gains) add_gained(m, h, x, reference);
        }
        max[m][h] = to;
        sum[m][h] *= keep[m][h];
#pragma unroll
        for (int n = 0; n < kSlots / 8; n++) {
#pragma unroll
          for (int i = 2 * h; i < 2 * h + 2; i++) {
            x[m][n][i] = exp2_fast(x[m][n][i] - reference);
            sum[m][h] += x[m][n][i];
          }
        }
      }
    }
    // References hardly grow once some tiles have gone by.
    if (!__any_sync(kAllLanes, grows)) return;
#pragma unroll
    for (int m = 0; m < kTiles; m++) {
#pragma unroll
      for (int d = 0; d < DIM / 8; d++) {
#pragma unroll
        for (int i = 0; i < 4; i++) values[m][d][i] *= keep[m][i / 2];
      }
    }
  }

  // Adds the products of a tile's weights with its values.
  __device__ void multiply_values(const Shared &shared,
                                  const float (&x)[kTiles][kSlots / 8][4]) {
#pragma unroll
    for (int j = 0; j < kSlots / 16; j++) {
      uint4 p[Shape::kSplits][kTiles];
#pragma unroll
      for (int m = 0; m < kTiles; m++) {
        const float(&left)[4] = x[m][2 * j], (&right)[4] = x[m][2 * j + 1];
        const SplitPair a = split_cached(left[0], left[1]);
        const SplitPair b = split_cached(left[2], left[3]);
        const SplitPair c = split_cached(right[0], right[1]);
        const SplitPair d = split_cached(right[2], right[3]);
        p[0][m] = {a.high, b.high, c.high, d.high};
        if constexpr (Shape::kIsExact) p[1][m] = {a.low, b.low, c.low, d.low};
      }
#pragma unroll
      for (int column = 0; column < DIM; column += 16) {
        const uint4 v = value_operands<DIM>(shared.values, 16 * j, column);
#pragma unroll
        for (int s = Shape::kSplits - 1; s >= 0; s--) {
#pragma unroll
          for (int m = 0; m < kTiles; m++) {
            mma_cached(values[m][column / 8], p[s][m], v.x, v.y);
            mma_cached(values[m][column / 8 + 1], p[s][m], v.z, v.w);
          }
        }
      }
    }
  }

  // Adds up what the four lanes of a row have.
  __device__ void join_lanes() {
#pragma unroll
    for (int m = 0; m < kTiles; m++) {
#pragma unroll
      for (int h = 0; h < 2; h++) {
#pragma unroll
        for (int offset = 1; offset < 4; offset *= 2) {
          sum[m][h] += __shfl_xor_sync(kAllLanes, sum[m][h], offset);
          if constexpr (!Shape::kIsPlain) {
            gained[m][h] += __shfl_xor_sync(kAllLanes, gained[m][h], offset);
          }
        }
      }
    }
  }

  // Stores the outputs of the pairs and the ln of their sums. Called once, by
  // the whole warp.
  __device__ void store(const skv_chunk_args &args, const PairQueries &queries,
                        bool gains) {
    join_lanes();
    const uint32_t t = lane_id() % 4;
#pragma unroll
    for (int m = 0; m < kTiles; m++) {
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const uint32_t pair = pair_of(m, h);
        if (pair >= queries.pairs) continue;
        const size_t query = queries.index(pair);
        if (t == 0) {
          args.log_sums[query] =
              gains ? kLn2 * gain[m][h] * max[m][h] + logf(gained[m][h])
                    : kLn2 * max[m][h] + logf(sum[m][h]);
        }
        const float share = 1.0f / sum[m][h];
#pragma unroll
        for (int d = 0; d < DIM / 8; d++) {
          const uint32_t at = 8 * d + 2 * t;
          if (at >= queries.head_dim) continue;
          const float2 both = {values[m][d][2 * h] * share,
                               values[m][d][2 * h + 1] * share};
          *reinterpret_cast<float2 *>(args.output + query * queries.head_dim +
                                      at) = both;
        }
      }
    }
  }
};

// The logits of sinks where positions are those in the cache: rows have queries
// of their own for them. Few tiles of slots have any, so these queries stay in
// memory and are rounded each time.
#pragma once

#include "prefill_form.cuh"

// Finds the scales of the queries of sinks.
template <int DIM, PrefillForm FORM>
__device__ inline void scale_sinks(const PairQueries &sinks,
                                   PrefillShared<DIM, FORM> &shared) {
  const float unit = rsqrtf(static_cast<float>(sinks.head_dim)) * kLog2E;
  each_query<DIM, PrefillShape<DIM, FORM>::kWarpPairs>(
      sinks, [&](uint32_t pair, const Scale &scale, const auto &) {
        if (lane_id() != 0) return;
        shared.sink_inverse[pair] = scale.inverse * unit;
        shared.sink_scale[pair] = scale.scale;
      });
}

// Logits of sinks, whose queries have other positions, take the place of what
// they are in `x`.
template <int DIM, PrefillForm FORM>
__device__ inline void replace_sinks(
    const PairQueries &sinks, const PrefillShared<DIM, FORM> &shared,
    uint32_t lanes,
    float (&x)[PrefillShape<DIM, FORM>::kTiles]
              [PrefillShape<DIM, FORM>::kSlots / 8][4]) {
  using Shape = PrefillShape<DIM, FORM>;
  static_assert(Shape::kTiles == 1, "registers for other logits");
  const uint32_t g = lane_id() / 4, t = lane_id() % 4;
  const uint32_t first_pair = Shape::kWarpPairs * warp_id() + g;
  float other[Shape::kSlots / 8][4] = {};
#pragma unroll 1
  for (int step = 0; step < DIM / 16; step++) {
    SplitPair a[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const uint32_t pair = first_pair + i % 2 * 8;
      const float2 q = sinks.load(pair, 16 * step + 2 * t + i / 2 * 8);
      const float scale = shared.sink_scale[pair];
      a[i] = split_cached(q.x * scale, q.y * scale);
    }
    const uint4 high = {a[0].high, a[1].high, a[2].high, a[3].high};
    const uint4 low = {a[0].low, a[1].low, a[2].low, a[3].low};
#pragma unroll
    for (int n = 0; n < Shape::kSlots / 8; n += 2) {
      const uint4 k = key_operands<DIM>(shared.keys, 8 * n, 16 * step);
      if constexpr (Shape::kIsExact) {
        mma_cached(other[n], low, k.x, k.y);
        mma_cached(other[n + 1], low, k.z, k.w);
      }
      mma_cached(other[n], high, k.x, k.y);
      mma_cached(other[n + 1], high, k.z, k.w);
    }
  }
#pragma unroll
  for (int n = 0; n < Shape::kSlots / 8; n++) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const uint32_t slot = 8 * n + 2 * t + i % 2;
      const uint32_t pair = first_pair + i / 2 * 8;
      if (!shared.is_sink[slot]) continue;
      const uint32_t lane = lanes == 1 ? 0 : pair % sinks.group;
      x[0][n][i] =
          other[n][i] * shared.sink_inverse[pair] + shared.biases[lane][slot];
    }
  }
}

// Up to 16 rows of activations as halves in shared memory, for products of one
// block: a warp has a row at a time, takes its norm, and scales it so that no
// exponent runs out.
#pragma once

#include "half_rows.cuh"
#include "product_args.cuh"

constexpr uint32_t kNarrowWarps = 8;
constexpr uint32_t kNarrowThreads = 32 * kNarrowWarps;

// Columns of a strip: a lane's 16 bytes of each line, four lanes wide.
constexpr uint32_t kStripChunks = 4;
constexpr uint32_t kStripColumns = 8 * kStripChunks;

// ROW_TILES · 8 rows of up to CHUNKS · 256 columns.
template <int ROW_TILES, int CHUNKS>
struct NarrowShape {
  static constexpr uint32_t kRows = 8 * ROW_TILES;
  static constexpr int kRowTiles = ROW_TILES;
  // Chunks of eight columns of a row that a lane turns into halves.
  static constexpr int kChunks = CHUNKS;
  // Neighbouring strips of a warp, two at a time: whole lines of the cache.
  static constexpr int kStrips = CHUNKS;
  // Two blocks fit on a multiprocessor, but for the widest rows: the second is
  // the first of the next product.
  static constexpr uint32_t kResident = CHUNKS <= 4 ? 2 : 1;
  static_assert(kStrips * kStripChunks * kNarrowWarps == CHUNKS * 32,
                "as many columns on both sides");
};

// Where a chunk of a row is, in halves: its other half is in the other 16 of
// 32 bytes, and neighbouring rows have the same half in different banks.
__device__ inline uint32_t narrow_place(uint32_t row, uint32_t chunk,
                                        uint32_t chunks, uint32_t half) {
  return (row * chunks + chunk) * 16 + (row + half) % 2 * 8;
}

// Copies the weights of the norm, ones where there is none, to shared memory:
// they need not wait for the kernel in front, and take no registers meanwhile.
__device__ inline void load_norms(const Product &product, uint32_t chunks,
                                  float4 *norms) {
  for (uint32_t chunk = threadIdx.x; chunk < chunks; chunk += kNarrowThreads) {
    float x[8] = {1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f};
    if (product.norm != nullptr) {
      load_floats<true>(x, product.norm, 8 * chunk, product.weight.columns);
    }
    norms[2 * chunk] = {x[0], x[1], x[2], x[3]};
    norms[2 * chunk + 1] = {x[4], x[5], x[6], x[7]};
  }
}

// Notes which rows are wanted: factors of the others are negative.
template <class Shape>
__device__ inline void find_wanted(const Product &product, float *factors) {
  const uint32_t row = threadIdx.x;
  if (row >= Shape::kRows) return;
  factors[row] = row < product.rows && product.is_wanted(row) ? 0.0f : -1.0f;
}

// Turns all rows into halves. The factors of wanted ones get what their
// products must be multiplied by. A row is one warp's.
template <class Shape>
__device__ inline void make_narrow_rows(const Product &product,
                                        const float4 *norms, uint32_t chunks,
                                        skv_half *rows, float *factors) {
  constexpr int kAtOnce = Shape::kChunks > 4 ? 1 : Shape::kRowTiles;
#pragma unroll
  for (int first = 0; first < Shape::kRowTiles; first += kAtOnce) {
    float x[kAtOnce][Shape::kChunks][8];
#pragma unroll
    for (int k = 0; k < kAtOnce; k++) {
      const float *from = product.row(warp_id() + kNarrowWarps * (first + k));
#pragma unroll
      for (int i = 0; i < Shape::kChunks; i++) {
        load_floats<true>(x[k][i], from, 8 * (lane_id() + 32 * i),
                          product.weight.columns);
      }
    }
#pragma unroll
    for (int k = 0; k < kAtOnce; k++) {
      const uint32_t row = warp_id() + kNarrowWarps * (first + k);
      float squares = 0.0f, largest = 0.0f;
#pragma unroll
      for (int i = 0; i < Shape::kChunks; i++) {
        const uint32_t chunk = lane_id() + 32 * i;
        if (chunk >= chunks) break;
        const float4 low = norms[2 * chunk], high = norms[2 * chunk + 1];
        const float n[8] = {low.x,  low.y,  low.z,  low.w,
                            high.x, high.y, high.z, high.w};
#pragma unroll
        for (int j = 0; j < 8; j++) {
          squares += x[k][i][j] * x[k][i][j];
          x[k][i][j] *= n[j];
          largest = fmaxf(largest, fabsf(x[k][i][j]));
        }
      }
      const Scale scale = scale_for(warp_max(largest));
#pragma unroll
      for (int i = 0; i < Shape::kChunks; i++) {
        const uint32_t chunk = lane_id() + 32 * i;
        if (chunk >= chunks) break;
        store_chunk(rows + narrow_place(row, chunk, chunks, 0),
                    rows + narrow_place(row, chunk, chunks, 1), x[k][i],
                    scale.scale);
      }
      const float rms = inverse_rms(product, warp_sum(squares));
      if (lane_id() == 0 && !(factors[row] < 0.0f)) {
        factors[row] = scale.inverse * rms;
      }
    }
  }
}

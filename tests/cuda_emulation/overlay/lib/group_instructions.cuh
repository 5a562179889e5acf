// The products of cuda/lib/group_instructions.cuh, by the emulation: they are
// made when they are begun. The emulated device has no engines that copy tiles
// and no clusters.
#pragma once

#include "../runtime/tile_maps.cuh"
#include "cached.cuh"

constexpr uint32_t kLineBytes = kTileColumns * sizeof(skv_half);
constexpr uint32_t kTileAlignment = 1024;

template <class Shared>
inline Shared &tile_memory() {
  char *const memory = reinterpret_cast<char *>(dynamic_shared_memory());
  return *reinterpret_cast<Shared *>(
      memory + -reinterpret_cast<uintptr_t>(memory) % kTileAlignment);
}

inline uint64_t lines_at(const skv_cached *element) {
  return reinterpret_cast<uintptr_t>(element);
}

namespace emulation {

// An element of a tile, whose chunks of 16 bytes are at chunk ^ line % 8.
inline float tile_element(uint64_t tile, uint32_t line, uint32_t column) {
  const uintptr_t at = tile + line * kLineBytes + column * sizeof(skv_cached);
  return to_float(
      *reinterpret_cast<const skv_cached *>(at ^ (at / kLineBytes % 8) << 4));
}

}  // namespace emulation

inline void begin_products(SKV_PLACE) { __syncwarp(~0u, file, line); }

inline void commit_products(SKV_PLACE) { __syncwarp(~0u, file, line); }

template <int LEFT>
inline void wait_products(SKV_PLACE) {
  __syncwarp(~0u, file, line);
}

template <int COUNT>
inline void hold_sums(float (*)[4]) {}

inline void show_writes() {}

template <int N>
inline void group_product_cached(float (*c)[4], uint64_t left, uint64_t right) {
  const uint32_t g = (threadIdx.x & 31) / 4, t = threadIdx.x % 4;
  float rows[2][16];
  for (uint32_t h = 0; h < 2; h++) {
    for (uint32_t k = 0; k < 16; k++) {
      const uint32_t line = 16 * (threadIdx.x / 32 % 4) + 8 * h + g;
      rows[h][k] = emulation::tile_element(left, line, k);
    }
  }
  for (uint32_t n = 0; n < N / 8; n++) {
    for (uint32_t i = 0; i < 2; i++) {
      for (uint32_t k = 0; k < 16; k++) {
        const float other =
            emulation::tile_element(right, 8 * n + 2 * t + i, k);
        for (uint32_t h = 0; h < 2; h++) c[n][2 * h + i] += rows[h][k] * other;
      }
    }
  }
}

template <int N>
inline void group_product_new(float (*c)[4], uint64_t left, uint64_t right) {
  for (int n = 0; n < N / 8; n++) {
    for (int i = 0; i < 4; i++) c[n][i] = 0.0f;
  }
  group_product_cached<N>(c, left, right);
}

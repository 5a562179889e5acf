// The functions of cuda/lib/instructions.cuh, by the emulation.
#pragma once

#include <cuda_runtime.h>
#include <stdint.h>

#include "../steadykv.h"

namespace emulation {

uint4 *dynamic_shared_memory();
uint4 load_constant(const skv_half *address);
void mma_halves(float (&c)[4], const uint4 &a, uint32_t b0, uint32_t b1,
                Place place);
void mma_bfloat16(float (&c)[4], const uint4 &a, uint32_t b0, uint32_t b1,
                  Place place);
void mma_tf32(float (&c)[4], const float (&a)[4], float b0, float b1,
              Place place);
uint4 load_matrices(const uint16_t *row, bool transposed, Place place);
void copy_async(uint16_t *to, const uint16_t *from, bool wanted);
void commit_copies();
void wait_copies(int left);
void wait_for_previous();

}  // namespace emulation

inline uint4 *dynamic_shared_memory() {
  return emulation::dynamic_shared_memory();
}

inline uint4 load_weights(const skv_half *address) {
  return emulation::load_constant(address);
}

inline void mma(float (&c)[4], const uint4 &a, uint32_t b0, uint32_t b1,
                SKV_PLACE) {
  emulation::mma_halves(c, a, b0, b1, SKV_HERE);
}

inline void mma_cached(float (&c)[4], const uint4 &a, uint32_t b0, uint32_t b1,
                       SKV_PLACE) {
#ifdef SKV_CACHE_BFLOAT16
  emulation::mma_bfloat16(c, a, b0, b1, SKV_HERE);
#else
  emulation::mma_halves(c, a, b0, b1, SKV_HERE);
#endif
}

inline void mma_cached_half(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t b,
                            SKV_PLACE) {
  mma_cached(c, {a0, a1, 0, 0}, b, 0, file, line);
}

inline void mma_tf32(float (&c)[4], const float (&a)[4], float b0, float b1,
                     SKV_PLACE) {
  emulation::mma_tf32(c, a, b0, b1, SKV_HERE);
}

inline float exp2_fast(float x) { return exp2f(x); }

inline float rsqrt_fast(float x) { return 1.0f / sqrtf(x); }

template <class T>
inline uint4 load_matrices(const T *row, SKV_PLACE) {
  static_assert(sizeof(T) == 2, "16-bit elements");
  return emulation::load_matrices(reinterpret_cast<const uint16_t *>(row),
                                  false, SKV_HERE);
}

template <class T>
inline uint4 load_transposed(const T *row, SKV_PLACE) {
  static_assert(sizeof(T) == 2, "16-bit elements");
  return emulation::load_matrices(reinterpret_cast<const uint16_t *>(row), true,
                                  SKV_HERE);
}

inline uint32_t transpose_matrix(uint32_t pair, SKV_PLACE) {
  const uint32_t g = (threadIdx.x & 31) / 4, t = threadIdx.x % 4;
  const int from = static_cast<int>(8 * t + g / 2);
  const uint32_t first = __shfl_sync(~0u, pair, from, file, line);
  const uint32_t second = __shfl_sync(~0u, pair, from + 4, file, line);
  const uint32_t shift = g % 2 * 16;
  return (first >> shift & 0xffffu) | (second >> shift) << 16;
}

template <class T>
inline void copy_async(T *to, const T *from, bool wanted) {
  emulation::copy_async(reinterpret_cast<uint16_t *>(to),
                        reinterpret_cast<const uint16_t *>(from), wanted);
}

inline void commit_copies() { emulation::commit_copies(); }

template <int LEFT>
inline void wait_copies() {
  emulation::wait_copies(LEFT);
}

inline uint32_t add_released(uint32_t *word, uint32_t x) {
  __threadfence();
  return atomicAdd(word, x);
}

inline void let_next_start() {}

inline void wait_for_previous() { emulation::wait_for_previous(); }

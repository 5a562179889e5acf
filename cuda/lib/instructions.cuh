// Instructions that CUDA C++ has no words for, and shared memory whose size a
// launch decides. What only a GPU's compiler understands is in this file, which
// tests/cuda_emulation has another one for, and in group_instructions.cuh.
#pragma once

#include <cuda_runtime.h>
#include <stdint.h>

#include "../steadykv.h"

// The memory that a launch asks for beside that of the kernel's own variables.
__device__ inline uint4 *dynamic_shared_memory() {
  extern __shared__ uint4 memory[];
  return memory;
}

// Sixteen bytes that no kernel writes while this one runs and that are read
// once: past the L1 cache.
__device__ inline uint4 load_weights(const skv_half *address) {
  uint4 v;
  asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
      : "l"(address));
  return v;
}

// c += a · b for tiles of 16 x 16 and 16 x 8 halves. Lane 4 g + t holds
//   a: (g, 2t), (g + 8, 2t), (g, 2t + 8), (g + 8, 2t + 8) and the next columns
//   b: (2t, g), (2t + 8, g) and the next rows
//   c: (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1)
__device__ inline void mma(float (&c)[4], const uint4 &a, uint32_t b0,
                           uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}

// The same for tiles of what caches hold: see lib/cached.cuh.
__device__ inline void mma_cached(float (&c)[4], const uint4 &a, uint32_t b0,
                                  uint32_t b1) {
#ifdef SKV_CACHE_BFLOAT16
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
#else
  mma(c, a, b0, b1);
#endif
}

// The same for tiles of 16 x 8 and 8 x 8: the first half of their columns and
// rows.
__device__ inline void mma_cached_half(float (&c)[4], uint32_t a0, uint32_t a1,
                                       uint32_t b) {
#ifdef SKV_CACHE_BFLOAT16
  asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(b));
#else
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(b));
#endif
}

// c += a · b for tiles of 16 x 8 and 8 x 8 tf32 numbers. Lane 4 g + t holds
//   a: (g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4)
//   b: (t, g), (t + 4, g)
//   c: (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1)
__device__ inline void mma_tf32(float (&c)[4], const float (&a)[4], float b0,
                                float b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])),
        "r"(__float_as_uint(a[2])), "r"(__float_as_uint(a[3])),
        "r"(__float_as_uint(b0)), "r"(__float_as_uint(b1)));
}

// 2^x, with a relative error of 2^-22; below 2^-126 it is 0.
__device__ inline float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 1 / √x, with a relative error of 2^-22, for x that is a normal number.
__device__ inline float rsqrt_fast(float x) {
  float y;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ inline uint32_t shared_address(const void *pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Four 8 x 8 tiles of 16-bit elements; lane i gives the address of row i % 8 of
// tile i / 8.
template <class T>
__device__ inline uint4 load_matrices(const T *row) {
  static_assert(sizeof(T) == 2, "16-bit elements");
  uint4 v;
  asm volatile(
      "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
      : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
      : "r"(shared_address(row))
      : "memory");
  return v;
}

// The same, each tile transposed.
template <class T>
__device__ inline uint4 load_transposed(const T *row) {
  static_assert(sizeof(T) == 2, "16-bit elements");
  uint4 v;
  asm volatile(
      "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
      : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
      : "r"(shared_address(row))
      : "memory");
  return v;
}

// The transpose of an 8 x 8 tile of 16-bit elements; lane 4 g + t has (g, 2t)
// and (g, 2t + 1), of the tile and of the transpose.
__device__ inline uint32_t transpose_matrix(uint32_t pair) {
  uint32_t v;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(v) : "r"(pair));
  return v;
}

// Starts to copy 16 bytes to shared memory, or zeros.
template <class T>
__device__ inline void copy_async(T *to, const T *from, bool wanted) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(shared_address(to)), "l"(from), "r"(wanted ? 16 : 0)
               : "memory");
}

__device__ inline void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most LEFT groups of copies are under way.
template <int LEFT>
__device__ inline void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}

// Adds to a word when the block's writes up to its last barrier can be seen by
// all. Nothing is thrown out of the L1 cache, as __threadfence would do: who
// sees the sum reads what others wrote past that cache.
__device__ inline uint32_t add_released(uint32_t *word, uint32_t x) {
  uint32_t before;
  asm volatile("atom.add.release.gpu.global.u32 %0, [%1], %2;"
               : "=r"(before)
               : "l"(word), "r"(x)
               : "memory");
  return before;
}

// Lets the next kernel start as soon as there is room for it.
__device__ inline void let_next_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// Returns when the kernels before this one have ended.
__device__ inline void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

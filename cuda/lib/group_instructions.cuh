// What devices of compute capability 9.0 have, and no others: products of tiles
// in shared memory by groups of four warps, copies of whole tiles by an engine
// of the multiprocessor, and clusters of blocks that read each other's shared
// memory. For lib/wide_product.cuh alone; on other devices nothing calls these.
#pragma once

#include "../runtime/tile_maps.cuh"
#include "instructions.cuh"

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define SKV_HOPPER(...) asm volatile(__VA_ARGS__)
#else
#define SKV_HOPPER(...) __trap()
#endif

// Where a tile is, as products want to know it: lines of 128 bytes, whose
// chunks of 16 bytes are at chunk ^ line % 8, from an address that is a
// multiple of 1,024. Further columns are at addresses further on; a unit of the
// result is 16 bytes.
__device__ inline uint64_t tile_descriptor(uint32_t tile) {
  constexpr uint64_t kSwizzled128 = uint64_t{1} << 62;
  constexpr uint64_t kEightLines = uint64_t{1024 >> 4} << 32;
  constexpr uint64_t kUnused = uint64_t{1} << 16;
  return kSwizzled128 | kEightLines | kUnused | (tile & 0x3ffff) >> 4;
}

// In front of products whose sums other instructions have touched.
__device__ inline void begin_products() {
  SKV_HOPPER("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ inline void commit_products() {
  SKV_HOPPER("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Waits until at most LEFT groups of products are under way.
template <int LEFT>
__device__ inline void wait_products() {
  SKV_HOPPER("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
}

// c += left · rightᵀ for 64 lines and N lines of 16 columns, in the background.
// Each warp has 16 of the 64 lines, dealt to its lanes as by mma().
template <int N>
__device__ inline void group_product(float (*c)[4], uint64_t left,
                                     uint64_t right);

#define SKV_SUMS_4(i) "+f"(c[i][0]), "+f"(c[i][1]), "+f"(c[i][2]), "+f"(c[i][3])
#define SKV_SUMS_8(i) SKV_SUMS_4(i), SKV_SUMS_4(i + 1)
#define SKV_SUMS_16(i) SKV_SUMS_8(i), SKV_SUMS_8(i + 2)
#define SKV_SUMS_32(i) SKV_SUMS_16(i), SKV_SUMS_16(i + 4)
#define SKV_NAMES_8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define SKV_NAMES_16 SKV_NAMES_8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define SKV_NAMES_32                         \
  SKV_NAMES_16                               \
  ", %16, %17, %18, %19, %20, %21, %22, %23" \
  ", %24, %25, %26, %27, %28, %29, %30, %31"
#define SKV_GROUP_PRODUCT(N, COUNT, LEFT, RIGHT)                       \
  template <>                                                          \
  __device__ inline void group_product<N>(float(*c)[4], uint64_t left, \
                                          uint64_t right) {            \
    SKV_HOPPER(                                                        \
        "{ .reg .pred adds; setp.eq.u32 adds, 0, 0; "                  \
        "wgmma.mma_async.sync.aligned.m64n" #N                         \
        "k16.f32.f16.f16 {" SKV_NAMES_##COUNT "}, " LEFT ", " RIGHT    \
                                              ", adds, 1, 1, 0, 0; }"  \
        : SKV_SUMS_##COUNT(0)                                          \
        : "l"(left), "l"(right));                                      \
  }

SKV_GROUP_PRODUCT(16, 8, "%8", "%9")
SKV_GROUP_PRODUCT(32, 16, "%16", "%17")
SKV_GROUP_PRODUCT(64, 32, "%32", "%33")

#undef SKV_SUMS_4
#undef SKV_SUMS_8
#undef SKV_SUMS_16
#undef SKV_SUMS_32
#undef SKV_NAMES_8
#undef SKV_NAMES_16
#undef SKV_NAMES_32
#undef SKV_GROUP_PRODUCT

// A barrier in shared memory that counts arrivals and bytes. Its phases are
// numbered from 0; who waits names the parity of the one that is to end.
__device__ inline void init_barrier(uint64_t *barrier, uint32_t arrivals) {
  SKV_HOPPER(
      "mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
      "r"(arrivals)
      : "memory");
}

// Lets the copy engine see barriers that were made.
__device__ inline void show_barriers() {
  SKV_HOPPER("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ inline void arrive(uint64_t *barrier) {
  SKV_HOPPER(
      "mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier))
      : "memory");
}

// Arrives, and makes the phase wait for bytes that will be copied.
__device__ inline void arrive_expecting(uint64_t *barrier, uint32_t bytes) {
  SKV_HOPPER("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(
                 shared_address(barrier)),
             "r"(bytes)
             : "memory");
}

__device__ inline void wait_barrier(uint64_t *barrier, uint32_t parity) {
  SKV_HOPPER(
      "{ .reg .pred ended; again: "
      "mbarrier.try_wait.parity.shared::cta.b64 ended, [%0], %1; "
      "@!ended bra again; }" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

// Starts to copy the tile of a matrix at (row, column) to shared memory, zeros
// beyond its ends; `barrier` counts the bytes.
__device__ inline void copy_tile(uint32_t to, const TileMap *map,
                                 uint32_t column, uint32_t row,
                                 uint64_t *barrier) {
  SKV_HOPPER(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::"
      "complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(to),
      "l"(map), "r"(column), "r"(row), "r"(shared_address(barrier))
      : "memory");
}

// All threads of a cluster meet, and see what the others wrote before.
__device__ inline void meet_cluster() {
  SKV_HOPPER(
      "barrier.cluster.arrive.release.aligned; "
      "barrier.cluster.wait.acquire.aligned;" ::
          : "memory");
}

// Reads what block `rank` of the cluster has where this one has `own`.
__device__ inline float read_peer(const float *own, uint32_t rank) {
  float x = 0.0f;
  SKV_HOPPER(
      "{ .reg .u32 at; mapa.shared::cluster.u32 at, %1, %2; "
      "ld.shared::cluster.f32 %0, [at]; }"
      : "=f"(x)
      : "r"(shared_address(own)), "r"(rank));
  return x;
}

#undef SKV_HOPPER

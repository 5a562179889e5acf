// What devices of compute capability 9.0 have, and no others: products of tiles
// in shared memory by groups of four warps, copies of whole tiles by an engine
// of the multiprocessor, and clusters of blocks that read each other's shared
// memory. For lib/wide_product.cuh and the files of groups alone; on other
// devices nothing calls these.
#pragma once

#include "../runtime/tile_maps.cuh"
#include "instructions.cuh"

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define SKV_HOPPER(...) asm volatile(__VA_ARGS__)
#else
#define SKV_HOPPER(...) __trap()
#endif

// A line of a tile, and what the address of a tile is a multiple of.
constexpr uint32_t kLineBytes = kTileColumns * sizeof(skv_half);
constexpr uint32_t kTileAlignment = 1024;

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

// The tile from this element of its first line on.
__device__ inline uint64_t lines_at(const skv_cached *element) {
  return tile_descriptor(shared_address(element));
}

// The memory that a launch asks for, kTileAlignment more than a `Shared`, from
// where tiles may begin.
template <class Shared>
__device__ inline Shared &tile_memory() {
  char *const memory = reinterpret_cast<char *>(dynamic_shared_memory());
  return *reinterpret_cast<Shared *>(memory +
                                     -shared_address(memory) % kTileAlignment);
}

// The same for lines that are multiplied by columns: `columns` bytes further
// are the next 64 columns of all lines, and lines are at addresses further on.
__device__ inline uint64_t column_descriptor(uint32_t tile, uint32_t columns) {
  constexpr uint64_t kSwizzled128 = uint64_t{1} << 62;
  constexpr uint64_t kEightLines = uint64_t{1024 >> 4} << 32;
  return kSwizzled128 | kEightLines | uint64_t{columns >> 4} << 16 |
         (tile & 0x3ffff) >> 4;
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

// The same for tiles of what caches hold.
template <int N>
__device__ inline void group_product_cached(float (*c)[4], uint64_t left,
                                            uint64_t right);

// c = left · rightᵀ.
template <int N>
__device__ inline void group_product_new(float (*c)[4], uint64_t left,
                                         uint64_t right);

// c += left · right, where 16 columns of this warp's lines are in registers, as
// for mma(), and `right` has 16 lines of N columns.
template <int N>
__device__ inline void group_product_lines(float (*c)[4], const uint4 &left,
                                           uint64_t right);

#ifdef SKV_CACHE_BFLOAT16
#define SKV_CACHED "bf16.bf16"
#else
#define SKV_CACHED "f16.f16"
#endif
#define SKV_SUMS_4(x, i) x(c[i][0]), x(c[i][1]), x(c[i][2]), x(c[i][3])
#define SKV_SUMS_8(x, i) SKV_SUMS_4(x, i), SKV_SUMS_4(x, i + 1)
#define SKV_SUMS_16(x, i) SKV_SUMS_8(x, i), SKV_SUMS_8(x, i + 2)
#define SKV_SUMS_32(x, i) SKV_SUMS_16(x, i), SKV_SUMS_16(x, i + 4)
#define SKV_SUMS_64(x, i) SKV_SUMS_32(x, i), SKV_SUMS_32(x, i + 8)
#define SKV_NAMES_8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define SKV_NAMES_16 SKV_NAMES_8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define SKV_NAMES_32                         \
  SKV_NAMES_16                               \
  ", %16, %17, %18, %19, %20, %21, %22, %23" \
  ", %24, %25, %26, %27, %28, %29, %30, %31"
#define SKV_NAMES_64                         \
  SKV_NAMES_32                               \
  ", %32, %33, %34, %35, %36, %37, %38, %39" \
  ", %40, %41, %42, %43, %44, %45, %46, %47" \
  ", %48, %49, %50, %51, %52, %53, %54, %55" \
  ", %56, %57, %58, %59, %60, %61, %62, %63"
#define SKV_WGMMA(N, TYPES, COUNT, ADDS)                  \
  "{ .reg .pred adds; setp.ne.u32 adds, " ADDS            \
  ", 0; "                                                 \
  "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPES \
  " {" SKV_NAMES_##COUNT "}, "
#define SKV_GROUP_PRODUCT(NAME, N, COUNT, TYPES, LEFT, RIGHT, ADDS, FORM)    \
  template <>                                                                \
  __device__ inline void NAME<N>(float(*c)[4], uint64_t left,                \
                                 uint64_t right) {                           \
    SKV_HOPPER(SKV_WGMMA(N, TYPES, COUNT, ADDS) LEFT ", " RIGHT              \
                                                     ", adds, 1, 1, 0, 0; }" \
               : SKV_SUMS_##COUNT(FORM, 0)                                   \
               : "l"(left), "l"(right));                                     \
  }
#define SKV_GROUP_PRODUCT_LINES(N, COUNT, A0, A1, A2, A3, RIGHT)              \
  template <>                                                                 \
  __device__ inline void group_product_lines<N>(                              \
      float(*c)[4], const uint4 &left, uint64_t right) {                      \
    SKV_HOPPER(                                                               \
        SKV_WGMMA(N, SKV_CACHED, COUNT, "1") "{" A0 ", " A1 ", " A2 ", " A3   \
                                             "}, " RIGHT ", adds, 1, 1, 1; }" \
        : SKV_SUMS_##COUNT("+f", 0)                                           \
        : "r"(left.x), "r"(left.y), "r"(left.z), "r"(left.w), "l"(right));    \
  }

SKV_GROUP_PRODUCT(group_product, 16, 8, "f16.f16", "%8", "%9", "1", "+f")
SKV_GROUP_PRODUCT(group_product, 32, 16, "f16.f16", "%16", "%17", "1", "+f")
SKV_GROUP_PRODUCT(group_product, 64, 32, "f16.f16", "%32", "%33", "1", "+f")
SKV_GROUP_PRODUCT(group_product_cached, 128, 64, SKV_CACHED, "%64", "%65", "1",
                  "+f")
SKV_GROUP_PRODUCT(group_product_new, 128, 64, SKV_CACHED, "%64", "%65", "0",
                  "=f")
SKV_GROUP_PRODUCT_LINES(64, 32, "%32", "%33", "%34", "%35", "%36")
SKV_GROUP_PRODUCT_LINES(128, 64, "%64", "%65", "%66", "%67", "%68")

#undef SKV_CACHED
#undef SKV_SUMS_4
#undef SKV_SUMS_8
#undef SKV_SUMS_16
#undef SKV_SUMS_32
#undef SKV_SUMS_64
#undef SKV_NAMES_8
#undef SKV_NAMES_16
#undef SKV_NAMES_32
#undef SKV_NAMES_64
#undef SKV_WGMMA
#undef SKV_GROUP_PRODUCT
#undef SKV_GROUP_PRODUCT_LINES

// What products made or will make is touched by nothing before this.
template <int COUNT>
__device__ inline void hold_sums(float (*c)[4]) {
#pragma unroll
  for (int n = 0; n < COUNT; n++) {
#pragma unroll
    for (int i = 0; i < 4; i++) asm volatile("" : "+f"(c[n][i])::"memory");
  }
}

// Makes what threads wrote to shared memory visible to products and engines.
__device__ inline void show_writes() {
  SKV_HOPPER("fence.proxy.async.shared::cta;" ::: "memory");
}

// Gives this warp's threads COUNT registers each. All warps of its group do so;
// those that want more wait until others have given theirs away.
template <int COUNT>
__device__ inline void give_registers() {
  SKV_HOPPER("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}
template <int COUNT>
__device__ inline void take_registers() {
  SKV_HOPPER("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}

// The warps of `threads` threads meet; others take no part.
__device__ inline void meet_warps(uint32_t threads) {
  SKV_HOPPER("bar.sync 1, %0;" ::"r"(threads) : "memory");
}

// Two groups of 128 threads take turns: one waits for its turn, the other, when
// it has had its own, passes it on. Who is first is given a turn before.
__device__ inline void wait_turn(uint32_t group) {
  SKV_HOPPER("bar.sync %0, 256;" ::"r"(2 + group) : "memory");
}
__device__ inline void pass_turn(uint32_t to_group) {
  SKV_HOPPER("bar.arrive %0, 256;" ::"r"(2 + to_group) : "memory");
}

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

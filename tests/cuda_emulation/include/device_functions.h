// What kernels call: barriers, exchanges between lanes, atomics and arithmetic.
//
// Functions that threads wait in take the place that they are called from, so
// that threads that wait in different places are found, and named.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

// Constant for a thread, and different for each: the emulation sets them when
// it goes from one thread to another.
#define SKV_HIDDEN __attribute__((visibility("hidden")))
extern const uint3 threadIdx SKV_HIDDEN;
extern const uint3 blockIdx SKV_HIDDEN;
extern const dim3 blockDim SKV_HIDDEN;
extern const dim3 gridDim SKV_HIDDEN;

namespace emulation {

struct Place {
  const char *file;
  int line;
};

enum class Meeting : int {
  kShuffle,
  kVote,
  kReduce,
  kSyncWarp,
  kMma,
  kLoadMatrices
};

// Values of all lanes of a warp.
struct Lanes {
  uint64_t values[32];
};

// Waits for all lanes of the warp, and returns what each of them brought.
// `finish` runs once, when all have come.
const Lanes &meet(Meeting kind, uint32_t mask, uint64_t value, Place place,
                  void (*finish)(Lanes &) = nullptr);

// Waits for all threads of the block; whether any of them brought true.
bool meet_block(bool value, Place place);

// Checks an address that an atomic operation changes.
void check_atomic(const volatile void *address, size_t bytes);

// Checks an address that is read past what the block's caches hold.
void check_relaxed(const void *address, size_t bytes);

// Orders this thread's memory accesses before what it does next.
void fence();

template <class T>
inline uint64_t to_bits(T x) {
  static_assert(sizeof(T) <= 8, "one or two registers");
  uint64_t bits = 0;
  memcpy(&bits, &x, sizeof(T));
  return bits;
}

template <class T>
inline T from_bits(uint64_t bits) {
  T x;
  memcpy(&x, &bits, sizeof(T));
  return x;
}

}  // namespace emulation

#define SKV_PLACE \
  const char *file = __builtin_FILE(), int line = __builtin_LINE()
#define SKV_HERE \
  { file, line }
// Functions that look at the emulation's own memory.
#define SKV_UNCHECKED __attribute__((no_sanitize("thread")))

inline void __syncthreads(SKV_PLACE) { emulation::meet_block(false, SKV_HERE); }

inline int __syncthreads_or(int value, SKV_PLACE) {
  return emulation::meet_block(value != 0, SKV_HERE) ? 1 : 0;
}

inline void __syncwarp(uint32_t mask = 0xffffffffu, SKV_PLACE) {
  emulation::meet(emulation::Meeting::kSyncWarp, mask, 0, SKV_HERE);
}

inline void __threadfence() { emulation::fence(); }

template <class T>
SKV_UNCHECKED inline T __shfl_sync(uint32_t mask, T x, int lane, SKV_PLACE) {
  const emulation::Lanes &lanes = emulation::meet(
      emulation::Meeting::kShuffle, mask, emulation::to_bits(x), SKV_HERE);
  return emulation::from_bits<T>(lanes.values[lane & 31]);
}

template <class T>
SKV_UNCHECKED inline T __shfl_xor_sync(uint32_t mask, T x, int bits,
                                       SKV_PLACE) {
  const emulation::Lanes &lanes = emulation::meet(
      emulation::Meeting::kShuffle, mask, emulation::to_bits(x), SKV_HERE);
  return emulation::from_bits<T>(lanes.values[(threadIdx.x ^ bits) & 31]);
}

template <class T>
SKV_UNCHECKED inline T __shfl_up_sync(uint32_t mask, T x, unsigned distance,
                                      SKV_PLACE) {
  const emulation::Lanes &lanes = emulation::meet(
      emulation::Meeting::kShuffle, mask, emulation::to_bits(x), SKV_HERE);
  const unsigned lane = threadIdx.x & 31;
  return emulation::from_bits<T>(
      lanes.values[lane < distance ? lane : lane - distance]);
}

template <class T>
SKV_UNCHECKED inline T __shfl_down_sync(uint32_t mask, T x, unsigned distance,
                                        SKV_PLACE) {
  const emulation::Lanes &lanes = emulation::meet(
      emulation::Meeting::kShuffle, mask, emulation::to_bits(x), SKV_HERE);
  const unsigned lane = threadIdx.x & 31;
  return emulation::from_bits<T>(
      lanes.values[lane + distance > 31 ? lane : lane + distance]);
}

SKV_UNCHECKED inline uint32_t __ballot_sync(uint32_t mask, int value,
                                            SKV_PLACE) {
  const emulation::Lanes &lanes =
      emulation::meet(emulation::Meeting::kVote, mask, value != 0, SKV_HERE);
  uint32_t bits = 0;
  for (int i = 0; i < 32; i++)
    bits |= static_cast<uint32_t>(lanes.values[i]) << i;
  return bits;
}

inline int __any_sync(uint32_t mask, int value, SKV_PLACE) {
  return __ballot_sync(mask, value, file, line) != 0;
}

inline int __all_sync(uint32_t mask, int value, SKV_PLACE) {
  return __ballot_sync(mask, value, file, line) == 0xffffffffu;
}

SKV_UNCHECKED inline uint32_t __reduce_add_sync(uint32_t mask, uint32_t x,
                                                SKV_PLACE) {
  const emulation::Lanes &lanes =
      emulation::meet(emulation::Meeting::kReduce, mask, x, SKV_HERE);
  uint32_t sum = 0;
  for (uint64_t other : lanes.values) sum += static_cast<uint32_t>(other);
  return sum;
}

SKV_UNCHECKED inline uint32_t __reduce_min_sync(uint32_t mask, uint32_t x,
                                                SKV_PLACE) {
  const emulation::Lanes &lanes =
      emulation::meet(emulation::Meeting::kReduce, mask, x, SKV_HERE);
  uint64_t least = x;
  for (uint64_t other : lanes.values) least = other < least ? other : least;
  return static_cast<uint32_t>(least);
}

SKV_UNCHECKED inline uint32_t __reduce_max_sync(uint32_t mask, uint32_t x,
                                                SKV_PLACE) {
  const emulation::Lanes &lanes =
      emulation::meet(emulation::Meeting::kReduce, mask, x, SKV_HERE);
  uint64_t most = x;
  for (uint64_t other : lanes.values) most = other > most ? other : most;
  return static_cast<uint32_t>(most);
}

// One thread runs at a time, so plain operations are atomic.
#define SKV_ATOMIC(name, expression)                                     \
  template <class T>                                                     \
  SKV_UNCHECKED inline T name(T *address, std::enable_if_t<true, T> x) { \
    emulation::check_atomic(address, sizeof(T));                         \
    const T old = *address;                                              \
    *address = expression;                                               \
    return old;                                                          \
  }
SKV_ATOMIC(atomicAdd, old + x)
SKV_ATOMIC(atomicOr, old | x)
SKV_ATOMIC(atomicAnd, old &x)
SKV_ATOMIC(atomicMin, x < old ? x : old)
SKV_ATOMIC(atomicMax, x > old ? x : old)
SKV_ATOMIC(atomicExch, x)
#undef SKV_ATOMIC

template <class T>
inline T __ldg(const T *address) {
  return *address;
}
template <class T>
SKV_UNCHECKED inline T __ldcg(const T *address) {
  emulation::check_relaxed(address, sizeof(T));
  return *address;
}

inline uint32_t __float_as_uint(float x) {
  return emulation::from_bits<uint32_t>(emulation::to_bits(x));
}
inline float __uint_as_float(uint32_t x) {
  return emulation::from_bits<float>(x);
}
inline int __popc(uint32_t x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(x); }
inline uint64_t __umul64hi(uint64_t a, uint64_t b) {
  return static_cast<uint64_t>(static_cast<unsigned __int128>(a) * b >> 64);
}

// Bytes of two words by the digits of a selector.
inline uint32_t __byte_perm(uint32_t low, uint32_t high, uint32_t selector) {
  const uint64_t bytes = static_cast<uint64_t>(high) << 32 | low;
  uint32_t out = 0;
  for (int i = 0; i < 4; i++) {
    const uint32_t digit = selector >> (4 * i) & 7;
    out |= static_cast<uint32_t>(bytes >> (8 * digit) & 255) << (8 * i);
  }
  return out;
}

// As the device computes it: 2 to the rounded product.
inline float __expf(float x) { return exp2f(x * 1.44269504f); }
inline float __logf(float x) { return log2f(x) * 0.693147181f; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float cospif(float x) {
  return static_cast<float>(cos(3.14159265358979323846 * x));
}

template <class T>
inline T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
inline T max(T a, T b) {
  return a < b ? b : a;
}
inline unsigned min(unsigned a, int b) { return min(a, unsigned(b)); }
inline unsigned min(int a, unsigned b) { return min(unsigned(a), b); }
inline unsigned max(unsigned a, int b) { return max(a, unsigned(b)); }
inline unsigned max(int a, unsigned b) { return max(unsigned(a), b); }

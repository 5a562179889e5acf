// Tensor core products, loads of their operands and copies to shared memory.
#include <cuda_fp16.h>

#include "emulator.h"

namespace emulation {

namespace {

// Operands of one lane.
struct MmaLane {
  float *c;
  const uint32_t *a;
  uint32_t b[2];
};

struct MmaTf32Lane {
  float *c;
  const float *a;
  float b[2];
};

// A row that a lane names, and what it gets.
struct MatrixLane {
  const uint16_t *row;
  bool transposed;
  uint32_t words[4];
};

// Sums of tensor cores are cut off, not rounded.
float cut_off(double x) {
  const float rounded = static_cast<float>(x);
  if (!(fabs(static_cast<double>(rounded)) > fabs(x))) return rounded;
  return nextafterf(rounded, 0.0f);
}

template <class T>
T *lane_of(const Lanes &lanes, int lane) {
  return reinterpret_cast<T *>(lanes.values[lane]);
}

// c += a · b, `step` columns at a time; a is (16, K), b is (K, 8).
template <class Operands, int K>
void multiply(Lanes &lanes, const float (&a)[16][K], const float (&b)[K][8]) {
  for (int lane = 0; lane < 32; lane++) {
    float *c = lane_of<Operands>(lanes, lane)->c;
    for (int i = 0; i < 4; i++) {
      const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
      for (int first = 0; first < K; first += 8) {
        double sum = c[i];
        for (int k = first; k < first + 8; k++) {
          sum += static_cast<double>(a[row][k]) * b[k][column];
        }
        c[i] = cut_off(sum);
      }
    }
  }
}

float half_of(uint32_t word, int which) {
  return __half2float(
      __ushort_as_half(static_cast<uint16_t>(word >> (16 * which))));
}

float bfloat16_of(uint32_t word, int which) {
  return __uint_as_float(which == 0 ? word << 16 : word & 0xffff0000u);
}

template <float (*NUMBER)(uint32_t word, int which)>
void finish_pairs(Lanes &lanes) {
  float a[16][16], b[16][8];
  for (int lane = 0; lane < 32; lane++) {
    const MmaLane &it = *lane_of<MmaLane>(lanes, lane);
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 2; i++) {
      for (int word = 0; word < 4; word++) {
        a[g + word % 2 * 8][2 * t + word / 2 * 8 + i] = NUMBER(it.a[word], i);
      }
      for (int word = 0; word < 2; word++) {
        b[2 * t + word * 8 + i][g] = NUMBER(it.b[word], i);
      }
    }
  }
  multiply<MmaLane>(lanes, a, b);
}

// The 19 bits of a tf32 number.
float tf32_of(float x) {
  return __uint_as_float(__float_as_uint(x) & 0xffffe000u);
}

void finish_tf32(Lanes &lanes) {
  float a[16][8], b[8][8];
  for (int lane = 0; lane < 32; lane++) {
    const MmaTf32Lane &it = *lane_of<MmaTf32Lane>(lanes, lane);
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; i++) {
      a[g + i % 2 * 8][t + i / 2 * 4] = tf32_of(it.a[i]);
    }
    for (int i = 0; i < 2; i++) b[t + 4 * i][g] = tf32_of(it.b[i]);
  }
  multiply<MmaTf32Lane>(lanes, a, b);
}

void finish_matrices(Lanes &lanes) {
  for (int lane = 0; lane < 32; lane++) {
    MatrixLane &it = *lane_of<MatrixLane>(lanes, lane);
    for (int tile = 0; tile < 4; tile++) {
      uint32_t halves[2];
      for (int i = 0; i < 2; i++) {
        const int pair = lane % 4 * 2 + i;
        const int line = it.transposed ? pair : lane / 4;
        const int column = it.transposed ? lane / 4 : pair;
        halves[i] = lane_of<MatrixLane>(lanes, 8 * tile + line)->row[column];
      }
      it.words[tile] = halves[0] | halves[1] << 16;
    }
  }
}

__attribute__((always_inline)) inline const void *caller() {
  return __builtin_return_address(0);
}

// Checks the sixteen bytes of an instruction that takes no others.
void check_line(const void *address, Access access, const void *code) {
  const auto at = reinterpret_cast<uintptr_t>(address);
  if (at % 16 != 0) {
    fault(cudaErrorMisalignedAddress, "%#zx, of 16 bytes",
          static_cast<size_t>(at));
  }
  check_access(at, 16, access, code);
}

}  // namespace

void mma_halves(float (&c)[4], const uint4 &a, uint32_t b0, uint32_t b1,
                Place place) {
  const MmaLane mine = {c, &a.x, {b0, b1}};
  meet(Meeting::kMma, ~0u, reinterpret_cast<uint64_t>(&mine), place,
       finish_pairs<half_of>);
}

void mma_bfloat16(float (&c)[4], const uint4 &a, uint32_t b0, uint32_t b1,
                  Place place) {
  const MmaLane mine = {c, &a.x, {b0, b1}};
  meet(Meeting::kMma, ~0u, reinterpret_cast<uint64_t>(&mine), place,
       finish_pairs<bfloat16_of>);
}

void mma_tf32(float (&c)[4], const float (&a)[4], float b0, float b1,
              Place place) {
  const MmaTf32Lane mine = {c, a, {b0, b1}};
  meet(Meeting::kMma, ~0u, reinterpret_cast<uint64_t>(&mine), place,
       finish_tf32);
}

uint4 load_matrices(const uint16_t *row, bool transposed, Place place) {
  if (!is_shared(row)) {
    fault(cudaErrorInvalidAddressSpace, "matrix row that is not shared memory");
  }
  check_line(row, Access::kRead, caller());
  MatrixLane mine = {row, transposed, {}};
  meet(Meeting::kLoadMatrices, ~0u, reinterpret_cast<uint64_t>(&mine), place,
       finish_matrices);
  return {mine.words[0], mine.words[1], mine.words[2], mine.words[3]};
}

uint4 load_constant(const uint16_t *address) {
  check_line(address, Access::kRead, caller());
  uint4 v;
  memcpy(&v, address, sizeof(v));
  return v;
}

// Data arrives when it is waited for: who reads too early gets what was there
// before.
void copy_async(uint16_t *to, const uint16_t *from, bool wanted) {
  Thread &self = *block->current;
  if (self.copy_count == kMostCopies) {
    fault(cudaErrorLaunchFailure, "more than %d copies under way", kMostCopies);
  }
  if (!is_shared(to)) {
    fault(cudaErrorInvalidAddressSpace, "copy to what is not shared memory");
  }
  check_line(to, Access::kWrite, caller());
  if (wanted) {
    check_line(from, Access::kRead, caller());
  }
  self.copies[self.copy_count++] = {to, wanted ? from : nullptr, self.group};
}

void commit_copies() { block->current->group++; }

void wait_copies(int left) {
  Thread &self = *block->current;
  int kept = 0;
  for (int i = 0; i < self.copy_count; i++) {
    const Copy &copy = self.copies[i];
    if (copy.group >= self.group - left) {
      self.copies[kept++] = copy;
      continue;
    }
    check_line(copy.to, Access::kWrite, caller());
    if (copy.from == nullptr) {
      memset(copy.to, 0, 16);
    } else {
      memcpy(copy.to, copy.from, 16);
    }
  }
  self.copy_count = kept;
}

}  // namespace emulation

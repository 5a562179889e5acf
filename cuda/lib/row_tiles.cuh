// Tiles of keys or values in shared memory, one slot per line, as operands of
// tensor core products. Lines are padded by 16 bytes, so that the eight lines
// of an 8 x 8 matrix are in different banks.
#pragma once

#include <type_traits>

#include "cached.cuh"
#include "reduce.cuh"

template <int DIM>
constexpr int kLinePitch = DIM + 8;

// Width that kernels for heads of `head_dim` are made for.
inline uint32_t padded_width(uint32_t head_dim) {
  uint32_t width = 32;
  while (width < head_dim) width *= 2;
  return width;
}

// Calls `f` with that width, as a constant.
template <class F>
inline auto with_width(uint32_t head_dim, const F &f) {
  switch (padded_width(head_dim)) {
    case 32:
      return f(std::integral_constant<int, 32>());
    case 64:
      return f(std::integral_constant<int, 64>());
    case 128:
      return f(std::integral_constant<int, 128>());
    default:
      return f(std::integral_constant<int, 256>());
  }
}

template <int DIM, bool ALIGNED, class Line>
__device__ inline void fill_lines(skv_cached *tile, uint32_t lines,
                                  uint32_t head_dim, Line line) {
  constexpr uint32_t kChunks = DIM / 8;
#pragma unroll 4
  for (uint32_t i = threadIdx.x; i < lines * kChunks; i += blockDim.x) {
    const uint32_t at = i / kChunks, first = i % kChunks * 8;
    const skv_cached *from = line(at);
    uint32_t pairs[4] = {};
    if (from != nullptr) {
      load_pairs<8, ALIGNED>(pairs, from, first, head_dim);
    }
    *reinterpret_cast<uint4 *>(tile + at * kLinePitch<DIM> + first) = {
        pairs[0], pairs[1], pairs[2], pairs[3]};
  }
}

// Fills `lines` lines of a tile; `line(i)` is where line i is in memory, or
// null for zeros. Called by the whole block, which synchronizes afterwards.
template <int DIM, class Line>
__device__ inline void load_lines(skv_cached *tile, uint32_t lines,
                                  uint32_t head_dim, Line line) {
  if (head_dim % 8 == 0) {
    fill_lines<DIM, true>(tile, lines, head_dim, line);
  } else {
    fill_lines<DIM, false>(tile, lines, head_dim, line);
  }
}

// Starts to fill LINES lines of a tile, by THREADS threads, with `count` lines
// from `from` and zeros; whoever reads them waits for the copies first.
template <int DIM, uint32_t LINES, uint32_t THREADS>
__device__ inline void copy_lines(skv_cached *tile, const skv_cached *from,
                                  uint32_t count, uint32_t head_dim) {
  if (head_dim % 8 != 0) {
    fill_lines<DIM, false>(tile, LINES, head_dim, [&](uint32_t i) {
      return i < count ? from + static_cast<size_t>(i) * head_dim : nullptr;
    });
    return;
  }
  constexpr uint32_t kChunks = DIM / 8;
  static_assert(THREADS % kChunks == 0 && LINES * kChunks % THREADS == 0,
                "a column and as many lines for each thread");
  const uint32_t line = threadIdx.x / kChunks;
  const uint32_t column = threadIdx.x % kChunks * 8;
  const skv_cached *own = from + line * head_dim + column;
  skv_cached *to = tile + line * kLinePitch<DIM> + column;
#pragma unroll
  for (uint32_t k = 0; k < LINES * kChunks / THREADS; k++) {
    const uint32_t lines = k * (THREADS / kChunks);
    copy_async(to + lines * kLinePitch<DIM>, own + lines * head_dim,
               line + lines < count && column < head_dim);
  }
}

// The same with lines from anywhere: `line(i)` is where line i is in memory, or
// null for zeros.
template <int DIM, uint32_t LINES, uint32_t THREADS, class Line>
__device__ inline void gather_lines(skv_cached *tile, uint32_t head_dim,
                                    Line line) {
  if (head_dim % 8 != 0) {
    fill_lines<DIM, false>(tile, LINES, head_dim, line);
    return;
  }
  constexpr uint32_t kChunks = DIM / 8;
  const uint32_t column = threadIdx.x % kChunks * 8;
#pragma unroll
  for (uint32_t k = 0; k < LINES * kChunks / THREADS; k++) {
    const uint32_t at = threadIdx.x / kChunks + k * (THREADS / kChunks);
    const skv_cached *from = line(at);
    copy_async(tile + at * kLinePitch<DIM> + column, from + column,
               from != nullptr && column < head_dim);
  }
}

// Right operands for the product with lines `line .. line + 16` of a tile, dims
// `column .. column + 16`: two for each eight lines.
template <int DIM>
__device__ inline uint4 key_operands(const skv_cached *tile, uint32_t line,
                                     uint32_t column) {
  const uint32_t lane = lane_id();
  return load_matrices(tile +
                       (line + lane % 8 + lane / 16 * 8) * kLinePitch<DIM> +
                       column + lane / 8 % 2 * 8);
}

// Right operands for weights of lines `line .. line + 16` times dims
// `column .. column + 16`: two for each eight dims.
template <int DIM>
__device__ inline uint4 value_operands(const skv_cached *tile, uint32_t line,
                                       uint32_t column) {
  const uint32_t lane = lane_id();
  return load_transposed(tile + (line + lane % 16) * kLinePitch<DIM> + column +
                         lane / 16 * 8);
}

// Left operands of lines `line .. line + 16`, dims `column .. column + 16`.
template <int DIM>
__device__ inline uint4 line_operands(const skv_cached *tile, uint32_t line,
                                      uint32_t column) {
  const uint32_t lane = lane_id();
  return load_matrices(tile + (line + lane % 16) * kLinePitch<DIM> + column +
                       lane / 16 * 8);
}

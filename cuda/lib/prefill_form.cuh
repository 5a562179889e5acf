// The forms of the attention of a chunk, and what its blocks have in shared
// memory.
#pragma once

#include "row_tiles.cuh"
#include "slots.cuh"
#include "softmax_state.cuh"

// kExact: for few rows. Queries and weights are split in two parts each
// (lib/cached.cuh), which comes near to 32-bit precision or has it; the memory
// that keys come from bounds it, not the products.
//
// kGeneral: queries and weights are rounded to what caches hold.
//
// kPlain: the same without what few policies ask for: queries of their own for
// sinks, votes per query head, scores at a scale of their own. A warp has twice
// the rows, so that operands are read from shared memory half as often.
//
// kGroup: the same on Hopper, by group products: see lib/group_attend.cuh.
enum class PrefillForm { kExact, kGeneral, kPlain, kGroup };

template <int DIM, PrefillForm FORM>
struct PrefillShape {
  static constexpr bool kIsExact = FORM == PrefillForm::kExact;
  static constexpr bool kIsGroup = FORM == PrefillForm::kGroup;
  static constexpr bool kIsPlain = FORM == PrefillForm::kPlain || kIsGroup;
  // Parts that an element of a query is split into.
  static constexpr int kSplits = kIsExact ? 2 : 1;
  static constexpr int kWarps = kIsGroup ? 8 : DIM == 256 && kIsExact ? 2 : 4;
  static constexpr uint32_t kThreads = 32 * kWarps;
  // Tiles of 16 (row, query head) pairs of a warp, and pairs of a block.
  static constexpr int kTiles =
      FORM == PrefillForm::kPlain && DIM <= 128 ? 2 : 1;
  static constexpr int kWarpPairs = 16 * kTiles;
  static constexpr int kPairs = kWarpPairs * kWarps;
  // Slots of a tile.
  static constexpr int kSlots = kIsGroup ? 128 : DIM == 256 ? 32 : 64;
  // Biases that a slot has here.
  static constexpr int kLanes = kIsPlain ? 1 : static_cast<int>(kMaxGroup);
};

// Blocks that share the rows of a chunk.
template <class Shape>
inline uint32_t row_blocks(const skv_chunk_args &args) {
  const uint32_t group = args.sizes.heads / args.sizes.kv_heads;
  const uint32_t rows = Shape::kPairs / group;
  return (args.step.rows + rows - 1) / rows;
}

template <int DIM, PrefillForm FORM>
struct PrefillShared {
  using Shape = PrefillShape<DIM, FORM>;
  skv_cached queries[Shape::kSplits][Shape::kPairs * kLinePitch<DIM>];
  skv_cached keys[Shape::kSlots * kLinePitch<DIM>];
  skv_cached values[Shape::kSlots * kLinePitch<DIM>];
  // log2 of votes.
  float biases[Shape::kLanes][Shape::kSlots];
  bool is_sink[Shape::kSlots];
  // What products of a pair are multiplied by: logits in units of ln 2.
  float inverse[Shape::kPairs];
  // The same for queries of sinks, and what those were multiplied by.
  float sink_inverse[Shape::kIsPlain ? 4 : Shape::kPairs];
  float sink_scale[Shape::kIsPlain ? 4 : Shape::kPairs];

  // Where a part of a query's element is.
  __device__ skv_cached *query(int split, uint32_t pair, uint32_t column) {
    return queries[split] + pair * kLinePitch<DIM> + column;
  }
};

// Where the queries of a block's pairs are: pair p is query head p % group of
// row p / group.
struct PairQueries {
  const float *all;
  uint32_t first_row;
  uint32_t kv_head;
  uint32_t heads;
  uint32_t group;
  uint32_t head_dim;
  uint32_t pairs;

  __device__ uint32_t row(uint32_t pair) const {
    return first_row + pair / group;
  }
  // Index among the queries of all rows.
  __device__ size_t index(uint32_t pair) const {
    return static_cast<size_t>(row(pair)) * heads + kv_head * group +
           pair % group;
  }
  // Two elements; zeros beyond the end and of pairs that are not there.
  __device__ float2 load(uint32_t pair, uint32_t column) const {
    if (pair >= pairs || column >= head_dim) return {0.0f, 0.0f};
    return *reinterpret_cast<const float2 *>(all + index(pair) * head_dim +
                                             column);
  }
};

// Queries that a warp reads at a time.
constexpr int kQueryBatch = 4;

// Reads the queries of a warp's pairs, and calls `use` with a pair, its scale,
// where the elements of this lane are, and the elements: two of every 64.
template <int DIM, int PAIRS, class Use>
__device__ inline void each_query(const PairQueries &queries, Use use) {
  constexpr int kSteps = (DIM + 63) / 64;
  const uint32_t column = 2 * lane_id();
#pragma unroll 1
  for (int first = 0; first < PAIRS; first += kQueryBatch) {
    float2 x[kQueryBatch][kSteps];
#pragma unroll
    for (int k = 0; k < kQueryBatch; k++) {
#pragma unroll
      for (int step = 0; step < kSteps; step++) {
        x[k][step] =
            queries.load(PAIRS * warp_id() + first + k, column + 64 * step);
      }
    }
#pragma unroll
    for (int k = 0; k < kQueryBatch; k++) {
      float largest = 0.0f;
#pragma unroll
      for (int step = 0; step < kSteps; step++) {
        largest =
            fmaxf(largest, fmaxf(fabsf(x[k][step].x), fabsf(x[k][step].y)));
      }
      use(PAIRS * warp_id() + first + k, scale_for(warp_max(largest)), x[k]);
    }
  }
}

// Rounds the queries of a warp's pairs to what caches hold. Shared:
// PrefillShared, or what has its queries somewhere else.
template <int DIM, class Shared>
__device__ inline void round_queries(const PairQueries &queries,
                                     Shared &shared) {
  using Shape = typename Shared::Shape;
  const float unit = rsqrtf(static_cast<float>(queries.head_dim)) * kLog2E;
  each_query<DIM, Shape::kWarpPairs>(
      queries, [&](uint32_t pair, const Scale &scale, const auto &x) {
        if (lane_id() == 0) shared.inverse[pair] = scale.inverse * unit;
#pragma unroll
        for (int step = 0; step < (DIM + 63) / 64; step++) {
          const uint32_t column = 2 * lane_id() + 64 * step;
          if (column >= DIM) continue;
          const SplitPair both =
              split_cached(x[step].x * scale.scale, x[step].y * scale.scale);
          *reinterpret_cast<uint32_t *>(shared.query(0, pair, column)) =
              both.high;
          if constexpr (Shape::kIsExact) {
            *reinterpret_cast<uint32_t *>(shared.query(1, pair, column)) =
                both.low;
          }
        }
      });
}

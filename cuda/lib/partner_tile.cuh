// Slots of a head's list compared with those that know no partner, a tile at a
// time: see lib/partners.cuh.
#pragma once

#include "pair_job.cuh"
#include "row_tiles.cuh"
#include "shared_vector.cuh"

static_assert(kPartnerTile == 8 * kPairWarps, "eight slots per warp");

// Slots that these are compared with: so many are fetched at a time, and so
// many are the rows of a product.
constexpr uint32_t kPartnerRows = 32;
constexpr uint32_t kProductRows = 16;

// A slot that a warp has, and what it remembers where that is not compared
// again.
struct PartnerColumn {
  uint32_t number;
  uint32_t position;
  Neighbour known;
};

template <int DIM>
struct PartnersShared {
  // Keys and values of the rows, their squares, and what slots they are.
  skv_cached rows[2][kPartnerRows * kLinePitch<DIM>];
  float squares[2][kPartnerRows];
  uint32_t numbers[kPartnerRows];
  uint32_t positions[kPartnerRows];
  PartnerColumn columns[kPartnerTile];
  // What each warp found for them.
  Neighbour found[kPartnerRows][kPairWarps];
  bool is_last;
  LowestShared<kPairWarps> lowest;
};

// Fetches the slots from place `first` of the list to place `end`. Called by
// the whole block, which synchronizes afterwards.
template <int DIM, bool ALIGNED>
__device__ inline void fetch_rows(const skv_merge_attend_args &args,
                                  const PairJob &work, uint32_t first,
                                  uint32_t end, PartnersShared<DIM> &shared) {
  constexpr uint32_t kChunks = DIM / 8;
#pragma unroll
  for (uint32_t i = threadIdx.x; i < 2 * kPartnerRows * kChunks;
       i += kPairThreads) {
    const uint32_t kind = i / (kPartnerRows * kChunks);
    const uint32_t row = i / kChunks % kPartnerRows, d = i % kChunks * 8;
    uint32_t words[4] = {};
    if (first + row < end) {
      const Slot slot = work.slot(args, work.list[first + row]);
      load_pairs<8, ALIGNED>(words, kind == 0 ? slot.key : slot.value, d,
                             args.sizes.head_dim);
    }
    *reinterpret_cast<uint4 *>(shared.rows[kind] + row * kLinePitch<DIM> +
                               d) = {words[0], words[1], words[2], words[3]};
    const float square = sum_of_lanes<kChunks>(square_of(words));
    if (d == 0) shared.squares[kind][row] = square;
  }
  if (threadIdx.x >= kPartnerRows) return;
  const uint32_t place = first + threadIdx.x;
  const bool exists = place < end;
  const uint32_t number = exists ? work.list[place] : kNoItem;
  shared.numbers[threadIdx.x] = number;
  shared.positions[threadIdx.x] =
      exists ? work.slot(args, number).word(kSlotPosition) : 0;
}

// Adds the products of kProductRows rows with the vectors of a warp, of which
// each lane has a part of one; returns the square of that.
template <int DIM, bool ALIGNED>
__device__ inline float multiply_rows(float (&x)[4], const skv_cached *rows,
                                      const skv_cached *vector,
                                      uint32_t head_dim) {
  const uint32_t d = shared_column();
  const skv_cached *own = rows + lane_id() / 4 * kLinePitch<DIM> + d;
  float squares[DIM / 32];
#pragma unroll
  for (int c = 0; c < DIM; c += 32) {
    uint32_t words[4];
    load_pairs<8, ALIGNED>(words, vector, c + d, head_dim);
    squares[c / 32] = square_of(words);
    const uint4 a = *reinterpret_cast<const uint4 *>(own + c);
    const uint4 b =
        *reinterpret_cast<const uint4 *>(own + 8 * kLinePitch<DIM> + c);
    mma_cached(x, {a.x, b.x, a.y, b.y}, words[0], words[1]);
    mma_cached(x, {a.z, b.z, a.w, b.w}, words[2], words[3]);
  }
  return sum_shared(squares);
}

// The slot at a place in the list.
__device__ inline PartnerColumn column_of(const skv_merge_attend_args &args,
                                          const PairJob &work, uint32_t place) {
  const uint32_t lanes = args.cache.lanes;
  const uint32_t number = work.list[place];
  const Slot slot = work.slot(args, number);
  PartnerColumn column = {number, slot.word(kSlotPosition), kNoNeighbour};
  const uint32_t word = partner_word(slot, lanes);
  if (word == 0) return column;
  const Slot partner = work.slot(args, word - 1);
  // Who knows none is one of the rows.
  if (partner_word(partner, lanes) != 0) {
    column.known = {-partner_distance(slot, lanes), partner.word(kSlotPosition),
                    word - 1};
  }
  return column;
}

// Whether the slot at a place knows no partner and is not shared: who has it as
// a column compares it with all.
__device__ inline bool is_own(const PairJob &work, uint32_t place) {
  return place >= work.shared && place < work.alone;
}

// Compares rows of a product, from line `line` of those that were fetched from
// place `first_row` on, with the columns of a warp from place `first_column` on
// and keeps what is nearest: for the rows in shared memory, for the lane's two
// columns in `nearest`. Called by a whole warp.
template <int DIM, bool ALIGNED>
__device__ inline void compare_rows(const skv_merge_attend_args &args,
                                    const PairJob &work, const PairCosts &costs,
                                    uint32_t first_row, uint32_t line,
                                    uint32_t first_column,
                                    PartnersShared<DIM> &shared,
                                    Neighbour (&nearest)[2]) {
  const PartnerColumn *columns = shared.columns + 8 * warp_id();
  const uint32_t g = lane_id() / 4, t = lane_id() % 4;
  const uint32_t own = columns[g].number;
  const Slot slot = work.slot(args, own == kNoItem ? 0 : own);
  float products[2][4] = {};
  // Of columns 2 t and 2 t + 1.
  float column_squares[2][2];
#pragma unroll
  for (int kind = 0; kind < 2; kind++) {
    const float square = multiply_rows<DIM, ALIGNED>(
        products[kind], shared.rows[kind] + line * kLinePitch<DIM>,
        kind == 0 ? slot.key : slot.value, args.sizes.head_dim);
#pragma unroll
    for (int c = 0; c < 2; c++) {
      column_squares[kind][c] = __shfl_sync(kAllLanes, square, 4 * (2 * t + c));
    }
  }
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const uint32_t r = line + g + 8 * h;
    const uint32_t number = shared.numbers[r];
    Neighbour best = kNoNeighbour;
#pragma unroll
    for (int c = 0; c < 2; c++) {
      const PartnerColumn &column = columns[2 * t + c];
      if (number == kNoItem || column.number == kNoItem) continue;
      if (number == column.number) continue;
      float squares[2];
#pragma unroll
      for (int kind = 0; kind < 2; kind++) {
        const float both = shared.squares[kind][r] + column_squares[kind][c];
        const float product = products[kind][2 * h + c];
        squares[kind] = fmaxf(0.0f, both - 2.0f * product);
      }
      const float distance = costs.distance(squares[0], squares[1]);
      const Neighbour other = {-distance, column.position, column.number};
      if (other.beats(best)) best = other;
      const Neighbour row = {-distance, shared.positions[r], number};
      // Others are compared with all elsewhere.
      const bool searches = is_own(work, first_column + 2 * t + c);
      const bool is_alone = first_row + r < work.alone;
      if ((searches || is_alone) && row.beats(nearest[c])) nearest[c] = row;
    }
    best = nearest_of_lanes<2>(best);
    if (t == 0) shared.found[r][warp_id()] = best;
  }
}

// Leaves what the warps found for the rows from place `first` on, a lane for
// each warp and row; `before` says whether this part of the list has left
// something for them already.
template <int DIM>
__device__ inline void leave_rows(const skv_merge_attend_args &args,
                                  const PairJob &work, uint32_t part,
                                  uint32_t first, bool before,
                                  const PartnersShared<DIM> &shared) {
  static_assert(kPartnerRows * kPairWarps == kPairThreads, "a lane for each");
  const uint32_t row = threadIdx.x / kPairWarps;
  Neighbour best = nearest_of_lanes<kPairWarps / 2>(
      shared.found[row][threadIdx.x % kPairWarps]);
  if (threadIdx.x % kPairWarps != 0 || first + row >= work.shared) return;
  uint2 *const to = work.found_by(part) + first + row;
  if (before) {
    const Neighbour other = load_found(args, work, to);
    if (other.beats(best)) best = other;
  }
  store_found(to, best);
}

// The square of the difference of two vectors; four lanes share them.
template <int DIM, bool ALIGNED>
__device__ inline float difference_of(const skv_cached *vector,
                                      const skv_cached *other,
                                      uint32_t head_dim) {
  float squares[DIM / 32];
#pragma unroll
  for (int c = 0; c < DIM / 32; c++) {
    const uint32_t d = 32 * c + shared_column();
    uint32_t mine[4], theirs[4];
    load_pairs<8, ALIGNED>(mine, vector, d, head_dim);
    load_pairs<8, ALIGNED>(theirs, other, d, head_dim);
    squares[c] = square_of(mine, theirs);
  }
  return sum_shared(squares);
}

// How far two slots are apart, by differences, which lose nothing where they
// are close; four lanes share them. Called by a whole warp.
template <int DIM, bool ALIGNED>
__device__ inline float distance_of(const skv_merge_attend_args &args,
                                    const PairCosts &costs, const Slot &a,
                                    const Slot &b) {
  const uint32_t head_dim = args.sizes.head_dim;
  const float keys = difference_of<DIM, ALIGNED>(a.key, b.key, head_dim);
  const float values = difference_of<DIM, ALIGNED>(a.value, b.value, head_dim);
  return costs.distance(keys, values);
}

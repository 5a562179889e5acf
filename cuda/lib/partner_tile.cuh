// Slots of a head's list compared with those that know no partner, a tile at a
// time, and with what they remember: see lib/partners.cuh.
#pragma once

#include "cheapest_pair.cuh"
#include "row_tiles.cuh"
#include "shared_vector.cuh"

static_assert(kPartnerTile == 8 * kPairWarps, "eight slots per warp");

// Slots that these are compared with at a time.
constexpr uint32_t kPartnerRows = 16;

// A slot that a warp has, and what it remembers.
struct PartnerColumn {
  uint32_t number;
  uint32_t position;
  // Of its key and of its value.
  float squares[2];
  BestTwo known;
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
  BestTwo found[kPartnerRows][kPairWarps];
  bool is_last;
  CheapestShared cheapest;
};

// Whether another slot is to be put before one of those that a slot remembers:
// what is farther is not known to be the next.
__device__ inline bool comes_before(const Neighbour &other,
                                    const BestTwo &known) {
  if (!known.first.exists()) return false;
  if (other.item == known.first.item || other.item == known.second.item) {
    return false;
  }
  return other.beats(known.second.exists() ? known.second : known.first);
}

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

// Adds the products of all rows with the vectors of a warp, of which each lane
// has a part of one.
template <int DIM, bool ALIGNED>
__device__ inline void multiply_rows(float (&x)[4], const skv_cached *rows,
                                     const skv_cached *vector,
                                     uint32_t head_dim) {
  const uint32_t d = shared_column();
  const skv_cached *own = rows + lane_id() / 4 * kLinePitch<DIM> + d;
#pragma unroll
  for (int c = 0; c < DIM; c += 32) {
    const uint4 a = *reinterpret_cast<const uint4 *>(own + c);
    const uint4 b =
        *reinterpret_cast<const uint4 *>(own + 8 * kLinePitch<DIM> + c);
    uint32_t words[4];
    load_pairs<8, ALIGNED>(words, vector, c + d, head_dim);
    mma_cached(x, {a.x, b.x, a.y, b.y}, words[0], words[1]);
    mma_cached(x, {a.z, b.z, a.w, b.w}, words[2], words[3]);
  }
}

// The square of a vector, and of its differences from two others.
struct Squares {
  float own;
  float nearest;
  float next;
};

// Finds them; four lanes share each vector.
template <int DIM, bool ALIGNED>
__device__ inline Squares squares_of(const skv_cached *vector,
                                     const skv_cached *nearest,
                                     const skv_cached *next,
                                     uint32_t head_dim) {
  float squares[DIM / 32], near[DIM / 32], far[DIM / 32];
#pragma unroll
  for (int c = 0; c < DIM / 32; c++) {
    const uint32_t d = 32 * c + shared_column();
    uint32_t own[4], other[4];
    load_pairs<8, ALIGNED>(own, vector, d, head_dim);
    squares[c] = square_of(own);
    load_pairs<8, ALIGNED>(other, nearest, d, head_dim);
    near[c] = square_of(own, other);
    load_pairs<8, ALIGNED>(other, next, d, head_dim);
    far[c] = square_of(own, other);
  }
  return {sum_shared(squares), sum_shared(near), sum_shared(far)};
}

// The slot at a place in the list, compared with what it remembers. Four lanes
// share it.
template <int DIM, bool ALIGNED>
__device__ inline PartnerColumn column_of(const skv_merge_attend_args &args,
                                          const PairJob &work,
                                          const PairCosts &costs,
                                          uint32_t place) {
  const uint32_t head_dim = args.sizes.head_dim;
  const uint32_t number = work.list[place];
  const Slot slot = work.slot(args, number);
  const uint32_t field = kSlotBias + args.cache.lanes;
  const uint32_t nearest = slot.word(field) - 1;
  const uint32_t next = slot.word(field + 1) - 1;
  // Who knows none looks at itself, and forgets it.
  const Slot a = work.slot(args, nearest == kNoItem ? number : nearest);
  const Slot b = work.slot(args, next == kNoItem ? number : next);
  const Squares keys =
      squares_of<DIM, ALIGNED>(slot.key, a.key, b.key, head_dim);
  const Squares values =
      squares_of<DIM, ALIGNED>(slot.value, a.value, b.value, head_dim);
  PartnerColumn column = {
      number, slot.word(kSlotPosition), {keys.own, values.own}, kNoneFound};
  if (nearest != kNoItem) {
    column.known.add({-costs.distance(keys.nearest, values.nearest),
                      a.word(kSlotPosition), nearest});
  }
  if (next != kNoItem) {
    column.known.add(
        {-costs.distance(keys.next, values.next), b.word(kSlotPosition), next});
  }
  return column;
}

// Whether the slot at a place knows no partner and is not shared: who has it as
// a column compares it with all.
__device__ inline bool is_own(const PairJob &work, uint32_t place) {
  return place >= work.shared && place < work.alone;
}

// Compares the rows from place `first_row` on with the columns of a warp
// from place `first_column` on and keeps what is nearest: for the rows in
// shared memory, for the lane's two columns in `nearest`. Called by a whole
// warp.
template <int DIM, bool ALIGNED>
__device__ inline void compare_rows(const skv_merge_attend_args &args,
                                    const PairJob &work, const PairCosts &costs,
                                    uint32_t first_row, uint32_t first_column,
                                    PartnersShared<DIM> &shared,
                                    BestTwo (&nearest)[2]) {
  const PartnerColumn *columns = shared.columns + 8 * warp_id();
  const uint32_t g = lane_id() / 4, t = lane_id() % 4;
  const uint32_t own = columns[g].number;
  const Slot slot = work.slot(args, own == kNoItem ? 0 : own);
  float products[2][4] = {};
  multiply_rows<DIM, ALIGNED>(products[0], shared.rows[0], slot.key,
                              args.sizes.head_dim);
  multiply_rows<DIM, ALIGNED>(products[1], shared.rows[1], slot.value,
                              args.sizes.head_dim);
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const uint32_t r = g + 8 * h;
    const uint32_t number = shared.numbers[r];
    BestTwo best = kNoneFound;
#pragma unroll
    for (int c = 0; c < 2; c++) {
      const PartnerColumn &column = columns[2 * t + c];
      if (number == kNoItem || column.number == kNoItem) continue;
      if (number == column.number) continue;
      float squares[2];
#pragma unroll
      for (int kind = 0; kind < 2; kind++) {
        const float both = shared.squares[kind][r] + column.squares[kind];
        squares[kind] = fmaxf(0.0f, both - 2.0f * products[kind][2 * h + c]);
      }
      const float distance = costs.distance(squares[0], squares[1]);
      best.add({-distance, column.position, column.number});
      const Neighbour row = {-distance, shared.positions[r], number};
      // The others are compared with all elsewhere.
      const bool searches = is_own(work, first_column + 2 * t + c);
      const bool is_alone = first_row + r < work.alone;
      if (searches || (is_alone && comes_before(row, column.known))) {
        nearest[c].add(row);
      }
    }
    best = best_two_of_lanes<1, 2>(best);
    if (t == 0) shared.found[r][warp_id()] = best;
  }
}

// Leaves what the warps found for the rows from place `first` on, a lane for
// each warp and row; `before` says whether this part of the list has left
// something for them already.
template <int DIM>
__device__ inline void leave_rows(const skv_merge_attend_args &args,
                                  const PairJob &work, uint32_t first,
                                  bool before,
                                  const PartnersShared<DIM> &shared) {
  if (threadIdx.x >= kPartnerRows * kPairWarps) return;
  const uint32_t row = threadIdx.x / kPairWarps;
  BestTwo best = best_two_of_lanes<1, kPairWarps / 2>(
      shared.found[row][threadIdx.x % kPairWarps]);
  if (threadIdx.x % kPairWarps != 0 || first + row >= work.shared) return;
  uint4 *const to = work.found_by(blockIdx.x) + first + row;
  if (before) best.join(load_found(args, work, to));
  store_found(to, best);
}

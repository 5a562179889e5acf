// Slots of a head's list compared with those that know no partner, a tile at a
// time, and with what they remember: see lib/partners.cuh.
#pragma once

#include "evict_job.cuh"
#include "neighbour.cuh"
#include "pair_costs.cuh"
#include "row_tiles.cuh"
#include "vector_strip.cuh"

constexpr uint32_t kPartnerWarps = 4;
constexpr uint32_t kPartnerThreads = 32 * kPartnerWarps;

static_assert(kPartnerTile == 8 * kPartnerWarps, "eight slots per warp");

// Slots without a partner that these are compared with at a time.
constexpr uint32_t kAloneRows = 16;

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
  skv_cached rows[2][kAloneRows * kLinePitch<DIM>];
  float squares[2][kAloneRows];
  uint32_t numbers[kAloneRows];
  uint32_t positions[kAloneRows];
  PartnerColumn columns[kPartnerTile];
  // What each warp found for them.
  BestTwo found[kAloneRows][kPartnerWarps];
};

// A head whose slots look for partners.
struct PartnerJob {
  EvictJob job;
  const uint32_t *list;
  // By place in the list, for the first and for this part of it.
  uint4 *found;
  uint4 *own_found;
  // How many slots are listed, and how many of them know no partner.
  uint32_t count;
  uint32_t alone;
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

// Fetches the slots without a partner from place `first` of the list. Called by
// the whole block, which synchronizes afterwards.
template <int DIM, bool ALIGNED>
__device__ inline void fetch_rows(const skv_merge_attend_args &args,
                                  const PartnerJob &work, uint32_t first,
                                  PartnersShared<DIM> &shared) {
  constexpr uint32_t kChunks = DIM / 8;
#pragma unroll
  for (uint32_t i = threadIdx.x; i < 2 * kAloneRows * kChunks;
       i += kPartnerThreads) {
    const uint32_t kind = i / (kAloneRows * kChunks);
    const uint32_t row = i / kChunks % kAloneRows, d = i % kChunks * 8;
    uint32_t words[4] = {};
    if (first + row < work.alone) {
      const Slot slot = work.job.slot(args, work.list[first + row]);
      load_pairs<8, ALIGNED>(words, kind == 0 ? slot.key : slot.value, d,
                             args.sizes.head_dim);
    }
    *reinterpret_cast<uint4 *>(shared.rows[kind] + row * kLinePitch<DIM> +
                               d) = {words[0], words[1], words[2], words[3]};
    const float square = sum_of_chunks<kChunks>(square_of(words));
    if (d == 0) shared.squares[kind][row] = square;
  }
  if (threadIdx.x >= kAloneRows) return;
  const uint32_t place = first + threadIdx.x;
  const bool exists = place < work.alone;
  const uint32_t number = exists ? work.list[place] : kNoItem;
  shared.numbers[threadIdx.x] = number;
  shared.positions[threadIdx.x] =
      exists ? work.job.slot(args, number).word(kSlotPosition) : 0;
}

// Products of all rows with the vectors of a warp.
template <int DIM>
__device__ inline void multiply_strip(float (&x)[4], const skv_cached *rows,
                                      const VectorStrip<DIM> &strip) {
  const skv_cached *own =
      rows + lane_id() / 4 * kLinePitch<DIM> + lane_id() % 4 * 8;
#pragma unroll
  for (int c = 0; c < DIM / 32; c++) {
    const uint4 a = *reinterpret_cast<const uint4 *>(own + 32 * c);
    const uint4 b =
        *reinterpret_cast<const uint4 *>(own + 8 * kLinePitch<DIM> + 32 * c);
    mma_cached(x, {a.x, b.x, a.y, b.y}, strip.words[c][0], strip.words[c][1]);
    mma_cached(x, {a.z, b.z, a.w, b.w}, strip.words[c][2], strip.words[c][3]);
  }
}

// What was found for a slot as it is stored, and back. Positions are left out.
__device__ inline uint4 pack_found(const BestTwo &best) {
  return {__float_as_uint(best.first.similarity), best.first.item,
          __float_as_uint(best.second.similarity), best.second.item};
}

template <class PositionOf>
__device__ inline BestTwo unpack_found(const uint4 &words,
                                       PositionOf position_of) {
  BestTwo best;
  best.first = {__uint_as_float(words.x), 0, words.y};
  best.second = {__uint_as_float(words.z), 0, words.w};
  if (best.first.exists()) best.first.position = position_of(words.y);
  if (best.second.exists()) best.second.position = position_of(words.w);
  return best;
}

// The slot at a place in the list, compared with what it remembers. Four lanes
// share it.
template <int DIM, bool ALIGNED>
__device__ inline PartnerColumn column_of(const skv_merge_attend_args &args,
                                          const PartnerJob &work,
                                          const PairCosts &costs,
                                          uint32_t place) {
  const uint32_t head_dim = args.sizes.head_dim;
  const uint32_t number = work.list[place];
  const Slot slot = work.job.slot(args, number);
  PartnerColumn column = {number, slot.word(kSlotPosition), {}, kNoneFound};
  uint32_t items[2];
  float squares[2][2];
#pragma unroll
  for (int i = 0; i < 2; i++) {
    items[i] = slot.word(kSlotBias + args.cache.lanes + i) - 1;
  }
#pragma unroll
  for (int kind = 0; kind < 2; kind++) {
    VectorStrip<DIM> own, other;
    own.template load<ALIGNED>(kind == 0 ? slot.key : slot.value, head_dim);
    column.squares[kind] = own.square();
#pragma unroll
    for (int i = 0; i < 2; i++) {
      // Who knows none looks at itself, and forgets it.
      const Slot known =
          work.job.slot(args, items[i] == kNoItem ? number : items[i]);
      other.template load<ALIGNED>(kind == 0 ? known.key : known.value,
                                   head_dim);
      squares[i][kind] = own.distance(other);
    }
  }
#pragma unroll
  for (int i = 0; i < 2; i++) {
    if (items[i] == kNoItem) continue;
    column.known.add({-costs.distance(squares[i][0], squares[i][1]),
                      work.job.slot(args, items[i]).word(kSlotPosition),
                      items[i]});
  }
  return column;
}

// Compares the rows with the columns of a warp and keeps what is nearest: for
// the rows in shared memory, for the lane's two columns in `nearest`. Called by
// a whole warp.
template <int DIM, bool ALIGNED>
__device__ inline void compare_rows(const skv_merge_attend_args &args,
                                    const PartnerJob &work,
                                    const PairCosts &costs,
                                    PartnersShared<DIM> &shared,
                                    BestTwo (&nearest)[2]) {
  const PartnerColumn *columns = shared.columns + 8 * warp_id();
  const uint32_t g = lane_id() / 4, t = lane_id() % 4;
  const uint32_t own = columns[g].number;
  const Slot slot = work.job.slot(args, own == kNoItem ? 0 : own);
  float products[2][4] = {};
#pragma unroll
  for (int kind = 0; kind < 2; kind++) {
    VectorStrip<DIM> strip;
    strip.template load<ALIGNED>(kind == 0 ? slot.key : slot.value,
                                 args.sizes.head_dim);
    multiply_strip(products[kind], shared.rows[kind], strip);
  }
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
      if (comes_before(row, column.known)) nearest[c].add(row);
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
                                  const PartnerJob &work, uint32_t first,
                                  bool before,
                                  const PartnersShared<DIM> &shared) {
  if (threadIdx.x >= kAloneRows * kPartnerWarps) return;
  const uint32_t row = threadIdx.x / kPartnerWarps;
  BestTwo best = best_two_of_lanes<1, kPartnerWarps / 2>(
      shared.found[row][threadIdx.x % kPartnerWarps]);
  if (threadIdx.x % kPartnerWarps != 0 || first + row >= work.alone) return;
  uint4 *const to = work.own_found + first + row;
  if (before) {
    best.join(unpack_found(*to, [&](uint32_t i) {
      return work.job.slot(args, i).word(kSlotPosition);
    }));
  }
  *to = pack_found(best);
}

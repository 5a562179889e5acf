// The most similar candidate of each of 16 queries, while products with tiles
// of candidates go by. Lanes have the products that mma() deals them: four
// lanes share a query, whose rows are `h`.
//
// Products are scaled by the candidate's inverse norm alone, as the query's is
// the same for all, and only the largest of a tile is compared with the best so
// far, of all four lanes. The warp asks which candidate it was in the few tiles
// that have a better one. The alternative that lost: each lane compares with
// its own best, which takes four times as long to settle.
#pragma once

#include "neighbour.cuh"

// What is known of a tile of candidates beside their keys.
template <uint32_t CANDIDATES>
struct CandidateSide {
  // Null where there is none.
  const skv_cached *keys[CANDIDATES];
  // 1 / |key|, or not a number where there is none: no maximum is one.
  float inverse_norms[CANDIDATES];
  uint32_t positions[CANDIDATES];
  uint32_t ordinals[CANDIDATES];
};

__device__ inline float not_a_number() { return __uint_as_float(0x7fc00000); }

template <uint32_t CANDIDATES>
class ClosestKeys {
 public:
  using Side = CandidateSide<CANDIDATES>;
  using Products = float[CANDIDATES / 8][4];

  // Rows that have no query find nothing.
  __device__ void begin(bool has_first, bool has_second) {
    limits_[0] = has_first ? -INFINITY : INFINITY;
    limits_[1] = has_second ? -INFINITY : INFINITY;
    items_[0] = items_[1] = kNoItem;
  }

  // Takes the products of the warp's queries, the first of which is candidate
  // `query`, with themselves out of a tile whose first candidate is `first`.
  __device__ static void leave_out(Products &x, uint32_t query,
                                   uint32_t first) {
    if (query >= first + CANDIDATES || first >= query + 16) return;
    const uint32_t own = query - first + lane_id() / 4, t = lane_id() % 4;
#pragma unroll
    for (uint32_t n = 0; n < CANDIDATES / 8; n++) {
#pragma unroll
      for (uint32_t i = 0; i < 4; i++) {
        if (8 * n + 2 * t + i % 2 == own + i / 2 * 8) x[n][i] = not_a_number();
      }
    }
  }

  // Adds a tile. `lists.position(item)` is the position of a candidate.
  template <class Lists>
  __device__ void add(const Products &x, const Side &side, const Lists &lists) {
    const uint32_t t = lane_id() % 4;
    float largest[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (uint32_t n = 0; n < CANDIDATES / 8; n++) {
      const float2 inverse =
          *reinterpret_cast<const float2 *>(side.inverse_norms + 8 * n + 2 * t);
#pragma unroll
      for (int h = 0; h < 2; h++) {
        largest[h] = fmaxf(largest[h], x[n][2 * h] * inverse.x);
        largest[h] = fmaxf(largest[h], x[n][2 * h + 1] * inverse.y);
      }
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
      if (!__any_sync(kAllLanes, largest[h] >= limits_[h])) continue;
      // Scaled products are made again: keeping them takes too many registers.
      __syncwarp();
      if (largest[h] >= limits_[h]) {
        find(h, x, side, largest[h], lists);
      }
      const float best = quad_max(fmaxf(largest[h], limits_[h]));
      // Who is beaten forgets.
      if (best > limits_[h] && largest[h] < best) items_[h] = kNoItem;
      limits_[h] = best;
    }
  }

  // The best of row `h`; `lists.inverse_norm(item)` is 1 / |key|, and the
  // query's is `inverse`. The product of the two norms comes first: the
  // similarity of two keys is the same whichever of them is the query.
  template <class Lists>
  __device__ Neighbour nearest(int h, float inverse, const Lists &lists) const {
    Neighbour own = {-INFINITY, 0, items_[h]};
    if (own.exists()) {
      own.similarity = products_[h] * (inverse * lists.inverse_norm(own.item));
      own.position = lists.position(own.item);
    }
    return nearest_of_lanes<2>(own);
  }

 private:
  __device__ static float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, 1));
    return fmaxf(x, __shfl_xor_sync(kAllLanes, x, 2));
  }

  // Finds which candidate of row `h` it was, of those of this lane. Ties go to
  // the lower position, whatever order candidates come in.
  template <class Lists>
  __device__ void find(int h, const Products &x, const Side &side,
                       float largest, const Lists &lists) {
    const uint32_t t = lane_id() % 4;
    const bool is_tied = largest == limits_[h] && items_[h] != kNoItem;
    uint32_t position = is_tied ? lists.position(items_[h]) : kNoItem;
    uint32_t found = CANDIDATES;
#pragma unroll
    for (uint32_t n = 0; n < CANDIDATES / 8; n++) {
#pragma unroll
      for (uint32_t i = 0; i < 2; i++) {
        const uint32_t c = 8 * n + 2 * t + i;
        const float product = x[n][2 * h + i];
        if (product * side.inverse_norms[c] != largest) continue;
        if (side.positions[c] >= position) continue;
        position = side.positions[c];
        products_[h] = product;
        found = c;
      }
    }
    if (found < CANDIDATES) items_[h] = side.ordinals[found];
  }

  // The largest scaled product of a row; lanes that have an item have one that
  // is as large.
  float limits_[2];
  // Of what this lane has found.
  float products_[2];
  uint32_t items_[2];
};

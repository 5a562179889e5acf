// The cheapest candidate to merge with for each of 16 queries, while products
// of keys and of values with tiles of candidates go by. Lanes have the products
// that mma() deals them: four lanes share a query, whose rows are `h`.
//
// A cost has an exponential and a logarithm, but most pairs are not near the
// cheapest so far. For a query `a` the cost of a candidate `b` is, but for a
// factor that all candidates share, D / (1 + exp(wₐ − w_b)); so who costs less
// than the limit c has D < c + c exp(wₐ − r) · exp(r − w_b), for any r. That is
// one more multiplication per pair. Only those that pass, with some room for
// rounding, are priced. The alternative that lost: each pair is priced, which
// takes six times as long as all products.
#pragma once

#include "neighbour.cuh"
#include "pair_costs.cuh"

// What is known of a tile of candidates beside their keys and values.
template <uint32_t CANDIDATES>
struct PairSide {
  // What the squares of keys and then of values count, of two candidates next
  // to each other; infinity where there is none.
  float4 squares[CANDIDATES / 2];
  // exp(r − w), of the same two.
  float2 factors[CANDIDATES / 2];
  float weights[CANDIDATES];
  uint32_t positions[CANDIDATES];
  // kNoItem where there is none.
  uint32_t items[CANDIDATES];

  // Sets what candidate `c` is.
  __device__ void set(uint32_t c, float reference, float weight,
                      uint32_t position, uint32_t item) {
    reinterpret_cast<float *>(factors)[c] = weight_ratio(reference - weight);
    weights[c] = weight;
    positions[c] = position;
    items[c] = item;
  }
  // Sets its squares, after that.
  __device__ void set_key_square(uint32_t c, const PairCosts &costs, float x) {
    reinterpret_cast<float *>(squares + c / 2)[c % 2] =
        items[c] != kNoItem ? costs.keys * x : INFINITY;
  }
  __device__ void set_value_square(uint32_t c, const PairCosts &costs,
                                   float x) {
    reinterpret_cast<float *>(squares + c / 2)[2 + c % 2] = costs.values * x;
  }

  // exp(x), or somewhat more where that were next to nothing: limits are then
  // wider than they need be.
  __device__ static float weight_ratio(float x) {
    constexpr float kLeast = -80.0f;
    return expf(fmaxf(x, kLeast));
  }
};

// A query; `exists` or it finds nothing.
struct PairQuery {
  bool exists;
  float weight;
  uint32_t position;
  float squares[2];
};

template <uint32_t CANDIDATES>
class CheapestPairs {
 public:
  using Side = PairSide<CANDIDATES>;
  using Products = float[CANDIDATES / 8][4];

  // `reference` is r.
  __device__ void begin(const PairCosts &costs, float reference,
                        const PairQuery (&queries)[2]) {
    key_scale_ = -2.0f * costs.keys;
    value_scale_ = -2.0f * costs.values;
    least_value_ = costs.is_product ? 1.0f : 0.0f;
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const PairQuery &query = queries[h];
      weights_[h] = query.weight;
      positions_[h] = query.position;
      keys_[h] = costs.keys * query.squares[0];
      values_[h] = costs.values * query.squares[1] + least_value_;
      factors_[h] = Side::weight_ratio(query.weight - reference);
      set_limit(h, query.exists ? INFINITY : -INFINITY);
      best_[h] = kNoNeighbour;
    }
  }

  // Adds a tile. Where it `is_mixed`, only candidates count that are heavier
  // than the query.
  __device__ void add(const Products &keys, const Products &values,
                      const Side &side, bool is_mixed) {
#pragma unroll
    for (int part = 0; part < kParts; part++) {
      bool is_near[2];
      if (least_value_ > 0.0f) {
        look<true>(part, keys, values, side, is_near);
      } else {
        look<false>(part, keys, values, side, is_near);
      }
#pragma unroll
      for (int h = 0; h < 2; h++) {
        if (!__any_sync(kAllLanes, is_near[h])) continue;
        price(h, part, keys, values, side, is_mixed);
        // All four lanes have the limit of the best.
        float limit = limits_[h];
        limit = fminf(limit, __shfl_xor_sync(kAllLanes, limit, 1));
        set_limit(h, fminf(limit, __shfl_xor_sync(kAllLanes, limit, 2)));
      }
    }
  }

  // The best of row `h`, by the negative of the cost.
  __device__ Neighbour best(int h) const {
    return nearest_of_lanes<2>(best_[h]);
  }

 private:
  // Candidates are looked at in parts: those that are priced are few.
  static constexpr int kPartTiles = 4;
  static constexpr int kParts = CANDIDATES / 8 / kPartTiles;
  // A limit is this much more than the cost that it stands for.
  static constexpr float kRoom = 1.0001f;

  __device__ void set_limit(int h, float limit) {
    limits_[h] = limit;
    scaled_limits_[h] = limit * factors_[h];
  }

  // What the squared distances of a pair count. Rounding may take either below
  // what it is at least, and their distance with it.
  template <bool PRODUCT>
  __device__ float distance(float keys, float values, int h, float key_square,
                            float value_square) const {
    const float k = fmaf(key_scale_, keys, keys_[h] + key_square);
    const float v = fmaf(value_scale_, values, values_[h] + value_square);
    return PRODUCT ? k * v : k + v;
  }

  // Whether any pair of a part may be better than the best so far.
  template <bool PRODUCT>
  __device__ void look(int part, const Products &keys, const Products &values,
                       const Side &side, bool (&is_near)[2]) const {
    const uint32_t t = lane_id() % 4;
    is_near[0] = is_near[1] = false;
#pragma unroll
    for (int n = kPartTiles * part; n < kPartTiles * (part + 1); n++) {
      const float4 squares = side.squares[4 * n + t];
      const float2 factors = side.factors[4 * n + t];
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int h = i / 2;
        const float d = distance<PRODUCT>(keys[n][i], values[n][i], h,
                                          i % 2 == 0 ? squares.x : squares.y,
                                          i % 2 == 0 ? squares.z : squares.w);
        const float factor = i % 2 == 0 ? factors.x : factors.y;
        // What is no number is not known to be worse.
        is_near[h] |= !(d > fmaf(scaled_limits_[h], factor, limits_[h]));
      }
    }
  }

  // Prices the pairs of a part that may be better, the least distances first,
  // which leave few others.
  __device__ void price(int h, int part, const Products &keys,
                        const Products &values, const Side &side,
                        bool is_mixed) {
    constexpr int kPairs = 2 * kPartTiles;
    const uint32_t t = lane_id() % 4;
    const auto place = [&](uint32_t k) {
      return 8 * (kPartTiles * part + k / 2) + 2 * t + k % 2;
    };
    uint32_t left = (1u << kPairs) - 1;
    for (int k = 0; is_mixed && k < kPairs; k++) {
      if (!is_heavier(side, place(k), h)) left &= ~(1u << k);
    }
    while (true) {
      float least = INFINITY;
      uint32_t found = kPairs;
#pragma unroll
      for (int k = 0; k < kPairs; k++) {
        const int n = kPartTiles * part + k / 2;
        const float4 squares = side.squares[4 * n + t];
        const float2 factors = side.factors[4 * n + t];
        const float x = fmaf(key_scale_, keys[n][2 * h + k % 2],
                             keys_[h] + (k % 2 == 0 ? squares.x : squares.y));
        const float y = fmaf(value_scale_, values[n][2 * h + k % 2],
                             values_[h] + (k % 2 == 0 ? squares.z : squares.w));
        const float d = whole_distance(x, y);
        const float factor = k % 2 == 0 ? factors.x : factors.y;
        const bool is_worse = d > fmaf(scaled_limits_[h], factor, limits_[h]);
        const bool is_found = !is_worse & (left >> k & 1) != 0 & d < least;
        least = is_found ? d : least;
        found = is_found ? k : found;
      }
      if (found == kPairs) return;
      left &= ~(1u << found);
      add(h, least, side, place(found));
    }
  }

  // The distance that parts make which rounding may have taken too low.
  __device__ float whole_distance(float key, float value) const {
    key = fmaxf(key, 0.0f);
    value = fmaxf(value, least_value_);
    return fmaxf(least_value_ > 0.0f ? key * value : key + value,
                 kLeastDistance);
  }

  // Whether candidate `c` is heavier than query `h`; none is than itself.
  __device__ bool is_heavier(const Side &side, uint32_t c, int h) const {
    const float weight = side.weights[c];
    return weight > weights_[h] ||
           (weight == weights_[h] && side.positions[c] < positions_[h]);
  }

  // Adds candidate `c`, which is this far away.
  __device__ void add(int h, float distance, const Side &side, uint32_t c) {
    const float weight = side.weights[c];
    const Neighbour candidate = {
        -PairCosts::cost(weights_[h], weight, distance), side.positions[c],
        side.items[c]};
    if (!candidate.beats(best_[h])) return;
    best_[h] = candidate;
    const float limit = kRoom * distance / (1.0f + expf(weights_[h] - weight));
    // That of the four lanes may be lower.
    set_limit(h, fminf(limits_[h], limit));
  }

  float key_scale_, value_scale_;
  // What the distance of values counts where there is none.
  float least_value_;
  // Of the queries: what squares count, and exp(w − r).
  float keys_[2], values_[2];
  float weights_[2], factors_[2];
  uint32_t positions_[2];
  // c and c exp(w − r).
  float limits_[2], scaled_limits_[2];
  // The best that this lane has found.
  Neighbour best_[2];
};

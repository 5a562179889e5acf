// The attention of a group of four warps while tiles go by: see
// lib/group_attend.cuh.
#pragma once

#include "group_attend_tiles.cuh"
#include "prefill_state.cuh"

template <int DIM>
struct GroupState : PrefillState<DIM, PrefillForm::kGroup> {
  using Form = GroupAttend<DIM>;
  using Shared = typename Form::Shared;
  static constexpr int kTiles = Form::kSlots / 8;
  using Logits = float[1][kTiles][4];

  // Starts to multiply the group's queries with a tile of keys.
  __device__ static void begin_keys(const Shared &shared, uint32_t stage,
                                    Logits &x) {
    const uint32_t group = threadIdx.x / 128;
    begin_products();
    multiply_tiles<DIM, Form::kSlots>(shared.queries, 64 * group,
                                      shared.keys[stage], x[0]);
    commit_products();
  }

  // Starts to add the products of weights with a tile of values.
  __device__ void begin_values(const Shared &shared, uint32_t stage,
                               const uint4 (&weights)[kTiles / 2]) {
    begin_products();
#pragma unroll
    for (int k = 0; k < kTiles / 2; k++) {
      group_product_lines<DIM>(
          this->values[0], weights[k],
          column_descriptor(shared_address(&shared.values[stage][0][16 * k]),
                            Form::kPartBytes));
    }
    commit_products();
  }

  // Turns products into logits, in units of ln 2.
  __device__ static void scale(const Shared &shared, uint32_t stage,
                               Logits &x) {
    const uint32_t t = lane_id() % 4;
    const float inverse[2] = {shared.inverse[GroupState::pair_of(0, 0)],
                              shared.inverse[GroupState::pair_of(0, 1)]};
#pragma unroll
    for (int n = 0; n < kTiles; n++) {
      const float2 bias = *reinterpret_cast<const float2 *>(
          shared.biases[stage] + 8 * n + 2 * t);
#pragma unroll
      for (int h = 0; h < 2; h++) {
        x[0][n][2 * h] = fmaf(x[0][n][2 * h], inverse[h], bias.x);
        x[0][n][2 * h + 1] = fmaf(x[0][n][2 * h + 1], inverse[h], bias.y);
      }
    }
  }

  // Leaves out slots from `ends` on, of the warp's rows g and g + 8.
  __device__ static void cut(const uint32_t (&ends)[2], Logits &x) {
#pragma unroll
    for (int n = 0; n < kTiles; n++) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const uint32_t slot = 8 * n + lane_id() % 4 * 2 + i % 2;
        if (slot >= ends[i / 2]) x[0][n][i] = -INFINITY;
      }
    }
  }

  __device__ static void round_weights(const Logits &x,
                                       uint4 (&weights)[kTiles / 2]) {
#pragma unroll
    for (int k = 0; k < kTiles / 2; k++) {
      const float(&left)[4] = x[0][2 * k], (&right)[4] = x[0][2 * k + 1];
      weights[k] = {
          cached_pair(left[0], left[1]), cached_pair(left[2], left[3]),
          cached_pair(right[0], right[1]), cached_pair(right[2], right[3])};
    }
  }

  // Turns products with a tile of keys into weights for its values.
  __device__ void weigh_tile(const typename Form::Share &share,
                             const PairQueries &queries, uint32_t tile,
                             Shared &shared, Logits &x,
                             uint4 (&weights)[kTiles / 2]) {
    const uint32_t stage = tile % Form::kStages;
    scale(shared, stage, x);
    __syncwarp();
    if (lane_id() == 0) arrive(shared.keys_free + stage);
    const TilePlace place = share.place(tile);
    if (share.has_later(place) || place.count < Form::kSlots) {
      const auto end_of = [&](int h) {
        const uint32_t row = queries.row(this->pair_of(0, h));
        return !place.is_staged     ? place.count
               : row >= place.first ? row - place.first + 1
                                    : 0;
      };
      cut({end_of(0), end_of(1)}, x);
    }
    this->weigh(x, false);
    round_weights(x, weights);
    wait_barrier(shared.values_full + stage, parity_of(tile));
    if (place.count < Form::kSlots) {
      clear_values<DIM>(place.count, shared, stage);
    }
  }

  // Of the phase in which a tile comes.
  __device__ static uint32_t parity_of(uint32_t tile) {
    return tile / Form::kStages % 2;
  }

  // Attends to all tiles.
  __device__ void run(const typename Form::Share &share,
                      const PairQueries &queries, Shared &shared) {
    Logits x;
    uint4 weights[kTiles / 2];
    wait_barrier(shared.keys_full, 0);
    begin_keys(shared, 0, x);
    wait_products<0>();
    hold_sums<kTiles>(x[0]);
    const uint32_t last = share.tiles - 1;
    const uint32_t group = threadIdx.x / 128;
    if (group == 1) pass_turn(0);
#pragma unroll 1
    for (uint32_t tile = 0; tile < last; tile++) {
      weigh_tile(share, queries, tile, shared, x, weights);
      const uint32_t stage = tile % Form::kStages;
      const uint32_t next = (tile + 1) % Form::kStages;
      wait_barrier(shared.keys_full + next, parity_of(tile + 1));
      wait_turn(group);
      begin_values(shared, stage, weights);
      begin_keys(shared, next, x);
      pass_turn(1 - group);
      wait_products<0>();
      hold_sums<kTiles>(x[0]);
      hold_sums<DIM / 8>(this->values[0]);
      if (lane_id() == 0) arrive(shared.values_free + stage);
    }
    weigh_tile(share, queries, last, shared, x, weights);
    begin_values(shared, last % Form::kStages, weights);
    wait_products<0>();
    hold_sums<DIM / 8>(this->values[0]);
  }
};

// Attention of a chunk on Hopper: the plain form of prefill_attend.cu with
// products of groups of four warps, whose operands an engine copies to shared
// memory.
//
// One warp asks for tiles of keys and of values; two groups have 64 (row, query
// head) pairs each. A group's products with the values of a tile and with the
// keys of the next one are queued together; while it turns logits into weights,
// the other group's products go on. Without taking turns at queueing, both
// would wait for products at the same time: a prompt of 32,768 tokens of
// Llama 3.1 8B then takes 1,525 ms in place of 1,475 on an H200.
#pragma once

#include <algorithm>

#include "../runtime/launch.cuh"
#include "chunk_share.cuh"
#include "group_instructions.cuh"
#include "overlap.cuh"
#include "prefill_state.cuh"

// Widths of heads whose tiles are whole lines of 128 bytes.
template <int DIM>
constexpr bool kHasGroupForm = DIM == 64 || DIM == 128;

template <int DIM>
struct GroupAttend {
  using Shape = PrefillShape<DIM, PrefillForm::kGroup>;
  static constexpr uint32_t kSlots = Shape::kSlots;
  // Columns of a tile in lines of kTileColumns: first those of all lines, then
  // the next.
  static constexpr uint32_t kParts = DIM / kTileColumns;
  static constexpr uint32_t kPartBytes = kSlots * kLineBytes;
  static constexpr uint32_t kTileBytes = kParts * kPartBytes;
  static constexpr uint32_t kStages = 2;
  // Threads that multiply, and a group that fetches: one warp of it, which
  // leaves its registers to the others.
  static constexpr uint32_t kMultiplying = Shape::kThreads;
  static constexpr uint32_t kThreads = kMultiplying + 128;
  static constexpr int kFetchingRegisters = 40;
  static constexpr int kMultiplyingRegisters = 232;
  static constexpr uint32_t kLaneSlots = kSlots / 32;

  struct Shared {
    using Shape = GroupAttend::Shape;
    skv_cached queries[kParts][Shape::kPairs][kTileColumns];
    skv_cached keys[kStages][kParts][kSlots][kTileColumns];
    skv_cached values[kStages][kParts][kSlots][kTileColumns];
    // log2 of votes.
    float biases[kStages][kSlots];
    float inverse[Shape::kPairs];
    // Tiles that have come, and places that are free.
    uint64_t keys_full[kStages], keys_free[kStages];
    uint64_t values_full[kStages], values_free[kStages];

    // Where an element of a query is: see tile_descriptor().
    __device__ skv_cached *query(int, uint32_t pair, uint32_t column) {
      const uint32_t chunk = column % kTileColumns / 8 ^ pair % 8;
      return queries[column / kTileColumns][pair] + 8 * chunk + column % 8;
    }
  };
  static_assert(sizeof(Shared::queries) % kTileAlignment == 0 &&
                    kTileBytes % kTileAlignment == 0,
                "tiles begin where they have to");
  static constexpr size_t kBytes = sizeof(Shared) + kTileAlignment;
  using Share = ChunkShare<kSlots>;
};

// Where the tiles are in memory.
struct ChunkMaps {
  TileMap slot_keys;
  TileMap slot_values;
  TileMap stage_keys;
  TileMap stage_values;
};

// Asks for all tiles, in one warp.
template <int DIM>
__device__ inline void fetch_chunk_tiles(
    const typename GroupAttend<DIM>::Share &share, const ChunkMaps &maps,
    uint32_t head_dim, typename GroupAttend<DIM>::Shared &shared) {
  using Form = GroupAttend<DIM>;
  const auto ask = [&](const TileMap &map, const TilePlace &place, void *to,
                       uint64_t *full) {
    arrive_expecting(full, Form::kTileBytes);
    for (uint32_t part = 0; part < Form::kParts; part++) {
      copy_tile(shared_address(to) + part * Form::kPartBytes, &map,
                part * kTileColumns, place.base, full);
    }
  };
  float biases[Form::kLaneSlots];
  const auto look_ahead = [&](uint32_t tile) {
    if (tile >= share.tiles) return;
    const TilePlace place = share.place(tile);
#pragma unroll
    for (uint32_t i = 0; i < Form::kLaneSlots; i++) {
      const uint32_t slot = lane_id() + 32 * i;
      biases[i] =
          slot < place.count
              ? slot_at(place.home, place.base + slot, head_dim).get(kSlotBias)
              : kFreeBias;
    }
  };
  look_ahead(0);
  uint32_t stage = 0, parity = 1;
  for (uint32_t tile = 0; tile < share.tiles; tile++) {
    const TilePlace place = share.place(tile);
    wait_barrier(shared.keys_free + stage, parity);
#pragma unroll
    for (uint32_t i = 0; i < Form::kLaneSlots; i++) {
      shared.biases[stage][lane_id() + 32 * i] = biases[i] * kLog2E;
    }
    __syncwarp();
    if (lane_id() == 0) {
      ask(place.is_staged ? maps.stage_keys : maps.slot_keys, place,
          shared.keys[stage], shared.keys_full + stage);
    }
    look_ahead(tile + 1);
    wait_barrier(shared.values_free + stage, parity);
    if (lane_id() == 0) {
      ask(place.is_staged ? maps.stage_values : maps.slot_values, place,
          shared.values[stage], shared.values_full + stage);
    }
    if (++stage == Form::kStages) stage = 0, parity ^= 1;
  }
}

// Values beyond the last slot of a tile are anything, also what is no number:
// zeros instead. Called by all groups.
template <int DIM>
__device__ inline void clear_values(uint32_t count,
                                    typename GroupAttend<DIM>::Shared &shared,
                                    uint32_t stage) {
  using Form = GroupAttend<DIM>;
  meet_warps(Form::kMultiplying);
  constexpr uint32_t kChunks = kLineBytes / sizeof(uint4);
  for (uint32_t i = threadIdx.x + count * kChunks; i < Form::kSlots * kChunks;
       i += Form::kMultiplying) {
    for (uint32_t part = 0; part < Form::kParts; part++) {
      reinterpret_cast<uint4 *>(shared.values[stage][part])[i] = {};
    }
  }
  show_writes();
  meet_warps(Form::kMultiplying);
}

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
#pragma unroll
    for (int k = 0; k < DIM / 16; k++) {
      const uint32_t part = 16 * k / kTileColumns;
      const uint32_t column = 16 * k % kTileColumns;
      const uint64_t left = tile_descriptor(
          shared_address(&shared.queries[part][64 * group][column]));
      const uint64_t right =
          tile_descriptor(shared_address(&shared.keys[stage][part][0][column]));
      if (k == 0) {
        group_product_new<Form::kSlots>(x[0], left, right);
      } else {
        group_product_cached<Form::kSlots>(x[0], left, right);
      }
    }
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

  // Turns products into logits: only slots before `ends` of the warp's two rows
  // exist for them.
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

template <int DIM>
__global__ void __launch_bounds__(GroupAttend<DIM>::kThreads, 1)
    group_attend_kernel(skv_chunk_args args,
                        const __grid_constant__ ChunkMaps maps) {
  using Form = GroupAttend<DIM>;
  auto &shared = tile_memory<typename Form::Shared>();
  let_next_start();
  if (threadIdx.x == 0) {
    for (uint32_t i = 0; i < Form::kStages; i++) {
      init_barrier(shared.keys_full + i, 1);
      init_barrier(shared.values_full + i, 1);
      init_barrier(shared.keys_free + i, Form::kMultiplying / 32);
      init_barrier(shared.values_free + i, Form::kMultiplying / 32);
    }
    show_barriers();
  }
  __syncthreads();
  wait_for_previous();
  const typename Form::Share share(args, Form::Shape::kPairs);
  if (share.rows == 0) return;
  if (threadIdx.x >= Form::kMultiplying) {
    give_registers<Form::kFetchingRegisters>();
    if (threadIdx.x < Form::kMultiplying + 32) {
      fetch_chunk_tiles<DIM>(share, maps, args.sizes.head_dim, shared);
    }
    return;
  }
  take_registers<Form::kMultiplyingRegisters>();
  const PairQueries queries = share.queries(args.queries, args.sizes);
  round_queries<DIM>(queries, shared);
  show_writes();
  meet_warps(Form::kMultiplying);
  GroupState<DIM> state;
  state.run(share, queries, shared);
  state.store(args, queries, false);
}

// Attends if the device and the heads are made for it, and says so in `done`.
template <int DIM>
inline cudaError_t launch_group_attend(const skv_chunk_args &args,
                                       const Launch &launch, bool &done) {
  if constexpr (kHasGroupForm<DIM>) {
    using Form = GroupAttend<DIM>;
    if (launch.tile_maps == nullptr || args.sizes.head_dim != DIM) {
      return cudaSuccess;
    }
    const skv_slots &slots = args.cache.slots, &stage = args.cache.stage;
    ChunkMaps maps;
    const auto describe = [&](const skv_cached *data, uint32_t rows,
                              TileMap *map) {
      return launch.tile_maps->describe(
          {reinterpret_cast<const skv_half *>(data), rows, DIM, Form::kSlots},
          map);
    };
    if (!describe(slots.keys, slots.total, &maps.slot_keys) ||
        !describe(slots.values, slots.total, &maps.slot_values) ||
        !describe(stage.keys, stage.total, &maps.stage_keys) ||
        !describe(stage.values, stage.total, &maps.stage_values)) {
      return cudaSuccess;
    }
    done = true;
    const auto kernel = group_attend_kernel<DIM>;
    const cudaError_t status = allow_shared_memory(kernel, Form::kBytes);
    if (status != cudaSuccess) return status;
    const dim3 grid(args.sizes.kv_heads,
                    row_blocks<typename Form::Shape>(args));
    return launch_kernel(launch, kernel, grid, Form::kThreads, Form::kBytes,
                         args, maps);
  } else {
    return cudaSuccess;
  }
}

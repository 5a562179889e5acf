// What a block of lib/group_attend.cuh has in shared memory, and how tiles get
// there.
#pragma once

#include "chunk_share.cuh"
#include "group_tiles.cuh"

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

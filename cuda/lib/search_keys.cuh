// For each query of a chunk's items, the candidate with the most similar key.
//
// A block has a tile of queries and goes through the tiles of one part of the
// candidates: all products of the two lists on tensor cores, exact because keys
// are operands as they are, with the best candidate kept per query. The next
// tile is always on its way: where its keys are is found out one tile before
// that. A warp has two tiles of 16 queries, so that operands come from shared
// memory half as often as with one. Few candidates beat the best so far, so a
// glance at eight similarities is enough for most.
#pragma once

#include "compress_work.cuh"
#include "neighbour.cuh"
#include "row_tiles.cuh"

template <int DIM>
struct KeySearch {
  static constexpr uint32_t kThreads = 128;
  // Tiles of 16 queries of a warp, queries of a block, candidates of a tile.
  static constexpr int kTiles = DIM == 256 ? 1 : 2;
  static constexpr uint32_t kQueries = 16 * kTiles * (kThreads / 32);
  static constexpr uint32_t kCandidates = DIM == 256 ? 32 : 64;

  // What is known of a tile of candidates beside their keys. A tile's is
  // written while that of the one before it is used to fetch keys, and that of
  // the one before that to compare them.
  struct Side {
    const skv_cached *keys[kCandidates];
    float inverse_norms[kCandidates];
    uint32_t positions[kCandidates];
    uint32_t ordinals[kCandidates];
  };

  skv_cached queries[kQueries * kLinePitch<DIM>];
  skv_cached candidates[2][kCandidates * kLinePitch<DIM>];
  Side sides[3];
};

// Queries of a block for heads of a width.
inline uint32_t key_query_tile(uint32_t head_dim) {
  return head_dim <= 128 ? KeySearch<128>::kQueries : KeySearch<256>::kQueries;
}

// Blocks of more registers than this leave room for two where there is shared
// memory for three.
constexpr int kSearchBlocks = 3;

template <int DIM>
__global__ void __launch_bounds__(KeySearch<DIM>::kThreads, kSearchBlocks)
    search_keys_kernel(skv_chunk_args args, CompressWork all_work) {
  using Shared = KeySearch<DIM>;
  constexpr uint32_t kTile = Shared::kCandidates;
  uint4 *shared_memory = dynamic_shared_memory();
  begin_kernel();
  if (row_end(args.step) == 0) return;
  auto &shared = *reinterpret_cast<Shared *>(shared_memory);
  const ChunkHead head = chunk_head(args, blockIdx.y);
  const HeadWork work = all_work.head(blockIdx.y);
  const uint32_t head_dim = args.sizes.head_dim;
  const uint32_t queries = work.counters[kQueries];
  const uint32_t candidates = work.counters[kCandidates];
  const uint32_t first_query = blockIdx.x * Shared::kQueries;
  if (first_query >= queries) return;
  const uint32_t tiles = (candidates + kTile - 1) / kTile;
  const uint32_t per_part = (tiles + gridDim.z - 1) / gridDim.z;
  const uint32_t begin = blockIdx.z * per_part;
  const uint32_t end = min(tiles, begin + per_part);

  // The candidate of this thread in a tile, which it stores later.
  uint32_t ordinal = kNoItem, position = 0;
  float inverse_norm = 0.0f;
  const skv_cached *key = nullptr;
  const auto look_ahead = [&](uint32_t tile) {
    const uint32_t c = tile * kTile + threadIdx.x;
    ordinal = kNoItem;
    key = nullptr;
    if (threadIdx.x >= kTile || c >= candidates) return;
    ordinal = work.candidates[c];
    const Slot slot = item_slot(args, head, work.items[ordinal]);
    key = slot.key;
    position = slot.word(kSlotPosition);
    inverse_norm = work.inverse_norms[ordinal];
  };
  const auto store_ahead = [&](uint32_t tile) {
    if (threadIdx.x >= kTile) return;
    auto &side = shared.sides[tile % 3];
    side.keys[threadIdx.x] = key;
    side.inverse_norms[threadIdx.x] = inverse_norm;
    side.positions[threadIdx.x] = position;
    side.ordinals[threadIdx.x] = ordinal;
  };
  const auto fetch = [&](uint32_t tile) {
    const auto &side = shared.sides[tile % 3];
    gather_lines<DIM, kTile, Shared::kThreads>(
        shared.candidates[tile % 2], head_dim,
        [&](uint32_t i) { return side.keys[i]; });
    commit_copies();
  };

  load_lines<DIM>(
      shared.queries, Shared::kQueries, head_dim,
      [&](uint32_t i) -> const skv_cached * {
        const uint32_t q = first_query + i;
        if (q >= queries) return nullptr;
        return item_slot(args, head, work.items[work.queries[q]]).key;
      });
  const uint32_t g = lane_id() / 4, t = lane_id() % 4;
  const uint32_t own_query = 16 * Shared::kTiles * warp_id() + g;
  const auto query_of = [&](int m, int h) {
    return first_query + own_query + 16 * m + 8 * h;
  };
  uint32_t own[Shared::kTiles][2];
  float inverse[Shared::kTiles][2];
  Neighbour best[Shared::kTiles][2];
#pragma unroll
  for (int m = 0; m < Shared::kTiles; m++) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const uint32_t q = query_of(m, h);
      own[m][h] = q < queries ? work.queries[q] : kNoItem;
      inverse[m][h] = q < queries ? work.inverse_norms[own[m][h]] : 0.0f;
      best[m][h] = {-INFINITY, 0, kNoItem};
    }
  }
  if (begin < end) {
    look_ahead(begin);
    store_ahead(begin);
    __syncthreads();
    fetch(begin);
    if (begin + 1 < end) {
      look_ahead(begin + 1);
      store_ahead(begin + 1);
    }
  }
  for (uint32_t tile = begin; tile < end; tile++) {
    wait_copies<0>();
    // The tile is there, and nobody reads the one before it any more.
    __syncthreads();
    if (tile + 1 < end) fetch(tile + 1);
    if (tile + 2 < end) look_ahead(tile + 2);
    float x[Shared::kTiles][kTile / 8][4] = {};
#pragma unroll
    for (int column = 0; column < DIM; column += 16) {
      uint4 a[Shared::kTiles];
#pragma unroll
      for (int m = 0; m < Shared::kTiles; m++) {
        a[m] = line_operands<DIM>(
            shared.queries, 16 * (Shared::kTiles * warp_id() + m), column);
      }
#pragma unroll
      for (int n = 0; n < static_cast<int>(kTile) / 8; n += 2) {
        const uint4 b =
            key_operands<DIM>(shared.candidates[tile % 2], 8 * n, column);
#pragma unroll
        for (int m = 0; m < Shared::kTiles; m++) {
          mma_cached(x[m][n], a[m], b.x, b.y);
          mma_cached(x[m][n + 1], a[m], b.z, b.w);
        }
      }
    }
    const auto &side = shared.sides[tile % 3];
#pragma unroll
    for (int n = 0; n < static_cast<int>(kTile) / 8; n++) {
      bool is_close = false;
#pragma unroll
      for (int m = 0; m < Shared::kTiles; m++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
          // The product of the norms comes first: the similarity of two keys
          // is the same whichever of them is the query.
          x[m][n][i] *=
              inverse[m][i / 2] * side.inverse_norms[8 * n + 2 * t + i % 2];
          is_close = is_close || x[m][n][i] >= best[m][i / 2].similarity;
        }
      }
      if (!is_close) continue;
#pragma unroll
      for (int m = 0; m < Shared::kTiles; m++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const uint32_t c = 8 * n + 2 * t + i % 2;
          const uint32_t number = side.ordinals[c];
          if (number == kNoItem || number == own[m][i / 2]) continue;
          const Neighbour candidate = {x[m][n][i], side.positions[c], number};
          if (candidate.beats(best[m][i / 2])) best[m][i / 2] = candidate;
        }
      }
    }
    if (tile + 2 < end) store_ahead(tile + 2);
  }
#pragma unroll
  for (int m = 0; m < Shared::kTiles; m++) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const Neighbour found = nearest_of_lanes<2>(best[m][h]);
      const uint32_t q = query_of(m, h);
      if (t != 0 || q >= queries) continue;
      const size_t at =
          static_cast<size_t>(blockIdx.z) * all_work.part_pitch() + q;
      work.similarities[at] = found.similarity;
      work.nearest[at] = found.item;
    }
  }
}

template <int DIM>
inline cudaError_t launch_key_search_width(const skv_chunk_args &args,
                                           const CompressWork &work,
                                           const Launch &launch) {
  using Shared = KeySearch<DIM>;
  const auto kernel = search_keys_kernel<DIM>;
  static_assert(sizeof(Shared) <= kLeastSharedBytes, "a form for all devices");
  const cudaError_t status = allow_shared_memory(kernel, sizeof(Shared));
  if (status != cudaSuccess) return status;
  const dim3 grid((work.most + Shared::kQueries - 1) / Shared::kQueries,
                  args.sizes.kv_heads, work.parts);
  return launch_kernel(launch, kernel, grid, Shared::kThreads, sizeof(Shared),
                       args, work);
}

inline cudaError_t launch_key_search(const skv_chunk_args &args,
                                     const CompressWork &work,
                                     const Launch &launch) {
  return with_width(args.sizes.head_dim, [&](auto width) {
    return launch_key_search_width<decltype(width)::value>(args, work, launch);
  });
}

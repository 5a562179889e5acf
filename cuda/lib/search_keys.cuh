// For each query of a chunk's items, the candidate with the most similar key.
//
// A block has a tile of queries and goes through the tiles of one part of the
// candidates: all products of the two lists on tensor cores, exact because keys
// are operands as they are, with the best candidate kept per query. The next
// tile is always on its way: where its keys are is found out one tile before
// that. A warp has two tiles of 16 queries, in registers as long as the kernel
// runs, so that shared memory delivers the candidates alone.
#pragma once

#include "closest_keys.cuh"
#include "compress_work.cuh"
#include "row_tiles.cuh"

template <int DIM>
struct KeySearch {
  static constexpr uint32_t kThreads = 128;
  // Tiles of 16 queries of a warp, queries of a block, candidates of a tile.
  static constexpr int kTiles = DIM == 256 ? 1 : 2;
  static constexpr uint32_t kQueries = 16 * kTiles * (kThreads / 32);
  static constexpr uint32_t kCandidates = DIM == 256 ? 32 : 64;
  static_assert(kQueries == 2 * kCandidates, "queries begin in their lines");

  // Two tiles of candidates.
  skv_cached lines[2][kCandidates * kLinePitch<DIM>];
  // A tile's is written while that of the one before it is used to fetch keys,
  // and that of the one before that to compare them.
  CandidateSide<kCandidates> sides[3];
};

// Queries of a block for heads of a width.
inline uint32_t key_query_tile(uint32_t head_dim) {
  return head_dim <= 128 ? KeySearch<128>::kQueries : KeySearch<256>::kQueries;
}

// Blocks of more registers than this leave room for two where there is shared
// memory for three.
constexpr int kSearchBlocks = 3;

// `is_among` says whether queries and candidates are the same list.
template <int DIM>
__global__ void __launch_bounds__(KeySearch<DIM>::kThreads, kSearchBlocks)
    search_keys_kernel(skv_chunk_args args, CompressWork all_work,
                       bool is_among) {
  using Shared = KeySearch<DIM>;
  constexpr uint32_t kTile = Shared::kCandidates;
  using Closest = ClosestKeys<kTile>;
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
    inverse_norm = not_a_number();
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
        shared.lines[tile % 2], head_dim,
        [&](uint32_t i) { return side.keys[i]; });
    commit_copies();
  };
  const auto position_of = [&](uint32_t item) {
    return item_slot(args, head, work.items[item]).word(kSlotPosition);
  };

  load_lines<DIM>(
      shared.lines[0], Shared::kQueries, head_dim,
      [&](uint32_t i) -> const skv_cached * {
        const uint32_t q = first_query + i;
        if (q >= queries) return nullptr;
        return item_slot(args, head, work.items[work.queries[q]]).key;
      });
  if (begin < end) {
    look_ahead(begin);
    store_ahead(begin);
  }
  __syncthreads();
  uint4 own[Shared::kTiles][DIM / 16];
#pragma unroll
  for (int m = 0; m < Shared::kTiles; m++) {
#pragma unroll
    for (int k = 0; k < DIM / 16; k++) {
      own[m][k] = line_operands<DIM>(
          shared.lines[0], 16 * (Shared::kTiles * warp_id() + m), 16 * k);
    }
  }
  // Candidates take the place of the queries.
  __syncthreads();
  if (begin < end) {
    fetch(begin);
    if (begin + 1 < end) {
      look_ahead(begin + 1);
      store_ahead(begin + 1);
    }
  }
  const uint32_t warp_query = first_query + 16 * Shared::kTiles * warp_id();
  const uint32_t own_query = warp_query + lane_id() / 4;
  Closest closest[Shared::kTiles];
#pragma unroll
  for (int m = 0; m < Shared::kTiles; m++) {
    closest[m].begin(own_query + 16 * m < queries,
                     own_query + 16 * m + 8 < queries);
  }
  for (uint32_t tile = begin; tile < end; tile++) {
    wait_copies<0>();
    // The tile is there, and nobody reads the one before it any more.
    __syncthreads();
    if (tile + 1 < end) fetch(tile + 1);
    if (tile + 2 < end) look_ahead(tile + 2);
    float x[Shared::kTiles][kTile / 8][4] = {};
#pragma unroll
    for (int k = 0; k < DIM / 16; k++) {
#pragma unroll
      for (int n = 0; n < static_cast<int>(kTile) / 8; n += 2) {
        const uint4 b =
            key_operands<DIM>(shared.lines[tile % 2], 8 * n, 16 * k);
#pragma unroll
        for (int m = 0; m < Shared::kTiles; m++) {
          mma_cached(x[m][n], own[m][k], b.x, b.y);
          mma_cached(x[m][n + 1], own[m][k], b.z, b.w);
        }
      }
    }
    // No query is its own neighbour.
    const uint32_t first = tile * kTile;
    if (is_among && first < warp_query + 16 * Shared::kTiles &&
        warp_query < first + kTile) {
#pragma unroll
      for (int m = 0; m < Shared::kTiles; m++) {
        const uint32_t column = own_query + 16 * m - first;
        Closest::leave_out(x[m], {column, column + 8});
      }
    }
#pragma unroll
    for (int m = 0; m < Shared::kTiles; m++) {
      closest[m].add(x[m], shared.sides[tile % 3], position_of);
    }
    if (tile + 2 < end) store_ahead(tile + 2);
  }
  const auto norm_of = [&](uint32_t item) { return work.inverse_norms[item]; };
#pragma unroll
  for (int m = 0; m < Shared::kTiles; m++) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const uint32_t q = own_query + 16 * m + 8 * h;
      const float inverse = q < queries ? norm_of(work.queries[q]) : 0.0f;
      const Neighbour found =
          closest[m].nearest(h, inverse, norm_of, position_of);
      if (lane_id() % 4 != 0 || q >= queries) continue;
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
                                           bool is_among,
                                           const Launch &launch) {
  using Shared = KeySearch<DIM>;
  const auto kernel = search_keys_kernel<DIM>;
  static_assert(sizeof(Shared) <= kLeastSharedBytes, "a form for all devices");
  const cudaError_t status = allow_shared_memory(kernel, sizeof(Shared));
  if (status != cudaSuccess) return status;
  const dim3 grid((work.most + Shared::kQueries - 1) / Shared::kQueries,
                  args.sizes.kv_heads, work.parts);
  return launch_kernel(launch, kernel, grid, Shared::kThreads, sizeof(Shared),
                       args, work, is_among);
}

inline cudaError_t launch_key_search(const skv_chunk_args &args,
                                     const CompressWork &work, bool is_among,
                                     const Launch &launch) {
  return with_width(args.sizes.head_dim, [&](auto width) {
    return launch_key_search_width<decltype(width)::value>(args, work, is_among,
                                                           launch);
  });
}

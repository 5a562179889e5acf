// For each item of one list, the item of another whose key is most similar.
//
// A block has 64 queries and goes through the tiles of one part of the
// candidates: all products of the two lists on tensor cores, exact because keys
// are halves, with the best one kept per query. Keys are read once per 64
// queries. The alternative that lost: one warp per query, which reads all
// candidates for each of them.
#pragma once

#include "compress_work.cuh"
#include "neighbour.cuh"
#include "overlap.cuh"
#include "row_tiles.cuh"

constexpr uint32_t kSearchTile = 64;
constexpr uint32_t kSearchWarps = 4;

template <int DIM>
struct SearchShared {
  skv_half queries[kSearchTile * kLinePitch<DIM>];
  skv_half candidates[kSearchTile * kLinePitch<DIM>];
  float inverse_norms[kSearchTile];
  uint32_t positions[kSearchTile];
  uint32_t ordinals[kSearchTile];
};

template <int DIM>
__global__ void __launch_bounds__(32 * kSearchWarps)
    nearest_keys_kernel(skv_chunk_args args, CompressWork all_work) {
  uint4 *shared_memory = dynamic_shared_memory();
  begin_kernel();
  SearchShared<DIM> &shared =
      *reinterpret_cast<SearchShared<DIM> *>(shared_memory);
  if (row_end(args.step) == 0) return;
  const ChunkHead head = chunk_head(args, blockIdx.y);
  const HeadWork work = all_work.head(blockIdx.y);
  const uint32_t queries = work.counters[kQueries];
  const uint32_t candidates = work.counters[kCandidates];
  const uint32_t first_query = blockIdx.x * kSearchTile;
  if (first_query >= queries) return;
  const uint32_t tiles = (candidates + kSearchTile - 1) / kSearchTile;
  const uint32_t per_part = (tiles + gridDim.z - 1) / gridDim.z;
  const uint32_t begin = blockIdx.z * per_part;
  const uint32_t end = min(tiles, begin + per_part);
  const uint32_t head_dim = args.sizes.head_dim;

  load_lines<DIM>(shared.queries, kSearchTile, head_dim, [&](uint32_t i) {
    const uint32_t q = first_query + i;
    return q < queries ? item_slot(args, head, work.items[work.queries[q]]).key
                       : nullptr;
  });
  const uint32_t g = lane_id() / 4, t = lane_id() % 4;
  uint32_t ordinals[2];
  float inverse[2];
  Neighbour best[2] = {kNoNeighbour, kNoNeighbour};
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const uint32_t q = first_query + 16 * warp_id() + g + 8 * h;
    ordinals[h] = q < queries ? work.queries[q] : ~0u;
    inverse[h] = q < queries ? work.inverse_norms[ordinals[h]] : 0.0f;
  }
  for (uint32_t tile = begin; tile < end; tile++) {
    const uint32_t first = tile * kSearchTile;
    __syncthreads();
    load_lines<DIM>(shared.candidates, kSearchTile, head_dim, [&](uint32_t i) {
      const uint32_t c = first + i;
      return c < candidates
                 ? item_slot(args, head, work.items[work.candidates[c]]).key
                 : nullptr;
    });
    if (threadIdx.x < kSearchTile) {
      const uint32_t c = first + threadIdx.x;
      const bool exists = c < candidates;
      const uint32_t ordinal = exists ? work.candidates[c] : ~0u;
      shared.ordinals[threadIdx.x] = ordinal;
      if (exists) {
        shared.inverse_norms[threadIdx.x] = work.inverse_norms[ordinal];
        shared.positions[threadIdx.x] =
            item_slot(args, head, work.items[ordinal]).word(kSlotPosition);
      }
    }
    __syncthreads();
    float x[kSearchTile / 8][4] = {};
#pragma unroll
    for (int column = 0; column < DIM; column += 16) {
      const uint4 a =
          line_operands<DIM>(shared.queries, 16 * warp_id(), column);
#pragma unroll
      for (int n = 0; n < static_cast<int>(kSearchTile) / 8; n += 2) {
        const uint4 b = key_operands<DIM>(shared.candidates, 8 * n, column);
        mma(x[n], a, b.x, b.y);
        mma(x[n + 1], a, b.z, b.w);
      }
    }
#pragma unroll
    for (int n = 0; n < static_cast<int>(kSearchTile) / 8; n++) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const uint32_t c = 8 * n + 2 * t + i % 2;
        const uint32_t ordinal = shared.ordinals[c];
        if (ordinal == ~0u || ordinal == ordinals[i / 2]) continue;
        // The product of the norms comes first: the similarity of two keys is
        // the same whichever of them is the query.
        const Neighbour candidate = {
            x[n][i] * (inverse[i / 2] * shared.inverse_norms[c]),
            shared.positions[c], ordinal};
        if (candidate.beats(best[i / 2])) best[i / 2] = candidate;
      }
    }
  }
#pragma unroll
  for (int h = 0; h < 2; h++) {
    best[h] = nearest_of_lanes<2>(best[h]);
    const uint32_t q = first_query + 16 * warp_id() + g + 8 * h;
    if (t != 0 || q >= queries) continue;
    const size_t at =
        static_cast<size_t>(blockIdx.z) * all_work.part_pitch() + q;
    work.similarities[at] = best[h].similarity;
    work.nearest[at] = best[h].item;
  }
}

// The nearest candidate of query `q`, over the parts.
__device__ inline Neighbour nearest_of_query(const skv_chunk_args &args,
                                             const ChunkHead &head,
                                             const CompressWork &all_work,
                                             const HeadWork &work, uint32_t q) {
  Neighbour best = kNoNeighbour;
  for (uint32_t part = 0; part < all_work.parts; part++) {
    const size_t at = static_cast<size_t>(part) * all_work.part_pitch() + q;
    Neighbour other = {work.similarities[at], 0, work.nearest[at]};
    if (!other.exists()) continue;
    other.position =
        item_slot(args, head, work.items[other.item]).word(kSlotPosition);
    if (other.beats(best)) best = other;
  }
  return best;
}

template <int DIM>
inline cudaError_t launch_nearest_width(const skv_chunk_args &args,
                                        const CompressWork &work,
                                        const Launch &launch) {
  const auto kernel = nearest_keys_kernel<DIM>;
  const size_t bytes = sizeof(SearchShared<DIM>);
  const cudaError_t status = allow_shared_memory(kernel, bytes);
  if (status != cudaSuccess) return status;
  const dim3 grid((work.most + kSearchTile - 1) / kSearchTile,
                  args.sizes.kv_heads, work.parts);
  return launch_kernel(launch, kernel, grid, 32 * kSearchWarps, bytes, args,
                       work);
}

inline cudaError_t launch_nearest_keys(const skv_chunk_args &args,
                                       const CompressWork &work,
                                       const Launch &launch) {
  switch (padded_width(args.sizes.head_dim)) {
    case 32:
      return launch_nearest_width<32>(args, work, launch);
    case 64:
      return launch_nearest_width<64>(args, work, launch);
    case 128:
      return launch_nearest_width<128>(args, work, launch);
    default:
      return launch_nearest_width<256>(args, work, launch);
  }
}

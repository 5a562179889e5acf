// Adds the attention of the chunk's observed rows to the scores of the slots
// and of the staged rows, row by row. Logits are computed again from queries
// and keys: attention never stores them.
//
// Reads each key once, and the observed queries once per tile of 64 slots. A
// block owns the slots of a tile: it makes their logits for as many (row, query
// head) pairs as fit, on tensor cores, and then each slot's thread adds the
// rows in order, because the moving sum depends on it. Most policies observe
// few rows, so what counts is how often a warp waits. The alternative that
// lost: keeping the logits of prefill_attend, (rows, heads, slots) floats.
#include "lib/group_observe.cuh"
#include "lib/overlap.cuh"
#include "lib/query_rows.cuh"
#include "lib/row_tiles.cuh"
#include "lib/scores.cuh"
#include "runtime/launch.cuh"

namespace {

template <int DIM>
constexpr int kWarps = DIM == 256 ? 2 : 4;

template <int DIM>
constexpr int kPairs = 16 * kWarps<DIM>;

constexpr uint32_t kTile = 64;

// Queries that a warp reads at a time.
constexpr uint32_t kQueryBatch = 4;

// Odd, so that the threads of a warp read a column without conflicts.
constexpr uint32_t kLogitPitch = kTile + 1;

template <int DIM>
struct Shared {
  uint4 high[kWarps<DIM>][DIM / 16 * 32];
  uint4 low[kWarps<DIM>][DIM / 16 * 32];
  skv_cached keys[kTile * kLinePitch<DIM>];
  float logits[kPairs<DIM> * kLogitPitch];
  float log_sums[kPairs<DIM>];
  float biases[kMaxGroup][kTile];
  bool is_sink[kTile];
};

// Raw logits of the pairs of `rows` rows from `first_row` with the tile's
// slots, for queries of one kind and the slots that they are for.
template <int DIM>
__device__ inline void make_logits(const skv_chunk_args &args,
                                   const float *queries, bool for_sinks,
                                   uint32_t kv_head, uint32_t first_row,
                                   uint32_t rows, Shared<DIM> &shared) {
  const skv_sizes &sizes = args.sizes;
  const uint32_t group = sizes.heads / sizes.kv_heads;
  const uint32_t warp = warp_id();
  const uint32_t g = lane_id() / 4, t = lane_id() % 4;
  const float root = rsqrtf(static_cast<float>(sizes.head_dim));
  float inverse[2] = {};
  // The operands of the call before are no longer read.
  __syncwarp();
#pragma unroll 1
  for (uint32_t first = 0; first < 16; first += kQueryBatch) {
    QueryRow<DIM> parts[kQueryBatch];
#pragma unroll
    for (uint32_t k = 0; k < kQueryBatch; k++) {
      const uint32_t pair = 16 * warp + first + k;
      const size_t query =
          static_cast<size_t>(first_row + pair / group) * sizes.heads +
          kv_head * group + pair % group;
      parts[k].load(
          pair < rows * group ? queries + query * sizes.head_dim : nullptr,
          sizes.head_dim);
    }
#pragma unroll
    for (uint32_t k = 0; k < kQueryBatch; k++) {
      const uint32_t i = first + k;
      const float scale =
          parts[k].split(i, shared.high[warp], shared.low[warp]);
      if (i == g) inverse[0] = scale * root;
      if (i == g + 8) inverse[1] = scale * root;
    }
  }
  __syncwarp();
  float x[kTile / 8][4] = {};
#pragma unroll
  for (int step = 0; step < DIM / 16; step++) {
    const uint4 h = shared.high[warp][step * 32 + lane_id()];
    const uint4 l = shared.low[warp][step * 32 + lane_id()];
#pragma unroll
    for (int n = 0; n < static_cast<int>(kTile) / 8; n += 2) {
      const uint4 k = key_operands<DIM>(shared.keys, 8 * n, 16 * step);
      mma_cached(x[n], l, k.x, k.y);
      mma_cached(x[n + 1], l, k.z, k.w);
      mma_cached(x[n], h, k.x, k.y);
      mma_cached(x[n + 1], h, k.z, k.w);
    }
  }
#pragma unroll
  for (int n = 0; n < static_cast<int>(kTile) / 8; n++) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const uint32_t slot = 8 * n + 2 * t + i % 2;
      const uint32_t pair = 16 * warp + g + i / 2 * 8;
      if (shared.is_sink[slot] != for_sinks) continue;
      shared.logits[pair * kLogitPitch + slot] = x[n][i] * inverse[i / 2];
    }
  }
}

template <int DIM>
__global__ void __launch_bounds__(32 * kWarps<DIM>)
    observe_kernel(skv_chunk_args args) {
  uint4 *shared_memory = dynamic_shared_memory();
  begin_kernel();
  Shared<DIM> &shared = *reinterpret_cast<Shared<DIM> *>(shared_memory);
  const skv_sizes &sizes = args.sizes;
  const skv_cache &cache = args.cache;
  const skv_policy &policy = args.policy;
  const uint32_t group = sizes.heads / sizes.kv_heads;
  const uint32_t kv_head = blockIdx.y;
  const ObservedTile tile = observed_tile(args, kv_head, blockIdx.x, kTile);
  if (tile.count == 0) return;
  const skv_slots &home = tile.home(cache);
  const bool has_sinks = args.sink_queries != nullptr;

  load_lines<DIM>(shared.keys, kTile, sizes.head_dim, [&](uint32_t i) {
    return i < tile.count
               ? home.keys + static_cast<size_t>(tile.base + tile.first + i) *
                                 sizes.head_dim
               : nullptr;
  });
  bool any_sink = false;
  // With fewer threads than slots, none would do for some of them.
  static_assert(32 * kWarps<DIM> >= kTile, "a thread for each slot");
  const uint32_t mine = threadIdx.x;
  const Slot slot = slot_at(
      home, tile.base + tile.first + min(mine, tile.count - 1), sizes.head_dim);
  const bool owns =
      mine < tile.count && (tile.staged || slot.word(kSlotTokens) != 0);
  if (mine < kTile) {
    for (uint32_t lane = 0; lane < cache.lanes; lane++) {
      shared.biases[lane][mine] = slot.get(kSlotBias + lane);
    }
    any_sink = has_sinks && mine < tile.count &&
               slot.word(kSlotPosition) < policy.sinks;
    shared.is_sink[mine] = any_sink;
  }
  any_sink = __syncthreads_or(any_sink);

  const ObservedRows observed(args);
  uint32_t first_row = observed.first;
  // Rows before the first staged one of the tile do not see any of it.
  if (tile.staged) first_row = max(first_row, tile.first);
  const uint32_t budget = head_words(
      cache, sizes, args.step.chunk[kChunkSequence], kv_head)[kHeadBudget];
  const uint32_t rows_per_pass = kPairs<DIM> / group;
  Scores scores = {};
  if (owns) scores = load_scores(slot);
  for (uint32_t row = first_row; row < observed.end; row += rows_per_pass) {
    const uint32_t rows = min(rows_per_pass, observed.end - row);
    if (threadIdx.x < rows * group) {
      const size_t query =
          static_cast<size_t>(row + threadIdx.x / group) * sizes.heads +
          kv_head * group + threadIdx.x % group;
      shared.log_sums[threadIdx.x] = args.log_sums[query];
    }
    make_logits<DIM>(args, args.queries, false, kv_head, row, rows, shared);
    if (any_sink) {
      make_logits<DIM>(args, args.sink_queries, true, kv_head, row, rows,
                       shared);
    }
    __syncthreads();
    for (uint32_t r = 0; owns && r < rows; r++) {
      if (tile.staged && tile.first + mine > row + r) continue;
      const float *log_sums = shared.log_sums + r * group;
      const uint32_t position = args.step.chunk[kChunkPosition] + row + r;
      const float gain = score_gain(policy, position, budget);
      observe_row(
          scores, policy, group, position,
          [&](uint32_t first, auto &logits, auto &biases) {
#pragma unroll
            for (uint32_t k = 0; k < kRowHeads; k++) {
              const uint32_t g = min(first + k, group - 1);
              logits[k] =
                  gain * shared.logits[(r * group + g) * kLogitPitch + mine];
              biases[k] = gain * shared.biases[cache.lanes == 1 ? 0 : g][mine];
            }
          },
          [&](uint32_t g) { return log_sums[g]; });
    }
    __syncthreads();
  }
  if (owns) store_scores(slot, scores);
}

template <int DIM>
cudaError_t launch_width(const skv_chunk_args &args, const Launch &launch) {
  if constexpr (kHasGroupTiles<DIM>) {
    if (launch.has_groups && is_group_observed<DIM>(args)) {
      return launch_group_observe<DIM>(args, launch);
    }
  }
  const auto kernel = observe_kernel<DIM>;
  const size_t bytes = sizeof(Shared<DIM>);
  const cudaError_t status = allow_shared_memory(kernel, bytes);
  if (status != cudaSuccess) return status;
  const dim3 grid(observed_tiles(args.cache, kTile), args.sizes.kv_heads);
  return launch_kernel(launch, kernel, grid, 32 * kWarps<DIM>, bytes, args);
}

}  // namespace

Needs observe_needs(const skv_chunk_args &args, uint32_t) {
  return with_width(args.sizes.head_dim, [&](auto width) -> Needs {
    return {group_observe_bytes<decltype(width)::value>(args)};
  });
}

cudaError_t launch_observe(const skv_chunk_args &args, const Launch &launch) {
  // What nothing reads is not kept.
  if (!args.policy.observe || args.policy.probe == SKV_PROBE_NONE) {
    return cudaSuccess;
  }
  return with_width(args.sizes.head_dim, [&](auto width) {
    return launch_width<decltype(width)::value>(args, launch);
  });
}

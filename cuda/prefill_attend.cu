// Causal attention of a chunk: each row attends to the voted slots of its
// sequence and to the rows of the chunk up to itself, which are staged.
//
// Reads keys and values once per tile of queries. A block has a tile of (row,
// query head) pairs that share a KV head, so that one read serves the group;
// the softmax runs along while tiles of slots go by, the next of which is
// always on its way, and the attention matrix is never in memory. Products are
// of halves on tensor cores; queries and weights are split in two
// (lib/mma.cuh), which keeps 32-bit precision at half the rate.
//
// Where scores have a scale of their own, a second sum at that scale runs
// along.
//
// Where a device has no shared memory for the next tile, there is one at a
// time, and the queries of sinks take the place of the others for a while.
//
// The alternative that lost: a tile of rows of one query head, which reads keys
// and values once per query head. Another: one tile of slots at a time, which
// tensor cores wait for.
#include "lib/overlap.cuh"
#include "lib/prefill_state.cuh"
#include "lib/scores.cuh"
#include "lib/step.cuh"
#include "runtime/launch.cuh"

namespace {

// A tile of slots in shared memory.
template <int DIM>
struct SlotTile {
  skv_half keys[kTile<DIM> * kLinePitch<DIM>];
  skv_half values[kTile<DIM> * kLinePitch<DIM>];
  float biases[kMaxGroup][kTile<DIM>];
  bool is_sink[kTile<DIM>];
};

template <int DIM, bool ROOMY>
struct Shared {
  // The one that is attended to, and the next where there is room.
  SlotTile<DIM> tiles[ROOMY ? 2 : 1];
  float inverse[2][kPairs<DIM>];
};

// Where a tile of slots of the cache, or of staged rows, is.
struct TilePlace {
  const skv_slots &home;
  // Of its first slot in `home`.
  uint32_t base;
  // Number of the first slot, and how many there are.
  uint32_t first;
  uint32_t count;
};

// Queries follow the other shared memory: those of sinks only where there are
// any, and room. One set is [warp][operand] of the high and then of the low
// halves.
template <int DIM>
constexpr size_t kQueryBytes = 2 * kWarps<DIM> *kOperands<DIM> * sizeof(uint4);

template <int DIM, bool ROOMY>
constexpr size_t shared_bytes(bool has_sinks) {
  return sizeof(Shared<DIM, ROOMY>) +
         kQueryBytes<DIM> * (ROOMY && has_sinks ? 2 : 1);
}

template <int DIM, bool GAINED, bool ROOMY>
__global__ void __launch_bounds__(32 * kWarps<DIM>)
    prefill_attend_kernel(skv_chunk_args args) {
  uint4 *shared_memory = dynamic_shared_memory();
  begin_kernel();
  using Memory = Shared<DIM, ROOMY>;
  Memory &shared = *reinterpret_cast<Memory *>(shared_memory);
  uint4 *queries = shared_memory + sizeof(Memory) / sizeof(uint4);
  const skv_sizes &sizes = args.sizes;
  const skv_cache &cache = args.cache;
  const uint32_t head_dim = sizes.head_dim;
  const uint32_t kv_head = blockIdx.y;
  const uint32_t group = sizes.heads / sizes.kv_heads;
  const uint32_t rows_per_block = kPairs<DIM> / group;
  const uint32_t first_row = blockIdx.x * rows_per_block;
  const uint32_t end_row = forward_end(args.step);
  if (first_row >= end_row) return;
  const uint32_t rows = min(rows_per_block, end_row - first_row);
  const uint32_t *words =
      head_words(cache, sizes, args.step.chunk[kChunkSequence], kv_head);
  const uint32_t offset = words[kHeadOffset], high = words[kHeadHigh];
  const bool has_sinks = args.sink_queries != nullptr;

  // Pair p of the block is query head p % group of row p / group.
  const uint32_t warp = warp_id();
  const float root = rsqrtf(static_cast<float>(head_dim));
  // Where the high halves of this warp's queries of a kind are: 1 for sinks.
  const auto set_of = [&](uint32_t kind) {
    return queries + (ROOMY ? kind * 2 * kWarps<DIM> * kOperands<DIM> : 0) +
           warp * kOperands<DIM>;
  };
  const auto split_queries = [&](uint32_t kind) {
    const float *all = kind == 0 ? args.queries : args.sink_queries;
    uint4 *set = set_of(kind);
    for (uint32_t i = 0; i < 16; i++) {
      const uint32_t pair = 16 * warp + i;
      const size_t query =
          static_cast<size_t>(first_row + pair / group) * sizes.heads +
          kv_head * group + pair % group;
      const float inverse = split_row<DIM, true>(
          pair < rows * group ? all + query * head_dim : nullptr, head_dim, i,
          set, set + kWarps<DIM> * kOperands<DIM>);
      if (lane_id() == 0) shared.inverse[kind][pair] = inverse * root;
    }
  };
  split_queries(0);
  if (ROOMY && has_sinks) split_queries(1);

  const uint32_t g = lane_id() / 4, t = lane_id() % 4;
  uint32_t row[2], head[2];
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const uint32_t pair = 16 * warp + g + 8 * h;
    row[h] = first_row + pair / group;
    head[h] = pair % group;
  }
  Attention<DIM, GAINED> attention;
  if constexpr (GAINED) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      attention.gain[h] =
          score_gain(args.policy, args.step.chunk[kChunkPosition] + row[h],
                     words[kHeadBudget]);
    }
  }
  // Tiles of slots, then tiles of staged rows up to the block's last one.
  const uint32_t slot_tiles = (high + kTile<DIM> - 1) / kTile<DIM>;
  const uint32_t tiles =
      slot_tiles + (first_row + rows + kTile<DIM> - 1) / kTile<DIM>;
  const auto place_of = [&](uint32_t tile) -> TilePlace {
    const bool staged = tile >= slot_tiles;
    const uint32_t first = (staged ? tile - slot_tiles : tile) * kTile<DIM>;
    const uint32_t end = staged ? first_row + rows : high;
    const uint32_t base = staged ? kv_head * cache.stage_rows : offset;
    return {staged ? cache.stage : cache.slots, base + first, first,
            min(end - first, static_cast<uint32_t>(kTile<DIM>))};
  };
  // Starts to copy keys and values of a tile.
  const auto fetch = [&](uint32_t tile) {
    const TilePlace place = place_of(tile);
    SlotTile<DIM> &to = shared.tiles[ROOMY ? tile % 2 : 0];
    const auto line_of = [&](const skv_half *all, uint32_t i) {
      return i < place.count
                 ? all + static_cast<size_t>(place.base + i) * head_dim
                 : nullptr;
    };
    copy_lines<DIM>(to.keys, kTile<DIM>, head_dim,
                    [&](uint32_t i) { return line_of(place.home.keys, i); });
    copy_lines<DIM>(to.values, kTile<DIM>, head_dim,
                    [&](uint32_t i) { return line_of(place.home.values, i); });
    commit_copies();
  };
  // Side fields of this thread's slot of a tile, which it stores later.
  static_assert(kTile<DIM> <= kPairs<DIM>, "a thread for each slot");
  float bias_ahead = kFreeBias;
  bool sink_ahead = false;
  const auto slot_ahead = [&](const TilePlace &place) {
    return slot_at(place.home, place.base + threadIdx.x, head_dim);
  };
  const auto look_ahead = [&](uint32_t tile) {
    const TilePlace place = place_of(tile);
    const bool exists = threadIdx.x < place.count;
    bias_ahead = exists ? slot_ahead(place).get(kSlotBias) : kFreeBias;
    sink_ahead = has_sinks && exists &&
                 slot_ahead(place).word(kSlotPosition) < args.policy.sinks;
  };
  const auto store_ahead = [&](uint32_t tile) {
    if (threadIdx.x >= kTile<DIM>) return;
    const TilePlace place = place_of(tile);
    SlotTile<DIM> &to = shared.tiles[ROOMY ? tile % 2 : 0];
    to.biases[0][threadIdx.x] = bias_ahead;
    to.is_sink[threadIdx.x] = sink_ahead;
    for (uint32_t lane = 1; lane < cache.lanes; lane++) {
      to.biases[lane][threadIdx.x] =
          threadIdx.x < place.count ? slot_ahead(place).get(kSlotBias + lane)
                                    : kFreeBias;
    }
  };
  // A block has rows, hence tiles.
  if constexpr (ROOMY) {
    fetch(0);
    look_ahead(0);
    store_ahead(0);
  }
  for (uint32_t tile = 0; tile < tiles; tile++) {
    const bool staged = tile >= slot_tiles;
    const uint32_t first = place_of(tile).first;
    const SlotTile<DIM> &here = shared.tiles[ROOMY ? tile % 2 : 0];
    if constexpr (!ROOMY) {
      __syncthreads();
      fetch(tile);
      look_ahead(tile);
      store_ahead(tile);
    }
    wait_copies<0>();
    // The tile is there, and nobody reads the one before it any more.
    const bool any_sink = __syncthreads_or(sink_ahead);
    if (ROOMY && tile + 1 < tiles) {
      fetch(tile + 1);
      look_ahead(tile + 1);
    }

    float x[kTile<DIM> / 8][4] = {};
    const uint4 *set = set_of(0);
    multiply_keys<DIM>(set, set + kWarps<DIM> * kOperands<DIM>, here.keys, x);
#pragma unroll
    for (int n = 0; n < kTile<DIM> / 8; n++) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        x[n][i] *= shared.inverse[0][16 * warp + g + i / 2 * 8];
      }
    }
    if (any_sink) {
      const auto exchange = [&](uint32_t kind) {
        __syncwarp();
        split_queries(kind);
        __syncwarp();
      };
      if constexpr (!ROOMY) exchange(1);
      float other[kTile<DIM> / 8][4] = {};
      const uint4 *sinks = set_of(1);
      multiply_keys<DIM>(sinks, sinks + kWarps<DIM> * kOperands<DIM>, here.keys,
                         other);
#pragma unroll
      for (int n = 0; n < kTile<DIM> / 8; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
          if (!here.is_sink[8 * n + 2 * t + i % 2]) continue;
          x[n][i] = other[n][i] * shared.inverse[1][16 * warp + g + i / 2 * 8];
        }
      }
      if constexpr (!ROOMY) exchange(0);
    }
#pragma unroll
    for (int n = 0; n < kTile<DIM> / 8; n++) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const uint32_t slot = 8 * n + 2 * t + i % 2;
        const int h = i / 2;
        const float bias = here.biases[cache.lanes == 1 ? 0 : head[h]][slot];
        const bool counts =
            bias > kLiveBias && (!staged || first + slot <= row[h]);
        x[n][i] = counts ? x[n][i] + bias : -INFINITY;
      }
    }
    attention.add(x, here.values);
    if (ROOMY && tile + 1 < tiles) store_ahead(tile + 1);
  }

#pragma unroll
  for (int h = 0; h < 2; h++) {
    SoftmaxState state = attention.state[h];
    state.sum += __shfl_xor_sync(kAllLanes, state.sum, 1);
    state.sum += __shfl_xor_sync(kAllLanes, state.sum, 2);
    float gained = attention.gained[h];
    if constexpr (GAINED) {
      gained += __shfl_xor_sync(kAllLanes, gained, 1);
      gained += __shfl_xor_sync(kAllLanes, gained, 2);
    }
    if (16 * warp + g + 8 * h >= rows * group) continue;
    const size_t query =
        static_cast<size_t>(row[h]) * sizes.heads + kv_head * group + head[h];
    if (t == 0) {
      args.log_sums[query] = GAINED
                                 ? attention.gain[h] * state.max + logf(gained)
                                 : log_sum(state);
    }
#pragma unroll
    for (int d = 0; d < DIM / 8; d++) {
      const uint32_t at = 8 * d + 2 * t;
      if (at >= head_dim) continue;
      const float2 pair = {attention.values[d][2 * h] / state.sum,
                           attention.values[d][2 * h + 1] / state.sum};
      *reinterpret_cast<float2 *>(args.output + query * head_dim + at) = pair;
    }
  }
}

template <int DIM, bool GAINED, bool ROOMY>
cudaError_t launch_form(const skv_chunk_args &args, const Launch &launch) {
  static_assert(sizeof(Shared<DIM, ROOMY>) % sizeof(uint4) == 0,
                "queries follow");
  static_assert(ROOMY || shared_bytes<DIM, false>(true) <= kLeastSharedBytes,
                "a form for all devices");
  const auto kernel = prefill_attend_kernel<DIM, GAINED, ROOMY>;
  const size_t bytes = shared_bytes<DIM, ROOMY>(args.sink_queries != nullptr);
  const cudaError_t status = allow_shared_memory(kernel, bytes);
  if (status != cudaSuccess) return status;
  const uint32_t group = args.sizes.heads / args.sizes.kv_heads;
  const uint32_t rows_per_block = kPairs<DIM> / group;
  const dim3 grid((args.step.rows + rows_per_block - 1) / rows_per_block,
                  args.sizes.kv_heads);
  return launch_kernel(launch, kernel, grid, 32 * kWarps<DIM>, bytes, args);
}

template <int DIM, bool GAINED>
cudaError_t launch_gained(const skv_chunk_args &args, const Launch &launch) {
  if constexpr (shared_bytes<DIM, true>(true) > kLeastSharedBytes) {
    if (shared_bytes<DIM, true>(args.sink_queries != nullptr) >
        launch.shared_bytes) {
      return launch_form<DIM, GAINED, false>(args, launch);
    }
  }
  return launch_form<DIM, GAINED, true>(args, launch);
}

template <int DIM>
cudaError_t launch_width(const skv_chunk_args &args, const Launch &launch) {
  return args.policy.score == SKV_SCORE_STEP_GAIN
             ? launch_gained<DIM, true>(args, launch)
             : launch_gained<DIM, false>(args, launch);
}

}  // namespace

Needs prefill_attend_needs(const skv_chunk_args &, uint32_t) { return {}; }

cudaError_t launch_prefill_attend(const skv_chunk_args &args,
                                  const Launch &launch) {
  switch (padded_width(args.sizes.head_dim)) {
    case 32:
      return launch_width<32>(args, launch);
    case 64:
      return launch_width<64>(args, launch);
    case 128:
      return launch_width<128>(args, launch);
    default:
      return launch_width<256>(args, launch);
  }
}

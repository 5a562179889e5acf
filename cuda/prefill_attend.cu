// Causal attention of a chunk: each row attends to the voted slots of its
// sequence and to the rows of the chunk up to itself, which are staged.
//
// Reads keys and values once per tile of queries. A block has a tile of (row,
// query head) pairs that share a KV head, so that one read serves the group;
// the softmax runs along while tiles of slots go by, and the attention matrix
// is never in memory. Products are of halves on tensor cores; queries and
// weights are split in two (lib/mma.cuh), which keeps 32-bit precision at half
// the rate.
//
// Where scores have a scale of their own, a second sum at that scale runs
// along.
//
// The alternative that lost: a tile of rows of one query head, which reads keys
// and values once per query head.
#include "lib/overlap.cuh"
#include "lib/prefill_state.cuh"
#include "lib/scores.cuh"
#include "lib/step.cuh"
#include "runtime/launch.cuh"

namespace {

template <int DIM>
struct Shared {
  skv_half keys[kTile<DIM> * kLinePitch<DIM>];
  skv_half values[kTile<DIM> * kLinePitch<DIM>];
  float biases[kMaxGroup][kTile<DIM>];
  float inverse[2][kPairs<DIM>];
  bool is_sink[kTile<DIM>];
};

// Queries follow the other shared memory: those of sinks only where there are
// any. One set is [warp][operand] of the high and then of the low halves.
template <int DIM>
constexpr size_t kQueryBytes = 2 * kWarps<DIM> *kOperands<DIM> * sizeof(uint4);

template <int DIM, bool GAINED>
__global__ void __launch_bounds__(32 * kWarps<DIM>)
    prefill_attend_kernel(skv_chunk_args args) {
  uint4 *shared_memory = dynamic_shared_memory();
  begin_kernel();
  Shared<DIM> &shared = *reinterpret_cast<Shared<DIM> *>(shared_memory);
  uint4 *queries = shared_memory + sizeof(Shared<DIM>) / sizeof(uint4);
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
  for (uint32_t kind = 0; kind < (has_sinks ? 2u : 1u); kind++) {
    const float *all = kind == 0 ? args.queries : args.sink_queries;
    uint4 *set = queries + kind * 2 * kWarps<DIM> * kOperands<DIM>;
    for (uint32_t i = 0; i < 16; i++) {
      const uint32_t pair = 16 * warp + i;
      const size_t query =
          static_cast<size_t>(first_row + pair / group) * sizes.heads +
          kv_head * group + pair % group;
      const float inverse = split_row<DIM, true>(
          pair < rows * group ? all + query * head_dim : nullptr, head_dim, i,
          set + warp * kOperands<DIM>,
          set + (kWarps<DIM> + warp) * kOperands<DIM>);
      if (lane_id() == 0) shared.inverse[kind][pair] = inverse * root;
    }
  }

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
  for (uint32_t tile = 0; tile < tiles; tile++) {
    const bool staged = tile >= slot_tiles;
    const uint32_t first = (staged ? tile - slot_tiles : tile) * kTile<DIM>;
    const uint32_t end = staged ? first_row + rows : high;
    const skv_slots &home = staged ? cache.stage : cache.slots;
    const uint32_t base = staged ? kv_head * cache.stage_rows : offset;
    const auto line_of = [&](const skv_half *all, uint32_t i) {
      return first + i < end
                 ? all + static_cast<size_t>(base + first + i) * head_dim
                 : nullptr;
    };
    __syncthreads();
    load_lines<DIM>(shared.keys, kTile<DIM>, head_dim,
                    [&](uint32_t i) { return line_of(home.keys, i); });
    load_lines<DIM>(shared.values, kTile<DIM>, head_dim,
                    [&](uint32_t i) { return line_of(home.values, i); });
    bool any_sink = false;
    for (uint32_t i = threadIdx.x; i < kTile<DIM>; i += blockDim.x) {
      const bool exists = first + i < end;
      const Slot slot =
          slot_at(home, base + (exists ? first + i : first), head_dim);
      for (uint32_t lane = 0; lane < cache.lanes; lane++) {
        shared.biases[lane][i] =
            exists ? slot.get(kSlotBias + lane) : kFreeBias;
      }
      shared.is_sink[i] =
          has_sinks && exists && slot.word(kSlotPosition) < args.policy.sinks;
      any_sink = any_sink || shared.is_sink[i];
    }
    any_sink = __syncthreads_or(any_sink);

    float x[kTile<DIM> / 8][4] = {};
    const uint4 *set = queries + warp * kOperands<DIM>;
    multiply_keys<DIM>(set, set + kWarps<DIM> * kOperands<DIM>, shared.keys, x);
#pragma unroll
    for (int n = 0; n < kTile<DIM> / 8; n++) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        x[n][i] *= shared.inverse[0][16 * warp + g + i / 2 * 8];
      }
    }
    if (any_sink) {
      float other[kTile<DIM> / 8][4] = {};
      const uint4 *sinks = set + 2 * kWarps<DIM> * kOperands<DIM>;
      multiply_keys<DIM>(sinks, sinks + kWarps<DIM> * kOperands<DIM>,
                         shared.keys, other);
#pragma unroll
      for (int n = 0; n < kTile<DIM> / 8; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
          if (!shared.is_sink[8 * n + 2 * t + i % 2]) continue;
          x[n][i] = other[n][i] * shared.inverse[1][16 * warp + g + i / 2 * 8];
        }
      }
    }
#pragma unroll
    for (int n = 0; n < kTile<DIM> / 8; n++) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const uint32_t slot = 8 * n + 2 * t + i % 2;
        const int h = i / 2;
        const float bias = shared.biases[cache.lanes == 1 ? 0 : head[h]][slot];
        const bool counts =
            bias > kLiveBias && (!staged || first + slot <= row[h]);
        x[n][i] = counts ? x[n][i] + bias : -INFINITY;
      }
    }
    attention.add(x, shared.values);
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

template <int DIM, bool GAINED>
cudaError_t launch_gained(const skv_chunk_args &args, const Launch &launch) {
  static_assert(sizeof(Shared<DIM>) % sizeof(uint4) == 0, "queries follow");
  const auto kernel = prefill_attend_kernel<DIM, GAINED>;
  const size_t bytes =
      sizeof(Shared<DIM>) +
      kQueryBytes<DIM> * (args.sink_queries == nullptr ? 1 : 2);
  const cudaError_t status = allow_shared_memory(kernel, bytes);
  if (status != cudaSuccess) return status;
  const uint32_t group = args.sizes.heads / args.sizes.kv_heads;
  const uint32_t rows_per_block = kPairs<DIM> / group;
  const dim3 grid((args.step.rows + rows_per_block - 1) / rows_per_block,
                  args.sizes.kv_heads);
  return launch_kernel(launch, kernel, grid, 32 * kWarps<DIM>, bytes, args);
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

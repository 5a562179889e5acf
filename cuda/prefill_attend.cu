// Causal attention of a chunk: each row attends to the voted slots of its
// sequence and to the rows of the chunk up to itself, which are staged.
//
// Reads keys and values once per tile of queries. A block has a tile of (row,
// query head) pairs that share a KV head, so that one read serves the group;
// the softmax runs along while tiles of slots go by, and the attention matrix
// is never in memory (Dao, "FlashAttention-2", 2023, section 3, arXiv
// 2307.08691). Keys are on their way while values are multiplied, and values
// while keys are: one tile of each is enough, and two blocks take turns on a
// multiprocessor. Blocks of late rows have more to do and start first.
//
// Queries are kept in shared memory: registers are full of sums and logits.
// Those of sinks are read from memory for the few tiles that have any.
//
// The alternative that lost: a tile of rows of one query head, which reads keys
// and values once per query head. Another: 16 pairs to a warp, which reads
// operands of twice as many bytes from shared memory as a multiprocessor
// delivers while it multiplies.
#include "lib/chunk_share.cuh"
#include "lib/group_attend.cuh"
#include "lib/half_rows.cuh"
#include "lib/overlap.cuh"
#include "lib/prefill_sinks.cuh"
#include "lib/prefill_state.cuh"
#include "lib/scores.cuh"
#include "runtime/launch.cuh"

namespace {

template <int DIM, PrefillForm FORM>
__global__ void __launch_bounds__((PrefillShape<DIM, FORM>::kThreads), 2)
    prefill_attend_kernel(skv_chunk_args args) {
  using Shape = PrefillShape<DIM, FORM>;
  constexpr uint32_t kSlots = Shape::kSlots;
  uint4 *shared_memory = dynamic_shared_memory();
  begin_kernel();
  auto &shared = *reinterpret_cast<PrefillShared<DIM, FORM> *>(shared_memory);
  const skv_cache &cache = args.cache;
  const uint32_t head_dim = args.sizes.head_dim;
  const ChunkShare<kSlots> share(args, Shape::kPairs);
  if (share.rows == 0) return;
  const bool has_sinks = !Shape::kIsPlain && args.sink_queries != nullptr;
  const bool gains =
      !Shape::kIsPlain && args.policy.score == SKV_SCORE_STEP_GAIN;
  // Starts to copy keys or values of a tile.
  const auto fetch = [&](uint32_t tile, bool keys) {
    const TilePlace place = share.place(tile);
    const skv_cached *all = keys ? place.home.keys : place.home.values;
    copy_lines<DIM, kSlots, Shape::kThreads>(
        keys ? shared.keys : shared.values,
        all + static_cast<size_t>(place.base) * head_dim, place.count,
        head_dim);
    commit_copies();
  };
  // Side fields of this thread's slot of a tile, which it stores later.
  static_assert(kSlots <= Shape::kThreads, "a thread for each slot");
  float bias_ahead = kFreeBias;
  bool sink_ahead = false;
  const auto slot_ahead = [&](const TilePlace &place) {
    return slot_at(place.home, place.base + threadIdx.x, head_dim);
  };
  const auto look_ahead = [&](uint32_t tile) {
    const TilePlace place = share.place(tile);
    const bool exists = threadIdx.x < place.count;
    bias_ahead = exists ? slot_ahead(place).get(kSlotBias) : kFreeBias;
    sink_ahead = has_sinks && exists &&
                 slot_ahead(place).word(kSlotPosition) < args.policy.sinks;
  };
  const auto store_ahead = [&](uint32_t tile) {
    if (threadIdx.x >= kSlots) return;
    shared.biases[0][threadIdx.x] = bias_ahead * kLog2E;
    if constexpr (!Shape::kIsPlain) {
      const TilePlace place = share.place(tile);
      shared.is_sink[threadIdx.x] = sink_ahead;
      for (uint32_t lane = 1; lane < cache.lanes; lane++) {
        const float bias = threadIdx.x < place.count
                               ? slot_ahead(place).get(kSlotBias + lane)
                               : kFreeBias;
        shared.biases[lane][threadIdx.x] = bias * kLog2E;
      }
    }
  };
  // A block has rows, hence tiles.
  fetch(0, true);
  look_ahead(0);
  const PairQueries queries = share.queries(args.queries, args.sizes);
  const PairQueries sinks = share.queries(args.sink_queries, args.sizes);
  round_queries<DIM>(queries, shared);
  if constexpr (!Shape::kIsPlain) {
    if (has_sinks) scale_sinks<DIM, FORM>(sinks, shared);
  }
  store_ahead(0);

  const uint32_t t = lane_id() % 4;
  PrefillState<DIM, FORM> state;
  if (gains) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      state.gain[0][h] = score_gain(
          args.policy,
          args.step.chunk[kChunkPosition] + queries.row(state.pair_of(0, h)),
          share.budget);
    }
  }
  for (uint32_t tile = 0; tile < share.tiles; tile++) {
    wait_copies<0>();
    // Keys are there, and nobody reads the values before any more.
    bool any_sink = false;
    if constexpr (Shape::kIsPlain) {
      __syncthreads();
    } else {
      any_sink = __syncthreads_or(sink_ahead);
    }
    fetch(tile, false);
    if (tile + 1 < share.tiles) look_ahead(tile + 1);

    float x[Shape::kTiles][kSlots / 8][4] = {};
    state.multiply_keys(shared, x);
#pragma unroll
    for (int m = 0; m < Shape::kTiles; m++) {
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const uint32_t pair = state.pair_of(m, h);
        const float inverse = shared.inverse[pair];
        const uint32_t lane =
            Shape::kIsPlain || cache.lanes == 1 ? 0 : pair % share.group;
#pragma unroll
        for (int n = 0; n < static_cast<int>(kSlots) / 8; n++) {
#pragma unroll
          for (int i = 0; i < 2; i++) {
            const float bias = shared.biases[lane][8 * n + 2 * t + i];
            float &logit = x[m][n][2 * h + i];
            logit = logit * inverse + bias;
          }
        }
      }
    }
    if constexpr (!Shape::kIsPlain) {
      if (any_sink) replace_sinks<DIM, FORM>(sinks, shared, cache.lanes, x);
      // Weights of free slots are zero without this; at a scale of their own
      // they are not.
      if (gains) {
#pragma unroll
        for (int n = 0; n < static_cast<int>(kSlots) / 8; n++) {
#pragma unroll
          for (int i = 0; i < 4; i++) {
            if (x[0][n][i] < kLiveBias) x[0][n][i] = -INFINITY;
          }
        }
      }
    }
    // Only the last tiles have rows that come after some of the block's.
    const TilePlace place = share.place(tile);
    if (share.has_later(place)) {
#pragma unroll
      for (int m = 0; m < Shape::kTiles; m++) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
          const uint32_t row = queries.row(state.pair_of(m, h));
#pragma unroll
          for (int n = 0; n < static_cast<int>(kSlots) / 8; n++) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
              if (place.first + 8 * n + 2 * t + i > row) {
                x[m][n][2 * h + i] = -INFINITY;
              }
            }
          }
        }
      }
    }
    wait_copies<0>();
    // Values are there, and nobody reads these keys and biases any more.
    __syncthreads();
    if (tile + 1 < share.tiles) {
      fetch(tile + 1, true);
      store_ahead(tile + 1);
    }
    state.weigh(x, gains);
    state.multiply_values(shared, x);
  }

  state.store(args, queries, gains);
}

template <int DIM, PrefillForm FORM>
cudaError_t launch_form(const skv_chunk_args &args, const Launch &launch) {
  const auto kernel = prefill_attend_kernel<DIM, FORM>;
  constexpr size_t kBytes = sizeof(PrefillShared<DIM, FORM>);
  static_assert(kBytes <= kLeastSharedBytes, "a form for all devices");
  const cudaError_t status = allow_shared_memory(kernel, kBytes);
  if (status != cudaSuccess) return status;
  const dim3 grid(args.sizes.kv_heads,
                  row_blocks<PrefillShape<DIM, FORM>>(args));
  return launch_kernel(launch, kernel, grid, PrefillShape<DIM, FORM>::kThreads,
                       kBytes, args);
}

template <int DIM>
cudaError_t launch_width(const skv_chunk_args &args, const Launch &launch) {
  if (args.step.rows <= kMostExactRows) {
    return launch_form<DIM, PrefillForm::kExact>(args, launch);
  }
  const bool is_plain = args.sink_queries == nullptr && args.cache.lanes == 1 &&
                        args.policy.score != SKV_SCORE_STEP_GAIN;
  if (is_plain) {
    bool done = false;
    const cudaError_t status = launch_group_attend<DIM>(args, launch, done);
    if (status != cudaSuccess || done) return status;
  }
  // Blocks of the plain form are twice as large: half as many do as well, fewer
  // do not.
  const uint32_t blocks =
      row_blocks<PrefillShape<DIM, PrefillForm::kPlain>>(args) *
      args.sizes.kv_heads;
  return is_plain && 2 * blocks >= launch.multiprocessors
             ? launch_form<DIM, PrefillForm::kPlain>(args, launch)
             : launch_form<DIM, PrefillForm::kGeneral>(args, launch);
}

}  // namespace

Needs prefill_attend_needs(const skv_chunk_args &, uint32_t) { return {}; }

cudaError_t launch_prefill_attend(const skv_chunk_args &args,
                                  const Launch &launch) {
  return with_width(args.sizes.head_dim, [&](auto width) {
    return launch_width<decltype(width)::value>(args, launch);
  });
}

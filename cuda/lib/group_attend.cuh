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

#include "../runtime/launch.cuh"
#include "group_attend_state.cuh"
#include "overlap.cuh"

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
  if constexpr (kHasGroupTiles<DIM>) {
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

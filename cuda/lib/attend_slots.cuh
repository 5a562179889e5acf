// Decode attention of one warp over its share of the slots of a KV head.
//
// Query heads of the group ride in one tensor core tile, so that a key is read
// once for all of them. The tile has 16 rows: 8 heads, once their high and once
// their low parts (lib/cached.cuh), so that one product has nearly 32-bit
// precision.
//
// A warp has tiles of slots of its own in shared memory, which asynchronous
// copies fill ahead: warps wait for nobody until they are through. The first
// tiles are on their way before the kernel in front has ended: only the newest
// slot is written by it (see lib/overlap.cuh).
//
// Rows of the tile without a query head have riders: see lib/riders.cuh.
//
// The alternative that lost: keys and values straight to registers. Loads then
// have to wait for the arithmetic in front of them.
#pragma once

#include "overlap.cuh"
#include "query_operands.cuh"
#include "riders.cuh"
#include "softmax_state.cuh"

// Tiles that a warp has in shared memory.
template <int DIM>
constexpr int kStages = DIM >= 128 ? 2 : 4;

// Halves of a tile: keys, then values.
template <int DIM>
constexpr int kTileHalves = 2 * kWarpSlots *kLinePitch<DIM>;

// What side fields say of a lane's slots of a tile.
struct TileSides {
  float bias[4];
  // Where there are riders.
  uint32_t position[4];
};

// Attention of one warp over its tiles of a share. RIDES: with riders where the
// head goes over its budget.
template <int DIM, bool ALIGNED, bool RIDES>
struct WarpAttention {
  QueryOperands<DIM> queries;
  LaneRiders<DIM> riders;
  // Of head g = lane / 4; the sum is that of this lane's slots.
  SoftmaxState state = init_softmax();
  // Dimensions 8 n + 2t, 8 n + 2t + 1 of head g, by high and by low parts.
  float values[DIM / 8][4] = {};
  uint32_t live = 0;
  uint32_t first_free = kNoSlot;

  // Starts to copy 16 bytes of a row to shared memory, zeros beyond its end.
  __device__ static void copy_chunk(skv_cached *to, const skv_cached *row,
                                    uint32_t column, uint32_t head_dim,
                                    bool wanted) {
    if constexpr (ALIGNED) {
      copy_async(to, row + column, wanted && column < head_dim);
    } else {
      uint32_t pairs[4] = {};
      if (wanted) load_pairs<8, false>(pairs, row, column, head_dim);
      *reinterpret_cast<uint4 *>(to) = {pairs[0], pairs[1], pairs[2], pairs[3]};
    }
  }

  // Starts to copy `LINES` slots from `slot` on to lines of a tile, but for
  // slot `missing`. A lane has the same columns of every line that it copies.
  template <uint32_t LINES>
  __device__ static void fetch(const skv_merge_attend_args &args,
                               const HeadJob &job, uint32_t slot, uint32_t end,
                               uint32_t missing, skv_cached *tile) {
    constexpr uint32_t kChunks = DIM / 8, kLines = 32 / kChunks;
    const uint32_t head_dim = args.sizes.head_dim;
    const uint32_t line = lane_id() / kChunks;
    const uint32_t column = lane_id() % kChunks * 8;
    const size_t row = static_cast<size_t>(job.offset + slot + line) * head_dim;
    const skv_cached *key = args.cache.slots.keys + row;
    const skv_cached *value = args.cache.slots.values + row;
    skv_cached *to = tile + line * kLinePitch<DIM> + column;
    slot += line;
#pragma unroll
    for (uint32_t c = 0; c < (LINES + kLines - 1) / kLines; c++) {
      if (slot != missing && (LINES >= kLines || line < LINES)) {
        copy_chunk(to, key, column, head_dim, slot < end);
        copy_chunk(to + kWarpSlots * kLinePitch<DIM>, value, column, head_dim,
                   slot < end);
      }
      to += kLines * kLinePitch<DIM>;
      key += kLines * head_dim;
      value += kLines * head_dim;
      slot += kLines;
    }
  }

  __device__ static bool has_riders(const HeadJob &job) {
    return RIDES && job.will_evict;
  }

  // Side fields of this lane's slots of tile i; those beyond the end look free.
  // The bias of the newest slot, which may not be there yet, is known; so is
  // its position, and what is read of that here says nothing.
  __device__ static TileSides load_sides(const skv_merge_attend_args &args,
                                         const HeadJob &job, const Share &share,
                                         uint32_t i) {
    const skv_slots &slots = args.cache.slots;
    const uint32_t g = lane_id() / 4;
    const uint32_t lane =
        args.cache.lanes == 1 ? 0 : job.first_head + min(g, job.heads - 1);
    const float *from = slots.side +
                        static_cast<size_t>(kSlotBias + lane) * slots.total +
                        job.offset;
    const float *positions = slots.side +
                             static_cast<size_t>(kSlotPosition) * slots.total +
                             job.offset;
    TileSides sides = {};
    if (has_riders(job)) {
#pragma unroll
      for (int k = 0; k < 4; k++) {
        const uint32_t slot = share.first_slot(i) + tile_slot(k);
        sides.position[k] =
            __float_as_uint(positions[min(slot, share.end - 1)]);
      }
    }
#pragma unroll
    for (int k = 0; k < 4; k++) {
      const uint32_t slot = share.first_slot(i) + tile_slot(k);
      sides.bias[k] = kFreeBias;
      if (slot >= share.end) continue;
      sides.bias[k] = slot == job.newest ? 0.0f : from[slot];
    }
    return sides;
  }

  // Adds tile i of the share, which is in shared memory.
  __device__ void add(const skv_merge_attend_args &args, const HeadJob &job,
                      const Share &share, uint32_t i, const skv_cached *tile,
                      const TileSides &sides, float *logits) {
    const uint32_t first = share.first_slot(i);
    const uint32_t g = lane_id() / 4;
    const TileProducts products = has_riders(job)
                                      ? queries.template multiply<RIDES>(tile)
                                      : queries.template multiply<false>(tile);
    float raw[4];
#pragma unroll
    for (int k = 0; k < 4; k++) raw[k] = queries.logit(products, k);
    if (args.sink_queries != nullptr) {
      replace_sinks(args, job, share, first, tile, raw);
    }
    if (args.policy.observe) {
#pragma unroll
      for (int k = 0; k < 4; k++) {
        const uint32_t slot = first + tile_slot(k);
        if (slot >= share.end || g >= job.heads) continue;
        logits[static_cast<size_t>(g) * args.cache.max_capacity + slot] =
            raw[k];
      }
    }

    // Weights, as the left operand of the product with the values.
    float x[4];
    float top = -INFINITY;
#pragma unroll
    for (int k = 0; k < 4; k++) {
      const bool counts = sides.bias[k] > kLiveBias;
      x[k] = counts ? raw[k] + sides.bias[k] : -INFINITY;
      top = fmaxf(top, x[k]);
      const uint32_t slot = first + tile_slot(k);
      if (slot >= share.end) continue;
      live += counts ? 1 : 0;
      if (!counts) first_free = min(first_free, slot);
    }
    top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 1));
    top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 2));
    const float max = fmaxf(state.max, top - kHeadroom);
    const float keep = __expf(state.max - finite(max));
#pragma unroll
    for (int k = 0; k < 4; k++) x[k] = __expf(x[k] - finite(max));
    state.sum = state.sum * keep + ((x[0] + x[1]) + (x[2] + x[3]));
    state.max = max;
    const SplitPair a = split_cached(x[0], x[1]), b = split_cached(x[2], x[3]);
    const uint4 weights = {a.high, a.low, b.high, b.low};
    if (__any_sync(kAllLanes, keep != 1.0f)) {
#pragma unroll
      for (int n = 0; n < DIM / 8; n++) {
#pragma unroll
        for (int k = 0; k < 4; k++) values[n][k] *= keep;
      }
    }
    const skv_cached *rows = tile + kWarpSlots * kLinePitch<DIM>;
#pragma unroll
    for (int column = 0; column < DIM; column += 16) {
      const uint4 v = value_operands<DIM>(rows, 0, column);
      mma_cached(values[column / 8], weights, v.x, v.y);
      mma_cached(values[column / 8 + 1], weights, v.z, v.w);
    }
    if (has_riders(job))
      compare_riders(args, job, share, first, products, sides);
  }

  // Looks among the slots of a tile for the nearest of the riders. Sinks take
  // no part in merges.
  __device__ void compare_riders(const skv_merge_attend_args &args,
                                 const HeadJob &job, const Share &share,
                                 uint32_t first, const TileProducts &products,
                                 const TileSides &sides) {
#pragma unroll
    for (int k = 0; k < 4; k++) {
      const uint32_t slot = first + tile_slot(k);
      const uint32_t position =
          slot == job.newest ? job.position : sides.position[k];
      const bool counts = (slot < share.end) & (sides.bias[k] > kLiveBias) &
                          (position >= args.policy.sinks);
      riders.compare(counts, slot, position, products.squares[k],
                     products.high[k], products.low[k]);
    }
  }

  // Logits of sinks are those of the queries at their cache positions.
  __device__ void replace_sinks(const skv_merge_attend_args &args,
                                const HeadJob &job, const Share &share,
                                uint32_t first, const skv_cached *tile,
                                float (&raw)[4]) {
    const skv_slots &slots = args.cache.slots;
    const float *positions = slots.side +
                             static_cast<size_t>(kSlotPosition) * slots.total +
                             job.offset;
    bool is_sink[4];
    bool any = false;
#pragma unroll
    for (int k = 0; k < 4; k++) {
      const uint32_t slot = first + tile_slot(k);
      const uint32_t position = slot == job.newest || slot >= share.end
                                    ? job.position
                                    : __float_as_uint(positions[slot]);
      is_sink[k] = slot < share.end && position < args.policy.sinks;
      any = any || is_sink[k];
    }
    if (!__any_sync(kAllLanes, any)) return;
    QueryOperands<DIM> sinks;
    sinks.load(query_of_lane(args, job, args.sink_queries),
               args.sizes.head_dim);
    const TileProducts other = sinks.template multiply<false>(tile);
#pragma unroll
    for (int k = 0; k < 4; k++) {
      if (is_sink[k]) raw[k] = sinks.logit(other, k);
    }
  }

  // Attends to all tiles of the share. `tiles` has room for kStages of them,
  // for this warp alone.
  __device__ void run(const skv_merge_attend_args &args, const HeadJob &job,
                      const Share &share, skv_cached *tiles, float *logits) {
    constexpr uint32_t kAhead = kStages<DIM>;
    // All but the newest slot is as the step before left it.
#pragma unroll 1
    for (uint32_t i = 0; i < kAhead; i++) {
      if (share.has(i)) {
        fetch<kWarpSlots>(args, job, share.first_slot(i), share.end, job.newest,
                          tiles + i * kTileHalves<DIM>);
      }
      commit_copies();
    }
    if (has_riders(job)) riders.load(args, job);
    TileSides sides = load_sides(args, job, share, 0);
    wait_for_previous();
    const uint32_t tile = (job.newest - share.begin) / kWarpSlots;
    const uint32_t at = tile / kAttendWarps;
    if (job.newest >= share.begin && job.newest < share.end &&
        tile % kAttendWarps == warp_id() && at < kAhead) {
      fetch<1>(args, job, job.newest, share.end, kNoSlot,
               tiles + at * kTileHalves<DIM> +
                   (job.newest - share.begin) % kWarpSlots * kLinePitch<DIM>);
    }
    commit_copies();
    queries.load(query_of_lane(args, job, args.queries), args.sizes.head_dim);
    if (has_riders(job) && riders.has_any(job.heads)) {
      queries.take_riders(riders.steps);
    }
#pragma unroll 1
    for (uint32_t i = 0; share.has(i); i++) {
      // The newest slot may be in any of the first tiles.
      if (i == 0) {
        wait_copies<0>();
      } else {
        wait_copies<kAhead - 1>();
      }
      __syncwarp();
      skv_cached *tile = tiles + i % kAhead * kTileHalves<DIM>;
      const TileSides next = load_sides(args, job, share, i + 1);
      add(args, job, share, i, tile, sides, logits);
      __syncwarp();
      if (share.has(i + kAhead)) {
        fetch<kWarpSlots>(args, job, share.first_slot(i + kAhead), share.end,
                          kNoSlot, tile);
      }
      commit_copies();
      sides = next;
    }
  }
};

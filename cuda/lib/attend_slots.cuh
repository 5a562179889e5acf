// Decode attention of one warp over its share of the slots of a KV head.
//
// Slots are the rows of tensor core products and query heads of the group the
// columns, so that a key is read once for all of them: see
// lib/query_operands.cuh. Weights have two columns per head as well, one for
// their high and one for their low parts, so that products have nearly 32-bit
// precision.
//
// A warp has tiles of slots of its own in shared memory, which asynchronous
// copies fill ahead: warps wait for nobody until they are through. The first
// tiles are on their way before the kernel in front has ended: only the newest
// slot is written by it (see lib/overlap.cuh).
//
// The alternative that lost: keys and values straight to registers. Loads then
// have to wait for the arithmetic in front of them.
#pragma once

#include "lane_logits.cuh"
#include "overlap.cuh"
#include "slot_copies.cuh"
#include "slot_sides.cuh"
#include "softmax_state.cuh"
#include "tile_cursor.cuh"

// A reference is replaced where weights would exceed 2^kMostBits: halves reach
// nearly 2^16.
constexpr float kMostBits = kHeadroomBits + 1.0f;

// Lower than that of any logit, but a number, so that what is free has a weight
// of 0 at it, too.
constexpr float kNoReference = -1e30f;

// Attention of one warp over its tiles of a share.
template <class Shape>
struct WarpAttention {
  static constexpr int kDim = Shape::kDim;
  static constexpr int kTiles = Shape::kTiles;

  QueryOperands<kDim, kTiles> queries;
  LaneRiders<kDim> riders;
  // Of head 4u + t, in units of ln 2. References are whole numbers: weights at
  // an old one are those at a new one times a power of two. The sum is that of
  // this lane's slots.
  SoftmaxState states[kTiles];
  // Dimensions 16n + g and 16n + g + 8 of head 4u + t, by high and by low
  // parts.
  float values[kDim / 16][kTiles][4] = {};
  uint32_t live = 0;
  uint32_t first_free = kNoSlot;

  __device__ WarpAttention() {
#pragma unroll
    for (int u = 0; u < kTiles; u++) states[u] = {kNoReference, 0.0f};
  }

  __device__ static bool has_riders(const HeadJob &job) {
    return Shape::kRides && job.will_evict;
  }

  // Adds a tile of slots, which is in shared memory.
  __device__ void add(const skv_merge_attend_args &args, const HeadJob &job,
                      uint32_t first, uint32_t end,
                      const TileCursor<kDim> &tile,
                      const TileSides<kTiles> &sides,
                      const LaneLogits<kTiles> &logits) {
    TileProducts<kTiles> products =
        has_riders(job)
            ? multiply_keys<Shape::kRides>(tile.keys, queries, riders)
            : multiply_keys<false>(tile.keys, queries, riders);
    if (args.sink_queries != nullptr) {
      replace_sinks(args, job, tile.keys, sides, products);
    }
    logits.store(first, products);
    if (has_riders(job)) {
      compare_riders(first, args.policy.sinks, products, sides);
    }
    weigh(first, end, sides, products);
    uint2 weights[kTiles];
#pragma unroll
    for (int u = 0; u < kTiles; u++) {
      const float(&x)[2] = products.logits[u];
      states[u].sum += x[0] + x[1];
      // From two columns of a slot to two slots of a column.
      const PartPairs parts = parts_of(x[0], x[1]);
      weights[u] = {transpose_matrix(parts.x), transpose_matrix(parts.y)};
    }
#pragma unroll
    for (int n = 0; n < kDim / 16; n++) {
      const uint4 v = load_transposed(tile.values + 16 * n);
#pragma unroll
      for (int u = 0; u < kTiles; u++) {
        mma_cached(values[n][u], v, weights[u].x, weights[u].y);
      }
    }
  }

  // Turns logits into weights, in place.
  __device__ void weigh(uint32_t first, uint32_t end,
                        const TileSides<kTiles> &sides,
                        TileProducts<kTiles> &products) {
    bool is_plain = true;
    // Of the weights, in units of ln 2.
    float bits[kTiles][2];
#pragma unroll
    for (int u = 0; u < kTiles; u++) {
#pragma unroll
      for (int k = 0; k < 2; k++) {
        products.logits[u][k] += sides.bias[u][k];
        bits[u][k] = fmaf(products.logits[u][k], kLog2E, -states[u].max);
        is_plain &= sides.bias[u][k] > kLiveBias & !(bits[u][k] > kMostBits);
      }
    }
    // So are nearly all tiles.
    if (__all_sync(kAllLanes, is_plain)) {
      live += 2;
    } else {
      count(first, end, sides);
      settle(sides, products, bits);
    }
#pragma unroll
    for (int u = 0; u < kTiles; u++) {
#pragma unroll
      for (int k = 0; k < 2; k++) {
        products.logits[u][k] = exp2_fast(bits[u][k]);
      }
    }
  }

  // Counts the slots of a tile that may have free ones.
  __device__ void count(uint32_t first, uint32_t end,
                        const TileSides<kTiles> &sides) {
#pragma unroll
    for (int k = 0; k < 2; k++) {
      const uint32_t slot = first + lane_id() / 4 + 8 * k;
      const bool is_live = sides.bias[0][k] > kLiveBias;
      live += is_live ? 1 : 0;
      if (!is_live && slot < end) first_free = min(first_free, slot);
    }
  }

  // Leaves free slots out, and finds references that logits are not too large
  // for.
  __device__ void settle(const TileSides<kTiles> &sides,
                         const TileProducts<kTiles> &products,
                         float (&bits)[kTiles][2]) {
#pragma unroll
    for (int u = 0; u < kTiles; u++) {
      float x[2];
      float top = -INFINITY;
#pragma unroll
      for (int k = 0; k < 2; k++) {
        const bool is_live = sides.bias[u][k] > kLiveBias;
        x[k] = is_live ? products.logits[u][k] : -INFINITY;
        top = fmaxf(top, x[k]);
      }
#pragma unroll
      for (int offset = 4; offset < 32; offset *= 2) {
        top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, offset));
      }
      if (fmaf(top, kLog2E, -states[u].max) > kMostBits) {
        const float max = ceilf(top * kLog2E) - kHeadroomBits;
        const float keep = exp2_fast(states[u].max - max);
        states[u] = {max, states[u].sum * keep};
#pragma unroll
        for (int n = 0; n < kDim / 16; n++) {
#pragma unroll
          for (int i = 0; i < 4; i++) values[n][u][i] *= keep;
        }
      }
#pragma unroll
      for (int k = 0; k < 2; k++) {
        bits[u][k] = fmaf(x[k], kLog2E, -states[u].max);
      }
    }
  }

  // Looks among the slots of a tile for the nearest of the riders. Sinks take
  // no part in merges.
  __device__ void compare_riders(uint32_t first, uint32_t sinks,
                                 const TileProducts<kTiles> &products,
                                 const TileSides<kTiles> &sides) {
#pragma unroll
    for (int k = 0; k < 2; k++) {
      const bool counts =
          (sides.bias[0][k] > kLiveBias) & (sides.position[k] >= sinks);
      riders.compare(counts, first + lane_id() / 4 + 8 * k, sides.position[k],
                     products.squares[k], products.riders[k]);
    }
  }

  // Logits of sinks are those of the queries at their cache positions.
  __device__ static void replace_sinks(const skv_merge_attend_args &args,
                                       const HeadJob &job,
                                       const skv_cached *keys,
                                       const TileSides<kTiles> &sides,
                                       TileProducts<kTiles> &products) {
    const uint32_t count = args.policy.sinks;
    const bool any = sides.position[0] < count || sides.position[1] < count;
    if (!__any_sync(kAllLanes, any)) return;
    float logits[kTiles][2];
    multiply_sinks<kDim>(args, job, keys, logits);
#pragma unroll
    for (int u = 0; u < kTiles; u++) {
#pragma unroll
      for (int k = 0; k < 2; k++) {
        if (sides.position[k] < count) {
          products.logits[u][k] = logits[u][k];
        }
      }
    }
  }

  // Attends to all tiles of the share. `tiles` has room for kStages of them,
  // for this warp alone.
  __device__ void run(const skv_merge_attend_args &args, const HeadJob &job,
                      const Share &share, skv_cached *tiles, float *logits) {
    constexpr uint32_t kAhead = kStages<kDim>;
    const uint32_t end = share.end;
    uint32_t first = share.first_slot(0);
    SlotCopies<Shape> copies;
    copies.init(args, job, first);
    TileCursor<kDim> tile(tiles);
    // All but the newest slot is as the step before left it.
#pragma unroll 1
    for (uint32_t i = 0; i < kAhead; i++) {
      if (i > 0) commit_copies();
      copies.copy_tile_but(job.newest, share.first_slot(i), end, tile.lines);
      tile.advance();
    }
    if (has_riders(job)) riders.load(args, job);
    SlotSides<kTiles> fields;
    fields.init(args, job, first,
                has_riders(job) || args.sink_queries != nullptr);
    TileSides<kTiles> sides = fields.load(first, end);
    wait_for_previous();
    const uint32_t newest = share.tile_of(job.newest);
    if (newest < kAhead) {
      const uint32_t line = (job.newest - share.begin) % kWarpSlots;
      SlotCopies<Shape>::copy_slot(
          args, job, job.newest,
          tiles + newest * kTileElements<kDim> + line * kLinePitch<kDim>);
      if (newest == 0) sides = fields.load(first, end);
    }
    commit_copies();
    queries.load(args, job);
    if (newest < kAhead) wait_copies<0>();
    LaneLogits<kTiles> own(args, job, share, logits);
#pragma unroll 1
    for (; first < end; first += kBlockSlots) {
      wait_copies<kAhead - 1>();
      __syncwarp();
      fields.advance();
      const TileSides<kTiles> next = fields.load(first + kBlockSlots, end);
      add(args, job, first, end, tile, sides, own);
      __syncwarp();
      copies.copy_tile(first + kAhead * kBlockSlots, end, tile.lines);
      commit_copies();
      sides = next;
      own.advance();
      tile.advance();
    }
  }
};

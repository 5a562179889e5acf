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

#include "overlap.cuh"
#include "slot_copies.cuh"
#include "slot_sides.cuh"
#include "softmax_state.cuh"
#include "tile_products.cuh"

// A reference is replaced where weights would exceed 2^kMostBits: halves reach
// nearly 2^16.
constexpr float kMostBits = kHeadroomBits + 1.0f;

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
    for (int u = 0; u < kTiles; u++) states[u] = init_softmax();
  }

  __device__ static bool has_riders(const HeadJob &job) {
    return Shape::kRides && job.will_evict;
  }

  // Adds a tile of slots, which is in shared memory. `logits` are those of the
  // tile.
  __device__ void add(const skv_merge_attend_args &args, const HeadJob &job,
                      uint32_t first, uint32_t end, const skv_cached *tile,
                      const TileSides<kTiles> &sides, float *logits) {
    TileProducts<kTiles> products =
        has_riders(job) ? multiply_keys(tile, queries, &riders)
                        : multiply_keys<kDim, kTiles>(tile, queries, nullptr);
    if (args.sink_queries != nullptr) {
      replace_sinks(args, job, tile, sides, products);
    }
    if (args.policy.observe) {
      store_logits(job, first, end, args.cache.max_capacity, products, logits);
    }
    weigh(first, end, sides, products);
    const skv_cached *rows = tile + kWarpSlots * kLinePitch<kDim>;
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
      const uint4 v = dim_operands<kDim>(rows, 0, 16 * n);
#pragma unroll
      for (int u = 0; u < kTiles; u++) {
        mma_cached(values[n][u], v, weights[u].x, weights[u].y);
      }
    }
    if (has_riders(job)) {
      compare_riders(first, args.policy.sinks, products, sides);
    }
  }

  __device__ static void store_logits(const HeadJob &job, uint32_t first,
                                      uint32_t end, uint32_t pitch,
                                      const TileProducts<kTiles> &products,
                                      float *logits) {
    const uint32_t g = lane_id() / 4, t = lane_id() % 4;
#pragma unroll
    for (int u = 0; u < kTiles; u++) {
      const uint32_t head = kColumnHeads * u + t;
      float *own = logits + static_cast<size_t>(head) * pitch + first + g;
#pragma unroll
      for (int k = 0; k < 2; k++) {
        if (head < job.heads && first + g + 8 * k < end) {
          own[8 * k] = products.logits[u][k];
        }
      }
    }
  }

  // Turns logits into weights, in place.
  __device__ void weigh(uint32_t first, uint32_t end,
                        const TileSides<kTiles> &sides,
                        TileProducts<kTiles> &products) {
    bool is_plain = true;
    float bits[kTiles][2];
#pragma unroll
    for (int u = 0; u < kTiles; u++) {
#pragma unroll
      for (int k = 0; k < 2; k++) {
        bits[u][k] = (products.logits[u][k] + sides.bias[u][k]) * kLog2E;
        is_plain &= sides.bias[u][k] > kLiveBias &&
                    !(bits[u][k] - states[u].max > kMostBits);
      }
    }
    // So are nearly all tiles.
    if (__all_sync(kAllLanes, is_plain)) {
      live += 2;
    } else {
      settle(first, end, sides, bits);
    }
#pragma unroll
    for (int u = 0; u < kTiles; u++) {
#pragma unroll
      for (int k = 0; k < 2; k++) {
        products.logits[u][k] = exp2_fast(bits[u][k] - finite(states[u].max));
      }
    }
  }

  // Where a tile has free slots, or logits that are too large for a reference.
  __device__ void settle(uint32_t first, uint32_t end,
                         const TileSides<kTiles> &sides,
                         float (&bits)[kTiles][2]) {
#pragma unroll
    for (int k = 0; k < 2; k++) {
      const uint32_t slot = first + lane_id() / 4 + 8 * k;
      if (slot >= end) continue;
      if (sides.bias[0][k] > kLiveBias) {
        live++;
      } else {
        first_free = min(first_free, slot);
      }
    }
#pragma unroll
    for (int u = 0; u < kTiles; u++) {
      float top = -INFINITY;
#pragma unroll
      for (int k = 0; k < 2; k++) {
        if (!(sides.bias[u][k] > kLiveBias)) bits[u][k] = -INFINITY;
        top = fmaxf(top, bits[u][k]);
      }
#pragma unroll
      for (int offset = 4; offset < 32; offset *= 2) {
        top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, offset));
      }
      if (!(top - states[u].max > kMostBits)) continue;
      const float max = ceilf(top) - kHeadroomBits;
      const float keep = exp2_fast(states[u].max - max);
      states[u] = {max, states[u].sum * keep};
#pragma unroll
      for (int n = 0; n < kDim / 16; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) values[n][u][i] *= keep;
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
                                       const skv_cached *tile,
                                       const TileSides<kTiles> &sides,
                                       TileProducts<kTiles> &products) {
    const uint32_t count = args.policy.sinks;
    const bool any = sides.position[0] < count || sides.position[1] < count;
    if (!__any_sync(kAllLanes, any)) return;
    QueryOperands<kDim, kTiles> sinks;
    sinks.load(args, job, args.sink_queries);
    const TileProducts<kTiles> other =
        multiply_keys<kDim, kTiles>(tile, sinks, nullptr);
#pragma unroll
    for (int u = 0; u < kTiles; u++) {
#pragma unroll
      for (int k = 0; k < 2; k++) {
        if (sides.position[k] < count) {
          products.logits[u][k] = other.logits[u][k];
        }
      }
    }
  }

  // Attends to all tiles of the share. `tiles` has room for kStages of them,
  // for this warp alone.
  __device__ void run(const skv_merge_attend_args &args, const HeadJob &job,
                      const Share &share, skv_cached *tiles, float *logits) {
    constexpr uint32_t kAhead = kStages<kDim>;
    SlotCopies<Shape> copies;
    copies.init(args, job);
    // All but the newest slot is as the step before left it.
#pragma unroll 1
    for (uint32_t i = 0; i < kAhead; i++) {
      if (i > 0) commit_copies();
      if (!share.has(i)) continue;
      copies.copy_tile(share.first_slot(i), share.end, job.newest,
                       tiles + i * kTileElements<kDim>);
    }
    if (has_riders(job)) riders.load(args, job);
    SlotSides<kTiles> fields;
    fields.init(args, job);
    const bool asks = has_riders(job) || args.sink_queries != nullptr;
    TileSides<kTiles> sides = fields.load(share.first_slot(0), share.end, asks);
    wait_for_previous();
    // The tile that the newest slot is in, of this warp's.
    const uint32_t newest = share.tile_of(job.newest);
    if (newest < kAhead) {
      copies.copy_slot(job.newest, tiles + newest * kTileElements<kDim> +
                                       (job.newest - share.first_slot(newest)) *
                                           kLinePitch<kDim>);
    }
    if (newest == 0) {
      sides = fields.load(share.first_slot(0), share.end, asks);
    }
    commit_copies();
    queries.load(args, job, args.queries);
#pragma unroll 1
    for (uint32_t i = 0; share.has(i); i++) {
      if (i == newest) {
        wait_copies<0>();
      } else {
        wait_copies<kAhead - 1>();
      }
      __syncwarp();
      const uint32_t first = share.first_slot(i);
      skv_cached *tile = tiles + i % kAhead * kTileElements<kDim>;
      const TileSides<kTiles> next =
          fields.load(share.first_slot(i + 1), share.end, asks);
      add(args, job, first, share.end, tile, sides, logits);
      __syncwarp();
      if (share.has(i + kAhead)) {
        copies.copy_tile(share.first_slot(i + kAhead), share.end, kNoSlot,
                         tile);
      }
      commit_copies();
      sides = next;
    }
  }
};

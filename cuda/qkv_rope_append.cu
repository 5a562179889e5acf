// RMS norm, the q|k|v product with its bias, per-head norms, RoPE, and one new
// slot per KV head that holds the token: the head's next free slot in a decode
// step, a staged row in a prefill step.
//
// Streams the weight once, 2 bytes per element, where there are few rows: see
// lib/product.cuh; writes 4 bytes per query element and 2 per key and value
// element. Both ends of a RoPE pair are made together and finished where they
// are made. Where the model norms heads, products go to scratch memory and
// `append` finishes one head per block. The alternative that lost: `append` for
// all, one launch per layer more.
#include "lib/product.cuh"
#include "lib/rope.cuh"
#include "lib/slots.cuh"

namespace {

// Where a row's products go.
struct Target {
  Row row;
  // Index of the row in the step.
  uint32_t index;

  // Number of tokens in the cache before this one: its place there.
  __device__ uint32_t place(const skv_qkv_rope_append_args &args,
                            uint32_t kv_head) const {
    const uint32_t live =
        head_words(args.cache, args.sizes, row.sequence, kv_head)[kHeadLive];
    return args.step.kind == SKV_DECODE ? live : live + index;
  }

  // The slot that takes the token. False if the head is full.
  __device__ bool slot(const skv_qkv_rope_append_args &args, uint32_t kv_head,
                       Slot &out) const {
    const skv_cache &cache = args.cache;
    if (args.step.kind == SKV_PREFILL) {
      out = slot_at(cache.stage, kv_head * cache.stage_rows + index,
                    args.sizes.head_dim);
      return true;
    }
    const uint32_t *head = head_words(cache, args.sizes, row.sequence, kv_head);
    out = slot_at(cache.slots, head[kHeadOffset] + head[kHeadNext],
                  args.sizes.head_dim);
    return head[kHeadNext] < head[kHeadCapacity];
  }
};

// Where the pair (pair, pair + half) of a head goes, and how far it turns: a
// query, a key or a value.
struct PairTarget {
  float2 turn;
  // Of queries.
  float2 sink_turn;
  size_t at;
  // Of keys and values, null where the head is full.
  skv_cached *half_row;
  bool is_query;
  bool is_key;
  // Where the side fields are, if this pair is the first of a key, and the
  // position that they get.
  Slot slot;
  uint32_t position;
  bool is_first;
};

__device__ inline PairTarget target_of(const skv_qkv_rope_append_args &args,
                                       const Target &target, uint32_t head,
                                       uint32_t pair) {
  const skv_sizes &sizes = args.sizes;
  const uint32_t half = sizes.head_dim / 2;
  PairTarget to = {};
  to.turn = rotation(args.rope, half, pair, target.row.position);
  to.position = target.row.position;
  to.is_query = head < sizes.heads;
  if (to.is_query) {
    to.at = (static_cast<size_t>(target.index) * sizes.heads + head) *
                sizes.head_dim +
            pair;
    if (args.sink_queries == nullptr) return to;
    const uint32_t kv_head = head / (sizes.heads / sizes.kv_heads);
    to.sink_turn = rotation(args.rope, half, pair, target.place(args, kv_head));
    return to;
  }
  to.is_key = head < sizes.heads + sizes.kv_heads;
  if (!target.slot(args, (head - sizes.heads) % sizes.kv_heads, to.slot)) {
    return to;
  }
  to.half_row = (to.is_key ? to.slot.key : to.slot.value) + pair;
  // Whoever makes the first pair of the key also makes the side fields.
  to.is_first = to.is_key && pair == 0;
  return to;
}

__device__ inline void store_pair(const skv_qkv_rope_append_args &args,
                                  const PairTarget &to, float2 x) {
  const uint32_t half = args.sizes.head_dim / 2;
  if (to.is_query) {
    const float2 query = turned(x, to.turn);
    args.queries[to.at] = query.x;
    args.queries[to.at + half] = query.y;
    if (args.sink_queries == nullptr) return;
    const float2 sink = turned(x, to.sink_turn);
    args.sink_queries[to.at] = sink.x;
    args.sink_queries[to.at + half] = sink.y;
    return;
  }
  if (to.half_row == nullptr) return;
  const float2 kept = to.is_key ? turned(x, to.turn) : x;
  to.half_row[0] = to_cached(kept.x);
  to.half_row[half] = to_cached(kept.y);
  if (to.is_first) initialise_slot(to.slot, to.position, args.cache.lanes);
}

// Pairs of RoPE, numbered through all heads.
struct RopePairs {
  skv_qkv_rope_append_args args;

  __device__ uint32_t output(uint32_t pair, uint32_t end) const {
    const uint32_t half = args.sizes.head_dim / 2;
    return pair / half * (2 * half) + pair % half + end * half;
  }
  bool has_tiles(uint32_t outputs) const {
    return outputs % args.sizes.head_dim == 0;
  }
  struct Held {
    PairTarget target;
    float bias[2];
  };
  __device__ Held hold(uint32_t row, uint32_t pair) const {
    const uint32_t half = args.sizes.head_dim / 2;
    const Target target = {row_of(args.step, row), row};
    Held held = {target_of(args, target, pair / half, pair % half), {}};
    if (args.bias != nullptr) {
      held.bias[0] = args.bias[output(pair, 0)];
      held.bias[1] = args.bias[output(pair, 1)];
    }
    return held;
  }
  __device__ void finish(const Held &held, float a, float b) const {
    store_pair(args, held.target, {a + held.bias[0], b + held.bias[1]});
  }
};

// Neighbours, left in scratch memory.
struct ProductPairs {
  float *products;
  uint32_t width;

  __device__ uint32_t output(uint32_t pair, uint32_t end) const {
    return 2 * pair + end;
  }
  static bool has_tiles(uint32_t outputs) { return outputs % 2 == 0; }
  using Held = float2 *;
  __device__ Held hold(uint32_t row, uint32_t pair) const {
    // Heads are even, and so is the number of outputs.
    return reinterpret_cast<float2 *>(
        products + static_cast<size_t>(row) * width + 2 * pair);
  }
  __device__ static void finish(const Held &held, float a, float b) {
    *held = {a, b};
  }
};

constexpr uint32_t kAppendThreads = 128;

// Finishes the products of one head of one row.
__global__ void __launch_bounds__(kAppendThreads)
    append_kernel(skv_qkv_rope_append_args args, const float *products) {
  __shared__ float shared[kAppendThreads / 32];
  begin_kernel();
  const skv_sizes &sizes = args.sizes;
  const Target target = {row_of(args.step, blockIdx.y), blockIdx.y};
  if (!target.row.forwarded) return;
  const uint32_t head = blockIdx.x;
  const uint32_t head_dim = sizes.head_dim, half = head_dim / 2;
  const float *from = products +
                      static_cast<size_t>(target.index) * args.weight.rows +
                      head * head_dim;
  const float *bias =
      args.bias == nullptr ? nullptr : args.bias + head * head_dim;
  const float *norm = head < sizes.heads                    ? args.query_norm
                      : head < sizes.heads + sizes.kv_heads ? args.key_norm
                                                            : nullptr;
  const auto product = [&](uint32_t i) {
    return from[i] + (bias == nullptr ? 0.0f : bias[i]);
  };
  float scale = 1.0f;
  if (norm != nullptr) {
    float squares = 0.0f;
    for (uint32_t i = threadIdx.x; i < head_dim; i += kAppendThreads) {
      squares += product(i) * product(i);
    }
    squares = warp_sum(squares);
    if (lane_id() == 0) shared[warp_id()] = squares;
    __syncthreads();
    squares = 0.0f;
    for (uint32_t w = 0; w < kAppendThreads / 32; w++) squares += shared[w];
    scale = rsqrtf(squares / static_cast<float>(head_dim) + sizes.norm_epsilon);
  }
  for (uint32_t pair = threadIdx.x; pair < half; pair += kAppendThreads) {
    float2 x = {product(pair) * scale, product(pair + half) * scale};
    if (norm != nullptr) x.x *= norm[pair], x.y *= norm[pair + half];
    store_pair(args, target_of(args, target, head, pair), x);
  }
}

Product product_of(const skv_qkv_rope_append_args &args) {
  return {args.weight, args.hidden,    args.norm, args.sizes.norm_epsilon,
          args.step,   args.step.rows, false};
}

bool is_fused(const skv_qkv_rope_append_args &args) {
  return args.query_norm == nullptr && args.key_norm == nullptr;
}

// Floats of the products of all rows.
size_t product_count(const skv_qkv_rope_append_args &args) {
  return static_cast<size_t>(args.step.rows) * args.weight.rows;
}

}  // namespace

Needs qkv_rope_append_needs(const skv_qkv_rope_append_args &args,
                            uint32_t multiprocessors) {
  Needs needs = product_needs(product_of(args), multiprocessors);
  if (!is_fused(args)) {
    const size_t bytes = aligned_bytes(product_count(args) * sizeof(float));
    needs.scratch += bytes;
    if (needs.library_scratch > 0) needs.library_scratch += bytes;
  }
  return needs;
}

cudaError_t launch_qkv_rope_append(const skv_qkv_rope_append_args &args,
                                   const Launch &launch) {
  Scratch scratch(launch.scratch);
  if (is_fused(args)) {
    return multiply(product_of(args), RopePairs{args}, scratch, launch);
  }
  float *products = scratch.take<float>(product_count(args));
  const ProductPairs pairs = {products, args.weight.rows};
  const cudaError_t status = multiply(product_of(args), pairs, scratch, launch);
  if (status != cudaSuccess) return status;
  const dim3 grid(args.sizes.heads + 2 * args.sizes.kv_heads, args.step.rows);
  return launch_kernel(launch, append_kernel, grid, kAppendThreads, 0, args,
                       products);
}

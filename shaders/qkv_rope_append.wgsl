// RMS norm, the q|k|v product with its bias, per-head norms, RoPE, and one new
// slot per KV head that holds the token: the head's next free slot in a decode
// step, a staged row in a prefill step.
//
// Streams the weight once, 2 bytes per element; writes 4 bytes per query
// element and 2 per key and value element. RoPE turns the pairs (i, i + half),
// so a workgroup of `vector` owns both ends of PAIRS pairs of a head, and the
// whole head where the model norms heads. A chunk takes two dispatches: `tile`
// leaves products in scratch and `append` finishes them. Doing it in one would
// need tiles as wide as a head, 64 KiB of workgroup memory.

struct Params {
  // First output of the weight block, and outputs in it: whole heads.
  first_output: u32,
  outputs: u32,
  // Workgroups of `vector` that share a head.
  parts: u32,
  first_head: u32,
  // Slots in `keys`, and those of a KV head in a prefill step.
  total: u32,
  stage_rows: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
// (rows, heads, headDim)
@group(0) @binding(1) var<storage, read_write> queries: array<f32>;
@group(0) @binding(2) var<storage, read_write> sink_queries: array<f32>;
// (rows, hidden)
@group(0) @binding(3) var<storage, read> input: array<vec4<f32>>;
// (hidden)
@group(0) @binding(4) var<storage, read> norm: array<vec4<f32>>;
// (outputs, hidden) halves
@group(0) @binding(5) var<storage, read> weight: array<vec4<u32>>;
// ((heads + 2 kvHeads) headDim)
@group(0) @binding(6) var<storage, read> bias: array<f32>;
// (headDim)
@group(0) @binding(7) var<storage, read> query_norm: array<f32>;
@group(0) @binding(8) var<storage, read> key_norm: array<f32>;
// (3, 256, headDim / 2): cosine and sine
@group(0) @binding(9) var<storage, read> rope: array<vec2<f32>>;
// (total, headDim) halves
@group(0) @binding(10) var<storage, read_write> keys: array<u32>;
@group(0) @binding(11) var<storage, read_write> values: array<u32>;
// (SlotField.bias + lanes, total)
@group(0) @binding(12) var<storage, read_write> side: array<u32>;
@group(0) @binding(13) var<storage, read> table: array<u32>;
@group(0) @binding(14) var<storage, read> step_words: array<u32>;
// (rows, heads + 2 kvHeads, headDim): products of `tile`
@group(0) @binding(15) var<storage, read_write> scratch: array<f32>;

override HEADS: u32;
override HEAD_DIM: u32;
override LANES: u32;
override PAIRS: u32;
override BIAS: bool = false;
override SINK_QUERIES: bool = false;
override QUERY_NORM: bool = false;
override KEY_NORM: bool = false;

const SIDE_FIELDS = 6u;
const FIELD_EMA = 0u;
const FIELD_ACCUMULATED = 1u;
const FIELD_OBSERVATIONS = 2u;
const FIELD_POSITION = 3u;
const FIELD_TOKENS = 4u;
const FIELD_VALUE_NORM = 5u;
const LOG_ZERO = -1e30;

var<private> first_weight_row: u32;
var<private> pair_offset: u32;

// Slots 0 .. PAIRS are the first ends of the pairs, the others the second.
fn element_of(slot: u32) -> u32 {
  let half = HEAD_DIM / 2u;
  return min(pair_offset + slot % PAIRS, half - 1u) + slot / PAIRS * half;
}

fn weight_row(slot: u32) -> u32 {
  if (IS_TILED) {
    return min(first_weight_row + slot, params.outputs - 1u);
  }
  // The last of several parts may have slots to spare.
  return first_weight_row + element_of(min(slot, 2u * PAIRS - 1u));
}

override IS_TILED: bool = false;

fn input_row(row: u32) -> u32 {
  return row;
}

fn is_needed(row: u32) -> bool {
  return is_forwarded(row);
}

// Turns a pair by the angle of `position`.
fn rotate(pair: vec2<f32>, index: u32, position: u32) -> vec2<f32> {
  return turn(pair, angle_at(index, position));
}

// Index in the cache that a row's token takes, staged rows included.
fn place_of(row: u32, kv_head: u32) -> u32 {
  let live = table[head_at(sequence_of(row), kv_head) + HEAD_LIVE];
  if (PREFILL) {
    return live + row;
  }
  return live;
}

fn initialise(slot: u32, position: u32) {
  side[FIELD_EMA * params.total + slot] = bitcast<u32>(LOG_ZERO);
  side[FIELD_ACCUMULATED * params.total + slot] = 0u;
  side[FIELD_OBSERVATIONS * params.total + slot] = 0u;
  side[FIELD_POSITION * params.total + slot] = position;
  side[FIELD_TOKENS * params.total + slot] = 1u;
  side[FIELD_VALUE_NORM * params.total + slot] = 0u;
  for (var lane = 0u; lane < LANES; lane++) {
    side[(SIDE_FIELDS + lane) * params.total + slot] = 0u;
  }
}

// 1 / rms of the head in `products`, which then holds all of it.
fn head_scale(base: u32) -> f32 {
  var squares = 0.0;
  for (var i = 0u; i < HEAD_DIM; i++) {
    squares += products[base + i] * products[base + i];
  }
  return inverseSqrt(squares / f32(HEAD_DIM) + EPSILON);
}

// Adds biases to the products of a head in `products[index]`, for all rows.
fn add_bias(thread: u32, threads: u32, rows: u32, head: u32) {
  for (var i = thread; i < rows * 2u * PAIRS; i += threads) {
    let slot = i % (2u * PAIRS);
    products[i / (2u * PAIRS) * SLOTS + slot] +=
      bias[head * HEAD_DIM + element_of(slot)];
  }
}

// Norms, turns and writes two neighbouring pairs, `index` and the next one, of
// a head whose products stand in `products` from `base`.
fn write_pairs(row: u32, head: u32, index: u32, base: u32) {
  let half = HEAD_DIM / 2u;
  let i = pair_offset + index;
  let position = position_of_row(row);
  var even = vec2(products[base + index], products[base + PAIRS + index]);
  var odd = vec2(products[base + index + 1u], products[base + PAIRS + index + 1u]);
  if (head < HEADS) {
    if (QUERY_NORM) {
      let scale = head_scale(base);
      even *= scale * vec2(query_norm[i], query_norm[i + half]);
      odd *= scale * vec2(query_norm[i + 1u], query_norm[i + 1u + half]);
    }
    let at = (row * HEADS + head) * HEAD_DIM + i;
    let a = rotate(even, i, position);
    let b = rotate(odd, i + 1u, position);
    queries[at] = a.x;
    queries[at + 1u] = b.x;
    queries[at + half] = a.y;
    queries[at + half + 1u] = b.y;
    if (SINK_QUERIES) {
      let place = place_of(row, head / (HEADS / KV_HEADS));
      let a = rotate(even, i, place);
      let b = rotate(odd, i + 1u, place);
      sink_queries[at] = a.x;
      sink_queries[at + 1u] = b.x;
      sink_queries[at + half] = a.y;
      sink_queries[at + half + 1u] = b.y;
    }
    return;
  }
  let is_key = head < HEADS + KV_HEADS;
  let slot = slot_of(row, (head - HEADS) % KV_HEADS);
  if (slot == NO_SLOT) {
    return;
  }
  let at = (slot * HEAD_DIM + i) / 2u;
  if (!is_key) {
    values[at] = pack_halves(vec2(even.x, odd.x));
    values[at + half / 2u] = pack_halves(vec2(even.y, odd.y));
    return;
  }
  if (KEY_NORM) {
    let scale = head_scale(base);
    even *= scale * vec2(key_norm[i], key_norm[i + half]);
    odd *= scale * vec2(key_norm[i + 1u], key_norm[i + 1u + half]);
  }
  let a = rotate(even, i, position);
  let b = rotate(odd, i + 1u, position);
  keys[at] = pack_halves(vec2(a.x, b.x));
  keys[at + half / 2u] = pack_halves(vec2(a.y, b.y));
  if (i == 0u) {
    initialise(slot, position);
  }
}

@compute @workgroup_size(VECTOR_THREADS)
fn vector(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  if (!is_any_needed()) {
    return;
  }
  let local_head = group.x / params.parts;
  let head = params.first_output / HEAD_DIM + local_head;
  first_weight_row = local_head * HEAD_DIM;
  pair_offset = group.x % params.parts * PAIRS;
  for (var slot = 0u; slot < 2u * PAIRS; slot += VECTOR_OUTPUTS) {
    multiply_vectors(thread, slot);
  }
  if (BIAS) {
    add_bias(thread, VECTOR_THREADS, ROWS, head);
    workgroupBarrier();
  }
  let couples = PAIRS / 2u;
  for (var i = thread; i < ROWS * couples; i += VECTOR_THREADS) {
    let row = i / couples;
    let index = i % couples * 2u;
    if (is_forwarded(row) && pair_offset + index < HEAD_DIM / 2u) {
      write_pairs(row, head, index, row * SLOTS);
    }
  }
}

@compute @workgroup_size(TILE_THREADS)
fn tile(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let first_row = group.y * TILE_ROWS;
  if (PREFILL && !is_forwarded(first_row)) {
    return;
  }
  first_weight_row = group.x * TILE_OUTPUTS;
  let sums = multiply_tiles(thread, first_row);
  let pitch = (HEADS + 2u * KV_HEADS) * HEAD_DIM;
  for (var j = 0u; j < 4u; j++) {
    let row = first_row + thread / 16u + 16u * j;
    for (var i = 0u; i < 4u; i++) {
      let output = first_weight_row + thread % 16u * 4u + i;
      if (row < ROWS && output < params.outputs) {
        scratch[row * pitch + params.first_output + output] = sums[j][i];
      }
    }
  }
}

// Finishes one head of one row from `scratch`. PAIRS is half the head.
@compute @workgroup_size(64)
fn append(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let head = group.x;
  let row = group.y;
  if (!is_forwarded(row)) {
    return;
  }
  let base = (row * (HEADS + 2u * KV_HEADS) + head) * HEAD_DIM;
  for (var i = thread; i < HEAD_DIM; i += 64u) {
    products[i] = scratch[base + i];
  }
  workgroupBarrier();
  if (BIAS) {
    add_bias(thread, 64u, 1u, head);
    workgroupBarrier();
  }
  for (var index = 2u * thread; index < PAIRS; index += 128u) {
    write_pairs(row, head, index, 0u);
  }
}

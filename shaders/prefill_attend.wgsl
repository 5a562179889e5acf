// Attention of the rows of a chunk: each row attends to the voted slots and to
// the rows up to itself.
//
// One workgroup takes a tile of queries, rows times the heads of a group, over
// all slots of their KV head, with a running softmax: neither logits nor
// weights leave workgroup memory. Keys and values are read once per tile of
// queries. Splitting the slots over workgroups too would help short chunks
// over long caches only; decode, which needs that, has `merge_attend`.

struct Params {
  first_head: u32,
  total: u32,
  stage_total: u32,
  stage_rows: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
// (rows, heads, headDim)
@group(0) @binding(1) var<storage, read_write> output: array<vec2<f32>>;
// (rows, heads): ln of the softmax sums
@group(0) @binding(2) var<storage, read_write> log_sums: array<f32>;
// (rows, heads, headDim)
@group(0) @binding(3) var<storage, read> queries: array<vec2<f32>>;
@group(0) @binding(4) var<storage, read> sink_queries: array<vec2<f32>>;
// (total, headDim) halves
@group(0) @binding(5) var<storage, read> keys: array<u32>;
@group(0) @binding(6) var<storage, read> values: array<u32>;
// (SlotField.bias + lanes, total)
@group(0) @binding(7) var<storage, read> side: array<u32>;
// The same of the staged rows, (kvHeads, stageRows).
@group(0) @binding(8) var<storage, read> stage_keys: array<u32>;
@group(0) @binding(9) var<storage, read> stage_values: array<u32>;
@group(0) @binding(10) var<storage, read> stage_side: array<u32>;
@group(0) @binding(11) var<storage, read> table: array<u32>;
@group(0) @binding(12) var<storage, read> step_words: array<u32>;

const THREADS = 256u;
// Queries that a thread adds values for, at most: 32 queries, 2 threads per
// element pair of the widest head.
const MAX_QUERIES = 16u;
// Logits of a thread, at most.
const MAX_LOGITS = 4u;
const LEAST_LOGIT = -1e30;

override MAX_TILE: u32 = 32u;

var<workgroup> row_max: array<f32, MAX_TILE>;
var<workgroup> row_sum: array<f32, MAX_TILE>;
var<workgroup> row_keep: array<f32, MAX_TILE>;
// The same sum at the scale of scores.
var<workgroup> gain_sum: array<f32, MAX_TILE>;

// Adds a tile of logits to a query's sum at the scale of scores. Its
// largest logit is that of the attention.
fn add_gained(i: u32, gain: f32) {
  var top = row_max[i];
  for (var k = 0u; k < KEY_TILE; k++) {
    top = max(top, logits[i * logit_pitch() + k]);
  }
  var sum = gain_sum[i] * exp(gain * (row_max[i] - top));
  for (var k = 0u; k < KEY_TILE; k++) {
    let logit = logits[i * logit_pitch() + k];
    if (logit > LEAST_LOGIT) {
      sum += exp(gain * (logit - top));
    }
  }
  gain_sum[i] = sum;
}

@compute @workgroup_size(THREADS)
fn attend(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let kv_head = group.y;
  let first = group.x * QUERY_TILE;
  let rows = step_words[CHUNK_ROWS] + step_words[CHUNK_GUESTS];
  if (first >= rows * GROUP) {
    return;
  }
  let count = min(QUERY_TILE, rows * GROUP - first);
  let half = HEAD_DIM / 2u;
  let head = head_at(step_words[CHUNK_SEQUENCE], kv_head);
  let high = table[head + HEAD_HIGH];
  let cache_tiles = (high + KEY_TILE - 1u) / KEY_TILE;
  // The tile's last query is in this row.
  let end_row = (first + count - 1u) / GROUP + 1u;
  let stage_tiles = (end_row + KEY_TILE - 1u) / KEY_TILE;
  load_queries(thread, first, count, kv_head);
  if (thread < QUERY_TILE) {
    row_max[thread] = LEAST_LOGIT;
    row_sum[thread] = 0.0;
    gain_sum[thread] = 0.0;
  }
  // Of the query that the first threads sum up.
  let position = step_words[CHUNK_POSITION] + (first + thread) / GROUP;
  let gain = score_gain(position, table[head + HEAD_BUDGET]);

  // Logits: a thread has key `j` and every `strands`th query.
  let j = thread % KEY_TILE;
  let strand = thread / KEY_TILE;
  let strands = THREADS / KEY_TILE;
  // Values: a thread has two elements and every `parts`th query.
  let parts = THREADS / half;
  let part = thread / half;
  let pair = thread % half;
  var sums: array<vec2<f32>, MAX_QUERIES>;
  for (var tile = 0u; tile < cache_tiles + stage_tiles; tile++) {
    var first_slot = table[head + HEAD_OFFSET] + tile * KEY_TILE;
    var first_row = 0u;
    var slots = min(KEY_TILE, high - min(high, tile * KEY_TILE));
    let is_staged = tile >= cache_tiles;
    if (is_staged) {
      first_row = (tile - cache_tiles) * KEY_TILE;
      first_slot = STAGED | (kv_head * params.stage_rows + first_row);
      slots = min(KEY_TILE, end_row - first_row);
    }
    load_keys(thread, first_slot, slots);
    workgroupBarrier();
    let slot = first_slot + j;
    let is_used = j < slots && (is_staged || tokens_of(slot) != 0u);
    for (var i = strand; i < QUERY_TILE; i += strands) {
      var logit = LEAST_LOGIT;
      let query = first + i;
      let is_seen = !is_staged || first_row + j <= query / GROUP;
      if (is_used && is_seen && i < count) {
        logit = raw_logit(i, j, query_vector(query, kv_head), slot) +
          vote_bias(slot, query % GROUP);
      }
      logits[i * logit_pitch() + j] = logit;
    }
    workgroupBarrier();
    // Zeroed in so many words: naga 29 does not zero a `var` again in a loop.
    var tops = array<f32, MAX_LOGITS>();
    var weights = array<f32, MAX_LOGITS>();
    for (var n = 0u; strand + n * strands < QUERY_TILE; n++) {
      let i = strand + n * strands;
      var top = row_max[i];
      for (var k = 0u; k < KEY_TILE; k++) {
        top = max(top, logits[i * logit_pitch() + k]);
      }
      tops[n] = top;
      let logit = logits[i * logit_pitch() + j];
      if (logit > LEAST_LOGIT) {
        weights[n] = exp(logit - top);
      }
    }
    if (STEP_GAIN && thread < QUERY_TILE) {
      add_gained(thread, gain);
    }
    workgroupBarrier();
    for (var n = 0u; strand + n * strands < QUERY_TILE; n++) {
      let i = strand + n * strands;
      logits[i * logit_pitch() + j] = weights[n];
      if (j == 0u) {
        row_keep[i] = exp(row_max[i] - tops[n]);
        row_max[i] = tops[n];
      }
    }
    workgroupBarrier();
    if (thread < QUERY_TILE) {
      var sum = row_sum[thread] * row_keep[thread];
      for (var k = 0u; k < KEY_TILE; k++) {
        sum += logits[thread * logit_pitch() + k];
      }
      row_sum[thread] = sum;
    }
    if (part < parts) {
      for (var n = 0u; part + n * parts < QUERY_TILE; n++) {
        sums[n] *= row_keep[part + n * parts];
      }
      for (var k = 0u; k < slots; k++) {
        let value = unpack_halves(value_word(first_slot + k, pair));
        for (var n = 0u; part + n * parts < QUERY_TILE; n++) {
          sums[n] += logits[(part + n * parts) * logit_pitch() + k] * value;
        }
      }
    }
  }

  workgroupBarrier();
  if (part < parts) {
    for (var n = 0u; part + n * parts < count; n++) {
      let i = part + n * parts;
      let vector = query_vector(first + i, kv_head);
      output[vector * half + pair] = sums[n] / row_sum[i];
      if (pair == 0u) {
        log_sums[vector] = row_max[i] + log(row_sum[i]);
        if (STEP_GAIN) {
          let at = step_words[CHUNK_POSITION] + (first + i) / GROUP;
          let own_gain = score_gain(at, table[head + HEAD_BUDGET]);
          log_sums[vector] = own_gain * row_max[i] + log(gain_sum[i]);
        }
      }
    }
  }
}

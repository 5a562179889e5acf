// Adds the attention of a chunk's observed rows to the scores of the slots and
// of the staged rows.
//
// Logits are computed again from queries and keys, with the softmax sums that
// `prefill_attend` left; storing them would take rows × slots. A workgroup owns
// a tile of slots of one KV head and goes through the observed rows in order,
// because a moving average depends on the order.

struct Params {
  first_head: u32,
  total: u32,
  stage_total: u32,
  stage_rows: u32,
  // Tiles of cache slots; the tiles after them are of staged rows.
  cache_tiles: u32,
  // Rows observed at the end of the chunk, guests included.
  probe_rows: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
// (rows, heads, headDim)
@group(0) @binding(1) var<storage, read> queries: array<vec2<f32>>;
@group(0) @binding(2) var<storage, read> sink_queries: array<vec2<f32>>;
// (rows, heads)
@group(0) @binding(3) var<storage, read> log_sums: array<f32>;
// (total, headDim) halves
@group(0) @binding(4) var<storage, read_write> keys: array<u32>;
@group(0) @binding(5) var<storage, read_write> values: array<u32>;
// (SlotField.bias + lanes, total)
@group(0) @binding(6) var<storage, read_write> side: array<u32>;
// The same of the staged rows, (kvHeads, stageRows).
@group(0) @binding(7) var<storage, read_write> stage_keys: array<u32>;
@group(0) @binding(8) var<storage, read_write> stage_values: array<u32>;
@group(0) @binding(9) var<storage, read_write> stage_side: array<u32>;
@group(0) @binding(10) var<storage, read> table: array<u32>;
@group(0) @binding(11) var<storage, read> step_words: array<u32>;

const THREADS = 256u;

@compute @workgroup_size(THREADS)
fn observe(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let kv_head = group.y;
  let rows = step_words[CHUNK_ROWS];
  let head = head_at(step_words[CHUNK_SEQUENCE], kv_head);
  var tile = group.x;
  var end = table[head + HEAD_HIGH];
  let is_staged = tile >= params.cache_tiles;
  if (is_staged) {
    tile -= params.cache_tiles;
    end = rows;
  }
  if (rows == 0u || tile * KEY_TILE >= end) {
    return;
  }
  let count = min(KEY_TILE, end - tile * KEY_TILE);
  var first_slot = table[head + HEAD_OFFSET] + tile * KEY_TILE;
  if (is_staged) {
    first_slot = STAGED | (kv_head * params.stage_rows + tile * KEY_TILE);
  }
  load_keys(thread, first_slot, count);

  let j = thread % KEY_TILE;
  let strand = thread / KEY_TILE;
  let strands = THREADS / KEY_TILE;
  let slot = first_slot + j;
  let is_used = j < count && (is_staged || tokens_of(slot) != 0u);
  var scores = SlotScores(0.0, 0.0, 0u);
  if (is_used) {
    scores = read_scores(slot);
  }
  // A tile holds whole rows: QUERY_TILE is a multiple of GROUP.
  let tile_rows = QUERY_TILE / GROUP;
  let end_row = rows + step_words[CHUNK_GUESTS];
  let first_row = end_row - min(end_row, params.probe_rows);
  for (var row = first_row; row < end_row; row += tile_rows) {
    let queries_left = (end_row - row) * GROUP;
    workgroupBarrier();
    load_queries(thread, row * GROUP, min(QUERY_TILE, queries_left), kv_head);
    workgroupBarrier();
    for (var i = strand; i < min(QUERY_TILE, queries_left); i += strands) {
      if (is_used) {
        let vector = query_vector(row * GROUP + i, kv_head);
        logits[i * logit_pitch() + j] = raw_logit(i, j, vector, slot);
      }
    }
    workgroupBarrier();
    if (is_used && strand == 0u) {
      // A row does not see the rows after it.
      let first_seeing = select(0u, tile * KEY_TILE + j, is_staged);
      let start = max(first_seeing, row) - row;
      for (var r = start; r < min(tile_rows, end_row - row); r++) {
        let position = step_words[CHUNK_POSITION] + row + r;
        let gain = score_gain(position, table[head + HEAD_BUDGET]);
        var seen = init_observation();
        for (var i = 0u; i < GROUP; i++) {
          let query = (row + r) * GROUP + i;
          seen = observe_head(
            seen,
            gain * logits[(r * GROUP + i) * logit_pitch() + j],
            gain * vote_bias(slot, i),
            log_sums[query_vector(query, kv_head)],
          );
        }
        scores = add_observation(scores, seen, position);
      }
    }
  }
  if (is_used && strand == 0u) {
    set_side_float(slot, FIELD_EMA, scores.ema);
    set_side_float(slot, FIELD_ACCUMULATED, scores.accumulated);
    set_side_word(slot, FIELD_OBSERVATIONS, scores.observations);
  }
}

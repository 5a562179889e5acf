// Logits of a tile of queries and a tile of keys, both in workgroup memory, so
// that all query heads of a group share one read of the keys.
//
// Queries are numbered row by row: query `i` belongs to row `i / GROUP` and to
// head `i % GROUP` of its KV head.

override QUERY_TILE: u32 = 1u;
override KEY_TILE: u32 = 16u;
// Sizes of the arrays below: QUERY_TILE * HEAD_DIM / 2, KEY_TILE * KEY_PITCH
// and QUERY_TILE * LOGIT_PITCH. Single constants: naga 29 fails on expressions.
override QUERY_PAIRS: u32 = 2u;
override KEY_WORDS: u32 = 48u;
override LOGITS: u32 = 17u;
// Whether sinks are attended with queries of their own.
override SINK_QUERIES: bool = false;

var<workgroup> query_tile: array<vec2<f32>, QUERY_PAIRS>;
// Halves as they are stored.
var<workgroup> key_tile: array<u32, KEY_WORDS>;
var<workgroup> logits: array<f32, LOGITS>;

// Rows are padded by one, so that neighbours start in different banks.
fn key_pitch() -> u32 {
  return HEAD_DIM / 2u + 1u;
}

fn logit_pitch() -> u32 {
  return KEY_TILE + 1u;
}

// Index in `queries` of the vector of a query.
fn query_vector(query: u32, kv_head: u32) -> u32 {
  return query / GROUP * HEADS + kv_head * GROUP + query % GROUP;
}

// Loads `count` queries from `first`; the rest of the tile becomes 0.
fn load_queries(thread: u32, first: u32, count: u32, kv_head: u32) {
  let half = HEAD_DIM / 2u;
  for (var i = thread; i < QUERY_TILE * half; i += THREADS) {
    var pair = vec2<f32>();
    if (i / half < count) {
      pair = queries[query_vector(first + i / half, kv_head) * half + i % half];
    }
    query_tile[i] = pair;
  }
}

// Loads the keys of `count` slots from `first`.
fn load_keys(thread: u32, first: u32, count: u32) {
  let half = HEAD_DIM / 2u;
  for (var i = thread; i < min(count, KEY_TILE) * half; i += THREADS) {
    key_tile[i / half * key_pitch() + i % half] =
      key_word(first + i / half, i % half);
  }
}

// Raw logit `q·k/√d` of query `i` and key `j` of the tiles.
// `vector` is that of the query, for slots that are sinks.
fn raw_logit(i: u32, j: u32, vector: u32, slot: u32) -> f32 {
  let half = HEAD_DIM / 2u;
  var sum = 0.0;
  if (SINK_QUERIES && position_of(slot) < SINKS) {
    for (var p = 0u; p < half; p++) {
      let key = unpack_halves(key_tile[j * key_pitch() + p]);
      sum += dot(sink_queries[vector * half + p], key);
    }
  } else {
    for (var p = 0u; p < half; p++) {
      let key = unpack_halves(key_tile[j * key_pitch() + p]);
      sum += dot(query_tile[i * half + p], key);
    }
  }
  return sum * ROOT;
}

// How much attention slots are expected to receive: see
// `src/reference/expected_attention.ts`. A workgroup rates a head, and goes
// through its keys twice; keeping the logits would take a float per query head
// and slot.
//
// A kernel declares `statistics`, (sequences, heads, 3 headDim + 1), and
// defines what `lib/key_distance.wgsl` takes.

var<workgroup> expected_sums: array<f32, MAX_GROUP>;

// ln of the weight that a slot has for the queries expected of a query head,
// whose statistics begin at `own`, before the softmax.
fn expected_logit(slot: u32, query_head: u32, own: u32) -> f32 {
  let half = HEAD_DIM / 2u;
  let future = own + future_at();
  let variance = own + variance_at();
  var product = 0.0;
  var spread = 0.0;
  // Words hold neighbours, pairs are half a head apart.
  for (var i = 0u; i < half; i += 2u) {
    let a = unpack_halves(key_word(slot, i / 2u));
    let b = unpack_halves(key_word(slot, (half + i) / 2u));
    product += dot(a, vec2(statistics[future + i], statistics[future + i + 1u]));
    product += dot(
      b,
      vec2(statistics[future + half + i], statistics[future + half + i + 1u]),
    );
    spread += dot(
      a * a + b * b,
      vec2(statistics[variance + i], statistics[variance + i + 1u]),
    );
  }
  return ROOT * (product + 0.5 * ROOT * spread) + vote_bias(slot, query_head);
}

// Sets each entry's rating to ln of the mean over the group of its share.
fn rate_by_expectation(thread: u32, sequence: u32, kv_head: u32) {
  let first = statistics_at(sequence, kv_head * GROUP);
  let pitch = statistics_at(0u, 1u);
  let count = ranked_count();
  var tops: array<f32, MAX_GROUP>;
  var sums: array<f32, MAX_GROUP>;
  for (var i = 0u; i < GROUP; i++) {
    tops[i] = -1e30;
  }
  for (var entry = thread; entry < count; entry += THREADS) {
    let slot = rated_slot(entry);
    if (slot == NO_SLOT || position_of(slot) < SINKS) {
      continue;
    }
    for (var i = 0u; i < GROUP; i++) {
      let logit = expected_logit(slot, i, first + i * pitch);
      let top = max(tops[i], logit);
      sums[i] = sums[i] * exp(tops[i] - top) + exp(logit - top);
      tops[i] = top;
    }
  }
  for (var i = 0u; i < GROUP; i++) {
    let top = max_floats(thread, tops[i]);
    let sum = sum_floats(thread, sums[i] * exp(tops[i] - top));
    if (thread == 0u) {
      expected_sums[i] = top + log(max(sum, 1e-30));
    }
  }
  workgroupBarrier();
  for (var entry = thread; entry < count; entry += THREADS) {
    let slot = rated_slot(entry);
    if (slot == NO_SLOT) {
      continue;
    }
    var share = -1e30;
    for (var i = 0u; i < GROUP; i++) {
      let logit = expected_logit(slot, i, first + i * pitch);
      share = log_add(share, logit - expected_sums[i]);
    }
    set_rating(entry, share - log(f32(GROUP)));
  }
  storageBarrier();
}

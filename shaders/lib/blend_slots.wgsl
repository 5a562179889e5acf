// Merging slots by the cosines of their keys, under a moving threshold: see
// `src/reference/blend_slots.ts` for the source and the formulas.
//
// A kernel defines
//   next_member(slot)  the member after `slot`, or NO_SLOT

// Weight of the past in the threshold.
override THRESHOLD_KEEP: f32 = 0.0;

const E = 2.7182817;

// The threshold after slots went whose mean cosine is `mean`.
fn next_threshold(past: f32, mean: f32) -> f32 {
  let moved = THRESHOLD_KEEP * past + (1.0 - THRESHOLD_KEEP) * mean;
  return select(moved, mean, past == 0.0);
}

// Merges `first` and the members after it into `kept`; returns how many. The
// caller waits for storage and then frees them.
fn blend_slots(thread: u32, kept: u32, first: u32) -> u32 {
  let half = HEAD_DIM / 2u;
  var key = vec2<f32>();
  var value = vec2<f32>();
  if (thread < half) {
    key = E * unpack_halves(key_word(kept, thread));
    value = E * unpack_halves(value_word(kept, thread));
  }
  var total = E;
  var norm = E * side_float(kept, FIELD_VALUE_NORM);
  var tokens = tokens_of(kept);
  var count = 0u;
  for (var slot = first; slot != NO_SLOT; slot = next_member(slot)) {
    let weight = exp(key_cosine(kept, slot));
    if (thread < half) {
      key += weight * unpack_halves(key_word(slot, thread));
      value += weight * unpack_halves(value_word(slot, thread));
    }
    total += weight;
    norm += weight * side_float(slot, FIELD_VALUE_NORM);
    tokens += tokens_of(slot);
    count += 1u;
  }
  // Every thread has read the kept key.
  storageBarrier();
  if (thread < half) {
    set_key_word(kept, thread, pack_halves(key / total));
    set_value_word(kept, thread, pack_halves(value / total));
  }
  if (thread == 0u) {
    set_side_float(kept, FIELD_VALUE_NORM, norm / total);
    set_side_word(kept, FIELD_TOKENS, tokens);
  }
  return count;
}

// Cosine of the keys of two slots; 0 where one of them is 0.
fn key_cosine(a: u32, b: u32) -> f32 {
  var product = 0.0;
  var squares = vec2<f32>();
  for (var i = 0u; i < HEAD_DIM / 2u; i++) {
    let x = unpack_halves(key_word(a, i));
    let y = unpack_halves(key_word(b, i));
    product += dot(x, y);
    squares += vec2(dot(x, x), dot(y, y));
  }
  let norms = sqrt(squares.x * squares.y);
  return select(product / max(norms, 1e-30), 0.0, norms == 0.0);
}

// Merging neighbours in the text whose keys are similar: see
// `src/reference/segments.ts` for the source and the formulas.
//
// A kernel defines
//   next_member(slot)  the member after `slot`, or NO_SLOT

// Share of the slots that stay which is for those with the highest scores.
override HEAVY: f32 = 0.0;

// Of `evictable` slots, `count` of which go, those that may be merged.
fn light_slots(evictable: u32, count: u32) -> u32 {
  let fitting = evictable - min(evictable, count);
  return evictable - u32(floor(HEAVY * f32(fitting)));
}

// Merges `first` and the members after it into their pivot `kept`; returns how
// many. The caller waits for storage and then frees them.
fn merge_segment(thread: u32, kept: u32, first: u32) -> u32 {
  let half = HEAD_DIM / 2u;
  var distances = 0.0;
  var members = 1u;
  for (var slot = first; slot != NO_SLOT; slot = next_member(slot)) {
    distances += key_distance(kept, slot);
    members += 1u;
  }
  let mean = distances / f32(members);

  // The pivot's own weight is 1.
  var key = vec2<f32>();
  var value = vec2<f32>();
  if (thread < half) {
    key = unpack_halves(key_word(kept, thread));
    value = unpack_halves(value_word(kept, thread));
  }
  var total = 1.0;
  var norm = side_float(kept, FIELD_VALUE_NORM);
  var score = log_score(kept);
  var accumulated = side_float(kept, FIELD_ACCUMULATED);
  var observations = side_word(kept, FIELD_OBSERVATIONS);
  var tokens = tokens_of(kept);
  for (var slot = first; slot != NO_SLOT; slot = next_member(slot)) {
    var weight = 1.0;
    if (mean > 0.0) {
      let ratio = key_distance(kept, slot) / mean;
      weight = exp(-ratio * ratio);
    }
    if (thread < half) {
      key += weight * unpack_halves(key_word(slot, thread));
      value += weight * unpack_halves(value_word(slot, thread));
    }
    total += weight;
    norm += weight * side_float(slot, FIELD_VALUE_NORM);
    score = log_add(score, log_score(slot));
    accumulated += side_float(slot, FIELD_ACCUMULATED);
    observations = max(observations, side_word(slot, FIELD_OBSERVATIONS));
    tokens += tokens_of(slot);
  }
  // Every thread has read the pivot.
  storageBarrier();
  if (thread < half) {
    set_key_word(kept, thread, pack_halves(key / total));
    set_value_word(kept, thread, pack_halves(value / total));
  }
  if (thread == 0u) {
    if (observations > 0u) {
      set_side_float(kept, FIELD_EMA, score + ema_correction(observations));
    }
    set_side_float(kept, FIELD_ACCUMULATED, accumulated);
    set_side_word(kept, FIELD_OBSERVATIONS, observations);
    set_side_float(kept, FIELD_VALUE_NORM, norm / total);
    set_side_word(kept, FIELD_TOKENS, tokens);
  }
  return members - 1u;
}

// Distance of the keys of two slots.
fn key_distance(a: u32, b: u32) -> f32 {
  var sum = 0.0;
  for (var i = 0u; i < HEAD_DIM / 2u; i++) {
    let rest = unpack_halves(key_word(a, i)) - unpack_halves(key_word(b, i));
    sum += dot(rest, rest);
  }
  return sqrt(sum);
}

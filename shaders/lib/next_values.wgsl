// Adding the value of a slot that goes to those of the slots after it: see
// `src/reference/next_values.ts` for the source and the formulas.
//
// A kernel defines
//   slot_of(candidate)   the slot with a number
//   is_there(candidate)  whether it holds a token and has not gone

// Positions after a slot that take its value in.
override NEXT_COUNT: u32 = 1u;
// Whether the probability of passing on stands for the draw.
override EXPECTED: bool = false;
override DRAW_SEED: u32 = 0u;

// Candidates by their distance from the one that goes.
var<workgroup> followers: array<u32, THREADS>;

// A number in [0, 1) that depends on the seed and the place alone.
fn draw_uniform(layer: u32, kv_head: u32, position: u32) -> f32 {
  let words = vec3(layer, kv_head, position);
  var hash = DRAW_SEED;
  for (var i = 0u; i < 3u; i++) {
    hash ^= words[i];
    hash = (hash ^ (hash >> 16u)) * 0x7feb352du;
    hash = (hash ^ (hash >> 15u)) * 0x846ca68bu;
    hash = (hash ^ (hash >> 16u)) + 0x9e3779b9u;
  }
  return f32(hash >> 8u) / 16777216.0;
}

// Passes the value of a candidate on; returns the one that took its tokens in,
// or NO_SLOT if nothing was passed on. The caller frees its slot.
fn pass_on(thread: u32, candidate: u32, candidates: u32, kv_head: u32) -> u32 {
  let slot = slot_of(candidate);
  let position = position_of(slot);
  workgroupBarrier();
  followers[thread] = NO_SLOT;
  workgroupBarrier();
  for (var c = thread; c < candidates; c += THREADS) {
    if (is_there(c)) {
      let other = position_of(slot_of(c));
      if (other > position && other - position <= NEXT_COUNT) {
        followers[other - position - 1u] = c;
      }
    }
  }
  workgroupBarrier();
  var nearest = NO_SLOT;
  var sum = 0.0;
  var count = 0u;
  for (var i = 0u; i < NEXT_COUNT; i++) {
    if (followers[i] != NO_SLOT) {
      nearest = min(nearest, i);
      sum += side_float(slot_of(followers[i]), FIELD_ACCUMULATED);
      count += 1u;
    }
  }
  if (count == 0u) {
    return NO_SLOT;
  }
  nearest = followers[nearest];
  let mean = sum / f32(count);
  let own = side_float(slot, FIELD_ACCUMULATED);
  var mask = 1.0;
  if (own < mean) {
    mask = own / mean;
  }
  if (!EXPECTED) {
    mask = select(0.0, 1.0, draw_uniform(params.layer, kv_head, position) < mask);
  }
  if (mask == 0.0) {
    return NO_SLOT;
  }
  let half = HEAD_DIM / 2u;
  if (thread < half) {
    let value = mask / f32(NEXT_COUNT) * unpack_halves(value_word(slot, thread));
    for (var i = 0u; i < NEXT_COUNT; i++) {
      if (followers[i] != NO_SLOT) {
        let other = slot_of(followers[i]);
        let own_value = unpack_halves(value_word(other, thread));
        set_value_word(other, thread, pack_halves(own_value + value));
      }
    }
  }
  if (thread < NEXT_COUNT && followers[thread] != NO_SLOT) {
    let other = slot_of(followers[thread]);
    let norm = side_float(other, FIELD_VALUE_NORM) +
      mask / f32(NEXT_COUNT) * side_float(slot, FIELD_VALUE_NORM);
    set_side_float(other, FIELD_VALUE_NORM, norm);
  }
  if (thread == 0u) {
    let other = slot_of(nearest);
    set_side_word(other, FIELD_TOKENS, tokens_of(other) + tokens_of(slot));
  }
  return nearest;
}

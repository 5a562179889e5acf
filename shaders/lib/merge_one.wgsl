// Where the slot that goes after a decode step is merged: the one with the most
// similar key, or the values of its right neighbour.

// Only two slots are ever merged here: the second member is the last.
fn next_member(slot: u32) -> u32 {
  return NO_SLOT;
}

// The slot with the key most similar to that of `victim`, among `high` slots
// from `offset`; its key is minus the cosine.
fn nearest(thread: u32, victim: u32, offset: u32, high: u32) -> Ranked {
  let half = HEAD_DIM / 2u;
  let j = thread % KEY_TILE;
  let part = thread / KEY_TILE;
  let parts = THREADS / KEY_TILE;
  var best = unranked();
  var victim_squares = 0.0;
  for (var i = 0u; i < half; i++) {
    let element = unpack_halves(key_word(victim, i));
    victim_squares += dot(element, element);
  }
  for (var tile = 0u; tile < high; tile += KEY_TILE) {
    let count = min(KEY_TILE, high - tile);
    load_keys(thread, offset + tile, count);
    workgroupBarrier();
    var sums = vec2<f32>();
    for (var i = part; i < half; i += parts) {
      let key = unpack_halves(key_tile[j * key_pitch() + i]);
      let other = unpack_halves(key_word(victim, i));
      sums += vec2(dot(key, other), dot(key, key));
    }
    part_values[thread] = sums;
    workgroupBarrier();
    let slot = offset + tile + j;
    if (part == 0u && j < count && slot != victim && tokens_of(slot) != 0u) {
      let position = position_of(slot);
      if (position >= SINKS) {
        for (var p = 1u; p < parts; p++) {
          sums += part_values[p * KEY_TILE + j];
        }
        let norms = sqrt(sums.y * victim_squares);
        let cosine = select(sums.x / max(norms, 1e-30), 0.0, norms == 0.0);
        let mine = Ranked(-cosine, position, slot);
        if (is_before(mine, best)) {
          best = mine;
        }
      }
    }
  }
  return first_ranked(thread, best);
}

// The next slot to the right of `victim`.
fn right_neighbour(thread: u32, victim: u32, offset: u32, high: u32) -> u32 {
  let position = position_of(victim);
  var best = unranked();
  for (var i = thread; i < high; i += THREADS) {
    let slot = offset + i;
    if (tokens_of(slot) != 0u && position_of(slot) > position) {
      let mine = Ranked(0.0, position_of(slot), slot);
      if (is_before(mine, best)) {
        best = mine;
      }
    }
  }
  return first_ranked(thread, best).slot;
}

// Merges the value of `victim` into `kept`; returns how many slots it merged.
fn merge_value(
  thread: u32,
  row: u32,
  kv_head: u32,
  kept: u32,
  victim: u32,
  offset: u32,
) -> u32 {
  let half = HEAD_DIM / 2u;
  if (thread < half) {
    let from_value = unpack_halves(value_word(victim, thread));
    var value = unpack_halves(value_word(kept, thread));
    if (EXACT_VALUES) {
      var change = vec2<f32>();
      var lost = 0.0;
      var left = 0.0;
      for (var i = 0u; i < GROUP; i++) {
        let weight = attention_weight(row, kv_head, i, victim, offset);
        let vector = query_vector(row * GROUP + i, kv_head);
        change += weight * (from_value - output[vector * half + thread]);
        lost += weight;
        left += attention_weight(row, kv_head, i, kept, offset);
      }
      let scale = max(left, lost / RATIO_CAP);
      value += select(vec2<f32>(), change / scale, scale > 0.0);
    } else {
      let share = share_of(mean_attention(victim), mean_attention(kept));
      value = share * from_value + (1.0 - share) * value;
    }
    set_value_word(kept, thread, pack_halves(value));
  }
  if (thread == 0u) {
    set_side_word(kept, FIELD_TOKENS, tokens_of(kept) + tokens_of(victim));
    if (!EXACT_VALUES) {
      let share = share_of(mean_attention(victim), mean_attention(kept));
      let norm = share * side_float(victim, FIELD_VALUE_NORM) +
        (1.0 - share) * side_float(kept, FIELD_VALUE_NORM);
      set_side_float(kept, FIELD_VALUE_NORM, norm);
    }
  }
  return 1u;
}

// Weight of a slot in the attention of a query head.
fn attention_weight(
  row: u32,
  kv_head: u32,
  query_head: u32,
  slot: u32,
  offset: u32,
) -> f32 {
  let logit = raw_logits[logit_at(row, kv_head, query_head) + slot - offset];
  return exp(logit + vote_bias(slot, query_head) - log_sums[query_head]);
}

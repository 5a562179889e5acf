// Attention of one new token per sequence over the voted slots of its heads,
// softmax(q·k/√d + ln votes); then, per KV head, the policy's work: scores, and
// one slot merged into its most similar neighbour or dropped if the head is
// over its budget. Position and slot number are independent, so nothing moves.
//
// Moves keys and values once, 4 bytes per element pair, whatever the number of
// query heads in a group, and about 28 bytes beside each pair.
//
// `attend` splits the slots of a head over workgroups; each leaves a partial
// softmax state and, where scores are kept, raw logits. `finish`, a workgroup
// per head, joins the states and does the rest, because a victim can only be
// chosen once all slots are scored. Where the heads of a layer choose together
// it is split: `score` first, then `choose`. It reads the keys again for the
// nearest one; riding with the attention as another query would save that, but needs
// the victim before the scores of this step.

struct Params {
  layer: u32,
  first_head: u32,
  total: u32,
  max_capacity: u32,
  // Workgroups that share a head, and slots of each.
  splits: u32,
  split_slots: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
// (rows, heads, headDim)
@group(0) @binding(1) var<storage, read_write> output: array<vec2<f32>>;
// (rows, heads, headDim)
@group(0) @binding(2) var<storage, read> queries: array<vec2<f32>>;
@group(0) @binding(3) var<storage, read> sink_queries: array<vec2<f32>>;
// (total, headDim) halves
@group(0) @binding(4) var<storage, read_write> keys: array<u32>;
@group(0) @binding(5) var<storage, read_write> values: array<u32>;
// (SlotField.bias + lanes, total)
@group(0) @binding(6) var<storage, read_write> side: array<u32>;
@group(0) @binding(7) var<storage, read_write> table: array<u32>;
@group(0) @binding(8) var<storage, read> step_words: array<u32>;
// (rows, heads, maxCapacity): raw logits, votes not counted
@group(0) @binding(9) var<storage, read_write> raw_logits: array<f32>;
// (rows, kvHeads, splits, group, 1 + headDim / 2): maximum and sum, then value
@group(0) @binding(10) var<storage, read_write> partials: array<vec2<f32>>;
// (rows, kvHeads, maxCapacity): scores that take more than a slot's own fields
@group(0) @binding(11) var<storage, read_write> ratings: array<f32>;
// (rows, kvHeads, PAIR_HEADER + 3 * maxCapacity): see `lib/pair_step.wgsl`
@group(0) @binding(12) var<storage, read_write> pairs: array<u32>;
// (sequences, heads, 3 headDim + 1)
@group(0) @binding(13) var<storage, read> statistics: array<f32>;

const THREADS = 256u;

var<workgroup> state_max: array<f32, MAX_GROUP>;
var<workgroup> state_keep: array<f32, MAX_GROUP>;
var<workgroup> part_values: array<vec2<f32>, THREADS>;
var<workgroup> part_sums: array<f32, THREADS>;
var<workgroup> log_sums: array<f32, MAX_GROUP>;
// The same at the scale of scores.
var<workgroup> gain_sums: array<f32, MAX_GROUP>;
var<workgroup> head_words: array<u32, HEAD_WORDS>;

// Slots that may be live once the new token is in its slot.
fn used_slots(head: u32) -> u32 {
  let used = min(table[head + HEAD_NEXT] + 1u, table[head + HEAD_CAPACITY]);
  return max(table[head + HEAD_HIGH], used);
}

fn logit_at(row: u32, kv_head: u32, query_head: u32) -> u32 {
  return (row * HEADS + kv_head * GROUP + query_head) * params.max_capacity;
}

fn partial_at(row: u32, kv_head: u32, split: u32, query_head: u32) -> u32 {
  let part = (row * KV_HEADS + kv_head) * params.splits + split;
  return (part * GROUP + query_head) * (HEAD_DIM / 2u + 1u);
}

@compute @workgroup_size(THREADS)
fn attend(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let split = group.x;
  let kv_head = group.y;
  let row = group.z;
  if (!is_live(row)) {
    return;
  }
  let head = head_at(sequence_of(row), kv_head);
  if (thread == 0u) {
    head_words[HEAD_OFFSET] = table[head + HEAD_OFFSET];
    head_words[HEAD_HIGH] = used_slots(head);
  }
  let offset = workgroupUniformLoad(&head_words[HEAD_OFFSET]);
  let high = workgroupUniformLoad(&head_words[HEAD_HIGH]);
  let first = split * params.split_slots;
  let end = min(first + params.split_slots, high);
  if (first >= end) {
    return;
  }
  let half = HEAD_DIM / 2u;
  load_queries(thread, row * GROUP, GROUP, kv_head);
  if (thread < GROUP) {
    state_max[thread] = LEAST_LOGIT;
  }

  // Logits: a thread has key `j` and every `strands`th query.
  let j = thread % KEY_TILE;
  let strand = thread / KEY_TILE;
  let strands = THREADS / KEY_TILE;
  // Values: a thread has two elements and every `parts`th slot.
  let parts = THREADS / half;
  let part = thread / half;
  let pair = thread % half;
  var values_sum: array<vec2<f32>, MAX_GROUP>;
  var weights_sum: array<f32, MAX_GROUP>;
  for (var tile = first; tile < end; tile += KEY_TILE) {
    let count = min(KEY_TILE, end - tile);
    load_keys(thread, offset + tile, count);
    workgroupBarrier();
    let slot = offset + tile + j;
    let is_used = j < count && tokens_of(slot) != 0u;
    for (var i = strand; i < GROUP; i += strands) {
      var logit = LEAST_LOGIT;
      if (is_used) {
        let vector = query_vector(row * GROUP + i, kv_head);
        let raw = raw_logit(i, j, vector, slot);
        if (OBSERVE) {
          raw_logits[logit_at(row, kv_head, i) + tile + j] = raw;
        }
        logit = raw + vote_bias(slot, i);
      }
      logits[i * logit_pitch() + j] = logit;
    }
    workgroupBarrier();
    // Zeroed in so many words: naga 29 does not zero a `var` again in a loop.
    var tops = array<f32, MAX_GROUP>();
    var weights = array<f32, MAX_GROUP>();
    for (var i = strand; i < GROUP; i += strands) {
      var top = state_max[i];
      for (var k = 0u; k < KEY_TILE; k++) {
        top = max(top, logits[i * logit_pitch() + k]);
      }
      tops[i] = top;
      if (is_used) {
        weights[i] = exp(logits[i * logit_pitch() + j] - top);
      }
    }
    workgroupBarrier();
    for (var i = strand; i < GROUP; i += strands) {
      logits[i * logit_pitch() + j] = weights[i];
      if (j == 0u) {
        state_keep[i] = exp(state_max[i] - tops[i]);
        state_max[i] = tops[i];
      }
    }
    workgroupBarrier();
    if (part < parts) {
      for (var i = 0u; i < GROUP; i++) {
        values_sum[i] *= state_keep[i];
        weights_sum[i] *= state_keep[i];
      }
      for (var k = part; k < count; k += parts) {
        let value = unpack_halves(value_word(offset + tile + k, pair));
        for (var i = 0u; i < GROUP; i++) {
          let weight = logits[i * logit_pitch() + k];
          values_sum[i] += weight * value;
          weights_sum[i] += weight;
        }
      }
    }
  }

  for (var i = 0u; i < GROUP; i++) {
    workgroupBarrier();
    part_values[thread] = values_sum[i];
    part_sums[thread] = weights_sum[i];
    workgroupBarrier();
    if (part == 0u) {
      var value = vec2<f32>();
      var sum = 0.0;
      for (var p = 0u; p < parts; p++) {
        value += part_values[p * half + pair];
        sum += part_sums[p * half + pair];
      }
      let at = partial_at(row, kv_head, split, i);
      partials[at + 1u + pair] = value;
      if (pair == 0u) {
        partials[at] = vec2(state_max[i], sum);
      }
    }
  }
}

// Only two slots are ever merged here: the second member is the last.
fn next_member(slot: u32) -> u32 {
  return NO_SLOT;
}

// Joins the partial states of a head and writes its output.
fn join(thread: u32, row: u32, kv_head: u32, splits: u32) {
  let half = HEAD_DIM / 2u;
  for (var i = thread; i < GROUP * half; i += THREADS) {
    let query_head = i / half;
    let pair = i % half;
    var state = init_softmax();
    for (var split = 0u; split < splits; split++) {
      let at = partial_at(row, kv_head, split, query_head);
      let sums = partials[at];
      state = merge_softmax(
        state,
        SoftmaxState(sums.x, sums.y, partials[at + 1u + pair]),
      );
    }
    let vector = query_vector(row * GROUP + query_head, kv_head);
    output[vector * half + pair] = normalize_softmax(state);
    if (pair == 0u) {
      log_sums[query_head] = log_softmax_sum(state);
    }
  }
}

// Adds this row to the scores of a slot.
fn observe_slot(row: u32, kv_head: u32, slot: u32, index: u32) {
  let gain = score_gain(position_of_row(row), head_words[HEAD_BUDGET]);
  var seen = init_observation();
  for (var i = 0u; i < GROUP; i++) {
    let logit = raw_logits[logit_at(row, kv_head, i) + index];
    var log_sum = log_sums[i];
    if (STEP_GAIN) {
      log_sum = gain_sums[i];
    }
    seen =
      observe_head(seen, gain * logit, gain * vote_bias(slot, i), log_sum);
  }
  let position = position_of_row(row);
  let scores = add_observation(read_scores(slot), seen, position);
  set_side_float(slot, FIELD_EMA, scores.ema);
  set_side_float(slot, FIELD_ACCUMULATED, scores.accumulated);
  set_side_word(slot, FIELD_OBSERVATIONS, scores.observations);
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

// Sums up the row's softmax at the scale of scores. The sum
// of the attention is at least its largest term, so nothing overflows.
fn sum_gained(thread: u32) {
  let gain = score_gain(position_of_row(own_row), head_words[HEAD_BUDGET]);
  for (var query_head = 0u; query_head < GROUP; query_head++) {
    let first = logit_at(own_row, own_kv_head, query_head);
    let log_sum = log_sums[query_head];
    var sum = 0.0;
    for (var i = thread; i < own_high; i += THREADS) {
      if (tokens_of(own_offset + i) != 0u) {
        let logit = raw_logits[first + i] +
          vote_bias(own_offset + i, query_head);
        sum += exp(gain * (logit - log_sum));
      }
    }
    sum = sum_floats(thread, sum);
    if (thread == 0u) {
      gain_sums[query_head] = gain * log_sum + log(sum);
    }
  }
  workgroupBarrier();
}

// Joins the attention of the head and adds the row to the scores.
fn attend_and_score(thread: u32) {
  let splits = (own_high + params.split_slots - 1u) / params.split_slots;
  join(thread, own_row, own_kv_head, splits);
  workgroupBarrier();
  if (STEP_GAIN && OBSERVE) {
    sum_gained(thread);
  }
  for (var i = thread; i < own_high; i += THREADS) {
    let slot = own_offset + i;
    if (tokens_of(slot) == 0u) {
      continue;
    }
    if (OBSERVE) {
      observe_slot(own_row, own_kv_head, slot, i);
    }
    if (RATED) {
      set_rating(i, plain_score(slot));
    }
  }
  if (MERGE != MERGE_NEVER) {
    if (SCORE == SCORE_KEY_DISTANCE) {
      rate_by_key(thread);
    } else if (SCORE == SCORE_EXPECTED) {
      rate_by_expectation(thread, sequence_of(own_row), own_kv_head);
    }
  }
}

// Takes the head down to its budget and updates its words.
fn evict(thread: u32) {
  let kv_head = own_kv_head;
  let offset = own_offset;
  let high = own_high;
  var live = 0u;
  var free = high;
  for (var i = thread; i < high; i += THREADS) {
    if (tokens_of(offset + i) == 0u) {
      free = min(free, i);
    } else {
      live += 1u;
    }
  }
  live = sum_words(thread, live);
  free = min_words(thread, free);
  let head = head_at(sequence_of(own_row), kv_head);
  if (thread == 0u) {
    table[head + HEAD_LIVE] = live;
    table[head + HEAD_NEXT] = free;
    table[head + HEAD_HIGH] = high;
  }
  storageBarrier();
  let budget = workgroupUniformLoad(&head_words[HEAD_BUDGET]);
  if (MERGE == MERGE_PAIR) {
    list_pairs(thread, select(0u, high, live > budget));
    return;
  }
  if (MERGE != MERGE_NEVER && live > budget) {
    var pair = vec2(NO_SLOT);
    if (MERGE == MERGE_SEGMENTS) {
      pair = closest_link(thread);
    }
    var victim = pair.y;
    if (victim == NO_SLOT) {
      victim = choose_victim(thread);
    }
    if (victim != NO_SLOT) {
      var merged = Merged(0u, 0u, 0.0);
      if (MERGE == MERGE_SEGMENTS && pair.y != NO_SLOT) {
        merged.count = merge_segment(thread, pair.x, victim);
      }
      if (MERGE == MERGE_VOTES) {
        let chosen = nearest(thread, victim, offset, high);
        if (chosen.slot != NO_SLOT && -chosen.key > THRESHOLD) {
          merge_vector = query_vector(own_row * GROUP, kv_head);
          merged = merge_slots(thread, chosen.slot, victim);
        }
      }
      if (MERGE == MERGE_COSINE) {
        let chosen = nearest(thread, victim, offset, high);
        let past = bitcast<f32>(head_words[HEAD_THRESHOLD]);
        let threshold = next_threshold(past, -chosen.key);
        if (chosen.slot != NO_SLOT) {
          if (thread == 0u) {
            table[head + HEAD_THRESHOLD] = bitcast<u32>(threshold);
          }
          if (-chosen.key >= threshold) {
            merged.count = blend_slots(thread, chosen.slot, victim);
          }
        }
      }
      if (MERGE == MERGE_NEXT_VALUES) {
        let taker = pass_on(thread, victim - offset, high, kv_head);
        merged.count = select(1u, 0u, taker == NO_SLOT);
      }
      if (MERGE == MERGE_RIGHT_NEIGHBOUR) {
        let kept = right_neighbour(thread, victim, offset, high);
        if (kept != NO_SLOT) {
          merged.count =
            merge_value(thread, own_row, kv_head, kept, victim, offset);
        }
      }
      workgroupBarrier();
      remove(thread, head, victim, merged);
    }
  }
}

// Frees the slot that goes, and counts what became of it.
fn remove(thread: u32, head: u32, victim: u32, merged: Merged) {
  if (thread != 0u) {
    return;
  }
  if (merged.count == 0u) {
    table[head + HEAD_DROPPED] += 1u;
    table[head + HEAD_DROPPED_TOKENS] += tokens_of(victim);
  }
  free_slot(victim);
  let index = victim - table[head + HEAD_OFFSET];
  table[head + HEAD_LIVE] -= 1u;
  table[head + HEAD_NEXT] = min(table[head + HEAD_NEXT], index);
  table[head + HEAD_MERGED] += merged.count;
  table[head + HEAD_GUARDED] += merged.guarded;
  table[head + HEAD_DIVERGENCE] = bitcast<u32>(
    bitcast<f32>(table[head + HEAD_DIVERGENCE]) + merged.divergence,
  );
}

@compute @workgroup_size(THREADS)
fn finish(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  if (!is_live(group.y)) {
    return;
  }
  begin(thread, group.x, group.y);
  attend_and_score(thread);
  evict(thread);
}

// The same in two dispatches, where the scores of all heads come first.
@compute @workgroup_size(THREADS)
fn score(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  if (!is_live(group.y)) {
    return;
  }
  begin(thread, group.x, group.y);
  attend_and_score(thread);
}

@compute @workgroup_size(THREADS)
fn choose(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  if (!is_live(group.y)) {
    return;
  }
  begin(thread, group.x, group.y);
  if (EXACT_VALUES) {
    // For the softmax sums, which are not kept.
    let splits = (own_high + params.split_slots - 1u) / params.split_slots;
    join(thread, own_row, own_kv_head, splits);
    workgroupBarrier();
  }
  evict(thread);
}

// What a decode step adds to the scores of a head's slots.

// Softmax sums of the row at the scale of scores, as logarithms.
var<workgroup> gain_sums: array<f32, MAX_GROUP>;

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

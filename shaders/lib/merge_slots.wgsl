// Merging slots: Electoral Votes and Zero Inference-Perturbation merging. See
// `src/reference/merge_slots.ts` for the source and the formulas.
//
// One workgroup merges one set. Every thread works out the merge weights for
// itself, from a few numbers per member; thread `t` then owns elements 2t and
// 2t + 1 of key and value, and the first threads one query head each.
//
// A kernel defines
//   next_member(slot)  the member after `slot`, or NO_SLOT

// Share of the mean squared query added to the Gram matrix's diagonal.
const RIDGE = 1e-6;

var<workgroup> head_votes: array<f32, MAX_GROUP>;
var<workgroup> head_excess: array<f32, MAX_GROUP>;
var<workgroup> gram: array<f32, MAX_GROUP * MAX_GROUP>;
var<workgroup> shift: array<f32, MAX_GROUP>;

// First of the query vectors, in `queries`, that the merge must not disturb.
var<private> merge_vector: u32;

struct Merged {
  // Slots merged into the kept one.
  count: u32,
  // 1 if a ZIP scale was unsafe.
  guarded: u32,
  // KL(merge weights, vote shares)
  divergence: f32,
}

// Merges `first` and the members after it into `kept`. The caller waits for
// storage and then frees them.
fn merge_slots(thread: u32, kept: u32, first: u32) -> Merged {
  let half = HEAD_DIM / 2u;
  var mass = -1e30;
  var votes = -1e30;
  var merged = Merged(0u, 0u, 0.0);
  for (var slot = kept; slot != NO_SLOT; slot = member_after(slot, kept, first)) {
    mass = log_add(mass, log_weight(slot));
    votes = log_add(votes, pooled_bias(slot));
    merged.count += 1u;
  }
  merged.count -= 1u;

  var mean_score = 0.0;
  var key = vec2<f32>();
  var value = vec2<f32>();
  var current = 0.0;
  var exact = -1e30;
  var lane_votes = -1e30;
  var observations = 0u;
  var accumulated = 0.0;
  var norm = 0.0;
  var tokens = 0u;
  for (var slot = kept; slot != NO_SLOT; slot = member_after(slot, kept, first)) {
    let score = log_score(slot);
    let weight = exp(log_weight(slot) - mass);
    mean_score += weight * score;
    if (thread < half) {
      key += weight * unpack_halves(key_word(slot, thread));
      value += weight * unpack_halves(value_word(slot, thread));
    }
    if (thread < GROUP) {
      let logit = member_logit(thread, slot);
      let bias = vote_bias(slot, thread);
      current += weight * logit;
      exact = log_add(exact, bias + logit);
      lane_votes = log_add(lane_votes, bias);
    }
    observations = max(observations, side_word(slot, FIELD_OBSERVATIONS));
    accumulated += side_float(slot, FIELD_ACCUMULATED);
    norm += weight * side_float(slot, FIELD_VALUE_NORM);
    tokens += tokens_of(slot);
  }
  merged.divergence = mean_score - (mass - votes);
  if (thread < GROUP) {
    head_votes[thread] = lane_votes;
    // By how much the mean key overstates the mass for the current query.
    head_excess[thread] = current - (exact - lane_votes);
  }
  workgroupBarrier();

  var is_real = KEY_FORM == KEY_REAL_VOTES;
  if (KEY_FORM == KEY_ZIP) {
    let scale = (mass - votes) / select(mean_score, 1.0, mean_score == 0.0);
    if (mean_score != 0.0 && scale >= GUARD_LOW && scale <= GUARD_HIGH) {
      key *= scale;
    } else {
      is_real = true;
      merged.guarded = 1u;
    }
  }
  if (KEY_FORM == KEY_MIN_NORM) {
    solve_shift(thread);
    for (var head = 0u; head < GROUP; head++) {
      if (thread < half) {
        key += shift[head] * queries[(merge_vector + head) * half + thread];
      }
    }
  }

  if (thread < half) {
    set_key_word(kept, thread, pack_halves(key));
    set_value_word(kept, thread, pack_halves(value));
  }
  if (thread == 0u) {
    var sum = 0.0;
    for (var lane = 0u; lane < LANES; lane++) {
      var bias = votes;
      var excess = merged.divergence;
      if (LANES > 1u) {
        bias = head_votes[lane];
        excess = head_excess[lane];
      }
      if (is_real) {
        bias -= excess;
      }
      sum += bias;
      set_side_float(kept, FIELD_BIAS + lane, bias);
    }
    if (observations > 0u) {
      // The score that gives the merged votes the mass of the members.
      let ema = mass - sum / f32(LANES) + ema_correction(observations);
      set_side_float(kept, FIELD_EMA, ema);
    }
    set_side_float(kept, FIELD_ACCUMULATED, accumulated);
    set_side_word(kept, FIELD_OBSERVATIONS, observations);
    set_side_float(kept, FIELD_VALUE_NORM, norm);
    set_side_word(kept, FIELD_TOKENS, tokens);
  }
  return merged;
}

fn member_after(slot: u32, kept: u32, first: u32) -> u32 {
  if (slot == kept) {
    return first;
  }
  return next_member(slot);
}

// Raw logit of a member for one query head. Members are never sinks.
fn member_logit(query_head: u32, slot: u32) -> f32 {
  let half = HEAD_DIM / 2u;
  var sum = 0.0;
  for (var i = 0u; i < half; i++) {
    let query = queries[(merge_vector + query_head) * half + i];
    sum += dot(query, unpack_halves(key_word(slot, i)));
  }
  return sum * ROOT;
}

// Solves for the coordinates, in the span of the queries, of the smallest
// change of a key that lowers the logit of head g by `head_excess[g]`. The Gram
// system of the queries is positive definite: elimination needs no pivoting.
fn solve_shift(thread: u32) {
  let half = HEAD_DIM / 2u;
  let row = thread / GROUP;
  let column = thread % GROUP;
  let is_inside = row < GROUP;
  if (is_inside) {
    var sum = 0.0;
    for (var i = 0u; i < half; i++) {
      sum += dot(
        queries[(merge_vector + row) * half + i],
        queries[(merge_vector + column) * half + i],
      );
    }
    gram[thread] = sum * ROOT;
  }
  workgroupBarrier();
  var mean = 0.0;
  for (var head = 0u; head < GROUP; head++) {
    mean += gram[head * GROUP + head];
  }
  mean /= f32(GROUP);
  workgroupBarrier();
  if (is_inside && row == column) {
    // Queries that are all 0 change no logit, whatever the key.
    gram[thread] = select(gram[thread] + RIDGE * mean, 1.0, mean == 0.0);
    shift[row] = select(-head_excess[row], 0.0, mean == 0.0);
  }
  workgroupBarrier();
  for (var pivot = 0u; pivot < GROUP; pivot++) {
    var factor = 0.0;
    var above = 0.0;
    let known = shift[pivot];
    if (is_inside && row != pivot) {
      factor = gram[row * GROUP + pivot] / gram[pivot * GROUP + pivot];
      above = gram[pivot * GROUP + column];
    }
    workgroupBarrier();
    if (is_inside && row != pivot) {
      gram[thread] -= factor * above;
      if (column == 0u) {
        shift[row] -= factor * known;
      }
    }
    workgroupBarrier();
  }
  if (thread < GROUP) {
    shift[thread] /= gram[thread * GROUP + thread];
  }
  workgroupBarrier();
}

// The scores that rows of attention leave on slots.

// Largest group of query heads that share a KV head.
const MAX_GROUP = 16u;

// ln(exp a + exp b) without overflow.
fn log_add(a: f32, b: f32) -> f32 {
  let top = max(a, b);
  return top + log(1.0 + exp(min(a, b) - top));
}

// ln(1 - exp x) for x < 0: a series where the difference would cancel.
fn log_one_minus_exp(x: f32) -> f32 {
  if (x > -0.1) {
    return log(-x * (1.0 + x / 2.0 * (1.0 + x / 3.0 * (1.0 + x / 4.0))));
  }
  return log(1.0 - exp(max(x, -80.0)));
}

// ln(1 - alphaⁿ): the bias correction of a moving sum of n terms.
fn ema_correction(observations: u32) -> f32 {
  return log_one_minus_exp(max(f32(observations) * LOG_ALPHA, -1e30));
}

// Scores of a slot while rows are added to them.
struct SlotScores {
  ema: f32,
  accumulated: f32,
  observations: u32,
}

fn read_scores(slot: u32) -> SlotScores {
  return SlotScores(
    side_float(slot, FIELD_EMA),
    side_float(slot, FIELD_ACCUMULATED),
    side_word(slot, FIELD_OBSERVATIONS),
  );
}

// What one row of attention adds: per query head, a raw logit and the ln of
// the row's softmax sum; see `observeRow` of the reference.
struct Observation {
  score: f32,   // running ln of the sum of scores
  weight: f32,  // running sum of attention weights
}

fn init_observation() -> Observation {
  return Observation(-1e30, 0.0);
}

fn observe_head(
  so_far: Observation,
  logit: f32,
  bias: f32,
  log_sum: f32,
) -> Observation {
  return Observation(
    log_add(so_far.score, select(logit - log_sum, logit, RAW_SCALE)),
    so_far.weight + exp(logit + bias - log_sum),
  );
}

// Share of the mean attention that a slot needs in order to matter.
const LEAST_SHARE = 0.999;

// Adds the row at `position` of the text, which all query heads of the group
// have observed.
fn add_observation(
  scores: SlotScores,
  seen: Observation,
  position: u32,
) -> SlotScores {
  let score = seen.score - log(f32(GROUP));
  var past = scores;
  if (SCORE == SCORE_LAST) {
    past.accumulated = 0.0;
    past.observations = 0u;
  }
  let weight = seen.weight / f32(GROUP);
  var accumulated = past.accumulated + weight;
  if (SCORE == SCORE_AGE) {
    let tokens = f32(position + 1u);
    accumulated =
      select(past.accumulated, tokens, weight * tokens >= LEAST_SHARE);
  }
  return SlotScores(
    log_add(past.ema + LOG_ALPHA, score + LOG_REST),
    accumulated,
    past.observations + 1u,
  );
}

// ln votes of a slot for its group: the mean over its lanes.
fn pooled_bias(slot: u32) -> f32 {
  var sum = 0.0;
  for (var lane = 0u; lane < LANES; lane++) {
    sum += side_float(slot, FIELD_BIAS + lane);
  }
  return sum / f32(LANES);
}

// ln of the corrected score of a slot; 0 if no row observed it yet.
fn log_score(slot: u32) -> f32 {
  let observations = side_word(slot, FIELD_OBSERVATIONS);
  if (observations == 0u) {
    return 0.0;
  }
  return side_float(slot, FIELD_EMA) - ema_correction(observations);
}

// ln of the weight that a slot has in a merge: votes · ŝ.
fn log_weight(slot: u32) -> f32 {
  return pooled_bias(slot) + log_score(slot);
}

// Mean attention weight of the rows that observed a slot.
fn mean_attention(slot: u32) -> f32 {
  return side_float(slot, FIELD_ACCUMULATED) /
    f32(max(1u, side_word(slot, FIELD_OBSERVATIONS)));
}

// What the policy's score says of a slot; the lowest goes first, ties by
// position. A position too large for a float is rounded, and the tie puts it
// right.
fn plain_score(slot: u32) -> f32 {
  if (SCORE == SCORE_POSITION) {
    return f32(position_of(slot));
  }
  if (
    SCORE == SCORE_ACCUMULATED || SCORE == SCORE_LAST || SCORE == SCORE_AGE
  ) {
    return side_float(slot, FIELD_ACCUMULATED);
  }
  if (SCORE == SCORE_MEAN || SCORE == SCORE_STEP_GAIN) {
    return mean_attention(slot);
  }
  var score = log_score(slot);
  if (COUNT_VOTES) {
    score += pooled_bias(slot);
  }
  return score;
}

// Whether a slot may be evicted: neither a sink nor a recent token.
fn is_evictable(position: u32, recent: u32, newest: u32) -> bool {
  return position >= SINKS && position + recent <= newest;
}

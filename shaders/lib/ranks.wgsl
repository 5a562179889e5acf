// What slots are ranked by: see `src/reference/selection.ts`.

// Smallest norm that counts; the logarithm of less is of no use.
const LEAST_NORM = 1e-30;

// Whether the numbers that a score says are logarithms.
fn is_logarithm() -> bool {
  return SCORE == SCORE_EMA || SCORE == SCORE_EXPECTED;
}

// The sum of no scores; where they are logarithms, of what they stand for.
fn no_scores() -> f32 {
  return select(0.0, -1e30, is_logarithm());
}

fn add_score(sum: f32, score: f32) -> f32 {
  if (is_logarithm()) {
    return log_add(sum, score);
  }
  return sum + score;
}

fn mean_score(sum: f32, count: u32) -> f32 {
  if (is_logarithm()) {
    return sum - log(f32(count));
  }
  return sum / f32(count);
}

// The rank of a slot with a score: times its value's norm, where that counts.
fn rank_of(score: f32, slot: u32) -> f32 {
  if (!COUNT_VALUES) {
    return score;
  }
  let norm = side_float(slot, FIELD_VALUE_NORM);
  if (is_logarithm()) {
    return log_add(score, LOG_VALUE_EPSILON) +
      f32(VALUE_POWER) * log(max(norm, LEAST_NORM));
  }
  return (score + VALUE_EPSILON) * select(norm, norm * norm, VALUE_POWER == 2u);
}

// Of `fitting` slots that have room, those that stay by their scores alone.
fn first_stage(fitting: u32) -> u32 {
  return u32(floor(FIRST_STAGE * f32(fitting)));
}

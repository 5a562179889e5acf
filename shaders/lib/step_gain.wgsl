// The scale of scores that is not the model's: see `scoreGain` of the reference.

override STEP_GAIN: bool = false;

// What the logits of the row at `position` are multiplied with for its scores.
fn score_gain(position: u32, budget: u32) -> f32 {
  if (!STEP_GAIN) {
    return 1.0;
  }
  let ratio = f32(position + 1u) / f32(budget);
  return sqrt(2.0 * max(0.0, log(ratio)));
}

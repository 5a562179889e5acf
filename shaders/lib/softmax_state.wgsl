// Softmax over a stream of logits: running maximum, sum and weighted value.
// Two states over disjoint parts merge into the state over both, so attention
// may be split anywhere. A thread holds two elements of the value.

// Below every logit; WGSL has no infinity.
const LEAST_LOGIT = -1e30;

struct SoftmaxState {
  max: f32,
  sum: f32,
  value: vec2<f32>,
}

fn init_softmax() -> SoftmaxState {
  return SoftmaxState(LEAST_LOGIT, 0.0, vec2<f32>());
}

fn merge_softmax(a: SoftmaxState, b: SoftmaxState) -> SoftmaxState {
  let top = max(a.max, b.max);
  let mine = exp(a.max - top);
  let theirs = exp(b.max - top);
  return SoftmaxState(
    top,
    a.sum * mine + b.sum * theirs,
    a.value * mine + b.value * theirs,
  );
}

// The weighted mean value; 0 over no logits at all.
fn normalize_softmax(state: SoftmaxState) -> vec2<f32> {
  return state.value / max(state.sum, 1e-30);
}

// ln of the softmax sum.
fn log_softmax_sum(state: SoftmaxState) -> f32 {
  return state.max + log(max(state.sum, 1e-30));
}

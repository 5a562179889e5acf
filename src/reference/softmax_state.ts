/**
 * Softmax over a stream of logits: running maximum, sum and weighted value.
 *
 * Two states over disjoint parts merge into the state over both, so attention
 * may be split anywhere (Milakov and Gimelshein, 2018, "Online normalizer
 * calculation for softmax").
 *
 * @module
 */

/** Partial softmax of one query. */
export interface SoftmaxState {
  /** Largest logit so far. */
  max: number;
  /** Sum of `exp(logit − max)`. */
  sum: number;
  /** `(headDim)`: sum of `exp(logit − max) · value`, rounded at the end alone. */
  readonly value: Float64Array;
}

/** The state over no logits at all. */
export function initSoftmax(headDim: number): SoftmaxState {
  return { max: -Infinity, sum: 0, value: new Float64Array(headDim) };
}

/** Adds one logit and its value, `headDim` elements of `values` from `offset`. */
export function addSoftmax(
  state: SoftmaxState,
  logit: number,
  { values, offset }: { values: Float32Array; offset: number },
): void {
  const max = Math.max(state.max, logit);
  const keep = state.max === -Infinity ? 0 : Math.exp(state.max - max);
  const weight = Math.exp(logit - max);
  state.sum = state.sum * keep + weight;
  state.max = max;
  const { value } = state;
  if (keep === 1) {
    // Most logits are no new maximum.
    for (let i = 0; i < value.length; i++) {
      value[i]! += weight * values[offset + i]!;
    }
    return;
  }
  for (let i = 0; i < value.length; i++) {
    value[i] = value[i]! * keep + weight * values[offset + i]!;
  }
}

/** Merges `other`, a state over other logits, into `state`. */
export function mergeSoftmax(state: SoftmaxState, other: SoftmaxState): void {
  if (other.sum === 0) return;
  const max = Math.max(state.max, other.max);
  const mine = state.max === -Infinity ? 0 : Math.exp(state.max - max);
  const theirs = Math.exp(other.max - max);
  state.sum = state.sum * mine + other.sum * theirs;
  for (let i = 0; i < state.value.length; i++) {
    state.value[i] = state.value[i]! * mine + other.value[i]! * theirs;
  }
  state.max = max;
}

/**
 * Writes the weighted mean value to `output` from `offset`.
 *
 * @returns ln of the softmax sum: `max + ln(sum)`.
 */
export function normalizeSoftmax(
  state: SoftmaxState,
  { output, offset }: { output: Float32Array; offset: number },
): number {
  for (let i = 0; i < state.value.length; i++) {
    output[offset + i] = state.value[i]! / state.sum;
  }
  return state.max + Math.log(state.sum);
}

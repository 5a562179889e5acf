/**
 * The numbers that stand for kinds of parts in kernels, on every device: those
 * of `shaders/lib/policy.wgsl` and of `cuda/steadykv.h`.
 *
 * @module
 */

/** Codes of score parts. */
export const SCORE_CODES = {
  position: 0,
  accumulated: 1,
  ema: 2,
  mean: 3,
  last: 4,
  age: 5,
  keyDistance: 6,
  stepGain: 7,
  expected: 8,
} as const;

/** Codes of how scores are pooled. */
export const POOL_CODES = { none: 0, mean: 1, max: 2 } as const;

/** Codes of merge parts. */
export const MERGE_CODES = {
  never: 0,
  drop: 1,
  votes: 2,
  rightNeighbour: 3,
  pair: 4,
  cosine: 5,
  nextValues: 6,
  segments: 7,
} as const;

/** Codes of the forms of a merged key. */
export const KEY_CODES = {
  zip: 0,
  minNorm: 1,
  realVotes: 2,
  convex: 3,
} as const;

/** ln of a number that may be 0: far below any logit, and still a number. */
export function safeLog(x: number): number {
  return Math.max(Math.log(x), -1e30);
}

/**
 * How far attention, scores and merged slots may be apart, from the sizes and
 * the magnitudes of their inputs. First-order bounds in 64-bit floats; every
 * term names the operation that it bounds.
 *
 * @module
 */
import type { ModelSizes } from "../../src/backends/backend.ts";
import type { Policy } from "../../src/policies/parts.ts";
import { GARBAGE_KEY } from "./cache_scene.ts";
import type { SlotBounds } from "./compare_slots.ts";
import type { Jitter } from "./jitter.ts";
import type { Scene } from "./scene.ts";
import { F32, sumError } from "./tolerance.ts";

/** Magnitudes of the inputs of a scene. */
export interface Magnitudes {
  readonly sizes: ModelSizes;
  /** Largest Euclidean norms of a query and a key. */
  readonly query: number;
  readonly key: number;
  /** Largest element of a value. */
  readonly value: number;
  /** Slots and staged rows that a row attends to, at most. */
  readonly slots: number;
  /**
   * Relative error of queries and of the weights of attention as factors,
   * beyond that of 32-bit floats.
   */
  readonly factors: number;
  /** Relative error of storing a key or value. */
  readonly stored: number;
  /** Rows that are observed. */
  readonly rows: number;
  /** Times that a slot may be merged in one call. */
  readonly merges: number;
  /** Slots whose values one slot takes in, as a right neighbour. */
  readonly run: number;
  /** Slots that become one by the distances of their keys, none if left out. */
  readonly members?: number;
  /** Values of others that are added to a slot's, one after the other. */
  readonly passes?: number;
}

/** Bounds on what attention kernels write. */
export interface CacheBounds extends SlotBounds {
  /** Of elements of the output. */
  readonly output: number;
  /** Of ln of a softmax sum. */
  readonly logSum: number;
}

/** Largest |ln score| and |ln votes| of a slot in the scenes. */
const LARGEST = 16;

/** Largest mean distance of the scores of a set from their weighted mean. */
const SPREAD = 4;

/**
 * `ln(exp a + exp b) = a + ln(1 + exp(b − a))` for `b ≤ a`. The exponential is
 * off by `(3 + 2 |x|)` units, and `exp(x) (3 + 2 |x|) ≤ 3.1` for `x ≤ 0`; the
 * logarithm of a number between 1 and 2 is off by 2^-21; the sum rounds.
 */
const LOG_ADD = 3.1 * 2 * F32 + 2 ** -21 + F32 * LARGEST;

/** Works out the bounds. */
export function cacheBounds(magnitudes: Magnitudes): CacheBounds {
  const { sizes: { headDim, heads, kvHeads }, slots, rows } = magnitudes;
  const group = heads / kvHeads;
  // |q·k| ≤ |q| |k|, a sum of headDim products, over √d.
  const largest = magnitudes.query * magnitudes.key / Math.sqrt(headDim);
  // A query that is less exact adds that share of Σ |q k|, however small its
  // elements are.
  const { factors, stored } = magnitudes;
  const logit = sumError(headDim, largest) + (2 * F32 + factors) * largest;
  // Softmax weights exp(x): under the weights themselves, the mean of |x| is
  // at most ln(slots), so that is how far their units of error count.
  const weights = (3 + 2 * Math.log(slots)) * 2 * F32 + 2 * logit +
    sumError(slots, 1);
  const logSum = logit + weights + LOG_ADD + F32 * largest;
  // One row: ln of a sum over the group; then one `log_add` per row.
  const seen = logit + logSum + group * LOG_ADD;
  const ema = seen + rows * LOG_ADD;
  // A weight is at most 1; sums of up to `rows` of them round as they grow.
  const accumulated = rows *
    (Math.expm1(seen) + 3.1 * 2 * F32 + F32 * (rows + 2));
  // The score of a slot adds the bias correction, the logarithm of a number
  // that may be small. Every further merge adds what keys have lost when they
  // were stored.
  const lost = magnitudes.merges > 1 ? magnitudes.merges * stored * largest : 0;
  const score = ema + 2 ** -21 + 2 * LOG_ADD + lost;
  // Merge weights exp(mass − ln Σ exp mass), relative.
  const share = 2 * score + LOG_ADD + 2 * LARGEST * 2 * F32;
  // KL is flat in the scores but for their distance from the mean; weights
  // that do not add up to 1 count with the mean itself. The excess of a query
  // head is the same of its logits.
  const divergence = share * SPREAD + 2 * LOG_ADD * Math.max(LARGEST, largest) +
    2 * logit;
  const bias = divergence + 2 * LOG_ADD;
  // ZIP scales a key by a ratio of sums whose denominator is above 1/2; a
  // minimum-norm shift has coordinates excess / (√d / 4) in the span of the
  // queries, whose Gram matrix has no smaller eigenvalue for random queries.
  // An element of a random vector is at most 4 times the root of their mean
  // square.
  const element = (norm: number) => 4 * norm / Math.sqrt(headDim);
  const scale = 4 * divergence;
  const shift = group * divergence * 4 / Math.sqrt(headDim) *
    element(magnitudes.query);
  const merges = magnitudes.merges;
  // Each value that is added has a weight that is a ratio like those below, and
  // may carry what was added to it before, as much again; the sum is rounded
  // and stored each time, at up to twice the size of a value.
  const passes = magnitudes.passes ?? 0;
  const added = passes * 2 * magnitudes.value * (share + stored);
  // Slots of a segment have weights exp(−x), and x exp(−x) is at most 1/e. x is
  // the square of a ratio of distances, roots of sums of headDim squares, to
  // their mean, so its relative error is at most that of one sum and of twice
  // the mean; the exponential adds less than 8 units. All weights add up to 1
  // or more, the pivot's, and dividing by the sum doubles what they are off.
  const members = magnitudes.members ?? 0;
  const kernel = members === 0
    ? 0
    : 2 * members * ((2 * headDim + 2 * members + 8) / Math.E + 8) * F32;
  // Their scores are added up.
  const together = members * accumulated + sumError(members, 2 * members);
  return {
    // Weights that multiply values are rounded, those that are added up are not.
    output: magnitudes.value * (2 * weights + factors),
    logSum,
    ema: ema + merges * (score + bias) + members * LOG_ADD,
    accumulated: accumulated + together + 8 * F32 * (merges + 2),
    bias: Math.max(1, merges) * bias,
    divergence: Math.max(1, merges) * divergence,
    key: merges * (element(magnitudes.key) * (share + scale) + shift) +
      kernel * element(magnitudes.key),
    // A value that goes to a right neighbour has a weight that is a product of
    // at most `run + 1` shares; each is a ratio of mean weights of attention,
    // which are as exact as one row's (see `accumulated`), so less than `share`
    // apart. All weights add up to 1.
    value: (merges + 2 * magnitudes.run) * magnitudes.value * share +
      kernel * magnitudes.value + added,
    roundings: Math.max(merges, Math.min(1, magnitudes.run)),
  };
}

/** Largest Euclidean norm of the heads in some tensors; no garbage counts. */
export function sceneNorm(
  { tensors }: Scene,
  { headDim }: ModelSizes,
  names: readonly string[],
): number {
  let largest = 0;
  for (const name of names) {
    const data = tensors[name]!.data as Float32Array;
    for (let at = 0; at < data.length; at += headDim) {
      if (data[at] === GARBAGE_KEY) continue;
      let squares = 0;
      for (let i = at; i < at + headDim; i++) squares += data[i]! ** 2;
      largest = Math.max(largest, Math.sqrt(squares));
    }
  }
  return largest;
}

/**
 * Changes larger than what rounding does to choices: several times the bound
 * on scores, and for cosines and distances, which rounded sums move by
 * `headDim 2^-24`. A product of distances is moved by both of its factors, by
 * rounding as by these changes.
 *
 * @param bounds Bounds for exact queries, in whose place changed queries are
 * tried.
 * @param comparesMerged Whether merged keys are compared again. Storing them
 * changes their elements by `stored / √12` on average, at most.
 * @param factors See {@link Magnitudes}: rounding queries so changes their
 * elements by `factors / √3` on average, at most.
 */
export function choiceJitter(
  { score }: Policy,
  {
    sizes: { headDim },
    bounds: { ema },
    comparesMerged = false,
    factors,
    stored,
  }: {
    sizes: ModelSizes;
    bounds: CacheBounds;
    comparesMerged?: boolean;
    factors: number;
    stored: number;
  },
): Jitter {
  // Ages are counts: the same everywhere, and often equal.
  const scores = score.kind === "age" ? 0 : 4 * ema;
  const keys = comparesMerged ? stored / Math.sqrt(12) : 4 * headDim * F32;
  return { scores, keys, queries: 2 * factors };
}

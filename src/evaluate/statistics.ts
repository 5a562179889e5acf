/**
 * Means with confidence intervals, and comparisons of pairs.
 *
 * All intervals are at 95 %. Bootstrap intervals are the percentile ones of
 * Efron (1979), from a seeded generator: the same values give the same
 * interval.
 *
 * @module
 */
import { Random } from "./random.ts";

/** A mean and its 95 % confidence interval. */
export interface Estimate {
  /** The mean. */
  readonly mean: number;
  /** Lower end of the interval. */
  readonly low: number;
  /** Upper end of the interval. */
  readonly high: number;
  /** Values that it comes from. */
  readonly count: number;
}

/** The mean of differences of pairs. */
export interface PairedEstimate extends Estimate {
  /** Pairs whose difference is below 0. */
  readonly below: number;
  /** Pairs whose difference is above 0. */
  readonly above: number;
  /** p-value of the two-sided sign test. */
  readonly p: number;
}

/** Options of bootstrap intervals. */
export interface BootstrapOptions {
  /** Seed of the resampling (default 1). */
  readonly seed?: number;
  /** Times to resample (default 2000). */
  readonly resamples?: number;
}

/** Standard normal quantile of 97.5 %. */
const Z = 1.959963984540054;

/** Arithmetic mean; NaN of nothing. */
export function mean(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

/** The value below which a share `p` of sorted values lies, interpolated. */
export function quantile(sorted: readonly number[], p: number): number {
  const at = p * (sorted.length - 1);
  const low = sorted[Math.floor(at)]!;
  const high = sorted[Math.ceil(at)]!;
  return low + (high - low) * (at - Math.floor(at));
}

/**
 * The mean of independent values, with a bootstrap interval. Values of the
 * same document are not independent: average them first.
 *
 * @throws {RangeError} If there are no values.
 */
export function estimateMean(
  values: readonly number[],
  { seed = 1, resamples = 2000 }: BootstrapOptions = {},
): Estimate {
  if (values.length === 0) {
    throw new RangeError(
      "Cannot estimate a mean: there are no values, expected at least one",
    );
  }
  const random = new Random(seed, "bootstrap");
  const means = Array.from({ length: resamples }, () => {
    let sum = 0;
    for (let i = 0; i < values.length; i++) {
      sum += values[random.below(values.length)]!;
    }
    return sum / values.length;
  }).sort((a, b) => a - b);
  return {
    mean: mean(values),
    low: quantile(means, 0.025),
    high: quantile(means, 0.975),
    count: values.length,
  };
}

/**
 * The mean of `a[i] − b[i]`, where pair `i` was measured on the same text.
 *
 * @throws {RangeError} If the two differ in length or are empty.
 */
export function estimateDifference(
  a: readonly number[],
  b: readonly number[],
  options: BootstrapOptions = {},
): PairedEstimate {
  if (a.length !== b.length) {
    throw new RangeError(
      `Cannot pair ${a.length} values with ${b.length}: expected as many`,
    );
  }
  const differences = a.map((value, i) => value - b[i]!);
  const below = differences.filter((d) => d < 0).length;
  const above = differences.filter((d) => d > 0).length;
  return {
    ...estimateMean(differences, options),
    below,
    above,
    p: signTest(below, above),
  };
}

/**
 * Two-sided sign test: how probable a split at least as uneven as
 * `below : above` is where both signs are equally likely. Ties are left out.
 */
export function signTest(below: number, above: number): number {
  const total = below + above;
  const fewer = Math.min(below, above);
  // Terms C(total, i) / 2^total from their logarithms, which do not overflow.
  let logTerm = -total * Math.LN2;
  let tail = 0;
  for (let i = 0; i <= fewer; i++) {
    tail += Math.exp(logTerm);
    logTerm += Math.log((total - i) / (i + 1));
  }
  return Math.min(1, 2 * tail);
}

/**
 * A share of successes, with the score interval of Wilson (1927), which also
 * holds where all or none succeed.
 *
 * @throws {RangeError} If `count` is 0.
 */
export function estimateShare(successes: number, count: number): Estimate {
  if (count === 0) {
    throw new RangeError(
      "Cannot estimate a share: there are no trials, expected at least one",
    );
  }
  const share = successes / count;
  const scale = 1 + Z ** 2 / count;
  const center = (share + Z ** 2 / (2 * count)) / scale;
  const spread = Z / scale *
    Math.sqrt(share * (1 - share) / count + Z ** 2 / (4 * count ** 2));
  return {
    mean: share,
    low: Math.max(0, center - spread),
    high: Math.min(1, center + spread),
    count,
  };
}

/**
 * How far two correct implementations may be apart, from their arithmetic.
 *
 * The reference computes in 64-bit floats and rounds what it stores to 32
 * bits; a kernel computes in 32-bit floats in an order of its own, with `exp`
 * and `log` as exact as the WGSL specification asks, and may store keys and values
 * in 16 bits.
 *
 * @module
 */
import { assert } from "@std/assert";
import { roundToBfloat16, roundToHalf } from "./random.ts";

/** Half a unit in the last place of a 32-bit float, relative. */
export const F32 = 2 ** -24;

/** Half a unit in the last place of a 16-bit float, relative. */
export const F16 = 2 ** -11;

/** How a type that keys and values are stored in rounds. */
export interface StoredType {
  /** Half a unit in the last place, relative. */
  readonly unit: number;
  /** Half of the distance between the smallest numbers. */
  readonly step: number;
  /** Rounds numbers to the type. */
  round(values: Float32Array): Float32Array;
}

/** 16-bit floats. */
export const HALF: StoredType = {
  unit: F16,
  step: 2 ** -25,
  round: roundToHalf,
};

/** bfloat16. */
export const BFLOAT16: StoredType = {
  unit: 2 ** -8,
  step: 2 ** -134,
  round: roundToBfloat16,
};

/**
 * Error of a sum of `terms` products whose magnitudes add up to `magnitude`.
 *
 * Each product and each of the at most `terms` additions on the way of a
 * product to the result rounds by {@link F32}, in whatever order they happen:
 * `(1 + F32)^(terms + 1) − 1 < 1.01 (terms + 1) F32` for any length used here.
 */
export function sumError(terms: number, magnitude: number): number {
  return 1.01 * (terms + 1) * F32 * magnitude;
}

/** Error of storing `x` as a key or value. */
export function storedError(x: number, { unit, step }: StoredType): number {
  return unit * Math.abs(x) + step;
}

/**
 * Relative error of `exp(x)`: WGSL allows `3 + 2 |x|` units in the last place,
 * and an error of `x` itself comes through unchanged.
 */
export function expError(x: number, error = 0): number {
  return Math.expm1((3 + 2 * Math.abs(x)) * 2 * F32 + error);
}

/**
 * Asserts `|actual − expected| ≤ bound` element by element.
 *
 * @param bound One bound, or one per element.
 */
export function assertWithin(
  actual: ArrayLike<number>,
  expected: ArrayLike<number>,
  { bound, what }: { bound: number | ((i: number) => number); what: string },
): void {
  assert(
    actual.length === expected.length,
    `${what}: ${actual.length} elements instead of ${expected.length}`,
  );
  for (let i = 0; i < expected.length; i++) {
    const allowed = typeof bound === "number" ? bound : bound(i);
    const difference = Math.abs(actual[i]! - expected[i]!);
    assert(
      difference <= allowed,
      `${what}[${i}] is ${actual[i]}, expected ${expected[i]} ± ${allowed}`,
    );
  }
}

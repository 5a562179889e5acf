import type { Allocate } from "../parts.ts";
import type { AttentionProfile } from "./attention_profile.ts";

/** Options of {@linkcode varianceAllocation}. */
export interface VarianceAllocationOptions {
  /** Tokens that are kept, as a share of the text, above 0 and at most 1. */
  readonly ratio: number;
}

/** Least share of a text that a layer keeps, as in the authors' code. */
const LEAST = 0.01;

/**
 * D2O's allocation over layers: those whose attention is spread out get more.
 *
 * With the variance `F` of the attention that tokens receive, taken to `[0, 1]`
 * by the smallest and largest of all layers, layer `l` of `L` keeps
 * `L · ratio · softmax(−F)_l` of a text, at least 0.01 and at most 1.
 *
 * Source: "D2O: Dynamic Discriminative Operations for Efficient Long-Context
 * Inference of Large Language Models", arXiv 2406.13035, section on layer-level
 * operations. The paper measures it on the prompt itself; here it is measured
 * beforehand.
 *
 * @throws {RangeError} If `ratio` is not above 0 and at most 1.
 *
 * @example
 * ```ts
 * import { varianceAllocation } from "@steadykv/steadykv";
 * import { assertEquals } from "@std/assert";
 *
 * const { layers } = varianceAllocation({ variance: [3, 3] }, { ratio: 0.1 });
 * assertEquals(layers, { kind: "shares", shares: [0.1, 0.1] });
 * ```
 */
export function varianceAllocation(
  { variance }: Pick<AttentionProfile, "variance">,
  { ratio }: VarianceAllocationOptions,
): Allocate {
  if (!(ratio > 0 && ratio <= 1)) {
    throw new RangeError(
      `Cannot allocate ratio ${ratio} of a text: expected a number above 0 and at most 1`,
    );
  }
  const [least, most] = [Math.min(...variance), Math.max(...variance)];
  const range = most - least || 1;
  const weights = variance.map((v) => Math.exp((least - v) / range));
  const scale = variance.length * ratio / weights.reduce((a, b) => a + b);
  return {
    layers: {
      kind: "shares",
      shares: weights.map((w) => Math.min(1, Math.max(LEAST, w * scale))),
    },
    heads: { kind: "uniform" },
  };
}

import type { Allocate } from "../parts.ts";
import { type AttentionProfile, shareForMass } from "./attention_profile.ts";

/** Options of {@linkcode prefixAllocation}. */
export interface PrefixAllocationOptions {
  /** Tokens that are kept, as a share of the text, above 0 and at most 1. */
  readonly ratio: number;
  /**
   * What gets budgets of its own: each layer as in the paper (default), or
   * each head of each layer.
   */
  readonly over?: "layers" | "heads";
}

/** Steps of the search; 50 halve 1 to below the rounding of a float. */
const STEPS = 50;

/**
 * PrefixKV's allocation: every layer retains the same mass `p` of attention.
 *
 * `R(p)` being the least share of tokens with which a layer retains `p`, the
 * search for `p` ends where the mean of `R` is `ratio`; layer `l` then gets
 * slots in proportion to `R_l(p)`. Over heads it is the same for every head of
 * every layer, so both the layers and their heads differ.
 *
 * Source: "PrefixKV: Adaptive Prefix KV Cache is What Vision
 * Instruction-Following Models Need for Efficient Generation", arXiv
 * 2412.03409, section 3. A layer's heads evict by themselves here, so its mass
 * at some share is the mean of its heads' at that share.
 *
 * @throws {RangeError} If `ratio` is not above 0 and at most 1.
 *
 * @example
 * ```ts
 * import { prefixAllocation } from "@steadykv/steadykv";
 * import { assertEquals } from "@std/assert";
 *
 * // The first layer has half of its attention on a fifth of the tokens.
 * const mass = [[[0.5, 0.6, 0.7, 0.8, 1]], [[0.2, 0.4, 0.6, 0.8, 1]]];
 * const { layers } = prefixAllocation({ mass }, {
 *   ratio: 0.5,
 * });
 * assertEquals(layers.kind, "shares");
 * ```
 */
export function prefixAllocation(
  { mass }: Pick<AttentionProfile, "mass">,
  { ratio, over = "layers" }: PrefixAllocationOptions,
): Allocate {
  if (!(ratio > 0 && ratio <= 1)) {
    throw new RangeError(
      `Cannot allocate ratio ${ratio} of a text: expected a number above 0 and at most 1`,
    );
  }
  if (over === "layers") {
    const curves = mass.map(meanCurve);
    return {
      layers: { kind: "shares", shares: equalMass(curves, ratio) },
      heads: { kind: "uniform" },
    };
  }
  const shares = equalMass(mass.flat(), ratio);
  const heads = mass.map((layer) => shares.splice(0, layer.length));
  return {
    layers: {
      kind: "shares",
      shares: heads.map((layer) => layer.reduce((a, b) => a + b)),
    },
    heads: { kind: "shares", shares: heads },
  };
}

/** Shares whose mean is `ratio` and that retain the same mass of each curve. */
function equalMass(
  curves: readonly (readonly number[])[],
  ratio: number,
): number[] {
  let [low, high] = [0, 1];
  const at = (mass: number) => curves.map((curve) => shareForMass(curve, mass));
  for (let step = 0; step < STEPS; step++) {
    const middle = (low + high) / 2;
    const mean = at(middle).reduce((a, b) => a + b) / curves.length;
    if (mean < ratio) low = middle;
    else high = middle;
  }
  return at(high);
}

function meanCurve(curves: readonly (readonly number[])[]): number[] {
  return curves[0]!.map((_, i) =>
    curves.reduce((sum, curve) => sum + curve[i]!, 0) / curves.length
  );
}

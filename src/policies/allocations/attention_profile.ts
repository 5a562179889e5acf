/**
 * How concentrated the attention of a model's layers and heads is, as measured
 * on some text. Allocations follow from it.
 */
export interface AttentionProfile {
  /**
   * `(layers, kvHeads, points)`: the mass of attention that a head retains with
   * its heaviest tokens, `(i + 1) / points` of all, at entry `i`. Each row
   * rises to 1 and is concave.
   */
  readonly mass: readonly (readonly (readonly number[])[])[];
  /**
   * `(layers)`: variance over the tokens of a text of the attention that they
   * receive, relative to the mean, averaged over the heads.
   */
  readonly variance: readonly number[];
}

/**
 * The least share of its tokens with which a head retains `mass`, between the
 * points of a profile by a straight line.
 *
 * @param curve `(points)`, from {@linkcode AttentionProfile.mass}.
 */
export function shareForMass(curve: readonly number[], mass: number): number {
  const next = curve.findIndex((retained) => retained >= mass);
  if (next === -1) return 1;
  const before = next === 0 ? 0 : curve[next - 1]!;
  const step = curve[next]! - before;
  const part = step === 0 ? 1 : (mass - before) / step;
  return (next + part) / curve.length;
}

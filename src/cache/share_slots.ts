/**
 * Dividing a number of slots by shares.
 *
 * @module
 */

/** How {@linkcode shareSlots} divides. */
export interface ShareOptions {
  /** Positive numbers; only their ratios count. */
  readonly shares: readonly number[];
  /** The least that each gets. */
  readonly minimum: number;
}

/**
 * Divides `total` slots in proportion to `shares`, except that nobody gets
 * less than `minimum`: the others then share what is left in proportion.
 *
 * @returns Whole numbers that add up to `total`, which must suffice for all.
 */
export function shareSlots(
  total: number,
  { shares, minimum }: ShareOptions,
): number[] {
  const raised = new Set<number>();
  while (true) {
    const left = total - raised.size * minimum;
    const sum = shares.reduce((s, x, i) => raised.has(i) ? s : s + x, 0);
    const parts = shares.map((share, i) =>
      raised.has(i) ? minimum : share / sum * left
    );
    const below = parts.findIndex((part, i) =>
      part < minimum && !raised.has(i)
    );
    // The last one has all that is left.
    if (below === -1 || raised.size === shares.length - 1) {
      return roundToTotal(parts, total);
    }
    raised.add(below);
  }
}

/**
 * Rounds to whole numbers that add up to `total`: the largest remainders go
 * up, the first of equal ones first.
 */
export function roundToTotal(
  values: readonly number[],
  total: number,
): number[] {
  const floors = values.map(Math.floor);
  let left = total - floors.reduce((a, b) => a + b, 0);
  const byRemainder = values
    .map((value, i) => ({ i, remainder: value - Math.floor(value) }))
    .sort((a, b) => b.remainder - a.remainder || a.i - b.i);
  for (const { i } of byRemainder) {
    if (left-- <= 0) break;
    floors[i]!++;
  }
  return floors;
}

/**
 * Sizes of heads whose budgets are decided on the device.
 *
 * @module
 */
import type { Policy } from "../policies/parts.ts";
import type { HeadBudget } from "./budget.ts";

/**
 * Parts of the floor of adaptive heads: shares are counted in whole numbers of
 * them, so that every backend rounds alike.
 */
export const FLOOR_PARTS = 1024;

/** The share of the budget that is spread evenly, in {@linkcode FLOOR_PARTS}. */
export function floorParts({ allocate: { heads } }: Policy): number {
  return heads.kind === "adaptive"
    ? Math.round(heads.floor * FLOOR_PARTS)
    : FLOOR_PARTS;
}

/**
 * The largest capacity that a head of a layer may come to have.
 *
 * @param heads Budgets of the layer's heads when the cache is empty.
 * @param stageRows Rows of the longest chunk.
 */
export function largestCapacity(
  heads: readonly HeadBudget[],
  policy: Policy,
  stageRows: number,
): number {
  const largest = Math.max(...heads.map(({ capacity }) => capacity));
  if (policy.allocate.heads.kind !== "adaptive") return largest;
  const { sinks } = policy.select;
  const free = heads.reduce(
    (sum, { slots, recent }) => sum + slots - recent - sinks,
    0,
  );
  const floor = floorParts(policy);
  return Math.max(
    largest,
    ...heads.map(({ slots, recent, capacity }) => {
      // No more rows count than are evictable, and than there are slots.
      const count = Math.min(free, stageRows - recent);
      const parts = (FLOOR_PARTS - floor) * count +
        floor * (slots - recent - sinks);
      return sinks + recent + Math.ceil(parts / FLOOR_PARTS) + capacity - slots;
    }),
  );
}

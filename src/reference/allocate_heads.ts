import { FLOOR_PARTS, floorParts } from "../cache/adaptive_heads.ts";
import type { Policy } from "../policies/parts.ts";
import type { HeadView } from "./host.ts";
import { isEvictable } from "./scores.ts";
import type { RatedHead, Ratings } from "./selection.ts";

/** A KV head of a layer, with the rows of the chunk. */
export interface AllocatedHead extends RatedHead {
  /** Its row of the head table. */
  readonly head: HeadView;
  readonly policy: Policy;
  /** Position of the newest row. */
  readonly newest: number;
}

/**
 * The first phase of `compress` where heads are adaptive: spreads the budget
 * of a layer over its KV heads by the scores of the first chunk, while nothing
 * is in their slots (Ada-KV, arXiv 2407.11550, algorithm 1).
 *
 * `cₕ` of the evictable rows of head `h` are among the `Σ free` with the
 * highest scores of the layer; ties go to the first head. Its free slots
 * become `(1 − floor) · cₕ + floor · freeₕ`, rounded so that the layer's total
 * stays: the largest remainders go up, the first of equal ones first. The
 * floor is at least what leaves every head one free slot. Where all rows fit,
 * and where the cache is not empty, nothing changes.
 */
export function allocateHeads(
  layer: readonly AllocatedHead[],
  ratings: readonly Ratings[],
): void {
  if (layer[0]!.head.get("live") > 0) return;
  const { policy } = layer[0]!;
  const heads = layer.map(({ head, slots, recent, newest }, h) => ({
    view: head,
    // Slots beside sinks and recent tokens, as they are spread now.
    free: head.get("budget") - policy.select.sinks - recent,
    scores: slots
      .filter((slot) => isEvictable(slot, { policy, recent, newest }))
      .map((slot) => ratings[h]!.get(slot)!.score),
  }));
  const free = heads.reduce((sum, head) => sum + head.free, 0);
  const candidates = heads.reduce((sum, head) => sum + head.scores.length, 0);
  if (candidates <= free) return;
  const counts = countHighest(heads.map(({ scores }) => scores), free);
  const least = Math.min(...heads.map((head) => head.free));
  const floor = Math.max(floorParts(policy), Math.ceil(FLOOR_PARTS / least));
  const shares = roundParts(
    heads.map((head, h) =>
      (FLOOR_PARTS - floor) * counts[h]! + floor * head.free
    ),
    free,
  );
  let offset = heads[0]!.view.get("offset");
  heads.forEach(({ view, free }, h) => {
    const change = shares[h]! - free;
    view.set("offset", offset);
    view.set("budget", view.get("budget") + change);
    view.set("capacity", view.get("capacity") + change);
    offset += view.get("capacity");
  });
}

/** How many of each list are among the `count` highest of all. */
function countHighest(
  lists: readonly (readonly number[])[],
  count: number,
): number[] {
  const lowest = lists.flat().sort((a, b) => b - a)[count - 1]!;
  const above = lists.map((list) => list.filter((x) => x > lowest).length);
  let left = count - above.reduce((a, b) => a + b, 0);
  return lists.map((list, i) => {
    const tied = Math.min(left, list.filter((x) => x === lowest).length);
    left -= tied;
    return above[i]! + tied;
  });
}

/** Rounds multiples of `1 / FLOOR_PARTS` to whole numbers that add up to `total`. */
function roundParts(parts: readonly number[], total: number): number[] {
  const whole = parts.map((part) => Math.floor(part / FLOOR_PARTS));
  const left = total - whole.reduce((a, b) => a + b, 0);
  const remainder = (i: number) => parts[i]! % FLOOR_PARTS;
  const first = parts.map((_, i) => i)
    .sort((a, b) => remainder(b) - remainder(a) || a - b).slice(0, left);
  return whole.map((count, i) => count + (first.includes(i) ? 1 : 0));
}

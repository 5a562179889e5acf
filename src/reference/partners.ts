/**
 * Finding the cheapest pair of a head without comparing all pairs in every
 * step: each slot that may go remembers its nearest partner, and the next.
 *
 * What is remembered are the slots with the smallest distance `D` (see
 * `pairs.ts`), because distances only change with the slots that merge, while
 * weights change in every step. A step then ranks each slot with its nearest
 * partner by their present cost. That finds a pair that costs at most twice what
 * the cheapest does: let `(e, c)` be the cheapest, `e` the lighter one and `n`
 * its nearest. Then `w_e w_n / (w_e + w_n) · D(e, n) ≤ w_e · D(e, c)`, and
 * `w_c / (w_e + w_c) ≥ 1/2`.
 *
 * A slot has no partner when it is new among those that may go, when it was
 * merged, and when all that it remembers was. Such a slot is compared with all
 * others; the others are compared with what they remember and with such slots
 * only. Distances are those of the step: the scatter of values moves a little
 * from step to step, and comparisons of the past are not made again for that.
 *
 * One partner would do, but the mean of many tokens is close to everybody: as
 * the partner of most slots it would leave them all without one when it merges
 * again, which is soon, and the step after that compares all with all. The next
 * partner then takes its place, and so does the slot that it was merged into.
 * With more than one, what a slot remembers is the beginning of the others in
 * the order of their distance: what goes is left out, and what comes is put in
 * its place if something farther is remembered. Beyond that the order is not
 * known.
 *
 * @module
 */
import { partnerField, PARTNERS } from "../backends/backend.ts";
import { getWord, type HeadView, setWord, type Slot } from "./host.ts";
import type { Proposal } from "./pairing.ts";
import type { PairCosts } from "./pairs.ts";

/** Where partners are remembered. */
interface Memory {
  readonly head: HeadView;
  readonly lanes: number;
}

/**
 * Brings the partners of the slots that may go up to date.
 *
 * @returns Each slot with its nearest partner.
 */
export function partnerProposals(
  slots: readonly Slot[],
  { head, lanes, costs }: Memory & { readonly costs: PairCosts },
): Proposal[] {
  const byWord = new Map(slots.map((slot) => [wordOf(slot, head), slot]));
  const known = slots.map((slot) =>
    partnersOf(slot, lanes).flatMap((word) => byWord.get(word) ?? [])
  );
  const alone = slots.filter((_, i) => known[i]!.length === 0);
  const partners = slots.map((slot, i) => {
    const remembered = known[i]!;
    const isAlone = remembered.length === 0;
    const others = new Set(isAlone ? slots : [...remembered, ...alone]);
    others.delete(slot);
    const order = costs.byDistance(slot, [...others]);
    const end = isAlone
      ? order.length
      : 1 + order.findLastIndex((other) => remembered.includes(other));
    return order.slice(0, Math.min(end, PARTNERS));
  });
  return slots.flatMap((slot, i) => {
    const words = partners[i]!.map((partner) => wordOf(partner, head));
    setPartners(slot, { lanes, words });
    const [target] = partners[i]!;
    return target === undefined
      ? []
      : { slot, target, cost: costs.cost(slot, target) };
  });
}

/** What stands for a slot in the memory of another: 0 is for none. */
function wordOf(slot: Slot, head: HeadView): number {
  return slot.index - head.get("offset") + 1;
}

/** What a slot remembers, the nearest first. */
function partnersOf(slot: Slot, lanes: number): number[] {
  return Array.from(
    { length: PARTNERS },
    (_, i) => getWord(slot, partnerField(lanes) + i),
  ).filter((word) => word !== 0);
}

function setPartners(
  slot: Slot,
  { lanes, words }: { lanes: number; words: readonly number[] },
): void {
  for (let i = 0; i < PARTNERS; i++) {
    setWord(slot, partnerField(lanes) + i, words[i] ?? 0);
  }
}

/** Makes slots forget all that are `changed`, and these all that they know. */
export function forgetPartners(
  slots: readonly Slot[],
  { head, lanes, changed }: Memory & { readonly changed: readonly Slot[] },
): void {
  const gone = changed.map((slot) => wordOf(slot, head));
  for (const slot of slots) {
    const words = changed.includes(slot)
      ? []
      : partnersOf(slot, lanes).filter((word) => !gone.includes(word));
    setPartners(slot, { lanes, words });
  }
}

/** Leaves all slots of a head without a partner. */
export function forgetAllPartners({ head, lanes }: Memory): void {
  for (let i = 0; i < head.get("high"); i++) {
    setPartners(head.slot(i), { lanes, words: [] });
  }
}

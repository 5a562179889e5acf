/**
 * Finding the cheapest pair of a head without comparing all pairs in every
 * step: each slot that may go remembers its nearest partner.
 *
 * What is remembered is the slot with the smallest distance `D` (see
 * `pairs.ts`), because distances only change with the slots that merge, while
 * weights change in every step. A step then ranks each slot with its partner by
 * their present cost. That finds a pair that costs at most twice what the
 * cheapest does: let `(e, c)` be the cheapest, `e` the lighter one and `n` its
 * nearest. Then `w_e w_n / (w_e + w_n) · D(e, n) ≤ w_e · D(e, c)`, and
 * `w_c / (w_e + w_c) ≥ 1/2`.
 *
 * A slot has no partner when it is new among those that may go, when it was
 * merged, and when its partner was. Such a slot is compared with all others;
 * the others are compared with their partner and with such slots only. Distances
 * are those of the step: the scatter of values moves a little from step to step,
 * and comparisons of the past are not made again for that.
 *
 * @module
 */
import { partnerField } from "../backends/backend.ts";
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
 * @returns Each slot with its partner.
 */
export function partnerProposals(
  slots: readonly Slot[],
  { head, lanes, costs }: Memory & { readonly costs: PairCosts },
): Proposal[] {
  const field = partnerField(lanes);
  const byWord = new Map(slots.map((slot) => [wordOf(slot, head), slot]));
  const known = slots.map((slot) => byWord.get(getWord(slot, field)));
  const alone = slots.filter((_, i) => known[i] === undefined);
  const proposals = slots.flatMap((slot, i) => {
    const partner = known[i];
    const others = partner === undefined ? slots : [partner, ...alone];
    return costs.nearest(slot, others.filter((o) => o !== slot)) ?? [];
  });
  for (const { slot, target } of proposals) {
    setWord(slot, field, wordOf(target, head));
  }
  return proposals;
}

/** What stands for a slot in the memory of another: 0 is for none. */
function wordOf(slot: Slot, head: HeadView): number {
  return slot.index - head.get("offset") + 1;
}

/** Leaves slots without a partner if they are or had one of `changed`. */
export function forgetPartners(
  slots: readonly Slot[],
  { head, lanes, changed }: Memory & { readonly changed: readonly Slot[] },
): void {
  const field = partnerField(lanes);
  const words = changed.map((slot) => wordOf(slot, head));
  for (const slot of slots) {
    const isHit = words.includes(getWord(slot, field)) ||
      words.includes(wordOf(slot, head));
    if (isHit) setWord(slot, field, 0);
  }
}

/** Leaves all slots of a head without a partner. */
export function forgetAllPartners({ head, lanes }: Memory): void {
  for (let i = 0; i < head.get("high"); i++) {
    setWord(head.slot(i), partnerField(lanes), 0);
  }
}

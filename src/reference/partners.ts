/**
 * Finding the cheapest pair of a head without comparing all pairs in every
 * step: each slot that may go remembers its nearest partner, and how far away
 * that is.
 *
 * What is remembered is the slot with the smallest distance `D` (see
 * `pairs.ts`), because distances only change with the slots that merge, while
 * weights change in every step. The scatter of the values, which distances are
 * relative to, is measured once for that, when a head is first over its budget.
 * A step ranks each slot with its partner by their present cost. That finds a
 * pair that costs at most twice what the cheapest does: let `(e, c)` be the
 * cheapest, `e` the lighter one and `n` its nearest. Then
 * `w_e w_n / (w_e + w_n) · D(e, n) ≤ w_e · D(e, c)`, and
 * `w_c / (w_e + w_c) ≥ 1/2`.
 *
 * A slot has no partner when it is new among those that may go, when it was
 * merged, and when the one that it knew is gone. It then waits for a search,
 * which a head has in one step of several ({@linkcode searchPeriod}): such slots
 * are compared with all others, and the others with them. A slot that was merged
 * has moved since then: it stays the partner of those that remember it, at the
 * distance that they know, and the next search compares them again, but not with
 * others that may be nearer by then.
 *
 * So the bound holds in a search of slots that all are without a partner. In one
 * of a few it holds among those whose partners have not been merged since they
 * were found, and between searches among those of them that know one.
 *
 * The alternatives that lost: to search in every step, which reads a slot and
 * what it remembers, three times the cache, to find what mostly has not
 * changed; and to forget a slot that was merged. The mean of many tokens is
 * close to everybody. As the partner of most slots it would leave them all
 * without one each time that it merges, and a search would compare all with
 * all.
 *
 * @module
 */
import {
  PartnerField,
  partnerField,
  SEARCH_EVERY,
  SEARCH_SLOTS,
} from "../backends/backend.ts";
import type { Policy } from "../policies/parts.ts";
import {
  getFloat,
  getWord,
  type HeadView,
  positionOf,
  setFloat,
  setWord,
  type Slot,
} from "./host.ts";
import type { Proposal } from "./pairing.ts";
import { PairCosts, valueSpread } from "./pairs.ts";

/** Where partners are remembered. */
interface Memory {
  readonly head: HeadView;
  readonly lanes: number;
}

/** A head in a decode step. */
interface PartnerStep extends Memory {
  readonly layer: number;
  readonly kvHead: number;
  /** Position of the step's token. */
  readonly newest: number;
  readonly policy: Policy;
  readonly headDim: number;
  /** All slots, and those that may go. */
  readonly slots: readonly Slot[];
  readonly evictable: readonly Slot[];
}

/** A partner, and how far away it is. */
interface Partner {
  readonly slot: Slot;
  readonly distance: number;
}

/** Steps from one search of a head with some budget to the next. */
export function searchPeriod(budget: number): number {
  const period = Math.floor(budget / SEARCH_SLOTS);
  return Math.max(1, Math.min(SEARCH_EVERY, period));
}

/**
 * Each slot that knows a partner with it, after a search where one is due: in
 * one step of a {@linkcode searchPeriod}, another one for the heads beside this
 * one and for the layers below and above, so that steps take equally long; when
 * the scatter of values is not known; and when nobody knows a partner.
 */
export function partnerProposals(step: PartnerStep): Proposal[] {
  const { head, layer, kvHead, newest, slots, evictable, headDim } = step;
  const turn = newest + layer + kvHead;
  const isDue = turn % searchPeriod(head.get("budget")) === 0 ||
    head.getFloat("spread") === 0 ||
    knownPartners(evictable, step).size === 0;
  if (head.getFloat("spread") === 0) {
    head.setFloat("spread", valueSpread(slots, headDim));
  }
  const spread = head.getFloat("spread");
  const costs = new PairCosts(evictable, { ...step, spread });
  if (isDue) searchPartners(evictable, { ...step, costs });
  return [...knownPartners(evictable, step)].map(
    ([slot, { slot: target, distance }]) => ({
      slot,
      target,
      cost: costs.costAt(distance, [slot, target]),
    }),
  );
}

/** Compares the slots that know no partner with all, and all with them. */
function searchPartners(
  slots: readonly Slot[],
  { costs, ...memory }: Memory & { readonly costs: PairCosts },
): void {
  const known = knownPartners(slots, memory);
  const alone = slots.filter((slot) => !known.has(slot));
  for (const slot of slots) {
    const partner = known.get(slot);
    const compared = (partner === undefined ? slots : alone)
      .filter((other) => other !== slot)
      .map((other) => ({ slot: other, distance: costs.distance(slot, other) }));
    const isCompared = partner === undefined || !known.has(partner.slot);
    const found = nearest(isCompared ? compared : [...compared, partner]);
    setPartner(slot, found, memory);
  }
}

/** The nearest of some; ties go to the lower position. */
function nearest(others: readonly Partner[]): Partner | undefined {
  return others.toSorted((a, b) =>
    a.distance - b.distance || positionOf(a.slot) - positionOf(b.slot)
  )[0];
}

/** What stands for a slot in the memory of another: 0 is for none. */
function wordOf(slot: Slot, { head }: Memory): number {
  return slot.index - head.get("offset") + 1;
}

/** What slots remember of one another, those left out that know no partner. */
function knownPartners(
  slots: readonly Slot[],
  memory: Memory,
): Map<Slot, Partner> {
  const byWord = new Map(slots.map((slot) => [wordOf(slot, memory), slot]));
  const field = partnerField(memory.lanes);
  return new Map(slots.flatMap((slot) => {
    const partner = byWord.get(getWord(slot, field + PartnerField.slot));
    const distance = getFloat(slot, field + PartnerField.distance);
    return partner ? [[slot, { slot: partner, distance }]] : [];
  }));
}

function setPartner(
  slot: Slot,
  partner: Partner | undefined,
  memory: Memory,
): void {
  const field = partnerField(memory.lanes);
  const word = partner === undefined ? 0 : wordOf(partner.slot, memory);
  setWord(slot, field + PartnerField.slot, word);
  setFloat(slot, field + PartnerField.distance, partner?.distance ?? 0);
}

/** Makes slots forget one that `goes`, and that and the one that `stays` all. */
export function forgetPartner(
  slots: readonly Slot[],
  { stays, goes, ...memory }: Memory & {
    readonly stays: Slot;
    readonly goes: Slot;
  },
): void {
  const known = knownPartners(slots, memory);
  for (const slot of slots) {
    if (slot === stays || slot === goes || known.get(slot)?.slot === goes) {
      setPartner(slot, undefined, memory);
    }
  }
}

/** Leaves all slots of a head without a partner, and its scatter unknown. */
export function forgetAllPartners(memory: Memory): void {
  const { head } = memory;
  for (let i = 0; i < head.get("high"); i++) {
    setPartner(head.slot(i), undefined, memory);
  }
  head.setFloat("spread", 0);
}

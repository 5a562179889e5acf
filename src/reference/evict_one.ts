/**
 * Taking a head that is one slot over its budget back to it.
 *
 * @module
 */
import { FREE_BIAS } from "../backends/backend.ts";
import { blendSlots, moveThreshold } from "./blend_slots.ts";
import { type Slot, tokensOf } from "./host.ts";
import {
  freeSlot,
  isTarget,
  type MergeContext,
  mergeSlots,
} from "./merge_slots.ts";
import {
  type CurrentRow,
  mergeExactly,
  mergeRun,
  rightNeighbour,
} from "./merge_values.ts";
import { passOnValue } from "./next_values.ts";
import { byCost, endsOf, nearestProposal } from "./pairing.ts";
import { PairCosts, valueSpread } from "./pairs.ts";
import { forgetPartner, partnerProposals } from "./partners.ts";
import { isEvictable } from "./scores.ts";
import { closestSegment, mergeSegment } from "./segments.ts";
import { chooseVictims, type RatedHead, type Ratings } from "./selection.ts";

/** What evicting a slot of a head needs. */
export interface Eviction extends MergeContext, RatedHead {
  readonly layer: number;
  readonly kvHead: number;
  readonly newest: number;
  readonly row: CurrentRow;
}

/**
 * Merges the pair that the policy takes first, or merges or drops the slot with
 * the lowest rank.
 */
export function evictOne(context: Eviction, ratings: Ratings): void {
  const { head, slots, lanes } = context;
  const pair = choosePair(context, ratings);
  const victim = pair?.goes ??
    chooseVictims(context, { ...context, count: 1, ratings })[0];
  if (victim === undefined) return;
  const target = pair?.stays;
  if (!mergeOne(victim, { ...context, target, ratings })) {
    head.set("dropped", head.get("dropped") + 1);
    head.set("droppedTokens", head.get("droppedTokens") + tokensOf(victim));
  }
  freeSlot(victim, FREE_BIAS, lanes);
  head.set("live", slots.length - 1);
}

/** The two slots that are merged, where the policy does not go by ranks. */
function choosePair(
  context: Eviction,
  ratings: Ratings,
): { stays: Slot; goes: Slot } | undefined {
  if (context.policy.merge.kind !== "segments") {
    return cheapestPair(context, ratings);
  }
  const [stays, goes] = closestSegment(context, ratings);
  return stays && goes && { stays, goes };
}

/** The ends of the pair that costs least, if the policy merges pairs. */
function cheapestPair(
  context: Eviction,
  ratings: Ratings,
): { stays: Slot; goes: Slot } | undefined {
  const { slots, policy, sizes: { headDim } } = context;
  if (policy.merge.kind !== "pair") return undefined;
  const evictable = slots.filter((slot) => isEvictable(slot, context));
  const remembers = policy.merge.search === "incremental";
  const proposals = remembers
    ? partnerProposals({ ...context, evictable, headDim })
    : new PairCosts(evictable, {
      ...context,
      headDim,
      spread: valueSpread(slots, headDim),
    }).proposals(evictable);
  const [best] = proposals.sort(byCost);
  if (best === undefined) return undefined;
  const ends = endsOf(best, ratings);
  if (remembers) forgetPartner(evictable, { ...context, ...ends });
  return ends;
}

/** Merges a slot into the one that the policy names; false if there is none. */
function mergeOne(
  victim: Slot,
  context: Eviction & {
    readonly target: Slot | undefined;
    readonly ratings: Ratings;
  },
): boolean {
  const { slots, policy, target, sizes: { headDim } } = context;
  const { merge } = policy;
  switch (merge.kind) {
    case "never":
    case "drop":
      return false;
    case "votes":
    case "cosine": {
      const best = nearestProposal(
        victim,
        slots.filter((slot) => slot !== victim && isTarget(slot, policy)),
        context,
      );
      if (best === undefined) return false;
      if (merge.kind === "votes") {
        mergeSlots([best.target, victim], context);
        return true;
      }
      const threshold = moveThreshold(context.head, policy, [-best.cost]);
      if (-best.cost < threshold) return false;
      blendSlots([best.target, victim], { ...context, headDim });
      return true;
    }
    case "pair":
      if (target === undefined) return false;
      mergeSlots([target, victim], context);
      return true;
    case "segments":
      if (target === undefined) return false;
      mergeSegment([target, victim], context);
      return true;
    case "nextValues": {
      const others = slots.filter((slot) => slot !== victim);
      return passOnValue(victim, others, { ...context, merge, headDim });
    }
    case "rightNeighbour": {
      const neighbour = rightNeighbour(victim, slots);
      if (neighbour === undefined) return false;
      if (merge.rule === "exact") mergeExactly([neighbour, victim], context);
      else mergeRun([victim, neighbour], { ...context, headDim });
      return true;
    }
  }
}

/**
 * Merging pairs of slots before any is evicted.
 *
 * @module
 */
import { FREE_BIAS } from "../backends/backend.ts";
import type { Merge } from "../policies/parts.ts";
import { positionOf, type Slot } from "./host.ts";
import {
  freeSlot,
  type MergeContext,
  mergeSlots,
  nearestKey,
} from "./merge_slots.ts";
import { PairCosts } from "./pairs.ts";
import { isEvictable } from "./scores.ts";
import { byRank, type RatedHead, type Ratings } from "./selection.ts";

/** A slot and the one that it would be merged into. */
export interface Proposal {
  readonly slot: Slot;
  readonly target: Slot;
  /** What proposals are taken in the order of; the lowest comes first. */
  readonly cost: number;
}

/** A head whose live slots and staged rows are compressed. */
export interface ChunkHead extends MergeContext, RatedHead {
  /** The candidates: live slots, then staged rows. */
  slots: Slot[];
  readonly layer: number;
  readonly kvHead: number;
  readonly newest: number;
  /** Scatter of the head's values before anything is merged. */
  readonly spread: number;
}

/** How often slots are merged before anything is evicted. */
export function mergingRounds(merge: Merge): number {
  switch (merge.kind) {
    case "segments":
      return 1;
    case "pair":
      return merge.rounds;
    case "votes":
      return merge.prefill === "mergeFirst" ? 1 : 0;
    default:
      return 0;
  }
}

/**
 * One round: merges pairs until the head fits its budget or no proposal is
 * left. Proposals are taken in their order while both ends are still free.
 *
 * @returns The slots that are left.
 */
export function mergePairs(head: ChunkHead, ratings: Ratings): Slot[] {
  const excess = head.slots.length - head.head.get("budget");
  if (excess <= 0) return head.slots;
  const evictable = head.slots.filter((slot) => isEvictable(slot, head));
  const taken = new Set<Slot>();
  const merged = new Set<Slot>();
  for (const proposal of propose(evictable, head)) {
    if (merged.size === excess) break;
    const { slot, target } = proposal;
    if (taken.has(slot) || taken.has(target)) continue;
    taken.add(slot).add(target);
    const { stays, goes } = endsOf(proposal, ratings);
    mergeSlots([stays, goes], head);
    freeSlot(goes, FREE_BIAS, head.lanes);
    merged.add(goes);
  }
  return head.slots.filter((slot) => !merged.has(slot));
}

/** Whom every evictable slot would be paired with, the best proposal first. */
function propose(evictable: readonly Slot[], head: ChunkHead): Proposal[] {
  if (head.policy.merge.kind === "pair") {
    return pairCosts(evictable, head).proposals(evictable).sort(byCost);
  }
  return evictable.flatMap((slot) =>
    nearestProposal(slot, evictable.filter((o) => o !== slot), head) ?? []
  ).sort(byCost);
}

/** The costs of pairs of some of a head's candidates. */
export function pairCosts(slots: readonly Slot[], head: ChunkHead): PairCosts {
  return new PairCosts(slots, { ...head, headDim: head.sizes.headDim });
}

/** The target with the most similar key, if that is similar enough. */
export function nearestProposal(
  slot: Slot,
  targets: readonly Slot[],
  { policy: { merge }, sizes }: MergeContext,
): Proposal | undefined {
  const found = nearestKey(slot, targets, sizes.headDim);
  if (found === undefined) return undefined;
  const { target, similarity } = found;
  return merge.kind === "votes" && !(similarity > merge.threshold)
    ? undefined
    : { slot, target, cost: -similarity };
}

/** Sorts proposals by cost; ties go by position. */
export function byCost(a: Proposal, b: Proposal): number {
  return a.cost - b.cost || positionOf(a.slot) - positionOf(b.slot);
}

/** Of the two ends of a proposal, the one that stays and the one that goes. */
export function endsOf(
  { slot, target }: Proposal,
  ratings: Ratings,
): { stays: Slot; goes: Slot } {
  return byRank(ratings)(slot, target) < 0
    ? { stays: target, goes: slot }
    : { stays: slot, goes: target };
}

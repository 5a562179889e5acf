import {
  type Compress,
  FREE_BIAS,
  type HostTensor,
  SlotField,
} from "../backends/backend.ts";
import { remembersPartners } from "../cache/layout.ts";
import {
  HeadView,
  keyOf,
  liveRows,
  positionOf,
  type Slot,
  tokensOf,
  valueOf,
} from "./host.ts";
import { blendSlots, moveThreshold } from "./blend_slots.ts";
import {
  freeSlot,
  isTarget,
  type MergeContext,
  mergeSlots,
  nearestKey,
} from "./merge_slots.ts";
import { mergeRun } from "./merge_values.ts";
import { forgetAllPartners } from "./partners.ts";
import { passOnValue } from "./next_values.ts";
import {
  byRank,
  endsOf,
  PairCosts,
  type Proposal,
  valueSpread,
} from "./pairs.ts";
import { byEviction, isEvictable, queryGroup } from "./scores.ts";

/** What compressing one head needs. */
interface Context extends MergeContext {
  readonly layer: number;
  readonly kvHead: number;
  readonly recent: number;
  readonly newest: number;
  readonly budget: number;
  /** Scatter of the head's values before anything is merged. */
  readonly spread: number;
}

/**
 * Reference of `compress`: takes the live slots and the staged rows of a chunk
 * down to each head's budget, and moves the staged rows that are left into
 * free slots.
 *
 * With `mergeFirst`, similar pairs are merged before anything is evicted
 * (KeepKV, table 3); where pairs are merged by cost, for some rounds. Then the
 * slots with the lowest scores go: each is merged into the kept slot with the
 * most similar key if that is similar enough, or into the cheapest, all that
 * chose the same one together, and is dropped if there is none. Where values go to
 * the right neighbour, a run of slots that go is merged into the slot after it.
 */
export function compress(args: Compress<HostTensor>): void {
  const { cache, step, sizes, policy } = args;
  const last = liveRows(step).at(-1);
  if (last === undefined) return;
  for (let kvHead = 0; kvHead < sizes.kvHeads; kvHead++) {
    const head = new HeadView(cache, {
      sequence: last.sequence,
      kvHead,
      kvHeads: sizes.kvHeads,
    });
    const staged = liveRows(step).map(({ row }) => head.staged(row));
    const all = [...head.liveSlots(), ...staged];
    const context: Context = {
      head,
      layer: cache.layer,
      kvHead,
      group: queryGroup(args, last.row, kvHead),
      lanes: cache.lanes,
      policy,
      sizes,
      recent: head.get("recent"),
      newest: last.position,
      budget: head.get("budget"),
      spread: valueSpread(all, sizes.headDim),
    };
    settle(evict(mergePairs(all, context), context), context);
  }
}

/**
 * Merges pairs until the head fits its budget or none is left: once those with
 * similar keys, or for some rounds the cheapest ones. Proposals are taken in
 * their order while both ends are still free.
 */
function mergePairs(slots: readonly Slot[], context: Context): Slot[] {
  const { policy: { merge }, budget } = context;
  const rounds = merge.kind === "pair"
    ? merge.rounds
    : merge.kind === "votes" && merge.prefill === "mergeFirst"
    ? 1
    : 0;
  let left = [...slots];
  for (let round = 0; round < rounds && left.length > budget; round++) {
    const evictable = left.filter((slot) => isEvictable(slot, context));
    const merged = takePairs(propose(evictable, context), {
      ...context,
      excess: left.length - budget,
    });
    if (merged.size === 0) break;
    left = left.filter((slot) => !merged.has(slot));
  }
  return left;
}

/** Whom every evictable slot would be paired with, the best proposal first. */
function propose(evictable: readonly Slot[], context: Context): Proposal[] {
  const { policy: { merge } } = context;
  if (merge.kind === "pair") {
    return pairCosts(evictable, context).proposals(evictable);
  }
  return evictable.flatMap((slot) =>
    nearest(slot, evictable.filter((other) => other !== slot), context) ?? []
  ).sort(byRank);
}

/** Merges pairs without a slot in common; returns the slots that went. */
function takePairs(
  proposals: readonly Proposal[],
  context: Context & { readonly excess: number },
): Set<Slot> {
  const taken = new Set<Slot>();
  const merged = new Set<Slot>();
  for (const proposal of proposals) {
    if (merged.size === context.excess) break;
    const { slot, target } = proposal;
    if (taken.has(slot) || taken.has(target)) continue;
    taken.add(slot).add(target);
    const { stays, goes } = endsOf(proposal, context);
    mergeSlots([stays, goes], context);
    freeSlot(goes, FREE_BIAS, context.lanes);
    merged.add(goes);
  }
  return merged;
}

/** The costs of pairs of `slots` in this chunk. */
function pairCosts(slots: readonly Slot[], context: Context): PairCosts {
  const { headDim } = context.sizes;
  return new PairCosts(slots, { ...context, headDim });
}

/** The target with the most similar key, if that is similar enough. */
function nearest(
  slot: Slot,
  targets: readonly Slot[],
  { policy: { merge }, sizes }: Context,
): Proposal | undefined {
  const found = nearestKey(slot, targets, sizes.headDim);
  return merge.kind === "votes" && found !== undefined &&
      found.similarity > merge.threshold
    ? { slot, target: found.target, rank: -found.similarity }
    : undefined;
}

/** Evicts the lowest scores down to the budget; returns the slots kept. */
function evict(slots: readonly Slot[], context: Context): Slot[] {
  const { head, policy, sizes, lanes, budget } = context;
  if (policy.merge.kind === "never") return [...slots];
  const excess = Math.max(0, slots.length - budget);
  const victims = new Set(
    slots.filter((slot) => isEvictable(slot, context))
      .sort(byEviction(policy, lanes)).slice(0, excess),
  );
  const kept = slots.filter((slot) => !victims.has(slot));
  if (policy.merge.kind === "nextValues") {
    passOnValues(slots, victims, context);
    return kept;
  }
  const groups = policy.merge.kind === "rightNeighbour"
    ? runs(slots, victims)
    : byTarget(kept, victims, context);
  const merged = new Set([...groups.values()].flat());
  for (const victim of victims) {
    if (!merged.has(victim)) drop(victim, head);
  }
  for (const [target, members] of groups) {
    if ("votesPerQueryHead" in policy.merge) {
      mergeSlots([target, ...members], context);
    } else if (policy.merge.kind === "cosine") {
      blendSlots([target, ...members], { ...context, headDim: sizes.headDim });
    } else {
      mergeRun([...members, target], { ...context, headDim: sizes.headDim });
    }
  }
  for (const victim of victims) freeSlot(victim, FREE_BIAS, lanes);
  return kept;
}

/** Adds the values of victims, one by one, to those that are still there. */
function passOnValues(
  slots: readonly Slot[],
  victims: ReadonlySet<Slot>,
  context: Context,
): void {
  const { head, policy: { merge }, sizes: { headDim }, lanes } = context;
  if (merge.kind !== "nextValues") return;
  const left = new Set(slots);
  for (const victim of victims) {
    left.delete(victim);
    if (!passOnValue(victim, [...left], { ...context, merge, headDim })) {
      drop(victim, head);
    }
    freeSlot(victim, FREE_BIAS, lanes);
  }
}

/** Counts a slot that is dropped. */
function drop(slot: Slot, head: HeadView): void {
  head.set("dropped", head.get("dropped") + 1);
  head.set("droppedTokens", head.get("droppedTokens") + tokensOf(slot));
}

/** Victims by the kept slot that they are merged into, if there is one. */
function byTarget(
  kept: readonly Slot[],
  victims: ReadonlySet<Slot>,
  context: Context,
): Map<Slot, Slot[]> {
  const groups = new Map<Slot, Slot[]>();
  for (const { slot, target } of targetsOf(kept, [...victims], context)) {
    groups.set(target, [...groups.get(target) ?? [], slot]);
  }
  return groups;
}

/** Victims with the kept slots that they are merged into. */
function targetsOf(
  kept: readonly Slot[],
  victims: readonly Slot[],
  context: Context,
): Proposal[] {
  const { policy, head, sizes: { headDim } } = context;
  const targets = kept.filter((slot) => isTarget(slot, policy));
  switch (policy.merge.kind) {
    case "votes":
      return victims.flatMap((slot) => nearest(slot, targets, context) ?? []);
    case "pair": {
      const others = kept.filter((slot) => isEvictable(slot, context));
      const costs = pairCosts([...others, ...victims], context);
      return victims.flatMap((slot) => costs.cheapest(slot, others) ?? []);
    }
    case "cosine": {
      const found = victims.flatMap((slot) => {
        const best = nearestKey(slot, targets, headDim);
        return best
          ? [{ slot, target: best.target, rank: -best.similarity }]
          : [];
      });
      if (found.length === 0) return found;
      const cosines = found.map(({ rank }) => -rank);
      const threshold = moveThreshold(head, policy, cosines);
      return found.filter(({ rank }) => -rank >= threshold);
    }
    default:
      return [];
  }
}

/** Victims by the next kept slot to their right, in the order of positions. */
function runs(
  slots: readonly Slot[],
  victims: ReadonlySet<Slot>,
): Map<Slot, Slot[]> {
  const groups = new Map<Slot, Slot[]>();
  let run: Slot[] = [];
  for (const slot of slots.toSorted((a, b) => positionOf(a) - positionOf(b))) {
    if (victims.has(slot)) {
      run.push(slot);
      continue;
    }
    if (run.length > 0) groups.set(slot, run);
    run = [];
  }
  return groups;
}

/** Moves staged slots into free ones, in order, and updates the head. */
function settle(slots: readonly Slot[], context: Context): void {
  const { head, lanes, sizes, policy } = context;
  for (const slot of slots) {
    if (slot.home === head.slot(0).home) continue;
    const free = head.firstFree();
    if (free >= head.get("capacity")) continue;
    copySlot(slot, head.slot(free), { headDim: sizes.headDim, lanes });
    head.set("high", Math.max(head.get("high"), free + 1));
  }
  if (remembersPartners(policy)) forgetAllPartners(context);
  head.set("live", head.liveSlots().length);
  head.set("next", head.firstFree());
}

/** Copies key, value and all fields of a slot. */
function copySlot(
  from: Slot,
  to: Slot,
  { headDim, lanes }: { headDim: number; lanes: number },
): void {
  keyOf(to, headDim).set(keyOf(from, headDim));
  valueOf(to, headDim).set(valueOf(from, headDim));
  for (let field = 0; field < SlotField.bias + lanes; field++) {
    to.home.side.u32[field * to.home.total + to.index] = from.home.side
      .u32[field * from.home.total + from.index]!;
  }
}

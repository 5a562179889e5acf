import {
  type Compress,
  FREE_BIAS,
  type HostTensor,
  SlotField,
} from "../backends/backend.ts";
import { remembersPartners } from "../cache/layout.ts";
import { allocateHeads } from "./allocate_heads.ts";
import { blendSlots, moveThreshold } from "./blend_slots.ts";
import { futureQueries } from "./expected_attention.ts";
import {
  HeadView,
  keyOf,
  liveRows,
  positionOf,
  type Slot,
  tokensOf,
  valueOf,
} from "./host.ts";
import { freeSlot, isTarget, mergeSlots } from "./merge_slots.ts";
import { mergeRun } from "./merge_values.ts";
import { passOnValue } from "./next_values.ts";
import {
  type ChunkHead,
  mergePairs,
  mergingRounds,
  nearestProposal,
  pairCosts,
  type Proposal,
} from "./pairing.ts";
import { valueSpread } from "./pairs.ts";
import { forgetAllPartners } from "./partners.ts";
import { isEvictable, queryGroup } from "./scores.ts";
import { mergeSegments } from "./segments.ts";
import { chooseVictims, rateLayer, type Ratings } from "./selection.ts";

/**
 * Reference of `compress`: takes the live slots and the staged rows of a chunk
 * down to each head's budget, and moves the staged rows that are left into
 * free slots. Adaptive heads first get their budgets: see `allocateHeads`.
 *
 * With `mergeFirst`, similar pairs are merged before anything is evicted
 * (KeepKV, table 3); where pairs are merged by cost, for some rounds; where
 * neighbours in the text are merged, segments of them. Then the
 * slots with the lowest ranks go: each is merged into the kept slot with the
 * most similar key if that is similar enough, or into the cheapest, all that
 * chose the same one together, and is dropped if there is none. Where values go to
 * the right neighbour, a run of slots that go is merged into the slot after it.
 */
export function compress(args: Compress<HostTensor>): void {
  const { cache, step, sizes, policy } = args;
  const last = liveRows(step).at(-1);
  if (last === undefined) return;
  const heads = Array.from(
    { length: sizes.kvHeads },
    (_, kvHead): ChunkHead => {
      const head = new HeadView(cache, {
        sequence: last.sequence,
        kvHead,
        kvHeads: sizes.kvHeads,
      });
      const slots = [
        ...head.liveSlots(),
        ...liveRows(step).map(({ row }) => head.staged(row)),
      ];
      return {
        head,
        slots,
        layer: cache.layer,
        kvHead,
        spread: policy.merge.kind === "pair"
          ? valueSpread(slots, sizes.headDim)
          : 0,
        group: queryGroup(args, last.row, kvHead),
        futures: futureQueries(cache, { ...last, kvHead, sizes }),
        lanes: cache.lanes,
        policy,
        sizes,
        recent: head.get("recent"),
        newest: last.position,
      };
    },
  );
  const rate = () =>
    rateLayer(heads, {
      policy,
      lanes: cache.lanes,
      headDim: sizes.headDim,
      newest: last.position,
      pool: policy.select.pool,
    });
  if (policy.allocate.heads.kind === "adaptive") allocateHeads(heads, rate());
  const merge = policy.merge.kind === "segments" ? mergeSegments : mergePairs;
  for (let round = 0; round < mergingRounds(policy.merge); round++) {
    const ratings = rate();
    heads.forEach((head, h) => head.slots = merge(head, ratings[h]!));
  }
  const ratings = rate();
  heads.forEach((head, h) => settle(evict(head, ratings[h]!), head));
}

/** Evicts the lowest ranks down to the budget; returns the slots kept. */
function evict(context: ChunkHead, ratings: Ratings): Slot[] {
  const { head, slots, policy, sizes, lanes } = context;
  if (policy.merge.kind === "never") return slots;
  const count = Math.max(0, slots.length - head.get("budget"));
  const victims = new Set(
    chooseVictims(context, { ...context, count, ratings }),
  );
  const kept = slots.filter((slot) => !victims.has(slot));
  if (policy.merge.kind === "nextValues") {
    passOnValues(victims, context);
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
      blendSlots([target, ...members], { head, headDim: sizes.headDim });
    } else {
      mergeRun([...members, target], {
        head,
        ratings,
        headDim: sizes.headDim,
      });
    }
  }
  for (const victim of victims) freeSlot(victim, FREE_BIAS, lanes);
  return kept;
}

/** Adds the values of victims, one by one, to those that are still there. */
function passOnValues(victims: ReadonlySet<Slot>, context: ChunkHead): void {
  const { head, slots, policy: { merge }, sizes: { headDim }, lanes } = context;
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
  context: ChunkHead,
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
  context: ChunkHead,
): Proposal[] {
  const { policy, head } = context;
  const targets = kept.filter((slot) => isTarget(slot, policy));
  const nearest = () =>
    victims.flatMap((slot) => nearestProposal(slot, targets, context) ?? []);
  switch (policy.merge.kind) {
    case "votes":
      return nearest();
    case "pair": {
      const others = kept.filter((slot) => isEvictable(slot, context));
      const costs = pairCosts([...others, ...victims], context);
      return victims.flatMap((slot) => costs.cheapest(slot, others) ?? []);
    }
    case "cosine": {
      const found = nearest();
      if (found.length === 0) return found;
      const cosines = found.map(({ cost }) => -cost);
      const threshold = moveThreshold(head, policy, cosines);
      return found.filter(({ cost }) => -cost >= threshold);
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
function settle(slots: readonly Slot[], context: ChunkHead): void {
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

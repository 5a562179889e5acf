import {
  type Compress,
  FREE_BIAS,
  type HostTensor,
  SlotField,
} from "../backends/backend.ts";
import { allocateHeads } from "./allocate_heads.ts";
import {
  HeadView,
  keyOf,
  liveRows,
  positionOf,
  type Slot,
  tokensOf,
  valueOf,
} from "./host.ts";
import {
  freeSlot,
  isTarget,
  type MergeContext,
  mergeSlots,
  nearestKey,
} from "./merge_slots.ts";
import { mergeRun } from "./merge_values.ts";
import { isEvictable, queryGroup } from "./scores.ts";
import { byRank, chooseVictims, rateLayer, type Ratings } from "./selection.ts";

/** What compressing one head needs. */
interface Context extends MergeContext {
  /** The candidates: live slots, then staged rows. */
  slots: Slot[];
  readonly recent: number;
  readonly newest: number;
}

/**
 * Reference of `compress`: takes the live slots and the staged rows of a chunk
 * down to each head's budget, and moves the staged rows that are left into
 * free slots. Adaptive heads first get their budgets: see `allocateHeads`.
 *
 * With `mergeFirst`, similar pairs are merged before anything is evicted
 * (KeepKV, table 3). Then the slots with the lowest ranks go: each is merged
 * into the kept slot with the most similar key if that is similar enough, all
 * that chose the same one together, and is dropped if not. Where values go to
 * the right neighbour, a run of slots that go is merged into the slot after it.
 */
export function compress(args: Compress<HostTensor>): void {
  const { cache, step, sizes, policy } = args;
  const last = liveRows(step).at(-1);
  if (last === undefined) return;
  const heads = Array.from({ length: sizes.kvHeads }, (_, kvHead): Context => {
    const head = new HeadView(cache, {
      sequence: last.sequence,
      kvHead,
      kvHeads: sizes.kvHeads,
    });
    return {
      head,
      slots: [
        ...head.liveSlots(),
        ...liveRows(step).map(({ row }) => head.staged(row)),
      ],
      group: queryGroup(args, last.row, kvHead),
      lanes: cache.lanes,
      policy,
      sizes,
      recent: head.get("recent"),
      newest: last.position,
    };
  });
  const rate = () =>
    rateLayer(heads, {
      policy,
      lanes: cache.lanes,
      headDim: sizes.headDim,
      newest: last.position,
      pool: policy.select.pool,
    });
  if (policy.allocate.heads.kind === "adaptive") allocateHeads(heads, rate());
  if (policy.merge.kind === "votes" && policy.merge.prefill === "mergeFirst") {
    const ratings = rate();
    heads.forEach((head, h) => head.slots = mergePairs(head, ratings[h]!));
  }
  const ratings = rate();
  heads.forEach((head, h) => settle(evict(head, ratings[h]!), head));
}

/**
 * Merges similar pairs until the head fits its budget or none is left. Every
 * evictable slot proposes to the evictable slot with the most similar key;
 * proposals are taken in order of similarity while both ends are still free.
 */
function mergePairs(context: Context, ratings: Ratings): Slot[] {
  const { head, slots, policy, sizes, lanes } = context;
  if (policy.merge.kind !== "votes") return [...slots];
  const { threshold } = policy.merge;
  let excess = slots.length - head.get("budget");
  if (excess <= 0) return [...slots];
  const evictable = slots.filter((slot) => isEvictable(slot, context));
  const proposals = evictable.flatMap((slot) => {
    const others = evictable.filter((other) => other !== slot);
    const nearest = nearestKey(slot, others, sizes.headDim);
    return nearest !== undefined && nearest.similarity > threshold
      ? [{ slot, ...nearest }]
      : [];
  });
  proposals.sort((a, b) =>
    b.similarity - a.similarity || positionOf(a.slot) - positionOf(b.slot)
  );
  const order = byRank(ratings);
  const taken = new Set<Slot>();
  const merged = new Set<Slot>();
  for (const { slot, target } of proposals) {
    if (excess === 0) break;
    if (taken.has(slot) || taken.has(target)) continue;
    taken.add(slot).add(target);
    const [goes, stays] = order(slot, target) < 0
      ? [slot, target]
      : [target, slot];
    mergeSlots([stays, goes], context);
    freeSlot(goes, FREE_BIAS, lanes);
    merged.add(goes);
    excess--;
  }
  return slots.filter((slot) => !merged.has(slot));
}

/** Evicts the lowest ranks down to the budget; returns the slots kept. */
function evict(context: Context, ratings: Ratings): Slot[] {
  const { head, slots, policy, sizes, lanes } = context;
  if (policy.merge.kind === "never") return slots;
  const count = Math.max(0, slots.length - head.get("budget"));
  const victims = new Set(
    chooseVictims(context, { ...context, count, ratings }),
  );
  const kept = slots.filter((slot) => !victims.has(slot));
  const groups = policy.merge.kind === "rightNeighbour"
    ? runs(slots, victims)
    : similar(kept, victims, context);
  const merged = new Set([...groups.values()].flat());
  for (const victim of victims) {
    if (merged.has(victim)) continue;
    head.set("dropped", head.get("dropped") + 1);
    head.set("droppedTokens", head.get("droppedTokens") + tokensOf(victim));
  }
  for (const [target, members] of groups) {
    if (policy.merge.kind === "votes") {
      mergeSlots([target, ...members], context);
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

/** Victims by the kept slot with the most similar key, if similar enough. */
function similar(
  kept: readonly Slot[],
  victims: ReadonlySet<Slot>,
  { policy, sizes }: Context,
): Map<Slot, Slot[]> {
  const groups = new Map<Slot, Slot[]>();
  if (policy.merge.kind !== "votes") return groups;
  const { threshold } = policy.merge;
  const targets = kept.filter((slot) => isTarget(slot, policy));
  for (const victim of victims) {
    const nearest = nearestKey(victim, targets, sizes.headDim);
    if (nearest === undefined || !(nearest.similarity > threshold)) continue;
    const members = groups.get(nearest.target) ?? [];
    groups.set(nearest.target, [...members, victim]);
  }
  return groups;
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
function settle(slots: readonly Slot[], { head, lanes, sizes }: Context): void {
  for (const slot of slots) {
    if (slot.home === head.slot(0).home) continue;
    const free = head.firstFree();
    if (free >= head.get("capacity")) continue;
    copySlot(slot, head.slot(free), { headDim: sizes.headDim, lanes });
    head.set("high", Math.max(head.get("high"), free + 1));
  }
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

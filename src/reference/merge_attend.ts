import {
  FREE_BIAS,
  type HostTensor,
  type MergeAttend,
} from "../backends/backend.ts";
import { HeadView, liveRows, type Slot, tokensOf, valueOf } from "./host.ts";
import { blendSlots, moveThreshold } from "./blend_slots.ts";
import {
  freeSlot,
  isTarget,
  type MergeContext,
  mergeSlots,
  nearestKey,
} from "./merge_slots.ts";
import {
  type CurrentRow,
  groupRows,
  mergeExactly,
  mergeRun,
  rightNeighbour,
} from "./merge_values.ts";
import { passOnValue } from "./next_values.ts";
import { forgetPartners, partnerProposals } from "./partners.ts";
import { endsOf, PairCosts, valueSpread } from "./pairs.ts";
import {
  byEviction,
  isEvictable,
  observeRow,
  queryGroup,
  rawLogits,
  voteBias,
} from "./scores.ts";
import { addSoftmax, initSoftmax, normalizeSoftmax } from "./softmax_state.ts";

/**
 * Reference of `merge_attend`: attention of one new token per sequence over
 * the voted slots, `softmax(q·k/√d + ln votes)`, then the policy's work on
 * each KV head: scores, and one slot merged or dropped if the head is over its
 * budget. The output is that of the uncompressed slots (KeepKV, appendix C.2);
 * the next step is the first to see the compressed ones.
 */
export function mergeAttend(args: MergeAttend<HostTensor>): void {
  const { output, cache, step, sizes, policy } = args;
  const { heads, kvHeads, headDim } = sizes;
  const groupSize = heads / kvHeads;
  for (const { row, sequence, position } of liveRows(step)) {
    for (let kvHead = 0; kvHead < kvHeads; kvHead++) {
      const head = new HeadView(cache, { sequence, kvHead, kvHeads });
      const used = Math.min(head.get("next") + 1, head.get("capacity"));
      head.set("high", Math.max(head.get("high"), used));
      const slots = head.liveSlots();
      const group = queryGroup(args, row, kvHead);
      const logits = slots.map((slot) => rawLogits(group, slot, policy));
      const logSums = group.queries.map((_, g) => {
        const state = initSoftmax(headDim);
        slots.forEach((slot, i) =>
          addSoftmax(state, logits[i]![g]! + voteBias(slot, g, cache.lanes), {
            values: valueOf(slot, headDim),
            offset: 0,
          })
        );
        const offset = (row * heads + kvHead * groupSize + g) * headDim;
        return normalizeSoftmax(state, { output: output.f32, offset });
      });
      slots.forEach((slot, i) =>
        observeRow(slot, {
          logits: logits[i]!,
          logSums,
          lanes: cache.lanes,
          policy,
        })
      );
      head.set("live", slots.length);
      if (slots.length > head.get("budget")) {
        evictOne(slots, {
          head,
          layer: cache.layer,
          kvHead,
          group,
          lanes: cache.lanes,
          policy,
          sizes,
          newest: position,
          row: {
            group,
            logSums,
            outputs: groupRows(output, {
              at: row * heads + kvHead * groupSize,
              group: groupSize,
              headDim,
            }),
          },
        });
      }
      head.set("next", head.firstFree());
    }
  }
}

/** What evicting a slot needs. */
interface Eviction extends MergeContext {
  readonly layer: number;
  readonly kvHead: number;
  readonly newest: number;
  readonly row: CurrentRow;
}

/** Merges the cheapest pair, or merges or drops the slot with the lowest score. */
function evictOne(slots: readonly Slot[], context: Eviction): void {
  const { head, policy, lanes, newest } = context;
  const evictable = slots.filter((slot) =>
    isEvictable(slot, { policy, recent: head.get("recent"), newest })
  );
  const pair = cheapestPair(evictable, slots, context);
  const victim = pair?.goes ?? evictable.sort(byEviction(policy, lanes))[0];
  if (victim === undefined) return;
  const target = pair?.stays;
  if (!mergeOne(victim, slots, { ...context, target })) {
    head.set("dropped", head.get("dropped") + 1);
    head.set("droppedTokens", head.get("droppedTokens") + tokensOf(victim));
  }
  freeSlot(victim, FREE_BIAS, lanes);
  head.set("live", slots.length - 1);
}

/** The ends of the pair that costs least, if the policy merges pairs. */
function cheapestPair(
  evictable: readonly Slot[],
  slots: readonly Slot[],
  context: Eviction,
): { stays: Slot; goes: Slot } | undefined {
  const { policy, lanes, sizes: { headDim } } = context;
  if (policy.merge.kind !== "pair") return undefined;
  const spread = valueSpread(slots, headDim);
  const costs = new PairCosts(evictable, { policy, lanes, headDim, spread });
  const remembers = policy.merge.search === "incremental";
  const [best] = remembers
    ? partnerProposals(evictable, { ...context, costs })
    : costs.proposals(evictable);
  if (best === undefined) return undefined;
  const { slot, target } = best;
  if (remembers) {
    forgetPartners(evictable, { ...context, changed: [slot, target] });
  }
  return endsOf(best, context);
}

/** Merges a slot into the one that the policy names; false if there is none. */
function mergeOne(
  victim: Slot,
  slots: readonly Slot[],
  context: Eviction & { readonly target: Slot | undefined },
): boolean {
  const { policy, target, sizes: { headDim } } = context;
  const { merge } = policy;
  switch (merge.kind) {
    case "never":
    case "drop":
      return false;
    case "votes": {
      const nearest = nearestKey(
        victim,
        slots.filter((slot) => slot !== victim && isTarget(slot, policy)),
        headDim,
      );
      if (nearest === undefined || !(nearest.similarity > merge.threshold)) {
        return false;
      }
      mergeSlots([nearest.target, victim], context);
      return true;
    }
    case "cosine": {
      const nearest = nearestKey(
        victim,
        slots.filter((slot) => slot !== victim && isTarget(slot, policy)),
        headDim,
      );
      if (nearest === undefined) return false;
      const { target, similarity } = nearest;
      const threshold = moveThreshold(context.head, policy, [similarity]);
      if (similarity < threshold) return false;
      blendSlots([target, victim], { ...context, headDim });
      return true;
    }
    case "pair":
      if (target === undefined) return false;
      mergeSlots([target, victim], context);
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

import {
  FREE_BIAS,
  type HostTensor,
  type MergeAttend,
} from "../backends/backend.ts";
import { HeadView, liveRows, type Slot, tokensOf } from "./host.ts";
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
import { observeRow, queryGroup, rawLogits, voteBias } from "./scores.ts";
import { chooseVictims, rateLayer, type Ratings } from "./selection.ts";
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
    const attended: Eviction[] = [];
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
            values: slot.home.values.f32,
            offset: slot.index * headDim,
          })
        );
        const offset = (row * heads + kvHead * groupSize + g) * headDim;
        return normalizeSoftmax(state, { output: output.f32, offset });
      });
      slots.forEach((slot, i) =>
        observeRow(slot, {
          logits: logits[i]!,
          logSums,
          position,
          lanes: cache.lanes,
          policy,
        })
      );
      head.set("live", slots.length);
      attended.push({
        head,
        slots,
        recent: head.get("recent"),
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
    const ratings = rateLayer(attended, {
      policy,
      lanes: cache.lanes,
      headDim,
      newest: position,
      pool: { kind: "none" },
    });
    attended.forEach((context, kvHead) => {
      const { head, slots } = context;
      if (slots.length > head.get("budget")) {
        evictOne(context, ratings[kvHead]!);
      }
      head.set("next", head.firstFree());
    });
  }
}

/** What evicting a slot needs. */
interface Eviction extends MergeContext {
  readonly slots: readonly Slot[];
  readonly recent: number;
  readonly newest: number;
  readonly row: CurrentRow;
}

/** Merges or drops the slot with the lowest rank. */
function evictOne(context: Eviction, ratings: Ratings): void {
  const { head, slots, lanes } = context;
  const [victim] = chooseVictims(context, { ...context, count: 1, ratings });
  if (victim === undefined) return;
  if (!mergeOne(victim, context, ratings)) {
    head.set("dropped", head.get("dropped") + 1);
    head.set("droppedTokens", head.get("droppedTokens") + tokensOf(victim));
  }
  freeSlot(victim, FREE_BIAS, lanes);
  head.set("live", slots.length - 1);
}

/** Merges a slot into the one that the policy names; false if there is none. */
function mergeOne(
  victim: Slot,
  context: Eviction,
  ratings: Ratings,
): boolean {
  const { slots, policy, sizes: { headDim } } = context;
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
    case "rightNeighbour": {
      const target = rightNeighbour(victim, slots);
      if (target === undefined) return false;
      if (merge.rule === "exact") mergeExactly([target, victim], context);
      else mergeRun([victim, target], { ...context, ratings, headDim });
      return true;
    }
  }
}

import type { HostTensor, MergeAttend } from "../backends/backend.ts";
import { logSumExp } from "./arithmetic.ts";
import { type Eviction, evictOne } from "./evict_one.ts";
import { futureQueries } from "./expected_attention.ts";
import { HeadView, liveRows, voteBias } from "./host.ts";
import { groupRows } from "./merge_values.ts";
import { observeRow, queryGroup, rawLogits, scoreGain } from "./scores.ts";
import { rateLayer } from "./selection.ts";
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
      const gain = scoreGain(policy, { position, budget: head.get("budget") });
      const scoreSums = gain === 1 ? logSums : logSums.map((_, g) =>
        logSumExp(
          slots.map((slot, i) =>
            gain * (logits[i]![g]! + voteBias(slot, g, cache.lanes))
          ),
        )
      );
      slots.forEach((slot, i) =>
        observeRow(slot, {
          logits: logits[i]!,
          gain,
          logSums: scoreSums,
          position,
          lanes: cache.lanes,
          policy,
        })
      );
      head.set("live", slots.length);
      attended.push({
        head,
        layer: cache.layer,
        kvHead,
        slots,
        recent: head.get("recent"),
        futures: futureQueries(cache, { sequence, kvHead, sizes }),
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

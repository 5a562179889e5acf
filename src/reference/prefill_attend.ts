import type { HostTensor, PrefillAttend } from "../backends/backend.ts";
import { HeadView, liveRows } from "./host.ts";
import { queryGroup, rawLogits, voteBias } from "./scores.ts";
import { addSoftmax, initSoftmax, normalizeSoftmax } from "./softmax_state.ts";

/**
 * Reference of `prefill_attend`: each row of the chunk attends to the voted
 * slots and to the rows up to itself.
 */
export function prefillAttend(args: PrefillAttend<HostTensor>): void {
  const { output, logSums, cache, step, sizes, policy } = args;
  const { heads, kvHeads, headDim } = sizes;
  const groupSize = heads / kvHeads;
  const rows = liveRows(step);
  for (let kvHead = 0; kvHead < kvHeads && rows.length > 0; kvHead++) {
    const { sequence } = rows[0]!;
    const head = new HeadView(cache, { sequence, kvHead, kvHeads });
    const slots = head.liveSlots();
    for (const { row } of rows) {
      slots.push(head.staged(row));
      const group = queryGroup(args, row, kvHead);
      const states = group.queries.map(() => initSoftmax(headDim));
      for (const slot of slots) {
        const logits = rawLogits(group, slot, policy);
        states.forEach((state, g) =>
          addSoftmax(state, logits[g]! + voteBias(slot, g, cache.lanes), {
            values: slot.home.values.f32,
            offset: slot.index * headDim,
          })
        );
      }
      states.forEach((state, g) => {
        const at = row * heads + kvHead * groupSize + g;
        logSums.f32[at] = normalizeSoftmax(state, {
          output: output.f32,
          offset: at * headDim,
        });
      });
    }
  }
}

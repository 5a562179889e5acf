import type { HostTensor, PrefillAttend } from "../backends/backend.ts";
import { forwardRows, HeadView, voteBias } from "./host.ts";
import { logSumExp } from "./arithmetic.ts";
import { queryGroup, rawLogits, scoreGain } from "./scores.ts";
import { addSoftmax, initSoftmax, normalizeSoftmax } from "./softmax_state.ts";

/**
 * Reference of `prefill_attend`: each row of the chunk attends to the voted
 * slots and to the rows up to itself. Guests do the same, after the chunk. The
 * sums are those that scores need: at the scale that they have.
 */
export function prefillAttend(args: PrefillAttend<HostTensor>): void {
  const { output, logSums, cache, step, sizes, policy } = args;
  const { heads, kvHeads, headDim } = sizes;
  const groupSize = heads / kvHeads;
  const rows = forwardRows(step);
  for (let kvHead = 0; kvHead < kvHeads && rows.length > 0; kvHead++) {
    const { sequence } = rows[0]!;
    const head = new HeadView(cache, { sequence, kvHead, kvHeads });
    const slots = head.liveSlots();
    for (const { row, position } of rows) {
      slots.push(head.staged(row));
      const group = queryGroup(args, row, kvHead);
      const states = group.queries.map(() => initSoftmax(headDim));
      const logits = slots.map((slot) => rawLogits(group, slot, policy));
      slots.forEach((slot, i) => {
        states.forEach((state, g) =>
          addSoftmax(state, logits[i]![g]! + voteBias(slot, g, cache.lanes), {
            values: slot.home.values.f32,
            offset: slot.index * headDim,
          })
        );
      });
      const gain = scoreGain(policy, { position, budget: head.get("budget") });
      states.forEach((state, g) => {
        const at = row * heads + kvHead * groupSize + g;
        const logSum = normalizeSoftmax(state, {
          output: output.f32,
          offset: at * headDim,
        });
        logSums.f32[at] = gain === 1 ? logSum : logSumExp(
          slots.map((slot, i) =>
            gain * (logits[i]![g]! + voteBias(slot, g, cache.lanes))
          ),
        );
      });
    }
  }
}

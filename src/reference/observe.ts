import type { Compress, HostTensor } from "../backends/backend.ts";
import { forwardRows, HeadView, liveRows } from "./host.ts";
import { observeRow, queryGroup, rawLogits, scoreGain } from "./scores.ts";

/**
 * Reference of `observe`: adds the attention of the chunk's observed rows to
 * the scores of the slots and of the staged rows, row by row. The logits are
 * computed again from queries and keys: attention never stores them. Guests may
 * be observed, but have no scores of their own.
 */
export function observe(args: Compress<HostTensor>): void {
  const { logSums, cache, step, sizes, policy } = args;
  const { heads, kvHeads } = sizes;
  const groupSize = heads / kvHeads;
  const rows = liveRows(step);
  const { probe } = policy;
  if (probe.kind === "none") return;
  const observed = probe.kind === "all"
    ? rows
    : probe.kind === "last"
    ? rows.slice(-probe.rows)
    : forwardRows(step).slice(rows.length);
  for (let kvHead = 0; kvHead < kvHeads && rows.length > 0; kvHead++) {
    const { sequence } = rows[0]!;
    const head = new HeadView(cache, { sequence, kvHead, kvHeads });
    const live = head.liveSlots();
    const staged = rows.map(({ row }) => head.staged(row));
    for (const { row, position } of observed) {
      const group = queryGroup(args, row, kvHead);
      const at = row * heads + kvHead * groupSize;
      const sums = Array.from(logSums.f32.subarray(at, at + groupSize));
      const budget = head.get("budget");
      const gain = scoreGain(policy, { position, budget });
      for (const slot of [...live, ...staged.slice(0, row + 1)]) {
        observeRow(slot, {
          logits: rawLogits(group, slot, policy),
          gain,
          logSums: sums,
          position,
          lanes: cache.lanes,
          policy,
        });
      }
    }
  }
}

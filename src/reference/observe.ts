import type { Compress, HostTensor } from "../backends/backend.ts";
import { HeadView, liveRows } from "./host.ts";
import { observeRow, queryGroup, rawLogits, scoreGain } from "./scores.ts";

/**
 * Reference of `observe`: adds the attention of the chunk's observed rows to
 * the scores of the slots and of the staged rows, row by row. The logits are
 * computed again from queries and keys: attention never stores them.
 */
export function observe(args: Compress<HostTensor>): void {
  const { logSums, cache, step, sizes, policy } = args;
  const { heads, kvHeads } = sizes;
  const groupSize = heads / kvHeads;
  const rows = liveRows(step);
  const { probe } = policy;
  if (probe.kind === "none") return;
  const observed = probe.kind === "all" ? rows : rows.slice(-probe.rows);
  for (const { row, sequence, position } of observed) {
    for (let kvHead = 0; kvHead < kvHeads; kvHead++) {
      const head = new HeadView(cache, { sequence, kvHead, kvHeads });
      const group = queryGroup(args, row, kvHead);
      const at = row * heads + kvHead * groupSize;
      const sums = Array.from(logSums.f32.subarray(at, at + groupSize));
      const budget = head.get("budget");
      const gain = scoreGain(policy, { position, budget });
      const slots = head.liveSlots();
      for (let i = 0; i <= row; i++) slots.push(head.staged(i));
      for (const slot of slots) {
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

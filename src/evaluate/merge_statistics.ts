/**
 * What merging did to a cache.
 *
 * @module
 */
import type { SlotCache } from "../cache/slot_cache.ts";
import { type CacheHead, type CacheOwner, readHeads } from "./live_slots.ts";

/** What the heads of one layer did, summed over the heads. */
export interface LayerMerges {
  /** Live slots. */
  readonly live: number;
  /** Slots merged into another one. */
  readonly merged: number;
  /** Slots dropped. */
  readonly dropped: number;
  /** Tokens that the dropped slots stood for. */
  readonly droppedTokens: number;
  /** ZIP merges whose scale was unsafe. */
  readonly guarded: number;
  /** Sum over merges of KL(merge weights ‖ vote shares), in nats. */
  readonly divergence: number;
}

/** What a cache did, and the votes that its slots have. */
export interface MergeStatistics {
  /** One per layer. */
  readonly layers: readonly LayerMerges[];
  /**
   * Live slots by votes: entry `i` counts those with `2^i ≤ votes < 2^(i+1)`;
   * the first one also counts votes below 1, which `realVotes` can give.
   */
  readonly votes: readonly number[];
}

/** Reads what merging did to each sequence of a cache. */
export async function readMergeStatistics(
  cache: SlotCache,
  owner: CacheOwner,
): Promise<MergeStatistics[]> {
  return (await readHeads(cache, owner)).map(sumUp);
}

/** Sums up the heads of a sequence, `(layers, kvHeads)`. */
function sumUp(heads: readonly (readonly CacheHead[])[]): MergeStatistics {
  const layers = heads.map((layer) => {
    const sum = (counter: keyof LayerMerges) =>
      layer.reduce((total, { counters }) => total + counters[counter], 0);
    return {
      live: sum("live"),
      merged: sum("merged"),
      dropped: sum("dropped"),
      droppedTokens: sum("droppedTokens"),
      guarded: sum("guarded"),
      divergence: sum("divergence"),
    };
  });
  const votes: number[] = [];
  for (const { bias } of heads.flat().flatMap(({ slots }) => slots)) {
    const logVotes = bias.reduce((sum, b) => sum + b, 0) / bias.length;
    // ln 2 in f32 is a little less than in f64: two votes belong into entry 1.
    const bin = Math.max(0, Math.floor(logVotes / Math.LN2 + 1e-6));
    while (votes.length <= bin) votes.push(0);
    votes[bin]!++;
  }
  return { layers, votes };
}

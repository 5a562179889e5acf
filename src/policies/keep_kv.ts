import { definePolicy, type MethodOptions } from "./define_policy.ts";
import type { Merge, Policy } from "./parts.ts";

/** Options of {@link keepKV}. */
export interface KeepKVOptions extends MethodOptions {
  /** Form of the merged key (default `"realVotes"`); `"zip"` is the paper's. */
  readonly key?: Extract<Merge, { kind: "votes" }>["key"];
  /** Cosine that two keys must exceed to be merged (default 0.8). */
  readonly threshold?: number;
  /** Weight of the past in the moving average of scores (default 0.99). */
  readonly alpha?: number;
  /** Rows at the end of each prompt chunk that are observed (default 32). */
  readonly window?: number;
  /** First tokens of the text that are never evicted (default 4). */
  readonly sinks?: number;
  /** Newest tokens never evicted, as a share of the budget (default 0.2). */
  readonly recent?: number;
  /** Merge or evict first when a chunk is compressed (default `"mergeFirst"`). */
  readonly prefill?: "mergeFirst" | "evictFirst";
  /** One vote bias per query head instead of one per slot (default false). */
  readonly votesPerQueryHead?: boolean;
  /** Scales of the key that `"zip"` accepts (default `[0.5, 1.5]`). */
  readonly guard?: readonly [number, number];
}

/**
 * KeepKV: slots that must go are merged into the most similar one, and the
 * merge leaves the current output unchanged.
 *
 * - Electoral Votes (eq. 6): `o = Σ pᵢ sᵢ vᵢ / Σ pᵢ sᵢ`, a slot with `p` votes
 *   counts as `p` tokens.
 * - ZIP merging (eq. 7, 25) of a set with weights `wᵢ = pᵢ ŝᵢ`:
 *   `p = Σ pᵢ`, `v = Σ wᵢ vᵢ / Σ wᵢ`,
 *   `k = Σ wᵢ kᵢ · ln(Σ wᵢ / p) / Σ wᵢ ln ŝᵢ`.
 * - `ŝ` is a bias-corrected moving average of `exp(q·k/√d)` (eq. 8).
 *
 * Source: "KeepKV: Eliminating Output Perturbation in KV Cache Compression for
 * Efficient LLMs Inference", arXiv 2504.09936. Sinks, recent share and cosine
 * pyramid follow the authors' released code. The paper names no `alpha` and
 * no window; their defaults here are this project's.
 *
 * @example
 * ```ts
 * import { keepKV } from "@steadykv/steadykv";
 * import { assertEquals } from "@std/assert";
 *
 * assertEquals(keepKV({ budget: 256 }).name, "keepkv");
 * ```
 */
export function keepKV(options: KeepKVOptions): Policy {
  const key = options.key ?? "realVotes";
  return definePolicy({
    name: "keepkv",
    budget: options.budget,
    probe: { kind: "last", rows: options.window ?? 32 },
    score: {
      kind: "ema",
      alpha: options.alpha ?? 0.99,
      // The scale of a ZIP key is a ratio of raw logits; the other forms do
      // not need them and are better off without the drift of query lengths.
      scale: key === "zip" ? "raw" : "normalized",
      countVotes: false,
    },
    allocate: {
      layers: { kind: "cosine", floor: 0.8 },
      ...options.allocate,
    },
    select: {
      sinks: options.sinks ?? 4,
      recent: { ratio: options.recent ?? 0.2 },
    },
    merge: {
      kind: "votes",
      key,
      threshold: options.threshold ?? 0.8,
      prefill: options.prefill ?? "mergeFirst",
      votesPerQueryHead: options.votesPerQueryHead ?? false,
      guard: options.guard ?? [0.5, 1.5],
    },
    schedule: options.schedule,
  });
}

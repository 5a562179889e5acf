import { definePolicy, type MethodOptions } from "./define_policy.ts";
import type { Policy } from "./parts.ts";

/** Options of {@link kvMerger}. */
export interface KVMergerOptions extends MethodOptions {
  /** Newest tokens never merged, as a share of the budget (default 0.25). */
  readonly recent?: number;
  /** First tokens of the text that are never merged (default 4). */
  readonly sinks?: number;
  /**
   * Share of the rest of the budget for the slots with the most attention,
   * which are not merged (default 0.25).
   */
  readonly heavy?: number;
}

/**
 * KVMerger: slots that follow each other in the text and have similar keys
 * become one.
 *
 * - Neighbours are linked if `cos(kᵢ, kᵢ₊₁)` is at least a threshold; here that
 *   is the one which leaves as many slots as the budget has. Sinks, recent
 *   tokens and heavy hitters are not linked.
 * - Slots that are linked become one at the place of their pivot `p`, the one
 *   with the most attention so far. Key and value are means with the weights
 *   `gᵢ = exp(−‖kᵢ − kₚ‖² / 2σ²)`, `σ = Σ ‖kᵢ − kₚ‖ / (√2 · n)`.
 *
 * A decode step, which has one slot too many, closes the one link that is the
 * closest. Of two slots the pivot has the weight 1 and the other `exp(−4)`,
 * whatever their distance, so that such a step changes the pivot little.
 *
 * Source: "Model Tells You Where to Merge: Adaptive KV Cache Merging for LLMs
 * on Long-Context Tasks", arXiv 2407.08454. The shares of recent tokens and
 * heavy hitters are ours, as is what `src/reference/segments.ts` says of σ and
 * of the scores of merged slots.
 *
 * @example
 * ```ts
 * import { kvMerger } from "@steadykv/steadykv";
 * import { assertEquals } from "@std/assert";
 *
 * assertEquals(kvMerger({ budget: 256 }).merge, {
 *   kind: "segments",
 *   heavy: 0.25,
 * });
 * ```
 */
export function kvMerger(options: KVMergerOptions): Policy {
  return definePolicy({
    name: "kvmerger",
    budget: options.budget,
    score: { kind: "accumulated" },
    allocate: options.allocate,
    select: {
      sinks: options.sinks ?? 4,
      recent: { ratio: options.recent ?? 0.25 },
    },
    merge: { kind: "segments", heavy: options.heavy ?? 0.25 },
    schedule: options.schedule,
  });
}

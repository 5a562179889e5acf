import { definePolicy, type MethodOptions } from "./define_policy.ts";
import type { Policy, Pool } from "./parts.ts";

/** Options of {@link snapKV}. */
export interface SnapKVOptions extends MethodOptions {
  /**
   * Rows at the end of each prompt chunk that are observed, which are also the
   * newest tokens that are never evicted (default 32).
   */
  readonly window?: number;
  /** How scores are spread over neighbours (default: the mean over 5). */
  readonly pool?: Pool;
  /** First tokens of the text that are never evicted (default 0). */
  readonly sinks?: number;
}

/**
 * SnapKV: a prompt keeps the tokens that its last rows attend to, and their
 * neighbours.
 *
 * The score of a token is the mean of the weights it has in the last `window`
 * rows, then the mean (or maximum) over neighbouring positions, so that what
 * surrounds an important token stays too. The window itself stays.
 *
 * Source: "SnapKV: LLM Knows What You are Looking for Before Generation",
 * arXiv 2404.14469, listing 1; a window of 32 and a mean over 5 positions are
 * choices among those of its code. The paper compresses a prompt once and then
 * lets the cache grow. Here every chunk is compressed by its own window, and
 * decoding goes on under the budget with the mean over all rows observed so
 * far, which is not pooled. The query heads of a group share a slot, so their
 * weights are averaged.
 *
 * @example
 * ```ts
 * import { snapKV } from "@steadykv/steadykv";
 * import { assertEquals } from "@std/assert";
 *
 * assertEquals(snapKV({ budget: 256 }).probe, { kind: "last", rows: 32 });
 * ```
 */
export function snapKV(options: SnapKVOptions): Policy {
  const window = options.window ?? 32;
  return definePolicy({
    name: "snapkv",
    budget: options.budget,
    probe: { kind: "last", rows: window },
    score: { kind: "mean" },
    allocate: options.allocate,
    select: {
      sinks: options.sinks ?? 0,
      recent: { slots: window },
      pool: options.pool ?? { kind: "mean", width: 5 },
    },
    merge: { kind: "drop" },
    schedule: options.schedule,
  });
}

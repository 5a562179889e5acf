import { definePolicy } from "./define_policy.ts";
import type { Allocate, Budget, Policy, Schedule } from "./parts.ts";

/** Options of {@link prefixKV}. */
export interface PrefixKVOptions {
  /** How much the cache may hold. */
  readonly budget: Budget;
  /**
   * How the budget is spread: what `prefixAllocation` makes of a profile that
   * `measureProfile` of `@steadykv/steadykv/evaluate` has measured.
   */
  readonly allocate: Partial<Allocate>;
  /** First tokens of the text that are never evicted (default 4). */
  readonly sinks?: number;
  /** Newest tokens never evicted, as a share of the budget (default 0.2). */
  readonly recent?: number;
  /** When a prompt is compressed (default: every 256 tokens). */
  readonly schedule?: Schedule;
}

/**
 * PrefixKV: every layer keeps as many of its heaviest tokens as it needs to
 * retain the same mass of attention as the other layers.
 *
 * The score of a token is the mean weight of attention that it received.
 * Budgets do not depend on the prompt: they are measured once per model, on a
 * few texts (1 to 10 in the paper).
 *
 * Source: "PrefixKV: Adaptive Prefix KV Cache is What Vision
 * Instruction-Following Models Need for Efficient Generation", arXiv
 * 2412.03409, sections 3.2 and 3.3. Made for images and text; nothing in it
 * needs an image. The sinks and the recent window are ours: the paper
 * compresses a prompt once.
 *
 * @example
 * ```ts
 * import { prefixAllocation, prefixKV } from "@steadykv/steadykv";
 * import { assertEquals } from "@std/assert";
 *
 * // Two layers with one head; the second spreads its attention evenly.
 * const mass = [[[0.6, 0.8, 0.9, 1]], [[0.25, 0.5, 0.75, 1]]];
 * const policy = prefixKV({
 *   budget: { ratio: 0.5 },
 *   allocate: prefixAllocation({ mass }, { ratio: 0.5 }),
 * });
 * assertEquals(policy.allocate.layers.kind, "shares");
 * ```
 */
export function prefixKV(options: PrefixKVOptions): Policy {
  return definePolicy({
    name: "prefixkv",
    budget: options.budget,
    score: { kind: "mean" },
    allocate: options.allocate,
    select: {
      sinks: options.sinks ?? 4,
      recent: { ratio: options.recent ?? 0.2 },
    },
    merge: { kind: "drop" },
    schedule: options.schedule,
  });
}

import { definePolicy, type MethodOptions } from "./define_policy.ts";
import type { Policy } from "./parts.ts";

/** Options of {@link adaKV}. */
export interface AdaKVOptions extends MethodOptions {
  /**
   * Rows at the end of each prompt chunk that are observed, which are also the
   * newest tokens that are never evicted (default 32).
   */
  readonly window?: number;
  /** Share of the budget that is spread evenly over heads (default 0.2). */
  readonly floor?: number;
  /** First tokens of the text that are never evicted (default 0). */
  readonly sinks?: number;
}

/**
 * Ada-KV: the heads of a layer share its budget by what their scores need. A
 * head whose attention is spread out gets slots that a head with a few heavy
 * tokens does without.
 *
 * Of the evictable tokens of all heads of a layer, those with the highest
 * scores count, as many as there are slots beside the recent windows; head `h`
 * has `cₕ` of them and gets `(1 − floor) · cₕ + floor · F` slots beside its
 * window, `F` being its even share. The layout is ragged, so a layer takes the
 * bytes of even budgets.
 *
 * Source: "Ada-KV: Optimizing KV Cache Eviction by Adaptive Budget Allocation
 * for Efficient LLM Inference", arXiv 2407.11550, algorithm 1; scores of the
 * last 32 rows and a floor of 0.2 as there. The paper compresses a prompt once.
 * Here the first chunk decides, so it must be longer than the budget: read the
 * prompt in larger chunks where it is not (`schedule`). The query heads of a
 * group share a slot, so their weights are averaged.
 *
 * @example
 * ```ts
 * import { adaKV } from "@steadykv/steadykv";
 * import { assertEquals } from "@std/assert";
 *
 * const { allocate } = adaKV({ budget: 128 });
 * assertEquals(allocate.heads, { kind: "adaptive", floor: 0.2 });
 * ```
 */
export function adaKV(options: AdaKVOptions): Policy {
  const window = options.window ?? 32;
  return definePolicy({
    name: "adakv",
    budget: options.budget,
    probe: { kind: "last", rows: window },
    score: { kind: "mean" },
    allocate: {
      heads: { kind: "adaptive", floor: options.floor ?? 0.2 },
      ...options.allocate,
    },
    select: { sinks: options.sinks ?? 0, recent: { slots: window } },
    merge: { kind: "drop" },
    schedule: options.schedule,
  });
}

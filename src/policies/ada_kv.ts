import type { Policy } from "./parts.ts";
import { snapKV, type SnapKVOptions } from "./snap_kv.ts";

/** Options of {@link adaKV}: those of SnapKV, and the floor. */
export interface AdaKVOptions extends SnapKVOptions {
  /** Share of the budget that is spread evenly over heads (default 0.2). */
  readonly floor?: number;
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
 * for Efficient LLM Inference", arXiv 2407.11550, algorithm 1; the scores and
 * the window are those of {@link snapKV}, the floor of 0.2 is the paper's. The
 * paper compresses a prompt once. Here the first chunk decides, so it must be
 * longer than the budget: read the prompt in larger chunks where it is not
 * (`schedule`).
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
export function adaKV({ floor = 0.2, ...options }: AdaKVOptions): Policy {
  return {
    ...snapKV({
      ...options,
      allocate: { heads: { kind: "adaptive", floor }, ...options.allocate },
    }),
    name: "adakv",
  };
}

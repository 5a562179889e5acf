import { definePolicy, type MethodOptions } from "./define_policy.ts";
import type { Policy } from "./parts.ts";

/** Options of {@link d2o}. */
export interface D2OOptions extends MethodOptions {
  /** Newest tokens never evicted, as a share of the budget (default 0.5). */
  readonly recent?: number;
  /** First tokens of the text that are never evicted (default 4). */
  readonly sinks?: number;
  /** Weight of the past in the moving threshold (default 0.5). */
  readonly keep?: number;
}

/**
 * D2O: H2O's choice of slots, and those that go are merged into the kept slot
 * with the most similar key if they are as similar to it as others were.
 *
 * - A slot is merged if its cosine reaches the head's threshold, a moving
 *   average of such cosines: `τ ← keep · τ + (1 − keep) · mean`.
 * - A kept slot takes in all that chose it, with the weights `exp(cos)` and its
 *   own weight `exp(1)`, normalised: the same for keys and values.
 *
 * Source: "D2O: Dynamic Discriminative Operations for Efficient Generative
 * Inference of Large Language Models", arXiv 2406.13035. Four sinks and `keep`
 * follow the authors' released code; recent tokens have half of the budget as
 * in H2O. The code has a threshold per layer, here each KV head has its own.
 * The paper also spreads the budget over the layers by the variance of their
 * attention: that is another `allocate.layers`.
 *
 * @example
 * ```ts
 * import { d2o } from "@steadykv/steadykv";
 * import { assertEquals } from "@std/assert";
 *
 * assertEquals(d2o({ budget: 256 }).merge, { kind: "cosine", keep: 0.5 });
 * ```
 */
export function d2o(options: D2OOptions): Policy {
  return definePolicy({
    name: "d2o",
    budget: options.budget,
    score: { kind: "accumulated" },
    allocate: options.allocate,
    select: {
      sinks: options.sinks ?? 4,
      recent: { ratio: options.recent ?? 0.5 },
    },
    merge: { kind: "cosine", keep: options.keep ?? 0.5 },
    schedule: options.schedule,
  });
}

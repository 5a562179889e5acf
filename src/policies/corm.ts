import { definePolicy, type MethodOptions } from "./define_policy.ts";
import type { Policy } from "./parts.ts";

/** Options of {@link corm}. */
export interface CormOptions extends MethodOptions {
  /** Newest tokens never evicted, as a share of the budget (default 0.5). */
  readonly recent?: number;
  /** First tokens of the text that are never evicted (default 0). */
  readonly sinks?: number;
}

/**
 * CORM: the token goes that has not mattered for the longest time.
 *
 * A token matters to a row over `t` tokens that gives it at least `1/t` of its
 * attention. The method evicts what mattered to none of the last `w` rows, as
 * many tokens as that may be. A budget that is fixed says how many go, so
 * here the order is by the last row to which they mattered, and `w` is what the
 * budget makes it. The newest tokens, which few rows have seen, stay.
 *
 * Source: "CORM: Cache Optimization with Recent Message for Large Language
 * Model Inference", arXiv 2404.15949; the recent half follows its setting of
 * 256 recent tokens and a window of 256 rows. The query heads of a group share
 * a slot, so their weights are averaged.
 */
export function corm(options: CormOptions): Policy {
  return definePolicy({
    name: "corm",
    budget: options.budget,
    score: { kind: "age" },
    allocate: options.allocate,
    select: {
      sinks: options.sinks ?? 0,
      recent: { ratio: options.recent ?? 0.5 },
    },
    merge: { kind: "drop" },
    schedule: options.schedule,
  });
}

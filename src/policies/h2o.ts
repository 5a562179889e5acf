import { definePolicy, type MethodOptions } from "./define_policy.ts";
import type { Policy } from "./parts.ts";

/** Options of {@link h2o}. */
export interface H2OOptions extends MethodOptions {
  /** Newest tokens never evicted, as a share of the budget (default 0.5). */
  readonly recent?: number;
  /** First tokens of the text that are never evicted (default 0). */
  readonly sinks?: number;
}

/**
 * H2O: keeps the newest tokens and the heavy hitters, those with the largest
 * sum of attention weights over all rows; the others are dropped.
 *
 * Source: "H2O: Heavy-Hitter Oracle for Efficient Generative Inference of
 * Large Language Models", arXiv 2306.14048, algorithm 1; half of the budget
 * for each part as in the authors' scripts. The query heads of a group share
 * a slot, so their weights are averaged.
 */
export function h2o(options: H2OOptions): Policy {
  return definePolicy({
    name: "h2o",
    budget: options.budget,
    score: { kind: "accumulated" },
    allocate: options.allocate,
    select: {
      sinks: options.sinks ?? 0,
      recent: { ratio: options.recent ?? 0.5 },
    },
    merge: { kind: "drop" },
    schedule: options.schedule,
  });
}

import { definePolicy, type MethodOptions } from "./define_policy.ts";
import type { Merge, Policy, VoteMerge } from "./parts.ts";

/** Options of {@link steady}. */
export interface SteadyOptions extends MethodOptions {
  /** Form of the merged key (default `"convex"`). */
  readonly key?: VoteMerge["key"];
  /** Weight of squared distances of keys, over `√d` (default 1/4). */
  readonly keyWeight?: number;
  /** Weight of squared distances of values, over their variance (default 1). */
  readonly valueWeight?: number;
  /** Rounds of pairing that a chunk of a prompt gets (default 8). */
  readonly rounds?: number;
  /** How decode steps find the pair (default `"incremental"`). */
  readonly search?: Extract<Merge, { kind: "pair" }>["search"];
  /** Weight of the past in the moving average of scores (default 0.99). */
  readonly alpha?: number;
  /** First tokens of the text that are never merged (default 4). */
  readonly sinks?: number;
  /** Newest tokens never merged, as a share of the budget (default 0.2). */
  readonly recent?: number;
}

/**
 * This project's composite: slots have KeepKV's votes and scores, and the pair
 * is merged whose merge costs least.
 *
 * Other methods first choose the slot that goes and then where to. Here the
 * two are chosen together, by what the merge adds to the weighted squared
 * distance of all tokens from the slots that stand for them (Ward's criterion;
 * see the merge part `pair`). Votes are whole numbers by default: the merged
 * slot counts as many tokens as it stands for.
 *
 * Source of votes and scores: "KeepKV: Eliminating Output Perturbation in KV
 * Cache Compression for Efficient LLMs Inference", arXiv 2504.09936, eq. 6 to
 * 8. The defaults are this project's.
 */
export function steady(options: SteadyOptions): Policy {
  return definePolicy({
    name: "steady",
    budget: options.budget,
    score: {
      kind: "ema",
      alpha: options.alpha ?? 0.99,
      scale: "normalized",
      countVotes: true,
    },
    allocate: options.allocate,
    select: {
      sinks: options.sinks ?? 4,
      recent: { ratio: options.recent ?? 0.2 },
    },
    merge: {
      kind: "pair",
      keyWeight: options.keyWeight ?? 0.25,
      valueWeight: options.valueWeight ?? 1,
      rounds: options.rounds ?? 8,
      search: options.search ?? "incremental",
      key: options.key ?? "convex",
      votesPerQueryHead: false,
      guard: [0.5, 1.5],
    },
    schedule: options.schedule,
  });
}

import type { HeadLosses } from "./allocations/head_losses.ts";
import { definePolicy, type MethodOptions } from "./define_policy.ts";
import type { Merge, Policy, VoteMerge } from "./parts.ts";

/** Options of {@link steady}. */
export interface SteadyOptions extends MethodOptions {
  /**
   * What the model loses by compressing each head, as `measureHeadLosses` of
   * `@steadykv/steadykv/evaluate` or `deno task calibrate` measures it: the
   * budget is then spread over the heads by it, unless `allocate` says how
   * (default: evenly).
   */
  readonly losses?: HeadLosses;
  /** Form of the merged key (default `"convex"`). */
  readonly key?: VoteMerge["key"];
  /** How far two slots are apart (default `"product"`). */
  readonly distance?: Extract<Merge, { kind: "pair" }>["distance"];
  /** Weight of squared distances of keys, over `√d` (default 1/4). */
  readonly keyWeight?: number;
  /** Weight of squared distances of values, over their variance (default 1). */
  readonly valueWeight?: number;
  /** Rounds of pairing that a chunk of a prompt gets (default 8). */
  readonly rounds?: number;
  /** How decode steps find the pair (default `"incremental"`). */
  readonly search?: Extract<Merge, { kind: "pair" }>["search"];
  /** Weight of the past in the moving average of scores (default 0.98). */
  readonly alpha?: number;
  /** First tokens of the text that are never merged (default 4). */
  readonly sinks?: number;
  /**
   * Newest tokens never merged, as a share of the budget (default: a third, at
   * most 16 slots).
   */
  readonly recent?: number;
}

/**
 * This project's composite: slots have KeepKV's votes and scores, and the pair
 * is merged whose merge costs least.
 *
 * Other methods first choose the slot that goes and then where to. Here the
 * two are chosen together, by the weight that both have and by how far they are
 * apart (Ward's criterion; see the merge part `pair`). The distance is that of
 * the keys times that of the values, because a query only sees a merge where
 * both differ. Votes are whole numbers by default: the merged
 * slot counts as many tokens as it stands for.
 *
 * Source of votes and scores: "KeepKV: Eliminating Output Perturbation in KV
 * Cache Compression for Efficient LLMs Inference", arXiv 2504.09936, eq. 6 to
 * 8. The defaults are this project's.
 *
 * Heads differ by orders of magnitude in what they lose at the same budget.
 * With `losses`, measured once per model on a few texts, each gets the slots
 * that help it most (see `lossSlots`); the total stays the same.
 */
export function steady(options: SteadyOptions): Policy {
  const { losses } = options;
  return definePolicy({
    name: "steady",
    budget: options.budget,
    score: {
      kind: "ema",
      alpha: options.alpha ?? 0.98,
      scale: "normalized",
      countVotes: true,
    },
    allocate: {
      ...(losses !== undefined && { heads: { kind: "losses", losses } }),
      ...options.allocate,
    },
    select: {
      sinks: options.sinks ?? 4,
      recent: options.recent === undefined
        ? { ratio: 1 / 3, atMost: 16 }
        : { ratio: options.recent },
    },
    merge: {
      kind: "pair",
      distance: options.distance ?? "product",
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

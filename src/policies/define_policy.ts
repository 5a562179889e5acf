import type {
  Allocate,
  Budget,
  Merge,
  Policy,
  Schedule,
  Score,
  Select,
} from "./parts.ts";

/** Options that every method has. */
export interface MethodOptions {
  /** How much the cache may hold. */
  readonly budget: Budget;
  /** How the budget is spread (default: evenly, unless the method says how). */
  readonly allocate?: Partial<Allocate>;
  /** When a prompt is compressed (default: every 256 tokens). */
  readonly schedule?: Schedule;
}

/** The parts of {@linkcode definePolicy}; those with a default may be left out. */
export interface PolicyParts extends
  Partial<
    Omit<
      Policy,
      "name" | "budget" | "score" | "allocate" | "select" | "merge" | "schedule"
    >
  > {
  /** Name of the method. */
  readonly name: string;
  /** How much the cache may hold. */
  readonly budget: Budget;
  /** What makes a slot important. */
  readonly score: Score;
  /** How the budget is spread (default: evenly). */
  readonly allocate?: Partial<Allocate> | undefined;
  /** Which slots are never evicted (default: 4 sinks, a fifth recent). */
  readonly select?: Partial<Select>;
  /** What happens to a slot that has to go. */
  readonly merge: Merge;
  /** When a prompt is compressed (default: every 256 tokens). */
  readonly schedule?: Schedule | undefined;
}

/**
 * Composes a policy from parts. What is left out is plain: every row of
 * attention is observed, scores alone rank slots, each head has the same budget, 4 sinks and a fifth of
 * the budget as recent window are kept, keys and values are halves, and a
 * prompt is compressed every 256 tokens.
 *
 * @example Keep heavy hitters, and merge the others with votes
 * ```ts
 * import { definePolicy } from "@steadykv/steadykv";
 * import { assertEquals } from "@std/assert";
 *
 * const policy = definePolicy({
 *   name: "heavy-votes",
 *   budget: 256,
 *   score: { kind: "accumulated" },
 *   merge: {
 *     kind: "votes",
 *     key: "realVotes",
 *     threshold: 0.8,
 *     prefill: "mergeFirst",
 *     votesPerQueryHead: false,
 *     guard: [0.5, 1.5],
 *   },
 * });
 * assertEquals(policy.select.sinks, 4);
 * ```
 */
export function definePolicy(parts: PolicyParts): Policy {
  return {
    probe: { kind: "all" },
    values: { kind: "ignored" },
    precision: { kind: "half" },
    ...parts,
    schedule: parts.schedule ?? { kind: "streaming", chunk: 256 },
    allocate: {
      layers: { kind: "uniform" },
      heads: { kind: "uniform" },
      ...parts.allocate,
    },
    select: {
      sinks: 4,
      sinkPositions: "text",
      recent: { ratio: 0.2 },
      pool: { kind: "none" },
      scope: "head",
      ...parts.select,
    },
  };
}

/**
 * Policies of kernel tests.
 *
 * @module
 */
import { definePolicy } from "../../src/policies/define_policy.ts";
import type {
  HeadAllocation,
  Merge,
  Policy,
  Pool,
  Probe,
  Score,
  Values,
} from "../../src/policies/parts.ts";

/** Options of {@linkcode testPolicy}; what is left out is plain. */
export interface TestPolicyOptions {
  readonly name?: string;
  readonly score?: Score;
  readonly probe?: Probe;
  readonly sinks?: number;
  readonly sinkPositions?: "text" | "cache";
  readonly merge?: Merge;
  readonly heads?: HeadAllocation;
  readonly values?: Values;
  readonly pool?: Pool;
  readonly scope?: "head" | "layer";
}

/** A policy of the parts that matter to kernels. */
export function testPolicy(options: TestPolicyOptions): Policy {
  return definePolicy({
    name: "test",
    budget: 1,
    probe: options.probe ?? { kind: "all" },
    score: options.score ?? emaScore,
    select: {
      sinks: options.sinks ?? 2,
      sinkPositions: options.sinkPositions ?? "text",
      recent: { slots: 3 },
      pool: options.pool ?? { kind: "none" },
      scope: options.scope ?? "head",
    },
    values: options.values ?? { kind: "ignored" },
    merge: options.merge ?? votes({}),
    allocate: { heads: options.heads ?? { kind: "uniform" } },
    schedule: { kind: "streaming", chunk: 64 },
  });
}

/** KeepKV's score, with every option in use. */
export const emaScore: Score = {
  kind: "ema",
  alpha: 0.8,
  scale: "normalized",
  countVotes: true,
};

/** A merge part. */
export function votes(
  options: Partial<Extract<Merge, { kind: "votes" }>>,
): Extract<Merge, { kind: "votes" }> {
  return {
    kind: "votes",
    key: "realVotes",
    threshold: 0.5,
    prefill: "mergeFirst",
    votesPerQueryHead: false,
    guard: [0.5, 1.5],
    ...options,
  };
}

/** A merge part that merges the cheapest pairs. */
export function pairs(
  options: Partial<Extract<Merge, { kind: "pair" }>>,
): Extract<Merge, { kind: "pair" }> {
  return {
    kind: "pair",
    distance: "sum",
    keyWeight: 0.25,
    valueWeight: 1,
    rounds: 2,
    search: "exhaustive",
    key: "convex",
    votesPerQueryHead: false,
    guard: [0.5, 1.5],
    ...options,
  };
}

/** CaM with few positions. */
export function cam(
  options: Partial<Extract<Merge, { kind: "nextValues" }>>,
): Policy {
  return testPolicy({
    score: { kind: "position" },
    merge: {
      kind: "nextValues",
      count: 6,
      rule: "sampled",
      seed: 1,
      ...options,
    },
  });
}

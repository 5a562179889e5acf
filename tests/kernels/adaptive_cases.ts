/**
 * Cases of `compress` with adaptive heads.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert";
import { HeadWord } from "../../src/backends/backend.ts";
import type { SceneHead } from "./cache_scene.ts";
import { chunkCase, type ChunkOptions } from "./chunk_cases.ts";
import type { KernelCase } from "./kernel_case.ts";
import { modelSizes } from "./matrix_cases.ts";
import { testPolicy, type TestPolicyOptions, votes } from "./policies.ts";
import type { Outcome, Scene } from "./scene.ts";

/** Heads without a token and with `budgets`. */
function emptyHeads(...budgets: number[]): readonly SceneHead[] {
  return budgets.map((budget) => ({
    capacity: budget + 1,
    budget,
    recent: 6,
    live: 0,
    holes: 0,
  }));
}

function adaptiveCase(
  { floor, policy, expect, ...options }:
    & Omit<ChunkOptions, "kernel" | "policy" | "expect">
    & {
      floor: number;
      policy?: TestPolicyOptions;
      expect: (changes: readonly number[]) => void;
    },
): KernelCase {
  return {
    ...chunkCase({
      position: 0,
      heads: emptyHeads(20, 20),
      ...options,
      name: `of adaptive heads ${options.name}`,
      kernel: "compress",
      policy: testPolicy({
        score: { kind: "accumulated" },
        merge: { kind: "drop" },
        ...policy,
        heads: { kind: "adaptive", floor },
      }),
    }),
    expect: (scene, outcome) => expect(budgetChanges(scene, outcome)),
  };
}

/** By how much the budget of each head grew. */
function budgetChanges(scene: Scene, outcome: Outcome): number[] {
  const changes: number[] = [];
  const before = scene.tensors.table!.data;
  for (let at = HeadWord.budget; at < before.length; at += HeadWord.count) {
    changes.push(outcome.table!.u32[at]! - before[at]!);
  }
  return changes;
}

/** Asserts that slots went from head to head, and none came or went. */
function moves(changes: readonly number[]): void {
  assertEquals(changes.reduce((a, b) => a + b), 0);
  assert(changes.some((change) => change !== 0));
}

function stays(changes: readonly number[]): void {
  assert(changes.every((change) => change === 0), `${changes}`);
}

const wide = modelSizes({ heads: 10, kvHeads: 5, headDim: 12 });

/** All cases. */
export const adaptiveCases: readonly KernelCase[] = [
  adaptiveCase({ name: "with a floor", floor: 0.2, expect: moves }),
  adaptiveCase({ name: "without a floor", floor: 0, expect: moves }),
  adaptiveCase({ name: "whose floor is all", floor: 1, expect: stays }),
  adaptiveCase({
    name: "that were not even",
    floor: 0.5,
    heads: emptyHeads(30, 14),
    expect: moves,
  }),
  adaptiveCase({
    name: "with remainders over five heads and more rows than threads",
    floor: 0.37,
    sizes: wide,
    heads: emptyHeads(60, 61, 60, 60, 60),
    rows: 300,
    live: 280,
    expect: moves,
  }),
  adaptiveCase({
    // Positions are the same in each head, so the last slot is a tie.
    name: "with the same scores",
    floor: 0,
    policy: { score: { kind: "position" } },
    sizes: wide,
    heads: emptyHeads(20, 21, 20, 20, 22),
    expect: moves,
  }),
  adaptiveCase({
    name: "that merge",
    floor: 0.2,
    policy: { score: { kind: "mean" }, merge: votes({ threshold: 0.5 }) },
    clusters: 6,
    expect: moves,
  }),
  adaptiveCase({
    name: "with pooled scores and values that count",
    floor: 0,
    heads: emptyHeads(30, 14),
    policy: {
      score: { kind: "mean" },
      pool: { kind: "mean", width: 5 },
      values: {
        kind: "norm",
        of: "plain",
        first: 0.5,
        power: 1,
        epsilon: 1e-4,
      },
    },
    expect: moves,
  }),
  adaptiveCase({
    name: "with pooled scores, that merge pairs first",
    floor: 0.1,
    policy: {
      score: { kind: "mean" },
      pool: { kind: "max", width: 3 },
      merge: votes({ threshold: 0.8 }),
    },
    clusters: 6,
    expect: moves,
  }),
  adaptiveCase({
    name: "in a chunk that fits",
    floor: 0.2,
    heads: emptyHeads(37, 60),
    expect: stays,
  }),
  adaptiveCase({
    name: "that hold tokens already",
    floor: 0.2,
    position: 90,
    heads: emptyHeads(20, 20).map((head) => ({ ...head, live: 20 })),
    expect: stays,
  }),
];

/**
 * Cases of merging neighbours in the text.
 *
 * @module
 */
import { assert } from "@std/assert";
import type { Policy } from "../../src/policies/parts.ts";
import type { SceneHead } from "./cache_scene.ts";
import { chunkCase, does } from "./chunk_cases.ts";
import { decodeCase, dropped, merged } from "./decode_cases.ts";
import type { KernelCase } from "./kernel_case.ts";
import { modelSizes } from "./matrix_cases.ts";
import { emaScore, testPolicy } from "./policies.ts";

const gqa = modelSizes({ heads: 8, kvHeads: 2, headDim: 16 });

/** Two heads at their budgets, with and without holes. */
const heads: readonly SceneHead[] = [
  { capacity: 41, budget: 40, recent: 5, live: 40, holes: 0 },
  { capacity: 70, budget: 33, recent: 8, live: 33, holes: 6 },
];

/** A policy that merges segments. */
function segments(heavy: number): Policy {
  return testPolicy({
    score: { kind: "accumulated" },
    merge: { kind: "segments", heavy },
  });
}

/** All cases. */
export const segmentCases: readonly KernelCase[] = [
  ...[0, 0.5].map((heavy) =>
    decodeCase({
      name: `of KVMerger, ${heavy} of the budget for heavy hitters`,
      policy: segments(heavy),
      sizes: gqa,
      heads: [heads],
      positions: [90],
      clusters: 3,
      expect: merged(2),
    })
  ),
  decodeCase({
    name: "of KVMerger without a link",
    policy: segments(1),
    sizes: gqa,
    heads: [heads],
    positions: [90],
    expect: dropped(2),
  }),
  decodeCase({
    name: "of KVMerger of many slots, 3 sequences, one finished",
    policy: { ...segments(0.25), score: emaScore },
    sizes: modelSizes({ heads: 2, kvHeads: 1, headDim: 12 }),
    heads: Array.from({ length: 3 }, () => [
      { capacity: 401, budget: 390, recent: 20, live: 390, holes: 9 },
    ]),
    positions: [900, 700, 800],
    finished: [1],
    expect: merged(2),
  }),
  ...[0, 0.3].map((heavy) =>
    chunkCase({
      name: `of KVMerger, ${heavy} of the budget for heavy hitters`,
      kernel: "compress",
      isObserved: true,
      policy: segments(heavy),
      clusters: 3,
      expect: does({ merges: true, drops: false }),
    })
  ),
  chunkCase({
    name: "of KVMerger with too few links, on other scores",
    kernel: "compress",
    isObserved: true,
    policy: {
      ...segments(1),
      score: emaScore,
      values: {
        kind: "norm",
        of: "plain",
        first: 0.5,
        power: 1,
        epsilon: 1e-4,
      },
    },
    heads: [
      { capacity: 41, budget: 40, recent: 5, live: 40, holes: 0 },
      { capacity: 70, budget: 37, recent: 8, live: 33, holes: 6 },
    ],
    run: 40,
    expect: does({ merges: true, drops: true }),
  }),
  chunkCase({
    name: "of KVMerger whose segments are long",
    kernel: "compress",
    isObserved: true,
    policy: { ...segments(0.5), score: { kind: "mean" } },
    heads: [
      { capacity: 13, budget: 12, recent: 4, live: 12, holes: 0 },
      { capacity: 30, budget: 10, recent: 4, live: 9, holes: 4 },
    ],
    run: 46,
    expect: does({ merges: true, drops: false }),
  }),
  chunkCase({
    name: "of KVMerger by pooled scores, the first chunk",
    kernel: "compress",
    isObserved: true,
    policy: {
      ...segments(0.4),
      select: { ...segments(0.4).select, pool: { kind: "max", width: 3 } },
    },
    heads: [
      { capacity: 21, budget: 20, recent: 6, live: 0, holes: 0 },
      { capacity: 90, budget: 89, recent: 6, live: 0, holes: 0 },
    ],
    position: 0,
    expect: does({ merges: true, drops: false }),
  }),
  chunkCase({
    name: "of KVMerger in adaptive heads, by the directions of keys",
    kernel: "compress",
    policy: {
      ...segments(0.3),
      score: { kind: "keyDistance" },
      allocate: {
        layers: { kind: "uniform" },
        heads: { kind: "adaptive", floor: 0.2 },
      },
    },
    heads: Array.from(
      { length: 2 },
      () => ({ capacity: 21, budget: 20, recent: 6, live: 0, holes: 0 }),
    ),
    position: 0,
    expect: does({ merges: true, drops: false }),
  }),
  chunkCase({
    name: "of KVMerger with more candidates than a workgroup has threads",
    kernel: "compress",
    policy: segments(0.25),
    sizes: modelSizes({ heads: 2, kvHeads: 1, headDim: 32 }),
    heads: [{ capacity: 801, budget: 720, recent: 40, live: 580, holes: 20 }],
    position: 900,
    rows: 300,
    live: 290,
    clusters: 20,
    expect: ({ merged }) => assert(merged > 100),
  }),
];

/**
 * Cases of what ranks slots beside their own scores: the norms of values, the
 * neighbours, the other heads of the layer.
 *
 * @module
 */
import type { Score, Values } from "../../src/policies/parts.ts";
import type { SceneHead } from "./cache_scene.ts";
import { chunkCase, does } from "./chunk_cases.ts";
import { decodeCase, dropped, merged } from "./decode_cases.ts";
import type { KernelCase } from "./kernel_case.ts";
import { modelSizes } from "./matrix_cases.ts";
import { emaScore, testPolicy, votes } from "./policies.ts";

const gqa = modelSizes({ heads: 8, kvHeads: 2, headDim: 16 });

/** Heads of one sequence with room, at the budget, with and without holes. */
const variedHeads: readonly SceneHead[] = [
  { capacity: 41, budget: 40, recent: 5, live: 40, holes: 0 },
  { capacity: 70, budget: 33, recent: 8, live: 33, holes: 6 },
];

const equalHeads: readonly SceneHead[] = Array.from(
  { length: 2 },
  () => ({ capacity: 50, budget: 33, recent: 4, live: 33, holes: 6 }),
);

const drop = { kind: "drop" } as const;

function norm(options: Partial<Extract<Values, { kind: "norm" }>>): Values {
  return {
    kind: "norm",
    of: "projected",
    first: 0.5,
    power: 1,
    epsilon: 1e-4,
    ...options,
  };
}

const expected: Score = { kind: "expected", horizon: 512 };

const valuePolicies = [
  ["half by scores", { kind: "mean" }, norm({}), drop],
  ["all by values", { kind: "accumulated" }, norm({ first: 0 }), drop],
  ["all by scores", { kind: "last" }, norm({ first: 1 }), drop],
  ["moving averages", emaScore, norm({ first: 0.7, epsilon: 0.1 }), drop],
  ["no epsilon", emaScore, norm({ first: 0.3, epsilon: 0 }), drop],
  ["squares", { kind: "stepGain" }, norm({ power: 2 }), drop],
  ["squares of moving averages", emaScore, norm({ power: 2 }), drop],
  ["expected attention", expected, norm({ of: "plain", first: 0 }), drop],
  ["half by expected attention", expected, norm({ epsilon: 0 }), drop],
  ["votes", emaScore, norm({}), votes({ threshold: -1 })],
  ["right neighbours", { kind: "mean" }, norm({}), {
    kind: "rightNeighbour",
    rule: "convex",
    cap: 1,
  }],
] as const;

const merges = (kind: string) => kind !== "drop";

const tova: Score = { kind: "last" };

/** All cases. */
export const selectionCases: readonly KernelCase[] = [
  ...valuePolicies.flatMap(([name, score, values, merge]) => [
    decodeCase({
      name: `with values, ${name}`,
      policy: testPolicy({ score, values, merge }),
      sizes: gqa,
      heads: [variedHeads],
      positions: [90],
      expect: merges(merge.kind) ? merged(2) : dropped(2),
    }),
    chunkCase({
      name: `with values, ${name}`,
      kernel: "compress",
      policy: testPolicy({
        score,
        values,
        merge: merge.kind === "votes"
          ? { ...merge, prefill: "evictFirst" }
          : merge,
      }),
      isObserved: true,
      expect: does({
        merges: merges(merge.kind),
        drops: !merges(merge.kind),
      }),
    }),
  ]),
  decodeCase({
    name: "with values over several splits of a long cache",
    policy: testPolicy({
      score: { kind: "mean" },
      values: norm({}),
      merge: drop,
    }),
    sizes: modelSizes({ heads: 2, kvHeads: 1, headDim: 8 }),
    heads: [[{ capacity: 701, budget: 690, recent: 20, live: 690, holes: 9 }]],
    positions: [900],
    expect: dropped(1),
  }),
  chunkCase({
    name: "with values, pairs first",
    kernel: "compress",
    policy: testPolicy({ values: norm({}), merge: votes({ threshold: 0.93 }) }),
    rows: 16,
    clusters: 6,
    mergesTwice: true,
    expect: does({ merges: true, drops: true }),
  }),
  ...([["mean", 5], ["max", 7], ["mean", 31]] as const).flatMap((
    [kind, width],
  ) => [
    chunkCase({
      name: `of the ${kind} over ${width} neighbours`,
      kernel: "compress",
      policy: testPolicy({
        score: { kind: "mean" },
        merge: drop,
        pool: { kind, width },
      }),
      isObserved: true,
      expect: does({ merges: false, drops: true }),
    }),
    chunkCase({
      name: `of the ${kind} of moving averages over ${width} neighbours`,
      kernel: "compress",
      policy: testPolicy({
        values: norm({}),
        merge: votes({ threshold: 0.9 }),
        pool: { kind, width },
      }),
      isObserved: true,
      rows: 16,
      clusters: 6,
      mergesTwice: true,
    }),
  ]),
  chunkCase({
    name: "of neighbours among more candidates than a workgroup has threads",
    kernel: "compress",
    policy: testPolicy({
      score: { kind: "mean" },
      merge: drop,
      pool: { kind: "mean", width: 5 },
      probe: { kind: "last", rows: 4 },
    }),
    sizes: modelSizes({ heads: 2, kvHeads: 1, headDim: 32 }),
    heads: [{ capacity: 801, budget: 520, recent: 40, live: 580, holes: 20 }],
    position: 900,
    rows: 300,
    live: 290,
    isObserved: true,
    expect: does({ merges: false, drops: true }),
  }),
  ...(["prefillAttend", "observe"] as const).flatMap((kernel) => [
    chunkCase({
      name: "at the scale of a step gain",
      kernel,
      policy: testPolicy({ score: { kind: "stepGain" }, merge: drop }),
    }),
    chunkCase({
      name: "at the scale of a step gain, from the first chunk on",
      kernel,
      policy: testPolicy({ score: { kind: "stepGain" }, merge: drop }),
      heads: [
        { capacity: 21, budget: 20, recent: 6, live: 0, holes: 0 },
        { capacity: 90, budget: 89, recent: 6, live: 0, holes: 0 },
      ],
      position: 0,
    }),
  ]),
  decodeCase({
    name: "at the scale of a step gain",
    policy: testPolicy({ score: { kind: "stepGain" }, merge: drop }),
    sizes: gqa,
    heads: [variedHeads, variedHeads],
    positions: [90, 200],
    expect: dropped(4),
  }),
  chunkCase({
    name: "of when slots last mattered",
    kernel: "observe",
    policy: testPolicy({ score: { kind: "age" }, merge: drop }),
  }),
  ...([
    [{ kind: "age" }, "head", { kind: "none" }],
    [{ kind: "keyDistance" }, "head", { kind: "none" }],
    [{ kind: "keyDistance" }, "layer", { kind: "max", width: 3 }],
    [{ kind: "position" }, "layer", { kind: "none" }],
    [expected, "head", { kind: "mean", width: 5 }],
    [expected, "layer", { kind: "max", width: 3 }],
  ] as const).flatMap(([score, scope, pool]) => [
    decodeCase({
      name: `of score ${score.kind}, by ${scope}`,
      policy: testPolicy({ score, merge: drop, scope }),
      sizes: gqa,
      heads: scope === "head" ? [variedHeads] : [equalHeads],
      positions: [90],
      expect: dropped(2),
    }),
    chunkCase({
      name: `of score ${score.kind}, by ${scope}`,
      kernel: "compress",
      policy: testPolicy({ score, merge: drop, scope, pool }),
      ...(scope === "layer" && { heads: equalHeads }),
      isObserved: true,
      expect: does({ merges: false, drops: true }),
    }),
  ]),
  chunkCase({
    name: "of keys far from the others, pairs first",
    kernel: "compress",
    policy: testPolicy({
      score: { kind: "keyDistance" },
      merge: votes({ threshold: 0.93 }),
    }),
    rows: 16,
    clusters: 6,
    mergesTwice: true,
    expect: does({ merges: true, drops: true }),
  }),
  ...([[16, 1, 48], [5, 1, 256], [4, 4, 4]] as const).flatMap((
    [heads, kvHeads, headDim],
  ) => {
    const shape = {
      name: `of expected attention, votes per head, width ${headDim}`,
      policy: testPolicy({
        score: expected,
        merge: votes({ votesPerQueryHead: true, prefill: "evictFirst" }),
      }),
      sizes: modelSizes({ heads, kvHeads, headDim }),
    };
    const all = Array.from({ length: kvHeads }, () => variedHeads[0]!);
    return [
      decodeCase({ ...shape, heads: [all, all], positions: [90, 60] }),
      chunkCase({ ...shape, kernel: "compress", heads: all }),
    ];
  }),
  decodeCase({
    name: "of expected attention over more slots than a workgroup has threads",
    policy: testPolicy({ score: expected, merge: drop }),
    sizes: modelSizes({ heads: 2, kvHeads: 1, headDim: 8 }),
    heads: [[{ capacity: 701, budget: 690, recent: 20, live: 690, holes: 9 }]],
    positions: [900],
    expect: dropped(1),
  }),
  decodeCase({
    name: "of keys far from the others, in wide heads",
    policy: testPolicy({ score: { kind: "keyDistance" }, merge: votes({}) }),
    sizes: modelSizes({ heads: 5, kvHeads: 1, headDim: 256 }),
    heads: [[variedHeads[0]!]],
    positions: [90],
  }),
  chunkCase({
    name: "of the newest row",
    kernel: "observe",
    policy: testPolicy({ score: tova, merge: drop }),
  }),
  ...([
    ["the newest row", tova, drop],
    ["moving averages and values", emaScore, votes({ prefill: "evictFirst" })],
    ["exact values", { kind: "mean" }, {
      kind: "rightNeighbour",
      rule: "exact",
      cap: 1,
    }],
  ] as const).flatMap(([name, score, merge]) => [
    decodeCase({
      name: `of heads that share ${name}`,
      policy: testPolicy({
        score,
        merge,
        scope: "layer",
        ...(merge.kind === "votes" && { values: norm({}) }),
      }),
      sizes: gqa,
      heads: [equalHeads, equalHeads],
      positions: [90, 70],
    }),
    chunkCase({
      name: `of heads that share ${name}`,
      kernel: "compress",
      policy: testPolicy({
        score,
        merge,
        scope: "layer",
        pool: { kind: "mean", width: 3 },
      }),
      heads: equalHeads,
      isObserved: true,
    }),
  ]),
];

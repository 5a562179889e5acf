/**
 * Cases of `merge_attend`.
 *
 * @module
 */
import { assertEquals, assertNotEquals } from "@std/assert";
import { HeadWord, type ModelSizes } from "../../src/backends/backend.ts";
import type { Policy } from "../../src/policies/parts.ts";
import { cacheBounds, choiceJitter, sceneNorm } from "./cache_bounds.ts";
import { makeCache, type SceneHead } from "./cache_scene.ts";
import { assertSameCache } from "./compare_slots.ts";
import type { Draw, KernelCase } from "./kernel_case.ts";
import { modelSizes } from "./matrix_cases.ts";
import { testPolicy, votes } from "./policies.ts";
import { garbage, Random } from "./random.ts";
import type { Outcome, Scene } from "./scene.ts";
import { decodeStep } from "./steps.ts";
import { assertWithin } from "./tolerance.ts";

/** What a case of `merge_attend` is made from. */
export interface DecodeOptions {
  readonly name: string;
  readonly policy: Policy;
  readonly sizes: ModelSizes;
  readonly heads: readonly (readonly SceneHead[])[];
  readonly positions: readonly number[];
  readonly finished?: readonly number[];
  readonly clusters?: number;
  /** What the case is there for, seen in the reference's outcome. */
  readonly expect?: (change: TableChange) => void;
}

/** By how much the head table's counters grew, over all heads. */
export interface TableChange {
  readonly merged: number;
  readonly dropped: number;
  readonly guarded: number;
}

/** Sums up what a call did. */
export function tableChange(scene: Scene, outcome: Outcome): TableChange {
  const before = scene.tensors.table!.data;
  const sum = (word: number) => {
    let total = 0;
    for (let at = 0; at < before.length; at += HeadWord.count) {
      total += outcome.table!.u32[at + word]! - before[at + word]!;
    }
    return total;
  };
  return {
    merged: sum(HeadWord.merged),
    dropped: sum(HeadWord.dropped),
    guarded: sum(HeadWord.guarded),
  };
}

/** Whether a policy keeps scores: see `needsScores` of the backends. */
export function keepsScores({ merge, score }: Policy): boolean {
  return merge.kind === "votes" || merge.kind === "rightNeighbour" ||
    (merge.kind === "drop" && score.kind !== "position" &&
      score.kind !== "keyDistance");
}

/** Makes a case of `merge_attend`. */
export function decodeCase(options: DecodeOptions): KernelCase {
  const { expect } = options;
  return {
    name: `merge_attend ${options.name}`,
    draw: (seed) => drawDecode(options, new Random(seed)),
    expect: (scene, expected) => expect?.(tableChange(scene, expected)),
  };
}

function drawDecode(options: DecodeOptions, random: Random): Draw {
  const { policy, sizes, heads, positions } = options;
  const { merge } = policy;
  const lanes = merge.kind === "votes" && merge.votesPerQueryHead
    ? sizes.heads / sizes.kvHeads
    : 1;
  const step = decodeStep(positions, { finished: options.finished ?? [] });
  const cache = makeCache({
    sizes,
    lanes,
    stageRows: 1,
    heads,
    positions,
    clusters: options.clusters ?? 0,
    lockstep: policy.select.scope === "layer",
    hasNewest: true,
    random,
  });
  const length = step.rows * sizes.heads * sizes.headDim;
  const hasSinkQueries = policy.select.sinkPositions === "cache";
  const scene: Scene = {
    slots: cache.slots,
    stageSlots: cache.stageSlots,
    tensors: {
      ...step.tensors,
      ...cache.tensors,
      queries: { type: "f32", data: random.floats(length) },
      sinkQueries: { type: "f32", data: random.floats(length) },
      output: { type: "f32", data: garbage(length) },
    },
    record: (kernels, stage) =>
      kernels.mergeAttend({
        output: stage.buffer("output"),
        queries: stage.buffer("queries"),
        ...(hasSinkQueries && { sinkQueries: stage.buffer("sinkQueries") }),
        cache: cache.at(stage),
        step: step.at(stage),
        sizes,
        policy,
      }),
  };
  const norm = (...tensors: string[]) => sceneNorm(scene, sizes, tensors);
  const bounds = cacheBounds({
    sizes,
    query: norm("queries", ...(hasSinkQueries ? ["sinkQueries"] : [])),
    key: norm("keys"),
    value: 5,
    slots: Math.max(...heads.flat().map(({ live }) => live + 1)),
    rows: 1,
    merges: merge.kind === "votes" ? 1 : 0,
    // One merge of two, or a change of at most `cap` times two values with
    // five rounded factors.
    run: merge.kind !== "rightNeighbour"
      ? 0
      : merge.rule === "exact"
      ? 5 * merge.cap
      : 1,
  });
  return {
    scene,
    ...(merge.kind !== "never" &&
      { jitter: choiceJitter(policy, { sizes, bounds }) }),
    check(actual, expected) {
      assertWithin(actual.output!.f32, expected.output!.f32, {
        bound: bounds.output,
        what: "output",
      });
      assertSameCache(actual, expected, {
        sizes,
        lanes,
        total: cache.slots,
        bounds,
        scored: keepsScores(policy),
      });
    },
  };
}

const gqa = modelSizes({ heads: 8, kvHeads: 2, headDim: 16 });

/** Heads of one sequence with room, at the budget, with and without holes. */
const variedHeads: readonly SceneHead[] = [
  { capacity: 41, budget: 40, recent: 5, live: 40, holes: 0 },
  { capacity: 70, budget: 33, recent: 8, live: 33, holes: 6 },
];

/** Asserts that a step merges `count` slots and drops none. */
export function merged(count: number): (change: TableChange) => void {
  return (change) =>
    assertEquals(change, { merged: count, dropped: 0, guarded: 0 });
}

/** Asserts that a step drops `count` slots and merges none. */
export function dropped(count: number): (change: TableChange) => void {
  return (change) =>
    assertEquals(change, { merged: 0, dropped: count, guarded: 0 });
}

const zipScore = {
  kind: "ema",
  alpha: 0.9,
  scale: "raw",
  countVotes: false,
} as const;

/** All cases. */
export const decodeCases: readonly KernelCase[] = [
  ...(["realVotes", "convex", "minNorm", "zip"] as const).flatMap((key) =>
    [false, true].map((votesPerQueryHead) =>
      decodeCase({
        name: `merges with ${key}${
          votesPerQueryHead ? ", votes per head" : ""
        }`,
        policy: testPolicy({
          ...(key === "zip" && { score: zipScore }),
          merge: votes({ key, votesPerQueryHead, guard: [-100, 100] }),
        }),
        sizes: gqa,
        heads: [variedHeads],
        positions: [90],
        clusters: 3,
        expect: merged(2),
      })
    )
  ),
  ...[false, true].map((votesPerQueryHead) =>
    decodeCase({
      name: `merges with zip behind its guard${
        votesPerQueryHead ? ", votes per head" : ""
      }`,
      policy: testPolicy({
        score: zipScore,
        merge: votes({ key: "zip", votesPerQueryHead, guard: [50, 60] }),
      }),
      sizes: gqa,
      heads: [variedHeads],
      positions: [90],
      clusters: 3,
      expect: (change) =>
        assertEquals(change, { merged: 2, dropped: 0, guarded: 2 }),
    })
  ),
  decodeCase({
    name: "drops what is not similar enough",
    policy: testPolicy({ merge: votes({ threshold: 0.9999 }) }),
    sizes: gqa,
    heads: [variedHeads],
    positions: [90],
    clusters: 3,
    expect: dropped(2),
  }),
  decodeCase({
    name: "keeps a head below its budget",
    policy: testPolicy({}),
    sizes: gqa,
    heads: [[
      { capacity: 50, budget: 49, recent: 4, live: 20, holes: 3 },
      { capacity: 10, budget: 9, recent: 2, live: 0, holes: 0 },
    ]],
    positions: [30],
    expect: merged(0),
  }),
  decodeCase({
    name: "finds nothing to evict among sinks and recent tokens",
    policy: testPolicy({ sinks: 4 }),
    sizes: gqa,
    heads: [[
      { capacity: 9, budget: 8, recent: 40, live: 8, holes: 0 },
      { capacity: 12, budget: 8, recent: 40, live: 8, holes: 2 },
    ]],
    positions: [30],
    expect: dropped(0),
  }),
  decodeCase({
    name: "of StreamingLLM drops the oldest",
    policy: testPolicy({
      score: { kind: "position" },
      merge: { kind: "drop" },
      sinkPositions: "cache",
      sinks: 3,
    }),
    sizes: gqa,
    heads: [variedHeads],
    positions: [90],
    expect: dropped(2),
  }),
  decodeCase({
    name: "of H2O drops the least attended",
    policy: testPolicy({
      score: { kind: "accumulated" },
      merge: { kind: "drop" },
    }),
    sizes: gqa,
    heads: [variedHeads],
    positions: [90],
    expect: dropped(2),
  }),
  ...(["convex", "exact"] as const).map((rule) =>
    decodeCase({
      name: `of WeightedKV merges ${rule} values`,
      policy: testPolicy({
        score: { kind: "mean" },
        merge: { kind: "rightNeighbour", rule, cap: 1 },
      }),
      sizes: gqa,
      heads: [variedHeads],
      positions: [90],
      expect: merged(2),
    })
  ),
  decodeCase({
    name: "of a ratio of values below its cap, by sums of attention",
    policy: testPolicy({
      score: { kind: "accumulated" },
      merge: { kind: "rightNeighbour", rule: "exact", cap: 50 },
    }),
    sizes: gqa,
    heads: [variedHeads],
    positions: [90],
    expect: merged(2),
  }),
  decodeCase({
    name: "ranks by raw scores without votes",
    policy: testPolicy({ score: { ...zipScore, alpha: 0 } }),
    sizes: gqa,
    heads: [variedHeads],
    positions: [90],
    clusters: 2,
    expect: merged(2),
  }),
  decodeCase({
    name: "never evicts, in a full head and in a ragged one",
    policy: testPolicy({ merge: { kind: "never" } }),
    sizes: gqa,
    heads: [[
      { capacity: 16, budget: 16, recent: 0, live: 16, holes: 0 },
      { capacity: 40, budget: 40, recent: 0, live: 12, holes: 0 },
    ]],
    positions: [16],
    expect: dropped(0),
  }),
  decodeCase({
    name: "of 4 sequences of different lengths, one finished",
    policy: testPolicy({}),
    sizes: gqa,
    heads: [
      variedHeads,
      [variedHeads[1]!, { ...variedHeads[0]!, live: 0 }],
      variedHeads,
      [variedHeads[1]!, variedHeads[0]!],
    ],
    positions: [90, 45, 77, 200],
    finished: [2],
    clusters: 3,
    expect: ({ merged }) => assertNotEquals(merged, 0),
  }),
  decodeCase({
    name: "over several splits of a long cache",
    policy: testPolicy({}),
    sizes: modelSizes({ heads: 2, kvHeads: 1, headDim: 8 }),
    heads: [[
      { capacity: 701, budget: 690, recent: 20, live: 690, holes: 9 },
    ]],
    positions: [900],
    clusters: 40,
    expect: merged(1),
  }),
  ...([[3, 3, 80], [16, 1, 48], [5, 1, 256], [6, 2, 36], [4, 4, 4]] as const)
    .map(([heads, kvHeads, headDim]) =>
      decodeCase({
        name: `of ${heads} heads over ${kvHeads} of width ${headDim}`,
        policy: testPolicy({
          merge: votes({ key: "minNorm", threshold: 0.3 }),
          sinkPositions: "cache",
        }),
        sizes: modelSizes({ heads, kvHeads, headDim }),
        heads: [Array.from({ length: kvHeads }, () => variedHeads[0]!)],
        positions: [90],
        clusters: 3,
      })
    ),
];

/**
 * Cases of `merge_attend`.
 *
 * @module
 */
import { assertEquals, assertNotEquals } from "@std/assert";
import {
  HeadWord,
  type ModelSizes,
  partnerField,
} from "../../src/backends/backend.ts";
import { remembersPartners, voteLanes } from "../../src/cache/layout.ts";
import type { Policy } from "../../src/policies/parts.ts";
import { cacheBounds, choiceJitter, sceneNorm } from "./cache_bounds.ts";
import { makeCache, type SceneCache, type SceneHead } from "./cache_scene.ts";
import { assertSameCache } from "./compare_slots.ts";
import type { Draw, KernelCase, Precision } from "./kernel_case.ts";
import { modelSizes } from "./matrix_cases.ts";
import { cam, pairs, testPolicy, votes } from "./policies.ts";
import { garbage, Random } from "./random.ts";
import type { Outcome, Scene } from "./scene.ts";
import { decodeStep, type SceneStep } from "./steps.ts";
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
  /** Cosine that heads have come to ask for. */
  readonly threshold?: number;
  /** Scatter of values that heads have measured. */
  readonly spread?: number;
  /** Share of the slots that know a partner, if they remember one at all. */
  readonly known?: number;
  /** Whether the keys of a cluster are equal. */
  readonly hasTwins?: boolean;
  /** What the case is there for, seen in the reference's outcome. */
  readonly expect?: (change: TableChange) => void;
  /** What the next call finds, if there is one. */
  readonly next?: (turn: DecodeTurn) => Tensors | undefined;
}

/** Tensors by name. */
export type Tensors = Scene["tensors"];

/** A call and its outcome. */
export interface DecodeTurn {
  /** How many calls were made before it. */
  readonly index: number;
  readonly tensors: Tensors;
  readonly expected: Outcome;
  readonly options: DecodeOptions;
  readonly random: Random;
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
  return merge.kind !== "never" &&
    (merge.kind !== "drop" ||
      score.kind !== "position" && score.kind !== "keyDistance" &&
        score.kind !== "expected");
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

/** The step of a case, and the cache that its first call finds. */
function decodeParts(
  options: DecodeOptions,
  random: Random,
): { step: SceneStep; cache: SceneCache } {
  const { policy, sizes, heads, positions } = options;
  const step = decodeStep(positions, { finished: options.finished ?? [] });
  const cache = makeCache({
    sizes,
    lanes: voteLanes(policy, sizes),
    ...(remembersPartners(policy) && {
      partners: { ...policy.select, known: options.known ?? 0.9 },
    }),
    hasStatistics: policy.score.kind === "expected",
    stageRows: 1,
    heads,
    positions,
    clusters: options.clusters ?? 0,
    hasTwins: options.hasTwins ?? false,
    lockstep: policy.select.scope === "layer",
    hasNewest: true,
    threshold: options.threshold ?? 0,
    spread: options.spread ?? 0,
    random,
  });
  return { step, cache };
}

/** Draws what a call of a case finds. */
export function decodeTensors(options: DecodeOptions, random: Random): Tensors {
  return tensorsOf(decodeParts(options, random), options, random);
}

function tensorsOf(
  { step, cache }: { step: SceneStep; cache: SceneCache },
  { sizes }: DecodeOptions,
  random: Random,
): Tensors {
  const length = step.rows * sizes.heads * sizes.headDim;
  return {
    ...step.tensors,
    ...cache.tensors,
    queries: { type: "f32", data: random.floats(length) },
    sinkQueries: { type: "f32", data: random.floats(length) },
    output: { type: "f32", data: garbage(length) },
  };
}

function drawDecode(options: DecodeOptions, random: Random): Draw {
  const parts = decodeParts(options, random);
  const tensors = tensorsOf(parts, options, random);
  return decodeDraw({ ...parts, options, random }, tensors, 0);
}

function decodeDraw(
  parts: {
    step: SceneStep;
    cache: SceneCache;
    options: DecodeOptions;
    random: Random;
  },
  tensors: Tensors,
  index: number,
): Draw {
  const { step, cache, options, random } = parts;
  const { policy, sizes, heads } = options;
  const { merge } = policy;
  const lanes = voteLanes(policy, sizes);
  const hasSinkQueries = policy.select.sinkPositions === "cache";
  const scene: Scene = {
    slots: cache.slots,
    ...(remembersPartners(policy) && { partners: partnerField(lanes) }),
    stageSlots: cache.stageSlots,
    tensors,
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
  const errors = ({ factors, stored }: Precision) => ({
    factors,
    stored: stored.unit,
  });
  const magnitudes = {
    sizes,
    query: norm("queries", ...(hasSinkQueries ? ["sinkQueries"] : [])),
    key: norm("keys"),
    value: 5,
    slots: Math.max(...heads.flat().map(({ live }) => live + 1)),
    rows: 1,
    merges: "votesPerQueryHead" in merge || merge.kind === "cosine" ||
        merge.kind === "segments"
      ? 1
      : 0,
    members: merge.kind === "segments" ? 2 : 0,
    // One merge of two, or a change of at most `cap` times two values with
    // five rounded factors.
    run: merge.kind !== "rightNeighbour"
      ? 0
      : merge.rule === "exact"
      ? 5 * merge.cap
      : 1,
    passes: merge.kind === "nextValues" ? 1 : 0,
  };
  const boundsOf = (precision: Precision) =>
    cacheBounds({ ...magnitudes, ...errors(precision) });
  return {
    scene,
    ...(merge.kind !== "never" &&
      {
        jitter: (precision) => ({
          ...choiceJitter(policy, {
            sizes,
            bounds: boundsOf({ ...precision, factors: 0 }),
            ...errors(precision),
          }),
          // The same everywhere, to the last bit, and so are their cosines.
          ...(options.hasTwins && { keys: 0 }),
        }),
      }),
    next(expected) {
      const turn = { index, tensors, expected, options, random };
      const next = options.next?.(turn);
      return next && decodeDraw(parts, next, index + 1);
    },
    check(actual, expected, precision) {
      const bounds = boundsOf(precision);
      assertWithin(actual.output!.f32, expected.output!.f32, {
        bound: bounds.output,
        what: "output",
      });
      assertSameCache(actual, expected, {
        sizes,
        lanes,
        total: cache.slots,
        bounds,
        stored: precision.stored,
        scored: keepsScores(policy),
        partners: remembersPartners(policy),
      });
    },
  };
}

/** Eight query heads over two. */
export const gqa = modelSizes({ heads: 8, kvHeads: 2, headDim: 16 });

/** Heads of one sequence with room, at the budget, with and without holes. */
export const variedHeads: readonly SceneHead[] = [
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

/** D2O's parts. */
export const d2o = testPolicy({
  score: { kind: "accumulated" },
  merge: { kind: "cosine", keep: 0.5 },
});

/** More than a kernel has in flight at once. */
const manySlots: SceneHead = {
  capacity: 401,
  budget: 390,
  recent: 20,
  live: 390,
  holes: 9,
};

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
    name: "attends with a group of many query heads to many slots",
    policy: testPolicy({ merge: votes({ votesPerQueryHead: true }) }),
    sizes: modelSizes({ heads: 24, kvHeads: 2, headDim: 120 }),
    heads: [
      [manySlots, { ...manySlots, live: 301 }],
      [{ ...manySlots, live: 0 }, manySlots],
      [manySlots, { ...manySlots, holes: 0, live: 202 }],
    ],
    positions: [900, 700, 800],
    clusters: 3,
    expect: merged(3),
  }),
  decodeCase({
    name: "attends with queries for sinks to many slots",
    policy: testPolicy({
      score: { kind: "position" },
      merge: { kind: "drop" },
      sinkPositions: "cache",
      sinks: 3,
    }),
    sizes: modelSizes({ heads: 24, kvHeads: 12, headDim: 40 }),
    heads: [Array.from({ length: 12 }, () => manySlots)],
    positions: [900],
    expect: dropped(12),
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
  ...(["realVotes", "convex", "minNorm", "zip"] as const).map((key) =>
    decodeCase({
      name: `merges the cheapest pair with ${key}`,
      policy: testPolicy({
        ...(key === "zip" && { score: zipScore }),
        merge: pairs({
          key,
          votesPerQueryHead: key === "minNorm",
          guard: [-100, 100],
        }),
      }),
      sizes: gqa,
      heads: [variedHeads],
      positions: [90],
      clusters: 3,
      expect: merged(2),
    })
  ),
  decodeCase({
    name: "merges the cheapest pair of remembered partners",
    policy: testPolicy({ merge: pairs({ search: "incremental" }) }),
    sizes: gqa,
    heads: [variedHeads],
    positions: [90],
    expect: merged(2),
  }),
  ...[896, 897, 898].map((position) =>
    decodeCase({
      name: `merges what slots remember, at position ${position}`,
      policy: testPolicy({ merge: pairs({ search: "incremental" }) }),
      sizes: gqa,
      heads: [
        [manySlots, { ...manySlots, budget: 200, live: 200 }],
        [manySlots, { ...manySlots, live: 301 }],
      ],
      positions: [position, position + 4],
      spread: 16,
      expect: merged(3),
    })
  ),
  ...[0, 0.4].map((known) =>
    decodeCase({
      name: `searches for the partners of all but ${known} of many slots`,
      policy: testPolicy({ merge: pairs({ search: "incremental" }) }),
      sizes: gqa,
      heads: [[manySlots, { ...manySlots, live: 390, holes: 0 }]],
      positions: [897],
      spread: 16,
      known,
      expect: merged(2),
    })
  ),
  decodeCase({
    name: "remembers partners of many slots, votes per head",
    policy: testPolicy({
      merge: pairs({ search: "incremental", votesPerQueryHead: true }),
    }),
    sizes: modelSizes({ heads: 2, kvHeads: 1, headDim: 12 }),
    heads: [[
      { capacity: 401, budget: 390, recent: 20, live: 390, holes: 9 },
    ]],
    positions: [900],
    expect: merged(1),
  }),
  decodeCase({
    name: "remembers partners, more to be compared than one part of them",
    policy: testPolicy({ merge: pairs({ search: "incremental" }) }),
    sizes: modelSizes({ heads: 1, kvHeads: 1, headDim: 8 }),
    heads: [[
      { capacity: 951, budget: 940, recent: 20, live: 940, holes: 9 },
    ]],
    positions: [2000],
    expect: merged(1),
  }),
  decodeCase({
    name: "remembers partners of 3 sequences, one finished",
    policy: testPolicy({ merge: pairs({ search: "incremental" }) }),
    sizes: gqa,
    heads: [
      variedHeads,
      [variedHeads[1]!, { ...variedHeads[0]!, live: 0 }],
      variedHeads,
    ],
    positions: [90, 45, 77],
    finished: [2],
    expect: merged(3),
  }),
  ...([[0.01, 2, 0], [0.9999, 0, 2]] as const).map(([threshold, m, d]) =>
    decodeCase({
      name: `of D2O at a threshold of ${threshold}`,
      policy: d2o,
      sizes: gqa,
      heads: [variedHeads],
      positions: [90],
      clusters: 3,
      threshold,
      expect: (change) =>
        assertEquals(change, { merged: m, dropped: d, guarded: 0 }),
    })
  ),
  decodeCase({
    name: "of D2O without a threshold yet",
    policy: d2o,
    sizes: modelSizes({ heads: 5, kvHeads: 1, headDim: 256 }),
    heads: [[variedHeads[1]!]],
    positions: [90],
    clusters: 3,
    expect: merged(1),
  }),
  decodeCase({
    name: "of CaM passes the expected value on",
    policy: cam({ rule: "expected" }),
    sizes: gqa,
    heads: [variedHeads],
    positions: [90],
    expect: merged(2),
  }),
  decodeCase({
    name: "of CaM draws",
    policy: cam({ count: 200, seed: 4 }),
    sizes: modelSizes({ heads: 8, kvHeads: 8, headDim: 12 }),
    heads: [
      Array.from({ length: 8 }, () => variedHeads[0]!),
      Array.from({ length: 8 }, () => variedHeads[1]!),
    ],
    positions: [90, 130],
    expect({ merged, dropped }) {
      assertEquals(merged + dropped, 16);
      assertNotEquals(merged, 0);
      assertNotEquals(dropped, 0);
    },
  }),
  decodeCase({
    name: "of CaM with nobody to pass the value on to",
    policy: {
      ...testPolicy({ sinks: 3 }),
      score: { kind: "position" },
      merge: cam({ rule: "expected", count: 1 }).merge,
    },
    sizes: gqa,
    heads: [[
      { capacity: 21, budget: 5, recent: 0, live: 5, holes: 0 },
      { capacity: 12, budget: 4, recent: 0, live: 4, holes: 2 },
    ]],
    positions: [900],
    expect: dropped(2),
  }),
  ...([[0, 1], [1, 0]] as const).map(([keyWeight, valueWeight]) =>
    decodeCase({
      name: `merges the cheapest pair by ${keyWeight ? "keys" : "values"} only`,
      policy: testPolicy({ merge: pairs({ keyWeight, valueWeight }) }),
      sizes: gqa,
      heads: [variedHeads],
      positions: [90],
      expect: merged(2),
    })
  ),
  ...(["exhaustive", "incremental"] as const).map((search) =>
    decodeCase({
      name: `merges the pair of the least product, ${search}`,
      policy: testPolicy({ merge: pairs({ distance: "product", search }) }),
      sizes: gqa,
      heads: [variedHeads],
      positions: [90],
      expect: merged(2),
    })
  ),
  decodeCase({
    name: "drops a slot that has no partner",
    policy: testPolicy({ sinks: 0, merge: pairs({}) }),
    sizes: gqa,
    heads: [[
      { capacity: 9, budget: 8, recent: 8, live: 8, holes: 0 },
      { capacity: 12, budget: 8, recent: 40, live: 8, holes: 2 },
    ]],
    positions: [8],
    expect: dropped(1),
  }),
  decodeCase({
    name: "merges the cheapest pairs of 3 sequences, one finished",
    policy: testPolicy({ merge: pairs({}) }),
    sizes: gqa,
    heads: [
      variedHeads,
      [variedHeads[1]!, { ...variedHeads[0]!, live: 0 }],
      variedHeads,
    ],
    positions: [90, 45, 77],
    finished: [2],
    expect: merged(3),
  }),
  ...([
    [16, 1, 48, "exhaustive"],
    [5, 1, 256, "exhaustive"],
    [4, 4, 4, "exhaustive"],
    [2, 2, 36, "incremental"],
    [4, 2, 128, "incremental"],
    [1, 1, 256, "incremental"],
  ] as const)
    .map(([heads, kvHeads, headDim, search]) =>
      decodeCase({
        name: `merges the cheapest pair of width ${headDim}, ${search}`,
        policy: testPolicy({
          merge: pairs({ search }),
          sinkPositions: "cache",
        }),
        sizes: modelSizes({ heads, kvHeads, headDim }),
        heads: [Array.from({ length: kvHeads }, () => variedHeads[1]!)],
        positions: [90],
        expect: merged(kvHeads),
      })
    ),
  decodeCase({
    name: "merges the cheapest pair of more slots than a workgroup has threads",
    policy: testPolicy({ merge: pairs({}) }),
    sizes: modelSizes({ heads: 2, kvHeads: 1, headDim: 8 }),
    heads: [[
      { capacity: 401, budget: 390, recent: 20, live: 390, holes: 9 },
    ]],
    positions: [900],
    expect: merged(1),
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

/**
 * Cases of the kernels that read a chunk: `prefill_attend`, `observe` and
 * `compress`.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert";
import {
  type Kernels,
  type ModelSizes,
  partnerField,
  SlotField,
} from "../../src/backends/backend.ts";
import { remembersPartners, voteLanes } from "../../src/cache/layout.ts";
import type { Policy } from "../../src/policies/parts.ts";
import { cacheBounds, choiceJitter, sceneNorm } from "./cache_bounds.ts";
import { makeCache, type SceneHead } from "./cache_scene.ts";
import { assertSameCache } from "./compare_slots.ts";
import { keepsScores, type TableChange, tableChange } from "./decode_cases.ts";
import {
  type Draw,
  factorError,
  type KernelCase,
  type Precision,
} from "./kernel_case.ts";
import { modelSizes } from "./matrix_cases.ts";
import { cam, emaScore, pairs, testPolicy, votes } from "./policies.ts";
import { garbage, Random } from "./random.ts";
import type { Scene } from "./scene.ts";
import { prefillStep } from "./steps.ts";
import { assertWithin } from "./tolerance.ts";

/** What a case of a chunk is made from. */
export interface ChunkOptions {
  readonly name: string;
  /** The kernel under test, after the ones that make its inputs. */
  readonly kernel: "prefillAttend" | "observe" | "compress";
  readonly policy: Policy;
  readonly sizes?: ModelSizes;
  readonly heads?: readonly SceneHead[];
  /** Rows of the program, and those that are live. */
  readonly rows?: number;
  readonly live?: number;
  readonly position?: number;
  readonly clusters?: number;
  /** Cosine that heads have come to ask for. */
  readonly threshold?: number;
  /** Whether `compress` comes after `observe`, so that staged rows have scores. */
  readonly isObserved?: boolean;
  /** Whether merged slots are compared, or merged, again. */
  readonly mergesTwice?: boolean;
  /** Times that a slot may be merged, 2 at most if left out. */
  readonly merges?: number;
  /** Slots that may go between two that stay or become one, 20 if left out. */
  readonly run?: number;
  /** What the case is there for, seen in the reference's outcome. */
  readonly expect?: (change: TableChange) => void;
}

/** More slots than go between two that stay, in most cases. */
const RUN = 20;

const gqa = modelSizes({ heads: 6, kvHeads: 2, headDim: 20 });

/** One head that is full, and one with room between its slots. */
const variedHeads: readonly SceneHead[] = [
  { capacity: 41, budget: 40, recent: 5, live: 40, holes: 0 },
  { capacity: 70, budget: 45, recent: 8, live: 33, holes: 6 },
];

/** Makes a case of a kernel that reads a chunk. */
export function chunkCase(options: ChunkOptions): KernelCase {
  const { expect } = options;
  return {
    name: `${kernelNames[options.kernel]} ${options.name}`,
    draw: (seed) => drawChunk(options, new Random(seed)),
    expect: (scene, expected) => expect?.(tableChange(scene, expected)),
  };
}

function drawChunk(options: ChunkOptions, random: Random): Draw {
  const { kernel, policy } = options;
  const sizes = options.sizes ?? gqa;
  const heads = options.heads ?? variedHeads;
  const rows = options.rows ?? 37;
  const guests = options.policy.probe.kind === "instruction"
    ? options.policy.probe.tokens.length
    : 0;
  const live = options.live ?? rows - guests;
  const position = options.position ?? 90;
  const { merge, allocate } = policy;
  const isAdaptive = allocate.heads.kind === "adaptive";
  // Weights of values and claims of heads are scores: staged rows need some.
  const isObserved = kernel === "observe" || options.isObserved ||
    kernel === "compress" &&
      (merge.kind === "rightNeighbour" || merge.kind === "nextValues" ||
        isAdaptive);
  const lanes = voteLanes(policy, sizes);
  // The chunk belongs to the last of two sequences.
  const step = prefillStep({
    rows,
    live,
    guests,
    position,
    sequence: 1,
    sequences: 2,
  });
  const cache = makeCache({
    sizes,
    lanes,
    ...(remembersPartners(policy) && {
      partners: { ...policy.select, known: 0.9 },
    }),
    hasStatistics: policy.score.kind === "expected",
    stageRows: rows + 2,
    heads: [
      variedHeads.slice(0, 1).flatMap((head) =>
        Array.from({ length: sizes.kvHeads }, () => head)
      ),
      heads,
    ],
    positions: [50, position],
    clusters: options.clusters ?? 0,
    lockstep: policy.select.scope === "layer",
    hasNewest: false,
    threshold: options.threshold ?? 0,
    isAdaptive,
    random,
  });
  const length = rows * sizes.heads * sizes.headDim;
  const hasSinkQueries = policy.select.sinkPositions === "cache";
  const scene: Scene = {
    slots: cache.slots,
    ...(remembersPartners(policy) && { partners: partnerField(lanes) }),
    stageSlots: cache.stageSlots,
    tensors: {
      ...step.tensors,
      ...cache.tensors,
      queries: { type: "f32", data: random.floats(length) },
      sinkQueries: { type: "f32", data: random.floats(length) },
      output: { type: "f32", data: garbage(length) },
      logSums: { type: "f32", data: garbage(rows * sizes.heads) },
    },
    record(kernels: Kernels, stage) {
      const args = {
        output: stage.buffer("output"),
        logSums: stage.buffer("logSums"),
        queries: stage.buffer("queries"),
        ...(hasSinkQueries && { sinkQueries: stage.buffer("sinkQueries") }),
        cache: cache.at(stage),
        step: step.at(stage),
        sizes,
        policy,
      };
      // Scores are those of real attention: its sums come first.
      if (kernel !== "compress" || isObserved) kernels.prefillAttend(args);
      if (isObserved) kernels.observe(args);
      if (kernel === "compress") kernels.compress(args);
    },
  };
  const norm = (...tensors: string[]) => sceneNorm(scene, sizes, tensors);
  const { probe } = policy;
  const isMerging = kernel === "compress" &&
    ("votesPerQueryHead" in merge || merge.kind === "cosine" ||
      merge.kind === "segments");
  const magnitudes = {
    sizes,
    query: norm("queries", ...(hasSinkQueries ? ["sinkQueries"] : [])),
    key: norm("keys", "stageKeys"),
    value: 5,
    slots: Math.max(...heads.map((head) => head.live)) + live + guests,
    rows: !isObserved
      ? 0
      : probe.kind === "last"
      ? Math.min(probe.rows, live)
      : probe.kind === "instruction"
      ? guests
      : live,
    merges: isMerging ? 1 : 0,
    run: kernel === "compress" && merge.kind === "rightNeighbour"
      ? options.run ?? RUN
      : 0,
    members: kernel === "compress" && merge.kind === "segments"
      ? options.run ?? RUN
      : 0,
    passes: merge.kind === "nextValues" ? merge.count : 0,
  };
  const merges = options.merges ??
    (options.mergesTwice ? 2 : magnitudes.merges);
  const attends = kernel !== "compress" || isObserved;
  const errors = (precision: Precision) => ({
    factors: attends ? factorError(precision, rows) : 0,
    stored: precision.stored.unit,
  });
  return {
    scene,
    ...(kernel === "compress" && {
      jitter: (precision) =>
        choiceJitter(policy, {
          sizes,
          bounds: cacheBounds({
            ...magnitudes,
            ...errors(precision),
            factors: 0,
          }),
          comparesMerged: options.mergesTwice ?? false,
          ...errors(precision),
        }),
    }),
    check(actual, expected, precision) {
      const bounds = cacheBounds({
        ...magnitudes,
        merges,
        ...errors(precision),
      });
      assertWithin(actual.output!.f32, expected.output!.f32, {
        what: "output",
        bound: bounds.output,
      });
      assertWithin(actual.logSums!.f32, expected.logSums!.f32, {
        what: "logSums",
        bound: bounds.logSum,
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
      if (kernel !== "observe" || !keepsScores(policy)) return;
      const total = cache.stageSlots;
      const field = (outcome: typeof actual, index: number) =>
        outcome.stageSide!.f32.subarray(index * total, (index + 1) * total);
      for (
        const [index, bound] of [
          [SlotField.ema, bounds.ema],
          [SlotField.accumulated, bounds.accumulated],
        ] as const
      ) {
        assertWithin(field(actual, index), field(expected, index), {
          what: `stage field ${index}`,
          bound,
        });
      }
      const counts = (outcome: typeof actual) =>
        outcome.stageSide!.u32.slice(SlotField.observations * total);
      assertEquals(
        counts(actual).subarray(0, total),
        counts(expected).subarray(0, total),
      );
    },
  };
}

const kernelNames = {
  prefillAttend: "prefill_attend",
  observe: "observe",
  compress: "compress",
} as const;

const streaming = testPolicy({
  score: { kind: "position" },
  merge: { kind: "drop" },
  sinkPositions: "cache",
  sinks: 3,
});

const h2o = testPolicy({
  score: { kind: "accumulated" },
  merge: { kind: "drop" },
  sinks: 0,
});

const d2o = testPolicy({
  score: { kind: "accumulated" },
  merge: { kind: "cosine", keep: 0.5 },
});

const weighted = testPolicy({
  score: { kind: "mean" },
  merge: { kind: "rightNeighbour", rule: "convex", cap: 1 },
});

/** Scores that come from guests. */
const guided = testPolicy({
  probe: { kind: "instruction", tokens: [1, 2, 3, 4, 5] },
  score: { kind: "mean" },
  merge: { kind: "drop" },
});

const zip = testPolicy({
  score: { kind: "ema", alpha: 0.9, scale: "raw", countVotes: false },
  merge: votes({ key: "zip", guard: [-100, 100] }),
});

/** Heads that some pairs bring down to their budget. */
const pairedHeads: readonly SceneHead[] = [
  { capacity: 41, budget: 40, recent: 5, live: 40, holes: 0 },
  { capacity: 70, budget: 37, recent: 8, live: 33, holes: 6 },
];

/** An empty cache: the first chunk of a prompt. */
const emptyHeads: readonly SceneHead[] = [
  { capacity: 21, budget: 20, recent: 6, live: 0, holes: 0 },
  { capacity: 90, budget: 89, recent: 6, live: 0, holes: 0 },
];

const shapes = [
  modelSizes({ heads: 3, kvHeads: 3, headDim: 80 }),
  modelSizes({ heads: 16, kvHeads: 1, headDim: 48 }),
  modelSizes({ heads: 5, kvHeads: 1, headDim: 256 }),
].map((sizes) => ({
  sizes,
  heads: Array.from({ length: sizes.kvHeads }, () => variedHeads[0]!),
  name:
    `of ${sizes.heads} heads over ${sizes.kvHeads} of width ${sizes.headDim}`,
}));

/** Enough rows and heads for every block of a device to have its own. */
const manyRows =
  ([[20, 1, 129], [64, 3, 50], [128, 2, 65], [136, 1, 65]] as const)
    .map(([headDim, group, rows]) => ({
      name: `of ${rows} rows, ${group} x 40 heads of width ${headDim}`,
      policy: testPolicy({}),
      sizes: modelSizes({ heads: 40 * group, kvHeads: 40, headDim }),
      heads: Array.from({ length: 40 }, () => variedHeads[1]!),
      rows,
    }));

/** Slots and rows of several tiles, of which the last are not full. */
const manyTiles = ([[128, 4, 200, 290], [64, 7, 150, 129], [128, 1, 200, 0], [
  64,
  16,
  130,
  256,
]] as const)
  .map(([headDim, group, rows, live]) => ({
    name:
      `of ${rows} rows and ${live} slots, 2 x ${group} heads of width ${headDim}`,
    policy: testPolicy({}),
    sizes: modelSizes({ heads: 2 * group, kvHeads: 2, headDim }),
    heads: [live, live + 1].map((live) => ({
      capacity: live + 40,
      budget: live + 10,
      recent: 5,
      live,
      holes: Math.min(live, 3),
    })),
    rows,
    position: 400,
  }));

/** Cases of attention alone. */
const attentionOnly: readonly Omit<ChunkOptions, "kernel">[] = [
  ...shapes.map((shape) => ({
    ...shape,
    name: `of 23 rows, ${shape.name}`,
    policy: testPolicy({ sinkPositions: "cache" }),
    rows: 23,
  })),
  {
    name: "of 23 rows, votes per query head",
    policy: testPolicy({ merge: votes({ votesPerQueryHead: true }) }),
    rows: 23,
  },
  ...manyRows,
  ...manyTiles,
];

const attention: readonly Omit<ChunkOptions, "kernel">[] = [
  { name: "of a full chunk", policy: testPolicy({}) },
  { name: "of 5 of 37 rows", policy: testPolicy({}), live: 5 },
  { name: "of an empty chunk", policy: testPolicy({}), live: 0 },
  { name: "of a chunk with guests", policy: guided },
  { name: "of 3 rows with guests", policy: guided, live: 3 },
  {
    name: "of guests of a moving average",
    policy: { ...testPolicy({}), probe: guided.probe },
  },
  {
    name: "of the first chunk",
    policy: testPolicy({}),
    heads: emptyHeads,
    position: 0,
  },
  {
    name: "of votes per query head",
    policy: testPolicy({ merge: votes({ votesPerQueryHead: true }) }),
  },
  { name: "of sinks with positions in the cache", policy: streaming },
  {
    name: "of a long cache",
    policy: testPolicy({}),
    sizes: modelSizes({ heads: 2, kvHeads: 1, headDim: 8 }),
    heads: [{ capacity: 500, budget: 400, recent: 9, live: 300, holes: 90 }],
    position: 700,
    rows: 3,
  },
  ...shapes.map((shape) => ({
    ...shape,
    policy: testPolicy({ sinkPositions: "cache" }),
  })),
];

/** Asserts that a case merges and drops, or does not. */
export function does(
  { merges, drops }: { merges: boolean; drops: boolean },
): (change: TableChange) => void {
  return ({ merged, dropped }) => {
    assertEquals(merged > 0, merges, `${merged} merged`);
    assertEquals(dropped > 0, drops, `${dropped} dropped`);
  };
}

/** The cases of the attention of a chunk. */
export const attentionCases: readonly KernelCase[] = [
  ...attention,
  ...attentionOnly,
].map((options) => chunkCase({ ...options, kernel: "prefillAttend" }));

/** The cases of searches in heads of all widths. */
export const searchCases: readonly KernelCase[] = [
  ...[32, 64, 128].map((headDim) =>
    chunkCase({
      name:
        `of more candidates of width ${headDim} than a workgroup has threads`,
      kernel: "compress",
      policy: testPolicy({ merge: votes({ threshold: 0.8 }) }),
      sizes: modelSizes({ heads: 2, kvHeads: 1, headDim }),
      heads: [{ capacity: 801, budget: 720, recent: 40, live: 580, holes: 20 }],
      position: 900,
      rows: 300,
      live: 290,
      clusters: 60,
      expect: ({ merged }) => assert(merged > 100),
    })
  ),
  ...shapes.map((shape) =>
    chunkCase({
      ...shape,
      kernel: "compress",
      policy: testPolicy({ merge: votes({ key: "minNorm", threshold: 0.3 }) }),
      rows: 9,
      clusters: 6,
      expect: ({ merged }) => assert(merged > 0),
    })
  ),
];

/** All cases. */
export const chunkCases: readonly KernelCase[] = [
  ...attentionCases,
  ...attention.map((options) => chunkCase({ ...options, kernel: "observe" })),
  chunkCase({
    name: "of the last 4 rows",
    kernel: "observe",
    policy: testPolicy({ probe: { kind: "last", rows: 4 } }),
  }),
  chunkCase({
    name: "of more rows than there are, raw scores",
    kernel: "observe",
    policy: { ...zip, probe: { kind: "last", rows: 100 } },
    live: 9,
  }),
  chunkCase({ name: "of H2O", kernel: "observe", policy: h2o }),
  ...manyTiles.slice(0, 2).map((options) =>
    chunkCase({ ...options, kernel: "observe" })
  ),
  ...([
    ["a moving sum of raw weights", zip],
    ["mean weights", testPolicy({ score: { kind: "mean" } })],
    [
      "the last 50 rows",
      testPolicy({ probe: { kind: "last", rows: 50 } }),
    ],
  ] as const).map(([what, policy]) =>
    chunkCase({
      ...manyTiles[0]!,
      name: `${what} ${manyTiles[0]!.name}`,
      kernel: "observe",
      policy,
    })
  ),
  ...(["realVotes", "convex", "minNorm", "zip"] as const).flatMap((key) =>
    [false, true].map((votesPerQueryHead) =>
      chunkCase({
        name: `merges with ${key}${
          votesPerQueryHead ? ", votes per head" : ""
        }`,
        kernel: "compress",
        policy: testPolicy({
          ...(key === "zip" && { score: zip.score }),
          merge: votes({ key, votesPerQueryHead, guard: [-100, 100] }),
        }),
        heads: pairedHeads,
        rows: 9,
        clusters: 6,
        expect: does({ merges: true, drops: false }),
      })
    )
  ),
  chunkCase({
    name: "of a chunk with guests",
    kernel: "compress",
    policy: guided,
    expect: does({ merges: false, drops: true }),
  }),
  ...(["mergeFirst", "evictFirst"] as const).flatMap((prefill) => [
    chunkCase({
      name: `merges and drops with ${prefill}`,
      kernel: "compress",
      policy: testPolicy({ merge: votes({ prefill, threshold: 0.93 }) }),
      rows: 16,
      clusters: 6,
      mergesTwice: prefill === "mergeFirst",
      expect: does({ merges: true, drops: true }),
    }),
    chunkCase({
      name: `drops with ${prefill} what is not similar enough`,
      kernel: "compress",
      policy: testPolicy({ merge: votes({ prefill, threshold: 0.9999 }) }),
      clusters: 6,
      expect: does({ merges: false, drops: true }),
    }),
    chunkCase({
      name: `merges many into one with ${prefill}`,
      kernel: "compress",
      policy: testPolicy({ merge: votes({ prefill, threshold: -1 }) }),
      heads: [
        { capacity: 13, budget: 12, recent: 4, live: 12, holes: 0 },
        { capacity: 30, budget: 10, recent: 4, live: 9, holes: 4 },
      ],
      rows: 13,
      clusters: 2,
      mergesTwice: prefill === "mergeFirst",
      expect: does({ merges: true, drops: false }),
    }),
    chunkCase({
      name: `keeps what fits with ${prefill}`,
      kernel: "compress",
      policy: testPolicy({ merge: votes({ prefill }) }),
      heads: [
        { capacity: 90, budget: 89, recent: 4, live: 12, holes: 3 },
        { capacity: 70, budget: 69, recent: 4, live: 30, holes: 0 },
      ],
      clusters: 6,
      expect: does({ merges: false, drops: false }),
    }),
    chunkCase({
      name: `of the first chunk with ${prefill}`,
      kernel: "compress",
      policy: testPolicy({ merge: votes({ prefill }) }),
      heads: emptyHeads,
      position: 0,
      rows: 26,
      clusters: 6,
      expect: ({ merged }) => assert(merged > 0),
    }),
    chunkCase({
      name: `of 9 of 37 rows with ${prefill}`,
      kernel: "compress",
      policy: testPolicy({ merge: votes({ prefill }) }),
      heads: pairedHeads,
      live: 9,
      clusters: 6,
      expect: ({ merged }) => assert(merged > 0),
    }),
  ]),
  ...(["realVotes", "convex", "minNorm", "zip"] as const).map((key) =>
    chunkCase({
      name: `merges the cheapest pairs with ${key}`,
      kernel: "compress",
      policy: testPolicy({
        ...(key === "zip" && { score: zip.score }),
        merge: pairs({
          key,
          votesPerQueryHead: key === "minNorm",
          guard: [-100, 100],
        }),
      }),
      heads: pairedHeads,
      rows: 9,
      clusters: 6,
      expect: does({ merges: true, drops: false }),
    })
  ),
  ...[0, 1, 2, 5].map((rounds) =>
    chunkCase({
      name: `merges the cheapest pairs in ${rounds} rounds`,
      kernel: "compress",
      policy: testPolicy({ merge: pairs({ rounds }) }),
      heads: [
        { capacity: 13, budget: 12, recent: 4, live: 12, holes: 0 },
        { capacity: 30, budget: 10, recent: 4, live: 9, holes: 4 },
      ],
      rows: 13,
      mergesTwice: rounds > 0,
      merges: rounds + 1,
      expect: does({ merges: true, drops: false }),
    })
  ),
  chunkCase({
    name: "merges the pairs of the least products",
    kernel: "compress",
    policy: testPolicy({ merge: pairs({ distance: "product" }) }),
    heads: pairedHeads,
    rows: 9,
    expect: does({ merges: true, drops: false }),
  }),
  chunkCase({
    name: "forgets partners",
    kernel: "compress",
    policy: testPolicy({ merge: pairs({ search: "incremental" }) }),
    heads: pairedHeads,
    rows: 9,
    expect: does({ merges: true, drops: false }),
  }),
  chunkCase({
    name: "merges the cheapest pairs of what fits",
    kernel: "compress",
    policy: testPolicy({ merge: pairs({}) }),
    heads: [
      { capacity: 90, budget: 89, recent: 4, live: 12, holes: 3 },
      { capacity: 70, budget: 69, recent: 4, live: 30, holes: 0 },
    ],
    expect: does({ merges: false, drops: false }),
  }),
  chunkCase({
    name: "drops what has no partner",
    kernel: "compress",
    policy: testPolicy({ sinks: 0, merge: pairs({}) }),
    heads: [
      { capacity: 10, budget: 9, recent: 9, live: 9, holes: 0 },
      { capacity: 30, budget: 9, recent: 9, live: 9, holes: 4 },
    ],
    position: 9,
    rows: 1,
    expect: does({ merges: false, drops: true }),
  }),
  chunkCase({
    name: "merges the cheapest pairs of an empty chunk",
    kernel: "compress",
    policy: testPolicy({ merge: pairs({}) }),
    live: 0,
    expect: does({ merges: false, drops: false }),
  }),
  ...([
    [32, "sum", 1],
    [64, "product", 2],
    [128, "sum", 1],
    [128, "product", 1],
    [128, "product", 0],
    [80, "product", 0],
  ] as const).map(([headDim, distance, rounds]) =>
    chunkCase({
      name:
        `merges the cheapest of many pairs of width ${headDim}, by ${distance}, in ${rounds} rounds`,
      kernel: "compress",
      policy: testPolicy({ merge: pairs({ distance, rounds }) }),
      sizes: modelSizes({ heads: 2, kvHeads: 1, headDim }),
      heads: [{ capacity: 401, budget: 390, recent: 40, live: 280, holes: 20 }],
      position: 900,
      rows: 140,
      live: 130,
      clusters: 40,
      mergesTwice: rounds > 1,
      merges: rounds + 1,
      expect: ({ merged, dropped }) => {
        assertEquals(merged, 20);
        assertEquals(dropped, 0);
      },
    })
  ),
  chunkCase({
    name: "behind the guard of zip",
    kernel: "compress",
    policy: testPolicy({
      score: zip.score,
      merge: votes({ key: "zip", guard: [50, 60] }),
    }),
    heads: pairedHeads,
    rows: 9,
    clusters: 6,
    expect: ({ merged, guarded }) => assert(merged === guarded && merged > 0),
  }),
  chunkCase({
    name: "of an empty chunk",
    kernel: "compress",
    policy: testPolicy({}),
    live: 0,
    expect: does({ merges: false, drops: false }),
  }),
  chunkCase({
    name: "of H2O",
    kernel: "compress",
    policy: h2o,
    expect: does({ merges: false, drops: true }),
  }),
  ...[0, 0.95].map((threshold) =>
    chunkCase({
      name: `of D2O at a threshold of ${threshold}`,
      kernel: "compress",
      policy: d2o,
      clusters: 6,
      threshold,
      expect: does({ merges: true, drops: true }),
    })
  ),
  chunkCase({
    name: "of D2O that merges many into one",
    kernel: "compress",
    policy: d2o,
    heads: [
      { capacity: 13, budget: 12, recent: 4, live: 12, holes: 0 },
      { capacity: 30, budget: 10, recent: 4, live: 9, holes: 4 },
    ],
    rows: 13,
    clusters: 2,
    expect: does({ merges: true, drops: true }),
  }),
  ...(["sampled", "expected"] as const).flatMap((rule) => [
    chunkCase({
      name: `of CaM, ${rule}`,
      kernel: "compress",
      policy: cam({ rule }),
      expect: ({ merged, dropped }) => {
        assert(merged > 0);
        assert(rule === "expected" || dropped > 0);
      },
    }),
    chunkCase({
      name: `of CaM, ${rule}, the first chunk by scores`,
      kernel: "compress",
      policy: { ...cam({ rule, count: 3 }), score: { kind: "mean" } },
      heads: emptyHeads,
      position: 0,
      rows: 26,
      expect: ({ merged }) => assert(merged > 0),
    }),
  ]),
  chunkCase({
    name: "of WeightedKV",
    kernel: "compress",
    policy: weighted,
    expect: does({ merges: true, drops: false }),
  }),
  chunkCase({
    name: "of WeightedKV whose runs are long",
    kernel: "compress",
    policy: weighted,
    heads: [
      { capacity: 13, budget: 12, recent: 4, live: 12, holes: 0 },
      { capacity: 30, budget: 10, recent: 4, live: 9, holes: 4 },
    ],
    run: 46,
    expect: does({ merges: true, drops: false }),
  }),
  chunkCase({
    name: "of WeightedKV with scores that are not its weights",
    kernel: "compress",
    policy: { ...weighted, score: emaScore },
    heads: emptyHeads,
    position: 0,
    rows: 26,
    expect: does({ merges: true, drops: false }),
  }),
  chunkCase({
    name: "of WeightedKV with nothing to the right",
    kernel: "compress",
    policy: weighted,
    heads: [
      { capacity: 13, budget: 6, recent: 0, live: 12, holes: 0 },
      { capacity: 30, budget: 6, recent: 0, live: 9, holes: 4 },
    ],
    run: 46,
    expect: does({ merges: true, drops: true }),
  }),
  chunkCase({
    name: "of WeightedKV with more candidates than a workgroup has threads",
    kernel: "compress",
    policy: weighted,
    sizes: modelSizes({ heads: 2, kvHeads: 1, headDim: 32 }),
    heads: [{ capacity: 801, budget: 520, recent: 40, live: 580, holes: 20 }],
    position: 900,
    rows: 300,
    live: 290,
    run: 290,
    expect: ({ merged }) => assert(merged > 100),
  }),
  chunkCase({
    name: "of StreamingLLM",
    kernel: "compress",
    policy: streaming,
    expect: does({ merges: false, drops: true }),
  }),
  chunkCase({
    name: "of a cache that never evicts",
    kernel: "compress",
    policy: testPolicy({ merge: { kind: "never" }, score: emaScore }),
    heads: [
      { capacity: 80, budget: 80, recent: 0, live: 40, holes: 0 },
      { capacity: 60, budget: 60, recent: 0, live: 20, holes: 3 },
    ],
    expect: does({ merges: false, drops: false }),
  }),
  ...searchCases,
];

/**
 * Cases of `qkv_rope_append`.
 *
 * @module
 */
import { assertEquals } from "@std/assert";
import type { ModelSizes } from "../../src/backends/backend.ts";
import { inverseFrequencies, ropeTable } from "../../src/model/rope.ts";
import { makeCache, type SceneHead } from "./cache_scene.ts";
import type { Draw, KernelCase, Precision } from "./kernel_case.ts";
import { modelSizes, Products } from "./matrix_cases.ts";
import { garbage, Random } from "./random.ts";
import type { Outcome, Scene } from "./scene.ts";
import { decodeStep, prefillStep, type SceneStep } from "./steps.ts";
import { assertWithin, F32, storedError, sumError } from "./tolerance.ts";

/** What a case of `qkv_rope_append` is made from. */
export interface QkvOptions {
  readonly name: string;
  readonly sizes: ModelSizes;
  readonly step: SceneStep;
  readonly lanes?: number;
  readonly hasBias?: boolean;
  readonly hasHeadNorms?: boolean;
  readonly hasSinkQueries?: boolean;
}

/** Makes a case of `qkv_rope_append`. */
export function qkvCase(options: QkvOptions): KernelCase {
  return {
    name: `qkv_rope_append ${options.name}`,
    draw: (seed) => drawQkv(options, new Random(seed)),
  };
}

function drawQkv(options: QkvOptions, random: Random): Draw {
  const { sizes, step, lanes = 1 } = options;
  const { heads, kvHeads, headDim, hidden } = sizes;
  const outputs = (heads + 2 * kvHeads) * headDim;
  const sequences = step.kind === "decode" ? step.rows : 2;
  const head: SceneHead = {
    capacity: 9,
    budget: 8,
    recent: 2,
    live: 5,
    holes: 2,
  };
  // A head without room: its token is not stored.
  const full: SceneHead = { ...head, live: 9, holes: 0 };
  const cache = makeCache({
    sizes,
    lanes,
    stageRows: step.rows + 1,
    heads: Array.from({ length: sequences }, (_, sequence) =>
      Array.from(
        { length: kvHeads },
        (_, kvHead) => sequence === 0 && kvHead === 0 ? full : head,
      )),
    positions: Array.from({ length: sequences }, () => 40),
    clusters: 0,
    hasNewest: false,
    random,
  });
  const input = random.floats(step.rows * hidden, 2);
  const norm = random.floats(hidden);
  const bias = random.floats(outputs);
  const headNorms = [random.floats(headDim), random.floats(headDim)] as const;
  const weight = {
    rows: outputs,
    columns: hidden,
    rowGroup: headDim,
    data: random.halves(outputs * hidden, 0.2),
  };
  const { inverse, scale } = inverseFrequencies(
    { type: "default", theta: 10_000 },
    headDim,
  );
  const rope = ropeTable(inverse, scale);
  const length = step.rows * heads * headDim;
  const scene: Scene = {
    tensors: {
      ...step.tensors,
      ...cache.tensors,
      queries: { type: "f32", data: garbage(length) },
      sinkQueries: { type: "f32", data: garbage(length) },
      input: { type: "f32", data: input },
      norm: { type: "f32", data: norm },
      bias: { type: "f32", data: bias },
      queryNorm: { type: "f32", data: headNorms[0] },
      keyNorm: { type: "f32", data: headNorms[1] },
      rope: { type: "f32", data: rope },
    },
    matrices: { weight },
    record: (kernels, stage) =>
      kernels.qkvRopeAppend({
        queries: stage.buffer("queries"),
        hidden: stage.buffer("input"),
        norm: stage.buffer("norm"),
        weight: stage.matrix("weight"),
        ...(options.hasSinkQueries && {
          sinkQueries: stage.buffer("sinkQueries"),
        }),
        ...(options.hasBias && { bias: stage.buffer("bias") }),
        ...(options.hasHeadNorms && {
          queryNorm: stage.buffer("queryNorm"),
          keyNorm: stage.buffer("keyNorm"),
        }),
        rope: stage.buffer("rope"),
        cache: cache.at(stage),
        step: step.at(stage),
        sizes,
      }),
  };
  const products = new Products({ input, norm, weight });
  return {
    scene,
    check(actual, expected, precision) {
      const bound = elementBound(step, products, {
        outputs,
        headDim,
        headNorm: options.hasHeadNorms
          ? largest(headNorms.flatMap((n) => [...n]))
          : 0,
        precision,
      });
      const near = (name: string, stored: (x: number) => number) =>
        assertWithin(actual[name]!.f32, expected[name]!.f32, {
          what: name,
          bound: (i) =>
            same(scene, name, expected, i)
              ? 0
              : bound + stored(expected[name]!.f32[i]!),
        });
      const asFloat = () => 0;
      near("queries", asFloat);
      near("sinkQueries", asFloat);
      for (const name of ["keys", "values", "stageKeys", "stageValues"]) {
        near(name, (x) => storedError(x, precision.stored));
      }
      // Fields are not computed: exact.
      assertEquals(actual.side!.u32, expected.side!.u32);
      assertEquals(actual.stageSide!.u32, expected.stageSide!.u32);
      assertEquals(actual.table!.u32, expected.table!.u32);
    },
  };
}

/** Whether the reference left an element as it was. */
function same(
  scene: Scene,
  name: string,
  expected: Outcome,
  i: number,
): boolean {
  return scene.tensors[name]!.data[i] === expected[name]!.f32[i];
}

/**
 * Error of one element: that of its product and of its bias; a head norm
 * divides by a root mean square, at least 1/4 here, that is off by as much as
 * the elements are, and by its own sum; a rotation adds two elements with
 * factors below 1 that are themselves products of three rounded rotations.
 */
function elementBound(
  step: SceneStep,
  products: Products,
  { outputs, headDim, headNorm, precision }: {
    outputs: number;
    headDim: number;
    headNorm: number;
    precision: Precision;
  },
): number {
  const magnitude = 16;
  let product = 0;
  for (const { row } of step.forwarded) {
    for (let i = 0; i < outputs; i++) {
      product = Math.max(product, products.error(row, i, precision));
    }
  }
  let error = product + F32 * magnitude;
  let size = magnitude;
  if (headNorm > 0) {
    size = headNorm * Math.sqrt(headDim);
    error = headNorm * 4 * 2 * error + size * (sumError(headDim, 1) + 8 * F32);
  }
  return Math.SQRT2 * error + 12 * F32 * size;
}

function largest(values: readonly number[]): number {
  return values.reduce((a, b) => Math.max(a, Math.abs(b)), 0);
}

const gqa = modelSizes({ hidden: 44, heads: 4, kvHeads: 2, headDim: 20 });

/** All cases. */
export const qkvCases: readonly KernelCase[] = [
  qkvCase({
    name: "of 3 sequences, one finished",
    sizes: gqa,
    step: decodeStep([40, 70_000, 256], { finished: [1] }),
    hasBias: true,
    hasSinkQueries: true,
    lanes: 2,
  }),
  qkvCase({
    name: "of one sequence with head norms",
    sizes: gqa,
    step: decodeStep([66_000]),
    hasHeadNorms: true,
    hasBias: true,
  }),
  qkvCase({
    name: "of one sequence, wide heads",
    sizes: modelSizes({ hidden: 12, heads: 3, kvHeads: 3, headDim: 80 }),
    step: decodeStep([40]),
  }),
  qkvCase({
    name: "of the narrowest heads",
    sizes: modelSizes({ hidden: 8, heads: 2, kvHeads: 1, headDim: 4 }),
    step: decodeStep([40, 41]),
  }),
  qkvCase({
    name: "of 10 sequences",
    sizes: gqa,
    step: decodeStep(Array.from({ length: 10 }, (_, i) => 40 + i)),
    hasHeadNorms: true,
    hasSinkQueries: true,
  }),
  qkvCase({
    name: "of a chunk of 3 of 9 rows and 4 guests",
    sizes: gqa,
    step: prefillStep({
      ...{ rows: 9, live: 3, guests: 4 },
      ...{ position: 300, sequence: 1, sequences: 2 },
    }),
    hasSinkQueries: true,
  }),
  ...[5, 70].flatMap((rows) =>
    [false, true].map((hasHeadNorms) =>
      qkvCase({
        name: `of a chunk of ${rows - 2} of ${rows} rows${
          hasHeadNorms ? ", head norms" : ""
        }`,
        sizes: gqa,
        step: prefillStep({
          rows,
          live: rows - 2,
          position: 300,
          sequence: 1,
          sequences: 2,
        }),
        hasHeadNorms,
        hasBias: true,
        hasSinkQueries: true,
      })
    )
  ),
];

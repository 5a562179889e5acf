/**
 * Cases of the kernels that multiply with a weight matrix, and of `embed`.
 *
 * @module
 */
import { assertEquals } from "@std/assert";
import type { ModelSizes } from "../../src/backends/backend.ts";
import type { KernelCase, Precision } from "./kernel_case.ts";
import { garbage, Random } from "./random.ts";
import type { MatrixSpec } from "./scene.ts";
import {
  decodeStep,
  prefillStep,
  type SceneRow,
  type SceneStep,
} from "./steps.ts";
import { assertWithin, expError, F16, F32, sumError } from "./tolerance.ts";

/** Sizes of a model; those a kernel does not use are 1. */
export function modelSizes(sizes: Partial<ModelSizes>): ModelSizes {
  return {
    hidden: 1,
    heads: 1,
    kvHeads: 1,
    headDim: 1,
    ffn: 1,
    vocabulary: 1,
    normEpsilon: 1e-5,
    ...sizes,
  };
}

/** Bounds on the products of a scene, in 64-bit floats. */
export class Products {
  readonly #input: Float32Array;
  readonly #norm: Float32Array | undefined;
  readonly #weight: MatrixSpec;
  readonly #rows: number;

  constructor(
    { input, norm, weight, rows = input.length / weight.columns }: {
      input: Float32Array;
      norm?: Float32Array;
      weight: MatrixSpec;
      /** Rows that are multiplied, those of the input unless given. */
      rows?: number;
    },
  ) {
    this.#rows = rows;
    this.#input = input;
    this.#norm = norm;
    this.#weight = weight;
  }

  /** Product `(row, output)`. */
  value(row: number, output: number): number {
    const { columns, data } = this.#weight;
    const x = this.#input.subarray(row * columns, (row + 1) * columns);
    let product = 0;
    let squares = 0;
    for (let i = 0; i < columns; i++) {
      product += x[i]! * (this.#norm?.[i] ?? 1) * data[output * columns + i]!;
      squares += x[i]! ** 2;
    }
    return this.#norm === undefined
      ? product
      : product / Math.sqrt(squares / columns);
  }

  /**
   * Error of product `(row, output)`: that of the sum; where the backend is not
   * exact for so many rows, that of activations rounded to halves, in a row that
   * is scaled so that they do not run out of exponents; and for a normed input
   * that of its scale, which is a sum of squares whose relative error halves
   * under the root, an inverse root of 2 units, and two more factors.
   */
  error(row: number, output: number, { exactRows }: Precision): number {
    const { columns, data } = this.#weight;
    const x = this.#input.subarray(row * columns, (row + 1) * columns);
    let magnitude = 0;
    let squares = 0;
    for (let i = 0; i < columns; i++) {
      const n = this.#norm?.[i] ?? 1;
      magnitude += Math.abs(x[i]! * n * data[output * columns + i]!);
      squares += x[i]! ** 2;
    }
    if (this.#norm !== undefined) magnitude /= Math.sqrt(squares / columns);
    const rounding = this.#rows > exactRows ? F16 * magnitude : 0;
    const error = sumError(columns, magnitude) + rounding;
    return this.#norm === undefined
      ? error
      : error + sumError(columns / 2 + 8, magnitude);
  }
}

interface ValueError {
  readonly value: number;
  readonly error: number;
}

function isAmong(rows: readonly SceneRow[], row: number): boolean {
  return rows.some((one) => one.row === row);
}

function embedCase(
  name: string,
  { step, hidden, vocabulary, rowGroup = 1 }: {
    step: SceneStep;
    hidden: number;
    vocabulary: number;
    rowGroup?: number;
  },
): KernelCase {
  const sizes = modelSizes({ hidden, vocabulary });
  const sequences = step.kind === "decode" ? step.rows : 2;
  return {
    name: `embed ${name}`,
    draw: () => ({
      scene: {
        tensors: {
          ...step.tensors,
          hidden: { type: "f32", data: garbage(step.rows * hidden) },
          seen: {
            type: "u32",
            data: new Uint32Array(sequences * Math.ceil(vocabulary / 32)).fill(
              4,
            ),
          },
        },
        matrices: {
          embedding: {
            rows: vocabulary,
            columns: hidden,
            rowGroup,
            data: new Random(1).halves(vocabulary * hidden),
          },
        },
        record: (kernels, stage) =>
          kernels.embed({
            hidden: stage.buffer("hidden"),
            seen: stage.buffer("seen"),
            embedding: stage.matrix("embedding"),
            step: step.at(stage),
            sizes,
          }),
      },
      check(actual, expected) {
        // A copy: exact.
        assertEquals(actual.hidden!.f32, expected.hidden!.f32);
        assertEquals(actual.seen!.u32, expected.seen!.u32);
      },
    }),
  };
}

function projectAddCase(
  name: string,
  { step, rows, columns, hasBias }: {
    step: SceneStep;
    rows: number;
    columns: number;
    hasBias: boolean;
  },
): KernelCase {
  const random = new Random(2);
  const input = random.floats(step.rows * columns);
  const hidden = random.floats(step.rows * rows);
  const bias = random.floats(rows);
  const weight = { rows, columns, data: random.halves(rows * columns, 0.1) };
  const products = new Products({ input, weight });
  return {
    name: `project_add ${name}`,
    draw: () => ({
      scene: {
        tensors: {
          ...step.tensors,
          input: { type: "f32", data: input },
          hidden: { type: "f32", data: hidden },
          bias: { type: "f32", data: bias },
        },
        matrices: { weight },
        record: (kernels, stage) =>
          kernels.projectAdd({
            hidden: stage.buffer("hidden"),
            input: stage.buffer("input"),
            weight: stage.matrix("weight"),
            ...(hasBias && { bias: stage.buffer("bias") }),
            step: step.at(stage),
          }),
      },
      check(actual, expected, precision) {
        assertWithin(actual.hidden!.f32, expected.hidden!.f32, {
          what: "hidden",
          bound: (i) => {
            const [row, output] = [Math.floor(i / rows), i % rows];
            if (!isAmong(step.forwarded, row)) return 0;
            // Two more additions: bias and residual.
            const sum = Math.abs(hidden[i]!) + Math.abs(bias[output]!) +
              Math.abs(expected.hidden!.f32[i]!);
            return products.error(row, output, precision) + 3 * F32 * sum;
          },
        });
      },
    }),
  };
}

function gateUpCase(
  name: string,
  { step, hidden, ffn, hasBias }: {
    step: SceneStep;
    hidden: number;
    ffn: number;
    hasBias: boolean;
  },
): KernelCase {
  const sizes = modelSizes({ hidden, ffn });
  const random = new Random(3);
  const input = random.floats(step.rows * hidden, 3);
  const norm = random.floats(hidden);
  const bias = random.floats(2 * ffn);
  const weight = {
    rows: 2 * ffn,
    columns: hidden,
    rowGroup: 2,
    data: random.halves(2 * ffn * hidden, 0.2),
  };
  const products = new Products({ input, norm, weight });
  return {
    name: `gate_up ${name}`,
    draw: () => ({
      scene: {
        tensors: {
          ...step.tensors,
          input: { type: "f32", data: input },
          norm: { type: "f32", data: norm },
          bias: { type: "f32", data: bias },
          output: { type: "f32", data: garbage(step.rows * ffn) },
        },
        matrices: { weight },
        record: (kernels, stage) =>
          kernels.gateUp({
            output: stage.buffer("output"),
            hidden: stage.buffer("input"),
            norm: stage.buffer("norm"),
            weight: stage.matrix("weight"),
            ...(hasBias && { bias: stage.buffer("bias") }),
            step: step.at(stage),
            sizes,
          }),
      },
      check(actual, expected, precision) {
        assertWithin(actual.output!.f32, expected.output!.f32, {
          what: "output",
          bound: (i) => {
            const [row, at] = [Math.floor(i / ffn), i % ffn];
            if (!isAmong(step.forwarded, row)) return 0;
            const [gate, up] = [2 * at, 2 * at + 1].map((slot) => {
              const term = hasBias ? bias[slot]! : 0;
              const value = products.value(row, slot) + term;
              const error = products.error(row, slot, precision) +
                2 * F32 * Math.abs(value);
              return { value, error };
            }) as [ValueError, ValueError];
            // silu has a slope of at most 1.1 and |silu(x)| ≤ |x|.
            return 1.1 * gate.error * Math.abs(up.value) +
              Math.abs(gate.value) * up.error +
              Math.abs(expected.output!.f32[i]!) * expError(gate.value);
          },
        });
      },
    }),
  };
}

function lmHeadCase(
  name: string,
  { step, hidden, vocabulary, rows }: {
    step: SceneStep;
    hidden: number;
    vocabulary: number;
    rows: "all" | "last";
  },
): KernelCase {
  const sizes = modelSizes({ hidden, vocabulary });
  const random = new Random(4);
  const input = random.floats(step.rows * hidden, 3);
  const norm = random.floats(hidden);
  const weight = {
    rows: vocabulary,
    columns: hidden,
    data: random.halves(vocabulary * hidden, 0.2),
  };
  const isLast = rows === "last" && step.kind === "prefill";
  const products = new Products({
    ...{ input, norm, weight },
    ...(isLast && { rows: 1 }),
  });
  return {
    name: `lm_head ${name}`,
    draw: () => ({
      scene: {
        tensors: {
          ...step.tensors,
          input: { type: "f32", data: input },
          norm: { type: "f32", data: norm },
          logits: {
            type: "f32",
            data: garbage((isLast ? 1 : step.rows) * vocabulary),
          },
        },
        matrices: { weight },
        record: (kernels, stage) =>
          kernels.lmHead({
            logits: stage.buffer("logits"),
            hidden: stage.buffer("input"),
            norm: stage.buffer("norm"),
            weight: stage.matrix("weight"),
            rows,
            step: step.at(stage),
            sizes,
          }),
      },
      check(actual, expected, precision) {
        assertWithin(actual.logits!.f32, expected.logits!.f32, {
          what: "logits",
          bound: (i) => {
            const row = isLast
              ? step.live.at(-1)?.row ?? 0
              : Math.floor(i / vocabulary);
            return isAmong(step.live, row)
              ? products.error(row, i % vocabulary, precision)
              : 0;
          },
        });
      },
    }),
  };
}

/** Steps that every product is tried with. */
const steps: readonly (readonly [string, SceneStep])[] = [
  ["for one row", decodeStep([7])],
  ["for 5 rows, one finished", decodeStep([1, 2, 3, 4, 5], { finished: [2] })],
  [
    "for 11 rows, all but one finished",
    decodeStep(
      Array.from({ length: 11 }, (_, i) => i),
      { finished: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9] },
    ),
  ],
  ["for a chunk of 3 of 6 rows", prefillStep({ rows: 6, live: 3 })],
  [
    "for a chunk of 2 of 9 rows and 5 guests",
    prefillStep({ rows: 9, live: 2, guests: 5 }),
  ],
  ["for a chunk of 70 of 150 rows", prefillStep({ rows: 150, live: 70 })],
  ["for an empty chunk", prefillStep({ rows: 70, live: 0 })],
];

/** All cases. */
export const matrixCases: readonly KernelCase[] = [
  embedCase("of 3 sequences, one finished", {
    step: decodeStep([5, 6, 7], { finished: [1], ids: [63, 1, 64] }),
    hidden: 36,
    vocabulary: 70,
  }),
  embedCase("of a chunk of sequence 1", {
    step: prefillStep({
      rows: 5,
      live: 4,
      sequence: 1,
      sequences: 2,
      ids: [3, 0, 3, 31, 2],
    }),
    hidden: 20,
    vocabulary: 32,
  }),
  embedCase("of a chunk with guests", {
    step: prefillStep({ rows: 5, live: 2, guests: 2, ids: [3, 0, 9, 31, 2] }),
    hidden: 20,
    vocabulary: 32,
  }),
  ...steps.flatMap(([name, step], i) => [
    projectAddCase(name, { step, rows: 37, columns: 76, hasBias: i % 2 === 0 }),
    gateUpCase(name, { step, hidden: 44, ffn: 43, hasBias: i % 2 === 1 }),
    lmHeadCase(name, { step, hidden: 132, vocabulary: 75, rows: "all" }),
    lmHeadCase(`${name}, the last`, {
      step,
      hidden: 132,
      vocabulary: 75,
      rows: "last",
    }),
  ]),
];

/** Rows of batches, and outputs, for tiles of every height in every division. */
const batches: readonly (readonly [rows: number, outputs: number])[] = [
  ...[[2, 300], [3, 1000], [8, 2], [9, 300], [16, 1100], [17, 300]] as const,
  ...[[31, 130], [33, 300], [64, 129], [65, 300], [100, 900]] as const,
  ...[[128, 62], [129, 300], [200, 130], [300, 200], [20, 890]] as const,
];

/** Rows, outputs and columns of batches of small models. */
const narrow: readonly (readonly [number, number, number])[] = [
  ...[[2, 300, 40], [5, 17, 1024], [8, 5000, 8], [9, 130, 896]] as const,
  ...[[7, 33, 1536], [16, 1100, 264], [16, 41, 2048]] as const,
];

/** Cases of products whose tiles are shared by blocks, or that a library makes. */
export const batchCases: readonly KernelCase[] = [
  ...narrow.map(([rows, outputs, columns], i) =>
    projectAddCase(
      `of ${rows} rows, ${outputs} outputs and ${columns} columns`,
      {
        step: decodeStep(Array.from({ length: rows }, (_, i) => i), {
          finished: [rows - 1],
        }),
        ...{ rows: outputs, columns, hasBias: i % 2 === 0 },
      },
    )
  ),
  gateUpCase("for 11 rows of a small model", {
    step: decodeStep(Array.from({ length: 11 }, (_, i) => i)),
    ...{ hidden: 136, ffn: 330, hasBias: true },
  }),
  gateUpCase("for a chunk of 3 of 12 rows of a small model", {
    step: prefillStep({ rows: 12, live: 3 }),
    ...{ hidden: 520, ffn: 50, hasBias: false },
  }),
  ...batches.map(([rows, outputs], i) =>
    projectAddCase(`of ${rows} rows and ${outputs} outputs`, {
      step: decodeStep(Array.from({ length: rows }, (_, i) => i), {
        finished: [rows - 1],
      }),
      rows: outputs,
      columns: [332, 64, 1000, 324][i % 4]!,
      hasBias: i % 2 === 0,
    })
  ),
  ...[[40, 40], [150, 149], [300, 17], [300, 290]].map(([rows, live]) =>
    gateUpCase(`of a chunk of ${live} of ${rows} rows, many outputs`, {
      step: prefillStep({ rows: rows!, live: live! }),
      hidden: 136,
      ffn: 330,
      hasBias: true,
    })
  ),
  lmHeadCase("for 140 rows, an odd number of outputs", {
    step: decodeStep(Array.from({ length: 140 }, (_, i) => i)),
    ...{ hidden: 68, vocabulary: 301, rows: "all" },
  }),
];

/**
 * Outputs and columns of products of one row, in every form: many columns, many
 * outputs, few. The last two are large for any device.
 */
const vectors: readonly (readonly [number, number])[] = [
  ...[[130, 2100], [901, 40], [3, 4000], [1500, 520]] as const,
  ...[[2, 8], [600, 1100], [3, 12288], [6500, 2060], [671, 20000]] as const,
];

/** Cases of products of one row. */
export const vectorCases: readonly KernelCase[] = [
  ...vectors.map(([rows, columns], i) =>
    projectAddCase(`of one row, ${columns} columns and ${rows} outputs`, {
      step: decodeStep([0]),
      ...{ rows, columns, hasBias: i % 2 === 1 },
    })
  ),
  gateUpCase("for one row, many outputs", {
    step: decodeStep([3]),
    ...{ hidden: 700, ffn: 450, hasBias: true },
  }),
];

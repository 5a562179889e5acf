/**
 * Cases of keys and values of a million: numbers that bfloat16 holds, and a
 * 16-bit float does not.
 *
 * @module
 */
import { SlotField } from "../../src/backends/backend.ts";
import { chunkCase, does } from "./chunk_cases.ts";
import { decodeCase, gqa, merged, variedHeads } from "./decode_cases.ts";
import type { Draw, KernelCase } from "./kernel_case.ts";
import { modelSizes } from "./matrix_cases.ts";
import { testPolicy, votes } from "./policies.ts";
import { qkvCase } from "./qkv_cases.ts";
import type { Outcome, Scene } from "./scene.ts";
import { decodeStep, prefillStep } from "./steps.ts";
import { valueNormsCase } from "./value_norms_cases.ts";

/**
 * What keys and values are multiplied by. A power of two changes no rounding,
 * so the bounds of the case hold as they are once it is taken out again.
 */
const FACTOR = 2 ** 20;

/** Tensors by what they are multiplied by, as powers of {@link FACTOR}. */
type Powers = Readonly<Record<string, -1 | 1>>;

/** Keys and values are large, queries small, and so are logits what they were. */
const attended: Powers = {
  keys: 1,
  values: 1,
  stageKeys: 1,
  stageValues: 1,
  output: 1,
  queries: -1,
  sinkQueries: -1,
};

/** Values are large, and so are their norms, of all that slots have beside them. */
const normed: Powers = {
  values: 1,
  stageValues: 1,
  side: 1,
  stageSide: 1,
};

/** The norm of the input makes everything large. */
const appended: Powers = { ...attended, norm: 1, queries: 1, sinkQueries: 1 };

/** The same case with larger numbers. */
function enlarge(kernelCase: KernelCase, powers: Powers): KernelCase {
  return {
    name: `${kernelCase.name}, keys and values of a million`,
    draw: (seed) => enlargeDraw(kernelCase.draw(seed), powers),
    ...(kernelCase.expect && {
      expect: (scene, expected) => kernelCase.expect!(scene, expected),
    }),
  };
}

function enlargeDraw(draw: Draw, powers: Powers): Draw {
  /** The same numbers, multiplied by what they are larger, or divided by it. */
  const scale = (name: string, values: Float32Array, sign: number) => {
    const factor = FACTOR ** (sign * (powers[name] ?? 0));
    const isLarge = name === "side" || name === "stageSide"
      ? normsOf(values.length)
      : () => true;
    return values.map((x, i) => isLarge(i) ? x * factor : x);
  };
  const tensors: Record<string, Scene["tensors"][string]> = {};
  for (const [name, { type, data }] of Object.entries(draw.scene.tensors)) {
    tensors[name] = powers[name] === undefined
      ? { type, data }
      : { type, data: scale(name, data as Float32Array, 1) };
  }
  const reduced = (outcome: Outcome): Outcome =>
    Object.fromEntries(
      Object.entries(outcome).map(([name, tensor]) => {
        if (powers[name] === undefined) return [name, tensor];
        const f32 = scale(name, tensor.f32, -1);
        return [name, { f32, u32: new Uint32Array(f32.buffer) }];
      }),
    );
  return {
    scene: { ...draw.scene, tensors },
    ...(draw.jitter && { jitter: (precision) => draw.jitter!(precision) }),
    check: (actual, expected, precision) =>
      draw.check(reduced(actual), reduced(expected), precision),
  };
}

/** Which of so many fields of slots with one vote lane are norms of values. */
function normsOf(length: number): (i: number) => boolean {
  const total = length / (SlotField.bias + 1);
  return (i) => Math.floor(i / total) === SlotField.valueNorm;
}

const wide = modelSizes({ hidden: 44, heads: 4, kvHeads: 2, headDim: 20 });

/** All cases; no 16-bit float can hold their keys and values. */
export const largeCases: readonly KernelCase[] = [
  ...[
    decodeStep([40, 70_000, 256]),
    prefillStep({ rows: 40, live: 38, position: 300 }),
  ].map((step) =>
    enlarge(
      qkvCase({
        name: `of a ${step.kind} step`,
        sizes: wide,
        step,
        hasSinkQueries: true,
      }),
      appended,
    )
  ),
  ...([votes({ threshold: -1 }), votes({ key: "minNorm", threshold: -1 })].map((
    merge,
  ) =>
    enlarge(
      decodeCase({
        name: `merges with ${merge.key}`,
        policy: testPolicy({ merge }),
        sizes: gqa,
        heads: [variedHeads],
        positions: [90],
        clusters: 3,
        expect: merged(2),
      }),
      attended,
    )
  )),
  ...[9, 40].map((rows) =>
    enlarge(
      chunkCase({
        name: `of ${rows} rows`,
        kernel: "prefillAttend",
        policy: testPolicy({}),
        rows,
      }),
      attended,
    )
  ),
  ...([["one token", "projected"], ["plain values", "plain"]] as const).map((
    [name, of],
  ) =>
    enlarge(
      valueNormsCase(`of ${name}`, {
        step: decodeStep([20]),
        positions: [20],
        shape: [4, 2, 16, 64],
        of,
      }),
      normed,
    )
  ),
  enlarge(
    valueNormsCase("of a chunk", {
      step: prefillStep({ rows: 40, live: 35, position: 20 }),
      positions: [20],
      shape: [3, 3, 80, 37],
    }),
    normed,
  ),
  enlarge(
    chunkCase({
      name: "merges many into one",
      kernel: "compress",
      policy: testPolicy({ merge: votes({ threshold: -1 }) }),
      heads: [
        { capacity: 13, budget: 12, recent: 4, live: 12, holes: 0 },
        { capacity: 30, budget: 10, recent: 4, live: 9, holes: 4 },
      ],
      rows: 13,
      clusters: 2,
      mergesTwice: true,
      expect: does({ merges: true, drops: false }),
    }),
    attended,
  ),
];

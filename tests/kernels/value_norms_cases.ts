/**
 * Cases of `value_norms`.
 *
 * @module
 */
import { SlotField } from "../../src/backends/backend.ts";
import { GARBAGE_KEY, makeCache } from "./cache_scene.ts";
import type { KernelCase } from "./kernel_case.ts";
import { modelSizes } from "./matrix_cases.ts";
import { Random } from "./random.ts";
import type { Scene } from "./scene.ts";
import { decodeStep, prefillStep, type SceneStep } from "./steps.ts";
import { assertWithin, F32, sumError } from "./tolerance.ts";

/** Makes a case of `value_norms`. */
export function valueNormsCase(
  name: string,
  { step, positions, shape, of = "projected" }: {
    step: SceneStep;
    /** Tokens before the step, per sequence. */
    positions: readonly number[];
    /** Heads, KV heads, their width, and outputs of the projection. */
    shape: readonly [number, number, number, number];
    of?: "projected" | "plain";
  },
): KernelCase {
  const [heads, kvHeads, headDim, hidden] = shape;
  const sizes = modelSizes({ heads, kvHeads, headDim, hidden });
  const columns = heads * headDim;
  const weight = {
    rows: hidden,
    columns,
    data: new Random(2).halves(hidden * columns, 0.1),
  };
  return {
    name: `value_norms ${name}`,
    draw(seed) {
      const random = new Random(seed);
      const cache = makeCache({
        sizes,
        lanes: 1,
        stageRows: step.kind === "prefill" ? step.rows + 2 : 1,
        heads: positions.map(() =>
          Array.from({ length: kvHeads }, (_, head) => ({
            capacity: 12,
            budget: 11,
            recent: 2,
            // The first head is full: nothing was appended to it.
            live: head === 0 && kvHeads > 1 ? 12 : 7,
            holes: head === 0 && kvHeads > 1 ? 0 : 3,
          }))
        ),
        positions,
        clusters: 0,
        hasNewest: step.kind === "decode",
        random,
      });
      const scene: Scene = {
        tensors: { ...step.tensors, ...cache.tensors },
        matrices: { weight },
        record: (kernels, stage) =>
          kernels.valueNorms({
            ...(of === "projected" && { weight: stage.matrix("weight") }),
            cache: cache.at(stage),
            step: step.at(stage),
            sizes,
          }),
      };
      // Every element of the projection is a sum of `headDim` products, and the
      // norm a sum of as many of them as there are; the reference rounds once.
      // For norms of values, half of the error of a sum is left by the root,
      // which adds 2 units at most.
      const bound = (norm: number, magnitude: number) =>
        of === "projected"
          ? sumError(headDim, magnitude) +
            sumError(hidden * heads / kvHeads, norm) + 2 * F32 * norm
          : (sumError(headDim, norm) + 8 * F32 * norm);
      return {
        scene,
        check(actual, expected) {
          for (
            const [values, side, total] of [
              ["values", "side", cache.slots],
              ["stageValues", "stageSide", cache.stageSlots],
            ] as const
          ) {
            const magnitude = largestProduct(
              scene.tensors[values]!.data as Float32Array,
              { weight: weight.data, headDim, hidden },
            );
            assertWithin(actual[side]!.f32, expected[side]!.f32, {
              what: side,
              bound: (i) => {
                const before = scene.tensors[side]!.data[i];
                const norm = expected[side]!.f32[i]!;
                const isNorm = Math.floor(i / total) === SlotField.valueNorm;
                // What is not a norm, or not of this step, stays.
                return isNorm && norm !== before ? bound(norm, magnitude) : 0;
              },
            });
          }
        },
      };
    },
  };
}

/** An upper bound on `Σ |v · w|` over the outputs of one head's projection. */
function largestProduct(
  values: Float32Array,
  { weight, headDim, hidden }: {
    weight: Float32Array;
    headDim: number;
    hidden: number;
  },
): number {
  const largest = (data: Float32Array) =>
    data.reduce((max, x) => Math.max(max, Math.abs(x)), 0);
  return hidden * headDim * largest(weight) *
    // Slots that are not live hold garbage.
    largest(values.filter((x) => x !== -GARBAGE_KEY));
}

/** All cases. */
export const valueNormsCases: readonly KernelCase[] = [
  valueNormsCase("of one token", {
    step: decodeStep([20]),
    positions: [20],
    shape: [4, 2, 16, 64],
  }),
  valueNormsCase("of 3 sequences, one finished", {
    step: decodeStep([20, 33, 9], { finished: [1] }),
    positions: [20, 33, 9],
    shape: [6, 2, 20, 70],
  }),
  ...([[3, 3, 80, 37], [16, 1, 48, 130], [5, 1, 256, 66]] as const).map((
    shape,
  ) =>
    valueNormsCase(`of a chunk, ${shape.join(" ")}`, {
      step: prefillStep({
        rows: 40,
        live: 35,
        position: 50,
        sequence: 1,
        sequences: 2,
      }),
      positions: [12, 50],
      shape,
    })
  ),
  valueNormsCase("of an empty chunk", {
    step: prefillStep({ rows: 6, live: 0 }),
    positions: [20],
    shape: [2, 1, 8, 16],
  }),
  ...[
    decodeStep([20]),
    prefillStep({ rows: 40, live: 35, position: 20 }),
  ].map((step) =>
    valueNormsCase(`of plain values, ${step.kind}`, {
      step,
      positions: [20],
      shape: [4, 2, 36, 8],
      of: "plain",
    })
  ),
];

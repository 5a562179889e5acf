/**
 * Cases of `query_statistics`.
 *
 * @module
 */
import {
  type ModelSizes,
  queryStatisticsLayout,
} from "../../src/backends/backend.ts";
import {
  inverseFrequencies,
  meanRotation,
  ropeTable,
} from "../../src/model/rope.ts";
import { makeCache } from "./cache_scene.ts";
import type { KernelCase } from "./kernel_case.ts";
import { modelSizes } from "./matrix_cases.ts";
import { testPolicy } from "./policies.ts";
import { Random } from "./random.ts";
import type { Scene } from "./scene.ts";
import { decodeStep, prefillStep, type SceneStep } from "./steps.ts";
import { assertWithin, F32 } from "./tolerance.ts";

function queryStatisticsCase(
  name: string,
  { step, sizes, scale = 1 }: {
    step: SceneStep;
    sizes: ModelSizes;
    /** What the table multiplies with, as YaRN's does. */
    scale?: number;
  },
): KernelCase {
  const { heads, kvHeads, headDim } = sizes;
  const policy = testPolicy({
    score: { kind: "expected", horizon: 30 },
    merge: { kind: "drop" },
    sinks: 3,
  });
  return {
    name: `query_statistics ${name}`,
    draw(seed) {
      const random = new Random(seed);
      const sequences = step.kind === "decode" ? step.rows : 2;
      const cache = makeCache({
        sizes,
        lanes: 1,
        hasStatistics: true,
        stageRows: 1,
        heads: Array.from({ length: sequences }, () =>
          Array.from(
            { length: kvHeads },
            () => ({ capacity: 4, budget: 3, recent: 1, live: 2, holes: 0 }),
          )),
        positions: Array.from({ length: sequences }, () => 9),
        clusters: 0,
        hasNewest: false,
        random,
      });
      const { inverse } = inverseFrequencies(
        { type: "default", theta: 10_000 },
        headDim,
      );
      // About the same mean, so that it does not vanish.
      const queries = random.floats(step.rows * heads * headDim)
        .map((x) => 1 + x);
      const scene: Scene = {
        tensors: {
          ...step.tensors,
          ...cache.tensors,
          queries: { type: "f32", data: queries },
          rope: { type: "f32", data: ropeTable(inverse, scale) },
          ahead: {
            type: "f32",
            data: meanRotation(inverse, 30),
          },
        },
        record: (kernels, stage) =>
          kernels.queryStatistics({
            queries: stage.buffer("queries"),
            rope: stage.buffer("rope"),
            ahead: stage.buffer("ahead"),
            cache: cache.at(stage),
            step: step.at(stage),
            sizes,
            policy,
          }),
      };
      const layout = queryStatisticsLayout(headDim);
      const statistics = scene.tensors.statistics!.data;
      // No query, no mean and no distance from it is longer.
      const largest = (data: ArrayLike<number>) =>
        Array.from(data).reduce((max, x) => Math.max(max, Math.abs(x)), 0);
      const means = statistics.filter((_, i) => i % layout.length < headDim);
      const q = 2 * Math.SQRT2 *
        Math.max(largest(queries) / scale, largest(means));
      // An angle is a product of three complex numbers, each as long as 1 to a
      // rounding: 4 roundings per product, and as many to turn by it or back.
      const turned = 16 * F32;
      // Counting a query rounds the share, the difference, the product and the
      // sum, at the size of a query; squares have twice as many errors of twice
      // the size. The reference rounds what it stores once per query, too.
      const rows = step.kind === "decode" ? 1 : step.live.length;
      const mean = q * (turned + 5 * F32 * (rows + 1));
      const scatter = q * q * (4 * turned + 20 * F32 * (rows + 1));
      return {
        scene,
        check(actual, expected) {
          assertWithin(
            actual.statistics!.f32,
            expected.statistics!.f32,
            {
              what: "statistics",
              bound(index) {
                const i = index % layout.length;
                if (i === layout.count) return 0;
                if (i >= layout.variance) {
                  return scale ** 2 * (scatter + turned * q * q) / 2;
                }
                if (i >= layout.future) return scale * (mean + turned * q);
                return i < layout.scatter ? mean : scatter;
              },
            },
          );
        },
      };
    },
  };
}

/** All cases. */
export const queryStatisticsCases: readonly KernelCase[] = [
  queryStatisticsCase("of 4 sequences, one finished, one at a sink", {
    step: decodeStep([20, 33, 70_000, 2], { finished: [1] }),
    sizes: modelSizes({ heads: 4, kvHeads: 2, headDim: 16 }),
  }),
  ...([[3, 3, 80], [2, 1, 256], [4, 2, 4]] as const).map((
    [heads, kvHeads, headDim],
  ) =>
    queryStatisticsCase(`of a chunk, width ${headDim}`, {
      step: prefillStep({
        rows: 40,
        live: 37,
        position: 300,
        sequence: 1,
        sequences: 2,
      }),
      sizes: modelSizes({ heads, kvHeads, headDim }),
      scale: 1.3,
    })
  ),
  ...[0, 2, 5].map((live) =>
    queryStatisticsCase(`of the first ${live} tokens of a text`, {
      step: prefillStep({ rows: 9, live, sequence: 0, sequences: 2 }),
      sizes: modelSizes({ heads: 2, kvHeads: 1, headDim: 20 }),
    })
  ),
];

import { assert, assertAlmostEquals, assertRejects } from "@std/assert";
import { readHeads } from "../../src/evaluate/live_slots.ts";
import { openEngine } from "../../src/evaluate/model.ts";
import { measureProfile } from "../../src/evaluate/profile.ts";
import { withSetting } from "../../src/evaluate/settings.ts";
import { TappedBackend } from "../../src/evaluate/tapped_backend.ts";
import { fullCache } from "../../src/policies/full_cache.ts";
import { eachBackend } from "../backends/each_backend.ts";
import { tinyConfig } from "../generate/tiny_model.ts";
import { tinyEvaluation } from "./tiny_evaluation.ts";

const text = Array.from({ length: 40 }, (_, i) => (i * i + 5 * i) % 64);
const { heads, kvHeads, headDim } = tinyConfig.sizes;

eachBackend(
  "a profile is that of the last row's attention weights",
  async (backend) => {
    using model = tinyEvaluation(backend);
    const { mass, variance } = await measureProfile(model, [text], {
      rows: 1,
      points: 40,
    });
    await using tap = new TappedBackend(backend, { queries: true });
    const whole = { promptLength: text.length, chunk: 1 };
    using engine = await openEngine(
      model,
      withSetting(fullCache({ budget: text.length }), "whole", whole),
      { backend: tap },
    );
    engine.prefill(text, { then: "nothing" });
    const [cache] = await readHeads(engine.cache, model);
    for (const [layer, all] of cache!.entries()) {
      const queries = (await tap.readQueries(
        layer,
        text.length * heads * headDim,
      )).slice(-heads * headDim);
      let spread = 0;
      for (const [kvHead, { slots }] of all.entries()) {
        const weights = slots.map(() => 0);
        const group = heads / kvHeads;
        for (let g = 0; g < group; g++) {
          const at = (kvHead * group + g) * headDim;
          const query = queries.subarray(at, at + headDim);
          const powers = slots.map(({ key }) =>
            Math.exp(
              key.reduce((sum, k, i) => sum + k * query[i]!, 0) /
                Math.sqrt(headDim),
            )
          );
          const total = powers.reduce((a, b) => a + b);
          powers.forEach((p, i) => weights[i]! += p / total / group);
        }
        let retained = 0;
        weights.toSorted((a, b) => b - a).forEach((weight, i) => {
          retained += weight;
          // f32 softmax of 40 logits: 1e-5 is far above its rounding.
          assertAlmostEquals(mass[layer]![kvHead]![i]!, retained, 1e-5);
        });
        const mean = 1 / text.length;
        spread += weights.reduce((sum, w) => sum + (w / mean - 1) ** 2, 0) /
          text.length / kvHeads;
      }
      assert(spread > 1e-3);
      assertAlmostEquals(variance[layer]!, spread, 1e-4 * (1 + spread));
    }
  },
);

eachBackend(
  "a profile is the mean over texts of any length",
  async (backend) => {
    using model = tinyEvaluation(backend);
    const other = text.map((id) => (id * 3 + 1) % 64).slice(0, 23);
    const options = { rows: 8, points: 10 };
    const measure = (...texts: number[][]) =>
      measureProfile(model, texts, options);
    const [first, second, both] = [
      await measure(text),
      await measure(other),
      await measure(text, other),
    ];
    both.mass.forEach((layer, l) =>
      layer.forEach((curve, h) => {
        assertAlmostEquals(curve.at(-1)!, 1, 1e-12);
        curve.forEach((value, i) => {
          assertAlmostEquals(
            value,
            (first.mass[l]![h]![i]! + second.mass[l]![h]![i]!) / 2,
            1e-12,
          );
          // Rising, and ever slower.
          const step = (at: number) => (curve[at] ?? 0) - (curve[at - 1] ?? 0);
          assert(step(i) > 0);
          if (i > 0) assert(step(i) <= step(i - 1) + 1e-12);
        });
      })
    );
    await assertRejects(() => measure(), RangeError, "on 0 texts");
  },
);

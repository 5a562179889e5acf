import {
  assert,
  assertAlmostEquals,
  assertEquals,
  assertRejects,
} from "@std/assert";
import { Engine } from "../../src/generate/engine.ts";
import { scoreTokens } from "../../src/generate/score_tokens.ts";
import { randomWeights } from "../../src/model/random_weights.ts";
import { fullCache } from "../../src/policies/full_cache.ts";
import { keepKV } from "../../src/policies/keep_kv.ts";
import type { Schedule } from "../../src/policies/parts.ts";
import { weightedKV } from "../../src/policies/weighted_kv.ts";
import { eachBackend } from "../backends/each_backend.ts";
import { tinyConfig } from "./tiny_model.ts";

const { vocabulary } = tinyConfig.sizes;
const ids = Array.from({ length: 220 }, (_, i) => (i * i + 3 * i) % vocabulary);
const prompt = ids.slice(0, 20);
const continuation = ids.slice(20);

eachBackend(
  "scoreTokens() gives the probabilities that prefill gives",
  async (backend) => {
    using weights = randomWeights(backend, tinyConfig, 2);
    using engine = new Engine({
      backend,
      config: tinyConfig,
      weights,
      policy: fullCache({ budget: 256 }),
    });
    const options = { stepsPerRead: 8 };
    const texts = [{ prompt, continuation }];
    const [scores] = await scoreTokens(engine, texts, options);
    assertEquals(scores!.length, 200);
    engine.reset();
    engine.prefill(ids, { then: "logits" });
    const logits = await engine.readLogits(ids.length);
    for (const [i, score] of scores!.entries()) {
      const row = logits.subarray((19 + i) * vocabulary, (20 + i) * vocabulary);
      const sum = row.reduce((total, x) => total + Math.exp(x), 0);
      const expected = row[continuation[i]!]! - Math.log(sum);
      // Both read the same stored keys; only the order of f32 sums differs, over
      // 220 slots, 4 heads and 2 layers. CUDA rounds the activations of so long
      // a chunk to 2⁻¹¹ of themselves in each of 9 products in a row, on the way
      // to logits whose terms add up to 1 or so.
      const tolerance = backend.name === "cuda" ? 9 * 2 ** -11 : 2 ** -12;
      assert(
        Math.abs(score - expected) < tolerance,
        `${i}: ${score} ${expected}`,
      );
    }
  },
);

eachBackend("scoreTokens() compresses at every step", async (backend) => {
  using weights = randomWeights(backend, tinyConfig, 2);
  using engine = new Engine({
    backend,
    config: tinyConfig,
    weights,
    policy: keepKV({ budget: 32 }),
  });
  const options = { stepsPerRead: 8 };
  const texts = [{ prompt, continuation }];
  const [scores] = await scoreTokens(engine, texts, options);
  assert(scores!.every((score) => score < 0 && score > -30));
  const { liveSlots, merges, drops } = await engine.cache.stats();
  assertEquals(liveSlots, 32);
  assert(merges + drops > 0);
});

eachBackend("texts together get the scores of each alone", async (backend) => {
  using weights = randomWeights(backend, tinyConfig, 2);
  const options = { stepsPerRead: 8 };
  const parts = { backend, config: tinyConfig, weights };
  // CUDA adds the products of a batch up in another order: about 100 terms of
  // magnitude 10 and less, each rounded to 2⁻²⁴ of the sum.
  const tolerance = backend.name === "cuda" ? 100 * 10 * 2 ** -24 : 0;
  // Prompts and continuations of different lengths.
  const texts = [[0, 20, 70], [30, 45, 46], [7, 60, 99], [100, 140, 170]].map((
    [start, middle, end],
  ) => ({
    prompt: ids.slice(start, middle),
    continuation: ids.slice(middle, end),
  }));
  for (const create of [keepKV, weightedKV]) {
    const policy = create({
      budget: 16,
      schedule: { kind: "streaming", chunk: 16 },
    });
    using together = new Engine({ ...parts, policy, sequences: texts.length });
    const scores = await scoreTokens(together, texts, options);
    using alone = new Engine({ ...parts, policy });
    for (const [i, text] of texts.entries()) {
      alone.reset();
      const [expected] = await scoreTokens(alone, [text], options);
      assertEquals(scores[i]!.length, expected!.length);
      scores[i]!.forEach((score, j) =>
        assertAlmostEquals(score, expected![j]!, tolerance)
      );
    }
    await assertRejects(
      () => scoreTokens(alone, texts, options),
      RangeError,
      "Cannot score 4 texts",
    );
  }
});

eachBackend("a prompt read whole is compressed once", async (backend) => {
  using weights = randomWeights(backend, tinyConfig, 2);
  const options = { stepsPerRead: 8 };
  const text = { prompt: ids.slice(0, 60), continuation: ids.slice(60, 90) };
  const score = async (schedule: Schedule) => {
    const policy = keepKV({ budget: 16, schedule });
    using engine = new Engine({ backend, config: tinyConfig, weights, policy });
    const [scores] = await scoreTokens(engine, [text], options);
    return scores;
  };
  // Room for longer prompts changes nothing.
  assertEquals(
    await score({ kind: "whole", longest: 100 }),
    await score({ kind: "streaming", chunk: 60 }),
  );
  await assertRejects(
    () => score({ kind: "whole", longest: 59 }),
    RangeError,
    "Cannot read 60 tokens in one piece: expected at most 59",
  );
  await assertRejects(
    () => score({ kind: "whole", longest: 0 }),
    RangeError,
    "schedule.longest is 0",
  );
});

import {
  assert,
  assertAlmostEquals,
  assertEquals,
  assertRejects,
} from "@std/assert";
import { CpuBackend } from "../../src/backends/cpu/cpu_backend.ts";
import { attendOnHost } from "../../src/evaluate/host_attention.ts";
import { readHeads } from "../../src/evaluate/live_slots.ts";
import { measureMemory } from "../../src/evaluate/memory.ts";
import { readMergeStatistics } from "../../src/evaluate/merge_statistics.ts";
import { type EvaluationModel, openEngine } from "../../src/evaluate/model.ts";
import {
  measurePerturbation,
  probeAttention,
  probeQueries,
} from "../../src/evaluate/perturbation.ts";
import { withSetting } from "../../src/evaluate/settings.ts";
import { TappedBackend } from "../../src/evaluate/tapped_backend.ts";
import { fullCache } from "../../src/policies/full_cache.ts";
import { h2o } from "../../src/policies/h2o.ts";
import { keepKV } from "../../src/policies/keep_kv.ts";
import type { Policy } from "../../src/policies/parts.ts";
import { streamingLlm } from "../../src/policies/streaming_llm.ts";
import type { HostMatrix } from "../../src/reference/host.ts";
import { eachBackend } from "../backends/each_backend.ts";
import { tinyConfig } from "../generate/tiny_model.ts";
import { tinyEvaluation } from "./tiny_evaluation.ts";

// No more than 32 tokens: every backend reads them with 32-bit precision.
const ids = Array.from({ length: 32 }, (_, i) => (i * i + 5 * i) % 64);
const prompt = ids.slice(0, 28);
const { heads, headDim, hidden } = tinyConfig.sizes;

function whole(policy: Policy): Policy {
  return withSetting(policy, "whole", { promptLength: 28, chunk: 1 });
}

/** What the last layer's heads read at the token after the prompt. */
async function realOutputs(
  model: EvaluationModel,
  policy: Policy,
): Promise<Float32Array> {
  await using tap = new TappedBackend(model.backend, { queries: false });
  using engine = await openEngine(model, policy, { backend: tap });
  engine.prefill(prompt, { then: "nothing" });
  engine.prefill(ids.slice(28, 29), { then: "nothing" });
  return await tap.readLabelled("attention", heads * headDim);
}

eachBackend(
  "the probe reads what the engine's attention gives",
  async (backend) => {
    using model = tinyEvaluation(backend);
    const { layers } = await probeAttention(model, {
      prompt,
      continuation: ids.slice(28, 29),
    });
    const real = await realOutputs(model, whole(fullCache({ budget: 32 })));
    const own = layers.at(-1)!.outputs[0]!.flatMap((o) => [...o]);
    // f32 sums of 29 products against f64: 29 · 2^-24 of values near 1.
    own.forEach((value, i) => assertAlmostEquals(value, real[i]!, 1e-5));
  },
);

eachBackend(
  "window queries read what the engine's attention gives at the prompt's end",
  async (backend) => {
    using model = tinyEvaluation(backend);
    const { first, layers } = await probeAttention(model, {
      prompt,
      continuation: ids.slice(28),
    }, { queries: "window" });
    assertEquals(first, 24);
    await using tap = new TappedBackend(backend, { queries: false });
    const policy = whole(fullCache({ budget: 32 }));
    using engine = await openEngine(model, policy, { backend: tap });
    engine.prefill(prompt, { then: "nothing" });
    const width = heads * headDim;
    const real = (await tap.readLabelled("attention", 28 * width))
      .subarray(24 * width);
    const own = layers.at(-1)!.outputs.flatMap((row) =>
      row.flatMap((o) => [...o])
    );
    assertEquals(own.length, real.length);
    // f32 sums of 28 products against f64: 28 · 2^-24 of values near 1.
    own.forEach((value, i) => assertAlmostEquals(value, real[i]!, 1e-5));
  },
);

// StreamingLLM keeps the same positions whatever the attention, so what a
// query of the window reads is known: those of them that it may see.
Deno.test("window queries read what is left up to their own position", async () => {
  await using backend = new CpuBackend();
  using model = tinyEvaluation(backend);
  const probe = await probeAttention(model, {
    prompt,
    continuation: ids.slice(28, 31),
  }, { queries: "window" });
  const policy = whole(
    streamingLlm({ budget: 8, sinks: 2, sinkPositions: "text" }),
  );
  const { absolute } = await measurePerturbation(model, policy, probe);
  using engine = await openEngine(model, whole(fullCache({ budget: 28 })));
  engine.prefill(prompt, { then: "nothing" });
  const [full] = await readHeads(engine.cache, model);
  const weights = await model.weights();
  const group = heads / tinyConfig.sizes.kvHeads;
  absolute.forEach((byHead, layer) =>
    byHead.forEach((value, head) => {
      const { slots } = full![layer]![Math.floor(head / group)]!;
      const matrix = weights.layers[layer]!.output as unknown as HostMatrix;
      const changes = [25, 26, 27].map((position, row) => {
        const read = (keeps: (position: number) => boolean) =>
          attendOnHost({
            query: probe.layers[layer]!.queries[row]![head]!,
            slots: slots.filter((slot) =>
              slot.position <= position && keeps(slot.position)
            ),
            lane: 0,
          });
        const all = read(() => true);
        const left = read((p) => p < 2 || p >= 22);
        let norm = 0;
        for (let i = 0; i < hidden; i++) {
          const at = i * matrix.columns + head * headDim;
          norm += Math.abs(
            all.reduce(
              (sum, x, e) => sum + (x - left[e]!) * matrix.f32[at + e]!,
              0,
            ),
          );
        }
        return norm;
      });
      const mean = changes.reduce((a, b) => a + b) / 3;
      assert(mean > 0.01);
      // Products of f32 against f64, `hidden` sums over `headDim` of them.
      const bound = hidden * headDim * 2 ** -22;
      assertAlmostEquals(value, mean, bound);
    })
  );
});

Deno.test("probeAttention() asks for a prompt before the window", async () => {
  await using backend = new CpuBackend();
  using model = tinyEvaluation(backend);
  await assertRejects(
    () =>
      probeAttention(
        model,
        { prompt: [1, 2], continuation: [3, 4] },
        { queries: "window" },
      ),
    RangeError,
    "Cannot measure the last 2 queries of a prompt of 2 tokens",
  );
});

// A single layer's queries do not depend on the cache, so the engine's own
// outputs under full and compressed cache give the perturbation.
Deno.test("perturbation is that of the engine's outputs behind W_O", async () => {
  await using backend = new CpuBackend();
  using model = tinyEvaluation(backend, { ...tinyConfig, layers: 1 });
  const weights = await model.weights();
  const matrix = weights.layers[0]!.output as unknown as HostMatrix;
  const full = await realOutputs(model, whole(fullCache({ budget: 32 })));
  const probe = await probeAttention(model, {
    prompt,
    continuation: ids.slice(28, 29),
  });
  const policies = [
    keepKV({ budget: 14 }),
    keepKV({ budget: 14, threshold: -1, votesPerQueryHead: true }),
    h2o({ budget: 14 }),
    streamingLlm({ budget: 14 }),
    streamingLlm({ budget: 14, sinkPositions: "text" }),
  ];
  for (const policy of policies.map(whole)) {
    const other = await realOutputs(model, policy);
    const { absolute, relative } = await measurePerturbation(
      model,
      policy,
      probe,
    );
    for (let head = 0; head < heads; head++) {
      const norm = (valueOf: (at: number) => number) => {
        let sum = 0;
        for (let row = 0; row < hidden; row++) {
          let x = 0;
          for (let i = head * headDim; i < (head + 1) * headDim; i++) {
            x += valueOf(i) * matrix.f32[row * matrix.columns + i]!;
          }
          sum += Math.abs(x);
        }
        return sum;
      };
      const expected = norm((i) => full[i]! - other[i]!);
      // Each output is right to 1e-5; there are `hidden` sums over `headDim`
      // of them with weights near 1 / √hidden.
      const bound = 1e-5 * hidden * Math.sqrt(headDim);
      assertAlmostEquals(absolute[0]![head]!, expected, bound, policy.name);
      const share = expected / norm((i) => full[i]!);
      assertAlmostEquals(relative[0]![head]!, share, 1e-3, policy.name);
      assert(expected > 0.01, `${policy.name} changes nothing`);
    }
  }
});

eachBackend(
  "a budget that holds the prompt perturbs nothing",
  async (backend) => {
    using model = tinyEvaluation(backend);
    for (const queries of probeQueries) {
      const probe = await probeAttention(model, {
        prompt,
        continuation: ids.slice(28),
      }, { queries });
      for (const create of [keepKV, h2o, streamingLlm]) {
        const policy = whole(create({ budget: 60 }));
        const { absolute } = await measurePerturbation(model, policy, probe);
        // The probe reads a window apart from the prompt before it, so keys
        // and values may round to another half: 2^-11 of values near 1, whose
        // mean an output is, in each of the `hidden` sums of a norm.
        const bound = queries === "after" ? 0 : hidden * 2 ** -11;
        for (const value of absolute.flat()) {
          assertAlmostEquals(value, 0, bound);
        }
      }
    }
  },
);

Deno.test("merge statistics account for every token", async () => {
  await using backend = new CpuBackend();
  using model = tinyEvaluation(backend);
  const policy = whole(keepKV({
    budget: 14,
    key: "minNorm",
    threshold: 0.5,
    prefill: "evictFirst",
  }));
  using engine = await openEngine(model, policy);
  engine.prefill(prompt, { then: "nothing" });
  const [statistics] = await readMergeStatistics(engine.cache, model);
  const { layers, votes } = statistics!;
  const [read] = await readHeads(engine.cache, model);
  const stats = await engine.cache.stats();
  const { kvHeads } = tinyConfig.sizes;
  read!.forEach((byHead, l) => {
    const layer = layers[l]!;
    const tokens = byHead.flatMap(({ slots }) => slots)
      .reduce((sum, slot) => sum + slot.tokens, 0);
    assertEquals(tokens + layer.droppedTokens, kvHeads * prompt.length);
  });
  const sum = (counter: "merged" | "dropped" | "droppedTokens") =>
    layers.reduce((total, layer) => total + layer[counter], 0);
  assert(stats.merges > 0 && stats.drops > 0);
  assertEquals(sum("merged"), stats.merges);
  assertEquals(sum("dropped"), stats.drops);
  assertEquals(sum("droppedTokens"), stats.droppedTokens);
  const slots = read!.flat().flatMap(({ slots }) => slots);
  assertEquals(votes.reduce((a, b) => a + b, 0), slots.length);
  // With minNorm votes are whole numbers of tokens.
  const pairs = slots.filter(({ tokens }) => tokens === 2 || tokens === 3);
  assertEquals(votes[1] ?? 0, pairs.length);
  for (const { bias, tokens } of slots) {
    assertAlmostEquals(Math.exp(bias[0]!), tokens, 1e-5 * tokens);
  }
});

Deno.test("memory is what the device holds, with the stage apart", async () => {
  await using backend = new CpuBackend();
  using model = tinyEvaluation(backend);
  const policy = h2o({ budget: 14 });
  const measure = (chunk: number) =>
    measureMemory(model, { ...policy, schedule: { kind: "streaming", chunk } });
  const [small, large] = [measure(8), measure(40)];
  assertEquals(small.slotBytes, large.slotBytes);
  assertEquals(large.stageBytes, 5 * small.stageBytes);
  using engine = await openEngine(model, {
    ...policy,
    schedule: { kind: "streaming", chunk: 8 },
  });
  assertEquals(small.slotBytes + small.stageBytes, engine.cache.bytes);
});

import {
  assert,
  assertAlmostEquals,
  assertEquals,
  assertRejects,
} from "@std/assert";
import { CpuBackend } from "../../src/backends/cpu/cpu_backend.ts";
import { compareLogits } from "../../src/evaluate/agreement.ts";
import { forcedLogits } from "../../src/evaluate/forced_logits.ts";
import { measureHeadLosses } from "../../src/evaluate/head_losses.ts";
import type { ModelConfig } from "../../src/model/config.ts";
import { checkHeadLosses } from "../../src/policies/allocations/head_losses.ts";
import { fullCache } from "../../src/policies/full_cache.ts";
import { h2o } from "../../src/policies/h2o.ts";
import type { Budget, Policy } from "../../src/policies/parts.ts";
import { eachBackend } from "../backends/each_backend.ts";
import { tinyConfig } from "../generate/tiny_model.ts";
import { tinyEvaluation } from "./tiny_evaluation.ts";

const texts = [1, 2].map((k) =>
  Array.from({ length: 30 }, (_, i) => (i * i * k + 5 * i + k) % 64)
);
const budgets = [9, 12];
const policy = ({ budget }: { budget: Budget }): Policy =>
  h2o({ budget, sinks: 2, recent: 0.25 });

eachBackend("losses are those of a head alone", async (backend) => {
  using model = tinyEvaluation(backend);
  const { layers, sizes: { kvHeads } } = tinyConfig;
  const seen: number[] = [];
  const losses = await measureHeadLosses(model, texts, {
    budgets,
    policy,
    onProgress: (done) => seen.push(done),
  });
  checkHeadLosses(losses, "the test");
  assertEquals(losses.tokens, 30);
  assertEquals(losses.budgets, budgets);
  assertEquals(losses.loss.map((layer) => layer.length), [
    ...Array.from({ length: layers }, () => kvHeads),
  ]);
  const runs = layers * kvHeads * budgets.length;
  assertEquals(seen, Array.from({ length: runs + 1 }, (_, i) => i));
  for (const loss of losses.loss.flat(2)) assert(loss > 1e-9, `${loss}`);
  assert(new Set(losses.loss.flat(2)).size === runs);

  // The same by hand for the last head: all others have 30 slots or more.
  const windows = texts.map((text) => ({
    prompt: text.slice(0, 9),
    continuation: text.slice(9),
  }));
  const rows = await Array.fromAsync(
    forcedLogits(model, fullCache({ budget: 30 }), { windows }),
  );
  // 40 slots per head: 12 for the last one, 68 for the other of its layer.
  const shares = Array.from(
    { length: layers },
    (_, l) => l < layers - 1 ? [1, 1] : [68, 12],
  );
  const own: Policy = {
    ...policy({ budget: 40 }),
    allocate: {
      layers: { kind: "uniform" },
      heads: { kind: "shares", shares },
    },
    select: { ...policy({ budget: 12 }).select, recent: { slots: 3 } },
  };
  const agreements = await compareLogits(
    windows.map((_, text) => rows.map((row) => row[text]!)),
    forcedLogits(model, own, { windows }),
  );
  const mean = agreements.reduce((sum, a) => sum + a.divergence, 0) / 2;
  // The same kernels over other numbers of slots: sums in another order.
  assertAlmostEquals(
    losses.loss[layers - 1]![kvHeads - 1]![1]!,
    mean,
    1e-3 * mean,
  );
});

Deno.test("losses are measured where a layer has one head", async () => {
  await using backend = new CpuBackend();
  const config: ModelConfig = {
    ...tinyConfig,
    sizes: { ...tinyConfig.sizes, kvHeads: 1 },
  };
  using model = tinyEvaluation(backend, config);
  const { loss } = await measureHeadLosses(model, texts, { budgets, policy });
  assertEquals(loss.map((layer) => layer.length), loss.map(() => 1));
  for (const value of loss.flat(2)) assert(value > 1e-9, `${value}`);
});

Deno.test("measureHeadLosses() refuses what it cannot measure, and stops", async () => {
  await using backend = new CpuBackend();
  using model = tinyEvaluation(backend);
  const measure = (texts: number[][], budgets: number[]) =>
    measureHeadLosses(model, texts, { budgets, policy });
  await assertRejects(() => measure([], budgets), RangeError, "of no tokens");
  await assertRejects(
    () => measure([[1, 2], [1, 2, 3]], budgets),
    RangeError,
    "texts of 2, 3 tokens: expected at least one, all of one length",
  );
  for (const wrong of [[], [12, 9], [9.5], [9, 30]]) {
    await assertRejects(
      () => measure(texts, wrong),
      RangeError,
      "expected rising numbers of slots below the 30 tokens",
    );
  }
  await assertRejects(() => measure(texts, [3]), RangeError, "Cannot keep");
  const stop = new AbortController();
  await assertRejects(
    () =>
      measureHeadLosses(model, texts, {
        budgets,
        policy,
        signal: stop.signal,
        onProgress: (done) => done === 1 && stop.abort(new Error("enough")),
      }),
    Error,
    "enough",
  );
});

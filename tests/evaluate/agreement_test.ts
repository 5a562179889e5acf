import {
  assert,
  assertAlmostEquals,
  assertEquals,
  assertRejects,
} from "@std/assert";
import { CpuBackend } from "../../src/backends/cpu/cpu_backend.ts";
import {
  compareLogits,
  logitDivergence,
} from "../../src/evaluate/agreement.ts";
import { forcedLogits } from "../../src/evaluate/forced_logits.ts";
import { scoreWindows } from "../../src/evaluate/perplexity.ts";
import { withSetting } from "../../src/evaluate/settings.ts";
import { fullCache } from "../../src/policies/full_cache.ts";
import { h2o } from "../../src/policies/h2o.ts";
import { keepKV } from "../../src/policies/keep_kv.ts";
import { streamingLlm } from "../../src/policies/streaming_llm.ts";
import { tinyEvaluation } from "./tiny_evaluation.ts";

/** The rows of one text. */
async function* rows(
  ...values: readonly (readonly number[])[]
): AsyncGenerator<Float32Array[]> {
  for (const row of values) {
    yield await Promise.resolve([Float32Array.from(row)]);
  }
}

Deno.test("the divergence of two coins", () => {
  // Logits ln 1 : ln 3, so p = (1/4, 3/4); q is even.
  const p = Float32Array.of(0, Math.log(3));
  const q = Float32Array.of(5, 5);
  const expected = 0.25 * Math.log(0.25 / 0.5) + 0.75 * Math.log(0.75 / 0.5);
  // ln 3 as f32 is off by at most 1e-7.
  assertAlmostEquals(logitDivergence(p, q), expected, 1e-6);
  assertEquals(logitDivergence(p, p), 0);
  assert(logitDivergence(q, p) > 0);
});

Deno.test("agreement counts equal tops and averages divergence", async () => {
  const steps = await Array.fromAsync(rows([0, 2], [1, 0], [3, 0]));
  const full = steps.flat();
  const [result] = await compareLogits([full], rows([0, 2], [0, 1], [3, 0]));
  assertEquals(result!.tokens, 3);
  assertAlmostEquals(result!.sameTop, 2 / 3, 1e-12);
  const one = logitDivergence(full[1]!, Float32Array.of(0, 1));
  assertAlmostEquals(result!.divergence, one / 3, 1e-12);
  await assertRejects(
    () => compareLogits([full], rows([0, 2])),
    RangeError,
    "3 rows of logits with 1",
  );
});

/** Ids that repeat nothing for long. */
const ids = Array.from({ length: 60 }, (_, i) => (i * i + 3 * i) % 64);
const windows = [
  { prompt: ids.slice(0, 40), continuation: ids.slice(40) },
  { prompt: ids.slice(9, 45), continuation: ids.slice(5, 25) },
];

Deno.test("forced logits are those that scores come from", async () => {
  await using backend = new CpuBackend();
  using model = tinyEvaluation(backend);
  for (const setting of ["whole", "streaming"] as const) {
    for (const create of [keepKV, h2o, streamingLlm, fullCache]) {
      const budget = create === fullCache ? 60 : 16;
      const policy = withSetting(create({ budget }), setting, {
        promptLength: 40,
        chunk: 12,
      });
      const scores = await scoreWindows(model, policy, { windows });
      const logits = await Array.fromAsync(
        forcedLogits(model, policy, { windows }),
      );
      assertEquals(logits.length, 20);
      windows.forEach(({ continuation }, text) =>
        continuation.forEach((id, i) => {
          const row = logits[i]![text]!;
          const sum = row.reduce((total, x) => total + Math.exp(x), 0);
          const loss = scores[text]!.losses[i]!;
          // The score is rounded to f32: 2^-24 of numbers up to 16.
          assertAlmostEquals(loss, Math.log(sum) - row[id]!, 2e-6);
        })
      );
    }
  }
});

Deno.test("the settings differ in nothing but the schedule", () => {
  const policy = keepKV({ budget: 16 });
  const sizes = { promptLength: 40, chunk: 12 };
  const whole = withSetting(policy, "whole", sizes);
  const streaming = withSetting(policy, "streaming", sizes);
  assertEquals(whole.schedule, { kind: "whole", longest: 40 });
  assertEquals(streaming.schedule, { kind: "streaming", chunk: 12 });
  assertEquals({ ...whole, schedule: 0 }, { ...streaming, schedule: 0 });
  assertEquals({ ...whole, schedule: 0 }, { ...policy, schedule: 0 });
});

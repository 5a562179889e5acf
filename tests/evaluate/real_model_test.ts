/**
 * The shipped model: it knows the forms of the retrieval tasks, so that a fact
 * that is not found was lost by the cache.
 */
import { assertEquals } from "@std/assert";
import { CpuBackend } from "../../src/backends/cpu/cpu_backend.ts";
import { openEvaluationModel } from "../../src/evaluate/model.ts";
import {
  encodeRetrieval,
  promptParts,
  runRetrieval,
} from "../../src/evaluate/retrieval.ts";
import {
  createRetrieval,
  retrievalForms,
} from "../../src/evaluate/retrieval_tasks.ts";
import { withSetting } from "../../src/evaluate/settings.ts";
import { measureThroughput } from "../../src/evaluate/throughput.ts";
import { fullCache } from "../../src/policies/full_cache.ts";
import { keepKV } from "../../src/policies/keep_kv.ts";

const MODEL = new URL("../../examples/models/docs-7m/", import.meta.url);
const FILLER = `The CREATE TABLE statement makes a new table in the database.
Each column has a name and a type, and may have a constraint.
A table that exists already is an error, unless IF NOT EXISTS is given.
The SELECT statement reads rows from one or more tables.
Rows that no condition excludes are returned in no particular order.
An index is kept up to date by the database whenever a row changes.`.split(
  "\n",
);

Deno.test("the shipped model answers every form with the full cache", async () => {
  await using backend = new CpuBackend();
  using model = await openEvaluationModel(MODEL, { backend });
  for (const form of retrievalForms) {
    const place = { length: 130, depth: 0.4, seed: 3 };
    const source = { model, filler: FILLER, needles: 2 };
    const example = createRetrieval(form, place, source);
    const question = form === "needle" ? "unseen" : "seen";
    const parts = promptParts(encodeRetrieval(model, example), question);
    const policy = withSetting(fullCache({ budget: 200 }), "whole", {
      promptLength: Math.max(...parts.map(({ length }) => length)),
      chunk: 1,
    });
    const outcome = await runRetrieval(model, policy, { example, question });
    assertEquals(outcome.expected, example.answer);
    assertEquals(outcome.correct, true, `${form}: ${outcome.answer}`);
  }
});

Deno.test("throughput has the bytes that the device holds", async () => {
  await using backend = new CpuBackend();
  using model = await openEvaluationModel(MODEL, { backend });
  const result = await measureThroughput(model, keepKV({ budget: 16 }), {
    prompt: [1, 2, 3, 4, 5, 6],
    generate: 3,
    repeats: 2,
  });
  const { sizes, layers } = model.config;
  // 17 slots per head and 256 staged rows, each a key, a value and 7 fields.
  const slots = sizes.kvHeads * (17 * layers + 256);
  const table = layers * sizes.kvHeads * 16 * 4;
  assertEquals(result.cacheBytes, slots * 4 * (2 * sizes.headDim + 7) + table);
  assertEquals(result.tokensPerSecond > 0, true);
  // The generator's own copy of the weights is gone, and none was loaded here.
  assertEquals(backend.bytesAllocated, 0);
});

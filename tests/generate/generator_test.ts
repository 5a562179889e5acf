import {
  assert,
  assertAlmostEquals,
  assertEquals,
  assertInstanceOf,
  assertNotEquals,
  assertRejects,
  assertStringIncludes,
} from "@std/assert";
import { afterAll, beforeAll, describe, it } from "@std/testing/bdd";
import { CpuBackend } from "../../src/backends/cpu/cpu_backend.ts";
import { openBackend } from "../../src/backends/open_backend.ts";
import { CacheFullError, ModelFormatError } from "../../src/errors.ts";
import { Generator } from "../../src/generate/generator.ts";
import type {
  GeneratedToken,
  GenerateOptions,
} from "../../src/generate/options.ts";
import { adaKV } from "../../src/policies/ada_kv.ts";
import { criticalAdaKV } from "../../src/policies/critical_ada_kv.ts";
import { ahaKV } from "../../src/policies/aha_kv.ts";
import { corm } from "../../src/policies/corm.ts";
import { criticalKV } from "../../src/policies/critical_kv.ts";
import { expectedAttention } from "../../src/policies/expected_attention.ts";
import { fullCache } from "../../src/policies/full_cache.ts";
import { h2o } from "../../src/policies/h2o.ts";
import { keepKV } from "../../src/policies/keep_kv.ts";
import { kvMerger } from "../../src/policies/kv_merger.ts";
import { keyDiff } from "../../src/policies/key_diff.ts";
import type { HeadLosses } from "../../src/policies/allocations/head_losses.ts";
import type { Policy } from "../../src/policies/parts.ts";
import { cam } from "../../src/policies/cam.ts";
import { d2o } from "../../src/policies/d2o.ts";
import { pyramidKV } from "../../src/policies/pyramid_kv.ts";
import type { PolicyFactory } from "../../src/policies/registry.ts";
import { snapKV } from "../../src/policies/snap_kv.ts";
import { steady } from "../../src/policies/steady.ts";
import { streamingLlm } from "../../src/policies/streaming_llm.ts";
import { tova } from "../../src/policies/tova.ts";
import { weightedKV } from "../../src/policies/weighted_kv.ts";
import type { Backend } from "../../src/backends/backend.ts";
import { candidates } from "../backends/each_backend.ts";

const MODEL = new URL("../../examples/models/docs-7m/", import.meta.url);
const PROMPT = "The SELECT statement";

/** Later heads lose a little more, so that they get up to 14 slots more. */
const losses: HeadLosses = {
  budgets: [16, 64],
  tokens: 128,
  loss: Array.from(
    { length: 8 },
    (_, layer) =>
      [0, 1].map((kvHead) =>
        [16, 64].map((slots) => (100 + 2 * layer + kvHead) / slots)
      ),
  ),
};

/** Methods that compress. */
const methods: readonly PolicyFactory[] = [
  keepKV,
  weightedKV,
  ({ budget }) => criticalKV({ budget, window: 8 }),
  ({ budget }) => criticalAdaKV({ budget, window: 8 }),
  h2o,
  ({ budget }) => snapKV({ budget, window: 8 }),
  ({ budget }) => adaKV({ budget, window: 8 }),
  ({ budget }) => pyramidKV({ budget, window: 8, beta: 1.1 }),
  tova,
  keyDiff,
  expectedAttention,
  corm,
  ({ budget }) => ahaKV({ budget, window: 8 }),
  streamingLlm,
  d2o,
  cam,
  kvMerger,
  steady,
  ({ budget }) => steady({ budget, losses }),
];

async function collect(
  generator: Generator,
  options: GenerateOptions,
  prompt: string | readonly number[] = PROMPT,
): Promise<GeneratedToken[]> {
  return await Array.fromAsync(generator.generate(prompt, options));
}

function idsOf(tokens: readonly GeneratedToken[]): number[] {
  return tokens.map(({ id }) => id);
}

function textOf(tokens: readonly GeneratedToken[]): string {
  return tokens.map(({ text }) => text).join("");
}

for (const { name, unavailable } of candidates) {
  describe({
    name: `Generator [${name}]${
      unavailable ? ` (ignored: ${unavailable})` : ""
    }`,
    ignore: unavailable !== undefined,
    sanitizeOps: name === "cpu",
    sanitizeResources: name === "cpu",
    fn() {
      let backend: Backend;
      let generator: Generator;
      const load = (cache: Policy) =>
        Generator.load(MODEL, { backend, cache, verify: false });

      beforeAll(async () => {
        backend = (await openBackend(name)).backend;
        generator = await load(keepKV({ budget: 64 }));
      });
      afterAll(async () => {
        await generator[Symbol.asyncDispose]();
        // What a generator leaves is staging memory, which the next one uses.
        const kept = backend.bytesAllocated;
        assert(kept < 2 ** 16, `${kept}`);
        {
          await using again = await load(keepKV({ budget: 64 }));
          await again.generateText(PROMPT, { maxTokens: 24 });
        }
        assertEquals(backend.bytesAllocated, kept);
        await backend[Symbol.asyncDispose]();
      });

      it("streams tokens with ids, text, probabilities and positions", async () => {
        const tokens = await collect(generator, { maxTokens: 12 });
        assertEquals(tokens.length, 12);
        const text = await generator.generateText(PROMPT, { maxTokens: 12 });
        assertEquals(textOf(tokens), text);
        tokens.forEach(({ logprob, position }, i) => {
          assert(logprob < 0 && logprob > -20);
          assertEquals(position, tokens[0]!.position + i);
        });
        const stats = generator.stats();
        assertEquals(stats.promptTokens, tokens[0]!.position);
        assertEquals(stats.generatedTokens, 12);
        // The last token was sampled, but not read.
        assertEquals(stats.contextTokens, stats.promptTokens + 11);
        assertEquals(stats.backend, name);
        assertEquals(stats.policy, "keepkv");
        assert(stats.timeToFirstToken > 0 && stats.tokensPerSecond > 0);
      });

      it("gives the same ids for the same seed, and others for another", async () => {
        const options = { maxTokens: 24, temperature: 1, topK: 40 };
        const run = async (seed: number) =>
          idsOf(await collect(generator, { ...options, seed }));
        const first = await run(1);
        assertEquals(await run(1), first);
        assertNotEquals(await run(2), first);
        assertNotEquals(await run(2 ** 40 + 1), first);
      });

      it("takes the most likely id where filters leave no other", async () => {
        const greedy = idsOf(await collect(generator, { maxTokens: 8 }));
        for (const filter of [{ topK: 1 }, { topP: 1e-6 }, { minP: 1 }]) {
          const options = { maxTokens: 8, temperature: 1, seed: 3, ...filter };
          assertEquals(idsOf(await collect(generator, options)), greedy);
        }
        const penalized = await collect(generator, {
          maxTokens: 8,
          repetitionPenalty: 1e6,
        });
        assertEquals(new Set(idsOf(penalized)).size, 8);
      });

      it("stops at an id and does not show it", async () => {
        const free = await collect(generator, { maxTokens: 10 });
        const stop = free[5]!.id;
        const first = free.findIndex(({ id }) => id === stop);
        const tokens = await collect(generator, {
          maxTokens: 10,
          stopIds: [stop],
        });
        assertEquals(idsOf(tokens), idsOf(free).slice(0, first + 1));
        assertEquals(tokens.at(-1)!.text, "");
        assertEquals(generator.stats().contextTokens, tokens[first]!.position);
      });

      it("stops at a string across tokens and does not show it", async () => {
        const text = await generator.generateText(PROMPT, { maxTokens: 24 });
        for (const [from, to] of [[7, 13], [10, 12], [3, 20]]) {
          const stop = text.slice(from, to);
          const shown = await generator.generateText(PROMPT, {
            maxTokens: 24,
            stop: ["never in there", stop],
          });
          assertEquals(shown, text.slice(0, text.indexOf(stop)));
        }
        // What only looked like a stop is shown in the end.
        const held = await generator.generateText(PROMPT, {
          maxTokens: 24,
          stop: [text.slice(-5) + "\u0000"],
        });
        assertEquals(held, text);
      });

      it("stops when aborted and stays usable", async () => {
        const before = await collect(generator, { maxTokens: 6 });
        const controller = new AbortController();
        let seen = 0;
        const error = await assertRejects(async () => {
          const { signal } = controller;
          for await (
            const _ of generator.generate(PROMPT, { maxTokens: 5000, signal })
          ) {
            if (++seen === 3) controller.abort(new Error("enough"));
          }
        });
        assertEquals((error as Error).message, "enough");
        assertEquals(seen, 3);
        await assertRejects(
          () => collect(generator, { signal: AbortSignal.abort() }),
          DOMException,
        );
        assertEquals(await collect(generator, { maxTokens: 6 }), before);
      });

      it("stops while it reads a long prompt when a timer says so", async () => {
        const ids = Array.from({ length: 40_000 }, (_, i) => i % 4000);
        const signal = AbortSignal.timeout(50);
        const start = performance.now();
        await assertRejects(
          () => collect(generator, { signal }, ids),
          DOMException,
          "timeout",
        );
        // Reading it all would take minutes.
        assert(performance.now() - start < 30_000);
      });

      it("cleans up when the loop is left", async () => {
        const before = await collect(generator, { maxTokens: 6 });
        for await (const _ of generator.generate(PROMPT)) break;
        assertEquals(await collect(generator, { maxTokens: 6 }), before);
      });

      it("runs one generation at a time", async () => {
        const first = generator.generate(PROMPT, { maxTokens: 4 });
        await first.next();
        await assertRejects(
          () => collect(generator, {}),
          Error,
          "a generation is running",
        );
        await first.return();
        assertEquals((await collect(generator, { maxTokens: 2 })).length, 2);
      });

      it("does not disturb another generator", async () => {
        await using other = await load(h2o({ budget: 32 }));
        const options = { maxTokens: 16, temperature: 1, seed: 5 };
        const alone = [
          await collect(generator, options),
          await collect(other, options, "In the beginning"),
        ];
        const streams = [
          generator.generate(PROMPT, options),
          other.generate("In the beginning", options),
        ];
        const together: GeneratedToken[][] = [[], []];
        for (let i = 0; i < 16; i++) {
          for (const [s, stream] of streams.entries()) {
            const { value } = await stream.next();
            together[s]!.push(value as GeneratedToken);
          }
        }
        for (const stream of streams) await stream.return();
        assertEquals(together, alone);
      });

      it("equals the full cache while the budget is not reached", async () => {
        await using full = await load(fullCache({ budget: 128 }));
        const prompt = "CREATE TABLE t(a, b); ".repeat(4);
        const options = { maxTokens: 32, temperature: 0.8, seed: 9 };
        const expected = await collect(full, options, prompt);
        for (const policy of methods) {
          // The pyramid's last layer has a tenth less than the mean.
          await using other = await load(policy({ budget: 144 }));
          const tokens = await collect(other, options, prompt);
          assertEquals(tokens, expected, other.stats().policy);
        }
      });

      it("never holds more than its budget", async () => {
        for (const policy of methods) {
          await using small = await load(policy({ budget: 24 }));
          const { bytes } = small.stats().cache;
          await small.generateText(PROMPT.repeat(20), { maxTokens: 24 });
          const { cache } = small.stats();
          assertEquals(cache.liveSlots, 24);
          assertEquals(cache.bytes, bytes);
          assert(cache.merges + cache.drops > 0);
        }
      });

      it("says so when a cache that does not compress is full", async () => {
        await using full = await load(fullCache({ budget: 16 }));
        let seen = 0;
        const error = await assertRejects(async () => {
          for await (
            const _ of full.generate([1, 2, 3, 4], {
              maxTokens: 40,
              stopIds: [],
            })
          ) seen++;
        });
        assertInstanceOf(error, CacheFullError);
        // 16 tokens have a slot, and one more was sampled.
        assertEquals(seen, 13);
        await assertRejects(
          () => collect(full, {}, PROMPT.repeat(20)),
          CacheFullError,
          "a cache of 16 slots",
        );
      });

      it("continues a text as if it were one", async () => {
        await using full = await load(fullCache({ budget: 128 }));
        const whole = await collect(full, { maxTokens: 20, stopIds: [] });
        const first = await collect(full, { maxTokens: 8, stopIds: [] });
        const next = idsOf(whole).slice(8, 12);
        const rest = await collect(full, {
          maxTokens: 8,
          stopIds: [],
          append: true,
        }, next);
        assertEquals(
          [...idsOf(first), ...next, ...idsOf(rest)],
          idsOf(whole),
        );
        // The token that was sampled last, and the four that were appended.
        assertEquals(full.stats().promptTokens, 5);
      });

      it("reads a text again where the device ran ahead of it", async () => {
        await using full = await load(fullCache({ budget: 128 }));
        const whole = await collect(full, { maxTokens: 16, stopIds: [] });
        const seen: number[] = [];
        for await (
          const { id } of full.generate(PROMPT, { maxTokens: 50, stopIds: [] })
        ) if (seen.push(id) === 4) break;
        const next = idsOf(whole).slice(4, 8);
        const rest = await collect(full, {
          maxTokens: 8,
          stopIds: [],
          append: true,
        }, next);
        assertEquals([...seen, ...next, ...idsOf(rest)], idsOf(whole));
      });

      it("chats without reading the history again", async () => {
        await using full = await load(fullCache({ budget: 512 }));
        const messages = [{ role: "user", content: "What is a table?" }];
        const run = async () =>
          await Array.fromAsync(full.chat(messages, { maxTokens: 12 }));
        const answer = await run();
        messages.push({ role: "assistant", content: textOf(answer) });
        messages.push({ role: "user", content: "And an index?" });
        const continued = await run();
        const { reusedTokens, promptTokens } = full.stats();
        assert(reusedTokens > promptTokens / 2, `${reusedTokens}`);
        full.reset();
        const fresh = await run();
        assertEquals(full.stats().reusedTokens, 0);
        assertEquals(idsOf(continued), idsOf(fresh));
      });

      it("refuses what makes no sense, before it does anything", async () => {
        const fails = async (
          options: GenerateOptions,
          message: string,
          prompt: string | number[] = PROMPT,
        ) => {
          await assertRejects(
            () => collect(generator, options, prompt),
            RangeError,
            message,
          );
        };
        await fails({}, "empty prompt", "");
        await fails({}, "empty prompt", []);
        await fails({}, "prompt id 4096", [1, 4096]);
        await fails({}, "prompt id -1", [-1]);
        await fails({}, "prompt id 1.5", [1.5]);
        await fails({ maxTokens: 0 }, "maxTokens 0");
        await fails({ maxTokens: NaN }, "maxTokens NaN");
        await fails({ temperature: -1 }, "temperature -1");
        await fails({ temperature: NaN }, "temperature NaN");
        await fails({ topK: 1.5 }, "topK 1.5");
        await fails({ topP: 0 }, "topP 0");
        await fails({ minP: 2 }, "minP 2");
        await fails({ repetitionPenalty: 0 }, "repetitionPenalty 0");
        await fails({ seed: -1 }, "seed -1");
        await fails({ stopIds: [9999] }, "stopIds 9999");
        await fails({
          stopIds: Array.from({ length: 25 }, (_, i) => i),
        }, "number of stopIds 25");
        await assertRejects(
          () => collect(generator, { stop: [""] }),
          TypeError,
          "empty stop string",
        );
      });
    },
  });
}

Deno.test("Generator.load() leaves nothing behind when it fails or is aborted", async () => {
  await using backend = new CpuBackend();
  const load = (cache: Policy, signal?: AbortSignal) =>
    Generator.load(MODEL, { backend, cache, ...(signal && { signal }) });
  await assertRejects(
    () => load(keepKV({ budget: 5 })),
    RangeError,
    "at least 6 slots",
  );
  await assertRejects(
    () => load(keepKV({ budget: 64, threshold: 2 })),
    RangeError,
    "merge.threshold is 2",
  );
  await assertRejects(() => load(fullCache(), AbortSignal.abort()));
  await assertRejects(
    () => Generator.load("no/such/folder", { backend }),
    ModelFormatError,
    "no/such/folder",
  );
  const controller = new AbortController();
  await assertRejects(() =>
    Generator.load(MODEL, {
      backend,
      signal: controller.signal,
      onProgress: ({ stage, bytes }) => {
        if (stage === "upload" && bytes > 0) controller.abort();
      },
    })
  );
  assertEquals(backend.bytesAllocated, 0);
  await assertRejects(
    // deno-lint-ignore no-explicit-any
    () => Generator.load(MODEL, { backend: "tpu" as any }),
    TypeError,
    "expected auto, cuda, webgpu, cpu",
  );
});

Deno.test("Generator cannot be used once disposed", async () => {
  const generator = await Generator.load(MODEL, { backend: "cpu" });
  const stream = generator.generate(PROMPT);
  await stream.next();
  await generator[Symbol.asyncDispose]();
  await generator[Symbol.asyncDispose]();
  await assertRejects(() => stream.next(), Error, "the generator was disposed");
  const error = await assertRejects(() => collect(generator, {}), Error);
  assertStringIncludes(error.message, "the generator was disposed");
});

Deno.test("Generator reports probabilities of the model, whatever the filters", async () => {
  await using generator = await Generator.load(MODEL, { backend: "cpu" });
  const [greedy] = await collect(generator, { maxTokens: 1 });
  const [filtered] = await collect(generator, {
    maxTokens: 1,
    temperature: 0.1,
    topK: 1,
  });
  assertAlmostEquals(greedy!.logprob, filtered!.logprob);
});

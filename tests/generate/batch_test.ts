import {
  assert,
  assertAlmostEquals,
  assertEquals,
  assertInstanceOf,
  assertNotEquals,
  assertRejects,
} from "@std/assert";
import { CacheFullError } from "../../src/errors.ts";
import { sampleBatch } from "../../src/generate/batch_loop.ts";
import { Engine } from "../../src/generate/engine.ts";
import { Generator } from "../../src/generate/generator.ts";
import type { BatchToken, ChatOptions } from "../../src/generate/options.ts";
import type { SampledId } from "../../src/generate/sampled_ids.ts";
import { sampleTokens } from "../../src/generate/token_loop.ts";
import { randomWeights } from "../../src/model/random_weights.ts";
import { fullCache } from "../../src/policies/full_cache.ts";
import { h2o } from "../../src/policies/h2o.ts";
import { keepKV } from "../../src/policies/keep_kv.ts";
import type { Policy } from "../../src/policies/parts.ts";
import type { Backend } from "../../src/backends/backend.ts";
import { eachBackend } from "../backends/each_backend.ts";
import { tinyConfig } from "./tiny_model.ts";

const MODEL = new URL("../../examples/models/docs-7m/", import.meta.url);

/** Shorter and longer than the budget, and one of a single token. */
const PROMPTS = [
  "The SELECT statement",
  [7],
  "CREATE TABLE t(a, b); ".repeat(12),
  "An index is",
];

function load(
  backend: Backend,
  sequences: number,
  cache: Policy = keepKV({ budget: 32 }),
): Promise<Generator> {
  return Generator.load(MODEL, { backend, sequences, cache, verify: false });
}

/** Tokens of each text, in order. */
async function collect(
  generator: Generator,
  prompts: readonly (string | readonly number[])[],
  options: ChatOptions = {},
): Promise<BatchToken[][]> {
  const texts = prompts.map((): BatchToken[] => []);
  for await (const token of generator.generateBatch(prompts, options)) {
    texts[token.sequence]!.push(token);
  }
  return texts;
}

const GREEDY = {
  ...{ temperature: 0, topK: 0, topP: 1, minP: 0, repetitionPenalty: 1 },
  seed: 0,
};

eachBackend(
  "ids of texts together are those of each alone",
  async (backend) => {
    using weights = randomWeights(backend, tinyConfig, 5);
    const policy = keepKV({
      budget: 12,
      schedule: { kind: "streaming", chunk: 8 },
    });
    const parts = { backend, config: tinyConfig, weights, policy };
    const texts = [[3, 9], [20, 40], [30, 1], [1, 17]].map((
      [length, limit],
    ) => ({
      prompt: Array.from({ length: length! }, (_, i) => i * i % 64),
      limit: limit!,
    }));
    using alone = new Engine(parts);
    const expected: SampledId[][] = [];
    for (const { prompt, limit } of texts) {
      alone.reset();
      alone.start({ ...GREEDY, stopIds: [] }, limit);
      expected.push(
        await Array.fromAsync(
          sampleTokens(alone, alone.pieces(prompt), {
            ...{ limit, stepsPerRead: 4, stopIds: [] },
          }),
        ),
      );
    }
    // An id that ends the second text only where it comes first.
    const stopIds = [expected[1]![6]!.id];
    // The last sequence has no text.
    using together = new Engine({ ...parts, sequences: texts.length + 1 });
    const bytes = backend.bytesAllocated;
    const ids = texts.map((): SampledId[] => []);
    const order: number[] = [];
    texts.forEach(({ limit }, sequence) =>
      together.start({ ...GREEDY, stopIds }, limit, sequence)
    );
    const progress: number[] = [];
    for await (
      const { sequence, ...sampled } of sampleBatch(
        together,
        texts.map(({ prompt, limit }) => ({
          pieces: together.pieces(prompt),
          limit,
        })),
        {
          ...{ stepsPerRead: 4, stopIds },
          ended: (sequence) => sequence === 3 && ids[3]!.length === 10,
          onPrefill: (done, total) => progress.push(done, total),
        },
      )
    ) {
      ids[sequence]!.push(sampled);
      order.push(sequence);
    }
    const lengths = texts.map(({ limit }, sequence) => {
      const stop = expected[sequence]!.findIndex(({ id }) =>
        stopIds.includes(id)
      );
      const end = stop < 0 ? limit : Math.min(limit, stop + 1);
      return sequence === 3 ? Math.min(end, 10) : end;
    });
    assertEquals(ids.map(({ length }) => length), lengths);
    // CUDA adds the products of a batch up in another order.
    const tolerance = backend.name === "cuda" ? 1e-4 : 0;
    ids.forEach((text, sequence) =>
      text.forEach(({ id, logprob }, i) => {
        assertEquals(id, expected[sequence]![i]!.id);
        assertAlmostEquals(logprob, expected[sequence]![i]!.logprob, tolerance);
      })
    );
    assertEquals(order.slice(0, 4), [0, 1, 2, 3], "texts take turns");
    assertEquals(progress.slice(-2), [54, 54]);
    // What the device knows ended a text is where its sequence is.
    for (const sequence of [0, 1, 2]) {
      assertEquals(
        together.position(sequence),
        texts[sequence]!.prompt.length + lengths[sequence]! - 1,
      );
    }
    assertEquals(together.position(4), 0);
    const { merges, drops } = await together.cache.stats();
    assert(merges + drops > 0);
    const kept = backend.bytesAllocated - bytes;
    assert(kept < 2 ** 16, `${kept} bytes: more than staging memory`);
  },
);

eachBackend("a batch gives the texts of its prompts", async (backend) => {
  await using one = await load(backend, 1);
  await using four = await load(backend, PROMPTS.length);
  for (
    const options of [
      { maxTokens: 20, temperature: 0 },
      { maxTokens: 12, temperature: 0.9, topK: 50, seed: 3 },
    ]
  ) {
    const { bytes } = four.stats().cache;
    const texts = await collect(four, PROMPTS, options);
    const stats = four.stats();
    assertEquals(stats.cache.bytes, bytes);
    for (const [sequence, prompt] of PROMPTS.entries()) {
      const seed = "seed" in options ? { seed: options.seed! + sequence } : {};
      const alone = await Array.fromAsync(
        one.generate(prompt, { ...options, ...seed }),
      );
      assertEquals(
        texts[sequence]!.map(({ id, text, position }) => [id, text, position]),
        alone.map(({ id, text, position }) => [id, text, position]),
      );
      texts[sequence]!.forEach(({ last }, i, { length }) =>
        assertEquals(last, i === length - 1)
      );
    }
    assertEquals(stats.sequences, 4);
    const tokens = texts.flat().length;
    assertEquals(stats.generatedTokens, tokens);
    assert(stats.tokensPerSecond > 0 && stats.timeToFirstToken > 0);
  }
  // The slots are those of one sequence, four times.
  const per = (
    { cache, sequences }: ReturnType<Generator["stats"]>,
  ) => [cache.budgetSlots, sequences];
  assertEquals(per(one.stats()), [32, 1]);
  assertEquals(per(four.stats()), [32, 4]);
  assert(four.stats().cache.bytes > 2 * one.stats().cache.bytes);
}, { large: true });

eachBackend("texts of a batch end separately", async (backend) => {
  await using generator = await load(backend, 3);
  const prompts = [PROMPTS[0]!, PROMPTS[3]!, PROMPTS[1]!];
  const options = { maxTokens: 16, temperature: 0, stopIds: [] };
  const free = await collect(generator, prompts, options);
  const text = free[0]!.map(({ text }) => text).join("");
  // The second text ends at an id, the first at a string.
  const stopId = free[1]![4]!.id;
  const stop = text.slice(9, 14);
  const ended = await collect(generator, prompts, {
    ...{ ...options, stopIds: [stopId], stop: [stop] },
  });
  ended.forEach((tokens, sequence) => {
    const whole = free[sequence]!.map(({ text }) => text);
    const at = free[sequence]!.findIndex(({ id }) => id === stopId);
    const until = at < 0 ? whole : whole.slice(0, at);
    const shown = until.join("").split(stop)[0];
    assertEquals(tokens.map(({ text }) => text).join(""), shown);
    assertEquals(tokens.filter(({ last }) => last).length, 1);
    assert(tokens.at(-1)!.last);
  });
  assert(ended[0]!.length < 16 && ended[1]!.length <= 5);
}, { large: true });

eachBackend("a batch stops when it is told to", async (backend) => {
  await using generator = await load(backend, 2);
  const prompts = PROMPTS.slice(0, 2);
  const options = { maxTokens: 5, temperature: 0, stopIds: [] };
  const before = await collect(generator, prompts, options);
  const controller = new AbortController();
  let seen = 0;
  await assertRejects(
    async () => {
      const endless = { ...options, maxTokens: 5000 };
      for await (
        const _ of generator.generateBatch(prompts, {
          ...endless,
          signal: controller.signal,
        })
      ) if (++seen === 5) controller.abort(new Error("enough"));
    },
    Error,
    "enough",
  );
  assertEquals(seen, 5);
  const stream = generator.generateBatch(prompts, options);
  await stream.next();
  await assertRejects(
    () => collect(generator, prompts),
    Error,
    "a generation is running",
  );
  await stream.return();
  assertEquals(await collect(generator, prompts, options), before);

  // One text alone and fewer prompts than sequences: the rest does nothing.
  const alone = await Array.fromAsync(generator.generate(prompts[0]!, options));
  assertEquals(alone.map(({ id }) => id), before[0]!.map(({ id }) => id));
  assertEquals(generator.stats().contextTokens, alone.at(-1)!.position);
  assertEquals(await collect(generator, [prompts[0]!], options), [before[0]!]);
  assertEquals(generator.stats().contextTokens, alone.at(-1)!.position);
  // A batch leaves no text to continue.
  const fresh = await Array.fromAsync(
    generator.generate(prompts[1]!, { ...options, append: true }),
  );
  assertEquals(fresh.map(({ id }) => id), before[1]!.map(({ id }) => id));
}, { large: true });

eachBackend(
  "one prompt several times gives different texts",
  async (backend) => {
    await using generator = await load(backend, 3, h2o({ budget: 32 }));
    const [first, second, third] = await collect(
      generator,
      Array.from({ length: 3 }, () => PROMPTS[0]!),
      { maxTokens: 16, temperature: 1, seed: 2 ** 53 - 2, stopIds: [] },
    );
    const ids = (tokens: BatchToken[] | undefined) =>
      tokens!.map(({ id }) => id);
    assertNotEquals(ids(first), ids(second));
    assertNotEquals(ids(second), ids(third));
  },
  { only: ["cpu"] },
);

Deno.test("a full cache ends the text that has no room, and then says so", async () => {
  await using generator = await Generator.load(MODEL, {
    ...{ backend: "cpu", sequences: 2, cache: fullCache({ budget: 16 }) },
  });
  const seen = [0, 0];
  const error = await assertRejects(async () => {
    for await (
      const { sequence } of generator.generateBatch([[1, 2, 3, 4], [5]], {
        ...{ maxTokens: 16, stopIds: [] },
      })
    ) seen[sequence]!++;
  });
  assertInstanceOf(error, CacheFullError);
  // 16 tokens have a slot, and one more was sampled.
  assertEquals(seen, [13, 16]);
  const prompts = [[1], Array.from({ length: 17 }, () => 1)];
  await assertRejects(() => collect(generator, prompts), CacheFullError);
});

Deno.test("batches that make no sense are refused before they begin", async () => {
  await using generator = await Generator.load(MODEL, {
    ...{ backend: "cpu", sequences: 2, cache: keepKV({ budget: 32 }) },
  });
  const fails = (
    prompts: (string | number[])[],
    message: string,
    options: ChatOptions = {},
  ) =>
    assertRejects(
      () => collect(generator, prompts, options),
      RangeError,
      message,
    );
  await fails([], "without a prompt");
  await fails(["a", "b", "c"], "Cannot generate 3 texts together");
  await fails(["a", ""], "empty prompt");
  await fails(["a", [1, 4096]], "prompt id 4096");
  await fails(["a"], "maxTokens 0", { maxTokens: 0 });
  for (const sequences of [0, 1.5, NaN]) {
    await assertRejects(
      () => Generator.load(MODEL, { backend: "cpu", sequences }),
      RangeError,
      `sequences ${sequences}: expected a whole number of at least 1`,
    );
  }
});

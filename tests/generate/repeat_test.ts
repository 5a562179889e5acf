/**
 * The same text in every run: results must not hang on timing, as they would
 * where sums or choices are made in the order in which a device gets on.
 */
import { assertEquals, assertNotEquals } from "@std/assert";
import type { Backend, BackendName } from "../../src/backends/backend.ts";
import { Generator } from "../../src/generate/generator.ts";
import { keepKV } from "../../src/policies/keep_kv.ts";
import type { Policy } from "../../src/policies/parts.ts";
import { steady } from "../../src/policies/steady.ts";
import { type Candidate, eachBackend } from "../backends/each_backend.ts";

const MODEL = new URL("../../examples/models/docs-7m/", import.meta.url);
const PROMPT = "The SELECT statement";

/** Tokens that are drawn: a CPU takes longer, and has no timing. */
const TOKENS: Record<BackendName, number> = { cpu: 60, webgpu: 200, cuda: 200 };

/** Ids and log-probabilities that a generator of its own draws. */
async function draw(
  backend: Backend,
  { cache, tokens, seed }: { cache: Policy; tokens: number; seed: number },
): Promise<{ ids: number[]; logprobs: number[] }> {
  await using generator = await Generator.load(MODEL, { backend, cache });
  const ids: number[] = [], logprobs: number[] = [];
  const options = { maxTokens: tokens, temperature: 1, seed };
  for await (const { id, logprob } of generator.generate(PROMPT, options)) {
    ids.push(id);
    logprobs.push(logprob);
  }
  return { ids, logprobs };
}

for (const policy of [keepKV, steady]) {
  // Merges begin after a few tokens.
  const cache = policy({ budget: 32 });
  eachBackend(
    `${cache.name} draws the same ids in every run`,
    async (backend: Backend, { open, name }: Candidate) => {
      const options = { cache, tokens: TOKENS[name], seed: 1 };
      const first = await draw(backend, options);
      // A device of its own: nothing is left where memory was.
      await using other = await open();
      assertEquals(await draw(other, options), first);
      // What is compared is drawn indeed.
      const { ids } = await draw(other, { cache, tokens: 20, seed: 2 });
      assertNotEquals(ids, first.ids.slice(0, 20));
    },
    { large: true },
  );
}

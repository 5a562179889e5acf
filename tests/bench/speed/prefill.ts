/** Reading a whole prompt, chunk by chunk. */
import { Engine } from "../../../src/generate/engine.ts";
import {
  createBreather,
  readPrompt,
} from "../../../src/generate/read_prompt.ts";
import { type Ceilings, prefillWork } from "./bounds.ts";
import { GREEDY, NEVER } from "./decoder.ts";
import { type Result, resultOf } from "./results.ts";
import { cacheName, type CacheSpec, policyOf, type Setup } from "./setup.ts";

/** Options of {@link measurePrefill}. */
export interface PrefillOptions {
  /** A full cache has to have room for the prompt. */
  readonly cache: CacheSpec;
  /** Tokens of the prompt. */
  readonly tokens: number;
  /** Tokens read at a time. */
  readonly chunk: number;
  readonly rounds: number;
  readonly ceilings: Ceilings;
}

/** Times a prompt from empty cache to first id, after a chunk that warms up. */
export async function measurePrefill(
  { backend, config, weights, shape }: Setup,
  { cache, tokens, chunk, rounds, ceilings }: PrefillOptions,
): Promise<Result> {
  const policy = policyOf(cache, { chunk });
  using engine = new Engine({ backend, config, weights, policy });
  const { vocabulary } = config.sizes;
  const ids = Array.from({ length: tokens }, (_, i) => i * 31 % vocabulary);
  const times = { total: [] as number[], host: [] as number[] };
  for (let round = 0; round <= rounds; round++) {
    engine.reset();
    engine.start(GREEDY, NEVER);
    await engine.done();
    const prompt = round === 0 ? ids.slice(0, chunk) : ids;
    const begin = performance.now();
    await readPrompt(engine, engine.pieces(prompt), {
      breathe: createBreather(),
    });
    await engine.readOutputs(0, 1);
    const end = performance.now();
    if (round === 0) continue;
    times.total.push(end - begin);
    times.host.push(0);
  }
  const { bytes, liveSlots, merges, drops } = await engine.cache.stats();
  const setup = { backend, config, weights, shape };
  const name = `${cacheName(cache)}, chunk ${chunk}`;
  return resultOf(
    { section: "prefill", shape, cache: name, batch: 1, slots: cache.slots },
    times,
    {
      ...{ units: 1, tokens, ceilings },
      work: prefillWork(setup, { cache, tokens, chunk }),
      deviceBytes: backend.bytesAllocated,
      more: { tokens, chunk, cacheBytes: bytes, liveSlots, merges, drops },
    },
  );
}

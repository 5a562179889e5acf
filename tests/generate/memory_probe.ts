/**
 * Generates tokens with a tiny random model and prints what the device and the
 * process hold on the way, as JSON. Run with `--v8-flags=--expose-gc`.
 *
 *     memory_probe.ts BACKEND TOKENS BUDGET
 */
import type { BackendName } from "../../src/backends/backend.ts";
import { openBackend } from "../../src/backends/open_backend.ts";
import { Engine } from "../../src/generate/engine.ts";
import { resolveSampling } from "../../src/generate/sampling.ts";
import { sampleTokens } from "../../src/generate/token_loop.ts";
import { randomWeights } from "../../src/model/random_weights.ts";
import { keepKV } from "../../src/policies/keep_kv.ts";
import { tinyConfig } from "./tiny_model.ts";

/** What is held after a number of tokens. */
export interface MemorySample {
  readonly tokens: number;
  /** Bytes of all buffers on the device. */
  readonly device: number;
  /** Bytes of live JavaScript objects and their array buffers. */
  readonly heap: number;
  /** Bytes of the process. */
  readonly resident: number;
  /** Live slots per KV head and layer. */
  readonly slots: number;
}

if (import.meta.main) {
  const [name, tokens, budget] = Deno.args;
  const { backend } = await openBackend(name as BackendName);
  await using _backend = backend;
  using weights = randomWeights(backend, tinyConfig, 1);
  using engine = new Engine({
    backend,
    weights,
    config: tinyConfig,
    policy: keepKV({ budget: Number(budget) }),
  });
  const limit = Number(tokens);
  const sampling = resolveSampling({ temperature: 1, seed: 7 }, {
    defaults: {},
    stopIds: [],
    vocabulary: tinyConfig.sizes.vocabulary,
  });
  engine.start(sampling, limit);
  const samples: MemorySample[] = [];
  let read = 0;
  for await (
    const _ of sampleTokens(engine, [[1, 2, 3]], {
      stepsPerRead: backend.stepsPerRead,
      limit,
      stopIds: [],
    })
  ) {
    if (++read % Math.floor(limit / 8) !== 0) continue;
    (globalThis as unknown as { gc(): void }).gc();
    const memory = Deno.memoryUsage();
    samples.push({
      tokens: read,
      device: backend.bytesAllocated,
      heap: memory.heapUsed + memory.external,
      resident: memory.rss,
      slots: (await engine.cache.stats()).liveSlots,
    });
  }
  console.log(JSON.stringify(samples));
}

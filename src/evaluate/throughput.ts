/**
 * Speed and memory of generation.
 *
 * @module
 */
import { Generator } from "../generate/generator.ts";
import type { Policy } from "../policies/parts.ts";
import type { EvaluationModel } from "./model.ts";
import { quantile } from "./statistics.ts";

/** Speed and memory of a policy on a backend: medians over the repeats. */
export interface Throughput {
  /** Prompt tokens read per second. */
  readonly promptTokensPerSecond: number;
  /** Tokens generated per second after the first one. */
  readonly tokensPerSecond: number;
  /** Seconds from the call to the first token. */
  readonly timeToFirstToken: number;
  /** Bytes of the cache on the device. */
  readonly cacheBytes: number;
  /** Bytes of activations, state and logits on the device. */
  readonly workingBytes: number;
  /** Bytes of weights on the device. */
  readonly weightBytes: number;
}

/** Options of {@linkcode measureThroughput}. */
export interface ThroughputOptions {
  /** Ids that are read, at least one. */
  readonly prompt: readonly number[];
  /** Ids to generate, at least two. */
  readonly generate: number;
  /** Times to measure after one that warms up (default 3). */
  readonly repeats?: number;
  /** Stops with the signal's reason. */
  readonly signal?: AbortSignal | undefined;
}

/**
 * Measures a generator, with the policy's schedule.
 *
 * @throws {TypeError} If the model has no folder to load a generator from.
 */
export async function measureThroughput(
  model: EvaluationModel,
  policy: Policy,
  { prompt, generate, repeats = 3, signal }: ThroughputOptions,
): Promise<Throughput> {
  if (model.folder === undefined) {
    throw new TypeError(
      `Cannot measure the throughput of ${model.name}: it was not loaded from a folder`,
    );
  }
  await using generator = await Generator.load(model.folder, {
    backend: model.backend,
    cache: policy,
    verify: false,
    ...(signal && { signal }),
  });
  const runs = [];
  for (let run = 0; run <= repeats; run++) {
    await generator.generateText(prompt, {
      maxTokens: generate,
      stopIds: [],
      temperature: 0,
      ...(signal && { signal }),
    });
    if (run > 0) runs.push(generator.stats());
  }
  const last = runs.at(-1)!;
  const median = (values: number[]) =>
    quantile(values.sort((a, b) => a - b), 0.5);
  return {
    promptTokensPerSecond: median(runs.map((r) => r.promptTokensPerSecond)),
    tokensPerSecond: median(runs.map((r) => r.tokensPerSecond)),
    timeToFirstToken: median(runs.map((r) => r.timeToFirstToken)),
    cacheBytes: last.cache.bytes,
    workingBytes: last.workingBytes,
    weightBytes: last.weightBytes,
  };
}

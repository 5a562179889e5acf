/**
 * Teacher forcing: how likely a given text is under a compressed cache.
 *
 * @module
 */
import type { Engine } from "./engine.ts";
import { OUTPUT_RING } from "./working_buffers.ts";
import { sampleTokens } from "./token_loop.ts";

/** What {@link scoreTokens} reads. */
export interface ScoreTokensOptions {
  /** Ids that are read first, at least one. */
  readonly prompt: readonly number[];
  /** Ids that are scored, at least one. */
  readonly continuation: readonly number[];
  /** Prompt ids per chunk. */
  readonly chunk: number;
  /** Decode steps per batch. */
  readonly stepsPerRead: number;
  /** Stops with the signal's reason. */
  readonly signal?: AbortSignal | undefined;
}

/**
 * Reads the prompt chunk by chunk, then the continuation token by token as if
 * it had been generated: the cache is compressed at every step.
 *
 * @returns `(continuation)` natural-log probabilities, each given all before.
 */
export async function scoreTokens(
  engine: Engine,
  { prompt, continuation, chunk, stepsPerRead, signal }: ScoreTokensOptions,
): Promise<Float32Array> {
  const limit = continuation.length;
  engine.start(GREEDY, limit);
  // The loop runs two batches and the token at hand ahead of what it returns.
  const ahead = OUTPUT_RING;
  engine.force(continuation.slice(0, ahead), { first: 0 });
  const scores = new Float32Array(limit);
  let read = 0;
  const sampled = sampleTokens(engine, prompt, {
    chunk,
    stepsPerRead,
    limit,
    stopIds: [],
    signal,
  });
  for await (const { logprob } of sampled) {
    scores[read++] = logprob;
    const next = continuation.slice(read + ahead - 1, read + ahead);
    if (next.length > 0) engine.force(next, { first: read + ahead - 1 });
  }
  return scores;
}

/** Forced ids need no sampling options. */
const GREEDY = {
  temperature: 0,
  topK: 0,
  topP: 1,
  minP: 0,
  repetitionPenalty: 1,
  seed: 0,
  stopIds: [],
};

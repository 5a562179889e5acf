/**
 * How well a model predicts a text under a compressed cache.
 *
 * @module
 */
import { scoreTokens } from "../generate/score_tokens.ts";
import type { Policy } from "../policies/parts.ts";
import {
  type MergeStatistics,
  readMergeStatistics,
} from "./merge_statistics.ts";
import { type EvaluationModel, openEngine } from "./model.ts";

/** How a window was predicted. */
export interface WindowScore {
  /** `(continuation)` losses: negative natural-log probabilities. */
  readonly losses: Float32Array;
  /** What the cache did, at the end of the window. */
  readonly merges: MergeStatistics;
}

/** What {@linkcode scoreWindow} reads. */
export interface ScoreWindowOptions {
  /** Ids that are read first. */
  readonly prompt: readonly number[];
  /** Ids that are scored. */
  readonly continuation: readonly number[];
  /** Stops with the signal's reason. */
  readonly signal?: AbortSignal | undefined;
}

/**
 * Scores the continuation of a window token by token: the cache is compressed
 * as its policy says while the prompt is read, and at every step after it.
 */
export async function scoreWindow(
  model: EvaluationModel,
  policy: Policy,
  { prompt, continuation, signal }: ScoreWindowOptions,
): Promise<WindowScore> {
  using engine = await openEngine(model, policy);
  const scores = await scoreTokens(engine, {
    prompt,
    continuation,
    chunk: policy.schedule.chunk,
    stepsPerRead: model.backend.stepsPerRead,
    signal,
  });
  return {
    losses: scores.map((score) => -score),
    merges: await readMergeStatistics(engine.cache, model),
  };
}

/** Mean of losses in nats per token; its exponential is the perplexity. */
export function meanLoss(losses: Float32Array): number {
  let sum = 0;
  for (const loss of losses) sum += loss;
  return sum / losses.length;
}

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

/** A text of {@linkcode scoreWindows}. */
export interface ForcedWindow {
  /** Ids that are read first, at least one. */
  readonly prompt: readonly number[];
  /** Ids that are forced after them, at least one. */
  readonly continuation: readonly number[];
}

/** What {@linkcode scoreWindows} reads. */
export interface ForcedWindows {
  /** Texts that are decoded together, each in a sequence of its own. */
  readonly windows: readonly ForcedWindow[];
  /** Stops with the signal's reason. */
  readonly signal?: AbortSignal | undefined;
}

/**
 * Scores the continuations of windows token by token: the cache is compressed
 * as its policy says while a prompt is read, and at every step after it.
 * Windows together give the same scores as each alone.
 */
export async function scoreWindows(
  model: EvaluationModel,
  policy: Policy,
  { windows, signal }: ForcedWindows,
): Promise<WindowScore[]> {
  const sequences = windows.length;
  using engine = await openEngine(model, policy, { sequences });
  const scores = await scoreTokens(engine, windows, {
    stepsPerRead: model.backend.stepsPerRead,
    signal,
  });
  const merges = await readMergeStatistics(engine.cache, model);
  return scores.map((logprobs, i) => ({
    losses: logprobs.map((logprob) => -logprob),
    merges: merges[i]!,
  }));
}

/** Mean of losses in nats per token; its exponential is the perplexity. */
export function meanLoss(losses: Float32Array): number {
  let sum = 0;
  for (const loss of losses) sum += loss;
  return sum / losses.length;
}

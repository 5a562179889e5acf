/**
 * Teacher forcing: how likely given texts are under a compressed cache.
 *
 * @module
 */
import type { Engine } from "./engine.ts";
import { createBreather, quiet, readPrompt } from "./read_prompt.ts";
import { checkFinite } from "./token_loop.ts";

/** A text of {@link scoreTokens}. */
export interface ScoredText {
  /** Ids that are read first, at least one. */
  readonly prompt: readonly number[];
  /** Ids that are scored, at least one. */
  readonly continuation: readonly number[];
}

/** Options of {@link scoreTokens}. */
export interface ScoreTokensOptions {
  /** Decode steps per batch, at most half of `OUTPUT_RING`. */
  readonly stepsPerRead: number;
  /** Stops with the signal's reason. */
  readonly signal?: AbortSignal | undefined;
}

/**
 * Reads each prompt as the policy's schedule says, one after the other, then the
 * continuations token by token, all together, as if they had been generated:
 * the cache is compressed at every step.
 *
 * @param texts One for each sequence of the engine.
 * @returns For each text `(continuation)` natural-log probabilities, each
 * given all before. They are those of the text alone.
 * @throws {RangeError} If there are more or fewer texts than sequences, or a
 * prompt is too long for the schedule.
 * @throws {Error} If the model gives no probabilities.
 */
export async function scoreTokens(
  engine: Engine,
  texts: readonly ScoredText[],
  { stepsPerRead, signal }: ScoreTokensOptions,
): Promise<Float32Array[]> {
  if (texts.length !== engine.sequences) {
    throw new RangeError(
      `Cannot score ${texts.length} texts: expected as many as the engine has sequences, ${engine.sequences}`,
    );
  }
  const breathe = createBreather();
  for (const [sequence, { prompt, continuation }] of texts.entries()) {
    engine.start(GREEDY, continuation.length, sequence);
    engine.force(continuation.slice(0, 1), { first: 0, sequence });
    const pieces = engine.pieces(prompt);
    await readPrompt(engine, pieces, { sequence, signal, breathe });
  }
  const scores = texts.map(({ continuation }) =>
    new Float32Array(continuation.length)
  );
  /** Scores from `first`; texts that have ended give none. */
  const readScores = (first: number, steps: number) =>
    quiet(Promise.all(texts.map(async ({ continuation }, sequence) => {
      const count = Math.min(steps, continuation.length - first);
      if (count <= 0) return;
      const ids = await engine.readOutputs(first, count, sequence);
      ids.forEach((id, i) => {
        checkFinite(id, first + i);
        scores[sequence]![first + i] = id.logprob;
      });
    })));
  let pending = readScores(0, 1);
  const longest = Math.max(...scores.map(({ length }) => length));
  for (let first = 1; first < longest; first += stepsPerRead) {
    signal?.throwIfAborted();
    const steps = Math.min(stepsPerRead, longest - first);
    texts.forEach(({ continuation }, sequence) => {
      const ids = continuation.slice(first, first + steps);
      if (ids.length > 0) engine.force(ids, { first, sequence });
    });
    engine.decode(steps);
    const before = pending;
    pending = readScores(first, steps);
    // The device works on this batch while the one before it is read.
    await before;
    await breathe();
  }
  await pending;
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

/**
 * The prefill and decode loop of several texts: prompts are read one after the
 * other, and then each step is one of all texts that have not ended.
 *
 * @module
 */
import type { Engine } from "./engine.ts";
import { createBreather, quiet, readPrompt } from "./read_prompt.ts";
import type { SampledId } from "./sampled_ids.ts";
import { checkFinite } from "./token_loop.ts";

/** A text to sample. */
export interface BatchText {
  /** Pieces of its prompt. */
  readonly pieces: readonly (readonly number[])[];
  /** Ids to sample at most. */
  readonly limit: number;
}

/** Options of {@link sampleBatch}. */
export interface BatchLoopOptions {
  /** Decode steps that are enqueued and read together. */
  readonly stepsPerRead: number;
  /** Ids that end a text. */
  readonly stopIds: readonly number[];
  /** Whether a text has ended for a reason that the device does not know. */
  readonly ended: (sequence: number) => boolean;
  /** Stops the loop with the signal's reason. */
  readonly signal?: AbortSignal | undefined;
  /** Told how many tokens of all prompts are read. */
  readonly onPrefill?: ((done: number, total: number) => void) | undefined;
}

/** An id of one of the texts. */
export interface BatchId extends SampledId {
  /** Index of its text. */
  readonly sequence: number;
}

/**
 * Feeds the prompts and yields sampled ids step by step, in the order of the
 * texts within a step; stop ids are among them. Text `i` is sequence `i`.
 *
 * Call `engine.start` for each of them first, and `engine.stop` for the others.
 *
 * @throws {Error} If the model gives no probabilities, because its weights or
 * activations are not finite.
 */
export async function* sampleBatch(
  engine: Engine,
  texts: readonly BatchText[],
  options: BatchLoopOptions,
): AsyncGenerator<BatchId, void, undefined> {
  const { stepsPerRead, stopIds, ended, signal } = options;
  const breathe = createBreather();
  await readPrompts(engine, texts, { ...options, breathe });
  const starts = texts.map((_, sequence) => engine.position(sequence));
  const longest = Math.max(...texts.map(({ limit }) => limit));
  const live = new Set(texts.keys());
  const batchesAhead = stepsPerRead > 1 ? 2 : 1;
  const pending = [quiet(engine.readAllOutputs(0, 1))];
  let enqueued = 1;
  let read = 0;
  try {
    while (live.size > 0) {
      while (pending.length < batchesAhead && enqueued < longest) {
        const steps = Math.min(stepsPerRead, longest - enqueued);
        engine.decode(steps);
        pending.push(quiet(engine.readAllOutputs(enqueued, steps)));
        enqueued += steps;
      }
      const outputs = await pending[0]!;
      for (let step = 0; step < outputs[0]!.length; step++, read++) {
        for (const sequence of live) {
          signal?.throwIfAborted();
          const sampled = outputs[sequence]![step]!;
          checkFinite(sampled, read);
          const last = stopIds.includes(sampled.id) ||
            read + 1 === texts[sequence]!.limit;
          if (last) {
            // The last id was sampled, but not fed.
            engine.setPosition(starts[sequence]! + read, sequence);
          }
          yield { sequence, ...sampled };
          if (!last && !ended(sequence)) continue;
          live.delete(sequence);
          engine.stop(sequence);
        }
        await breathe();
      }
      pending.shift();
    }
  } finally {
    await Promise.allSettled(pending);
  }
}

/** Reads the prompts, and samples the first id of each text. */
async function readPrompts(
  engine: Engine,
  texts: readonly BatchText[],
  { signal, onPrefill, breathe }: BatchLoopOptions & {
    breathe: () => Promise<void>;
  },
): Promise<void> {
  const lengths = texts.map(({ pieces }) =>
    pieces.reduce((sum, { length }) => sum + length, 0)
  );
  const total = lengths.reduce((sum, length) => sum + length, 0);
  let before = 0;
  for (const [sequence, { pieces }] of texts.entries()) {
    await readPrompt(engine, pieces, {
      sequence,
      signal,
      breathe,
      onPrefill: (done) => onPrefill?.(before + done, total),
    });
    before += lengths[sequence]!;
  }
}

/**
 * The prefill and decode loop: ids in, sampled ids out.
 *
 * The device feeds itself, so the loop keeps up to two batches of decode steps
 * enqueued and reads the ids of the older one. It is never more than that
 * ahead of the consumer, which bounds what an abort has to wait for.
 *
 * @module
 */
import type { Engine } from "./engine.ts";
import { createBreather, quiet, readPrompt } from "./read_prompt.ts";
import type { SampledId } from "./sampled_ids.ts";

/** Options of {@link sampleTokens}. */
export interface TokenLoopOptions {
  /** Decode steps per batch. */
  readonly stepsPerRead: number;
  /** Ids to sample at most. */
  readonly limit: number;
  /** Ids that end the text. */
  readonly stopIds: readonly number[];
  /** Stops the loop with the signal's reason. */
  readonly signal?: AbortSignal | undefined;
  /** Told after each piece of the prompt is enqueued. */
  readonly onPrefill?: ((done: number, total: number) => void) | undefined;
}

/**
 * Feeds the pieces of a prompt and yields sampled ids, the stop id included.
 *
 * Call `engine.start` first. When the loop ends by itself, every id but the
 * last one is in the cache.
 *
 * @throws {Error} If the model gives no probabilities, because its weights or
 * activations are not finite.
 */
export async function* sampleTokens(
  engine: Engine,
  pieces: readonly (readonly number[])[],
  options: TokenLoopOptions,
): AsyncGenerator<SampledId, void, undefined> {
  const { limit, stepsPerRead, stopIds, signal, onPrefill } = options;
  const breathe = createBreather();
  await readPrompt(engine, pieces, { signal, onPrefill, breathe });
  const start = engine.position();
  const batchesAhead = stepsPerRead > 1 ? 2 : 1;
  const pending = [quiet(engine.readOutputs(0, 1))];
  let enqueued = 1;
  let read = 0;
  try {
    while (read < limit) {
      while (pending.length < batchesAhead && enqueued < limit) {
        const steps = Math.min(stepsPerRead, limit - enqueued);
        engine.decode(steps);
        pending.push(quiet(engine.readOutputs(enqueued, steps)));
        enqueued += steps;
      }
      for (const output of await pending[0]!) {
        signal?.throwIfAborted();
        checkFinite(output, read);
        read++;
        const ended = stopIds.includes(output.id) || read === limit;
        // Only the loop knows where the device stopped: the last id was
        // sampled, but not fed.
        if (ended) engine.setPosition(start + read - 1);
        yield output;
        if (ended) return;
        await breathe();
      }
      pending.shift();
    }
  } finally {
    await Promise.allSettled(pending);
  }
}

/**
 * Checks that an id was drawn from probabilities.
 *
 * @param index Ids sampled before it.
 * @throws {Error} If its probability is not a number.
 */
export function checkFinite({ logprob }: SampledId, index: number): void {
  if (!Number.isNaN(logprob)) return;
  throw new Error(
    `Cannot sample id ${index}: the logits are not finite: check the weights`,
  );
}

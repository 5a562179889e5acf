/**
 * The prefill and decode loop: ids in, sampled ids out.
 *
 * The device feeds itself, so the loop keeps up to two batches of decode steps
 * enqueued and reads the ids of the older one. It is never more than that
 * ahead of the consumer, which bounds what an abort has to wait for.
 *
 * @module
 */
import type { Engine, SampledId } from "./engine.ts";

/** Prompt chunks that may be enqueued while an earlier one is worked on. */
const CHUNKS_AHEAD = 2;

/** Options of {@link sampleTokens}. */
export interface TokenLoopOptions {
  /** Prompt ids per chunk. */
  readonly chunk: number;
  /** Decode steps per batch. */
  readonly stepsPerRead: number;
  /** Ids to sample at most. */
  readonly limit: number;
  /** Ids that end the text. */
  readonly stopIds: readonly number[];
  /** Stops the loop with the signal's reason. */
  readonly signal?: AbortSignal | undefined;
  /** Told after each chunk of the prompt is enqueued. */
  readonly onPrefill?: ((done: number, total: number) => void) | undefined;
}

/**
 * Feeds `prompt` and yields sampled ids, the stop id included.
 *
 * Call `engine.start` first. When the loop ends by itself, every id but the
 * last one is in the cache.
 *
 * @throws {Error} If the model gives no probabilities, because its weights or
 * activations are not finite.
 */
export async function* sampleTokens(
  engine: Engine,
  prompt: readonly number[],
  options: TokenLoopOptions,
): AsyncGenerator<SampledId, void, undefined> {
  const { limit, stepsPerRead, stopIds, signal } = options;
  const breathe = createBreather();
  await feed(engine, prompt, { ...options, breathe });
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
        if (Number.isNaN(output.logprob)) {
          throw new Error(
            `Cannot sample id ${read}: the logits are not finite: check the weights`,
          );
        }
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

/** Enqueues the prompt chunk by chunk, a few chunks ahead of the device. */
async function feed(
  engine: Engine,
  prompt: readonly number[],
  { chunk, signal, onPrefill, breathe }: TokenLoopOptions & {
    breathe: () => Promise<void>;
  },
): Promise<void> {
  const pending: Promise<void>[] = [];
  for (let at = 0; at < prompt.length; at += chunk) {
    signal?.throwIfAborted();
    const ids = prompt.slice(at, at + chunk);
    const done = at + ids.length;
    engine.prefill(ids, {
      then: done === prompt.length ? "sample" : "nothing",
    });
    pending.push(quiet(engine.done()));
    if (pending.length > CHUNKS_AHEAD) await pending.shift();
    onPrefill?.(done, prompt.length);
    await breathe();
  }
}

/**
 * Keeps a promise from being reported as unhandled: whoever awaits it gets the
 * error, but nobody may be there if the consumer leaves first.
 */
function quiet<T>(promise: Promise<T>): Promise<T> {
  promise.catch(() => {});
  return promise;
}

/**
 * Returns a function that lets timers and signals run now and then: work on
 * the CPU backend is done before its promise is made, so awaiting that alone
 * would never return to the event loop.
 */
function createBreather(): () => Promise<void> {
  let last = performance.now();
  return async () => {
    if (performance.now() - last < 10) return;
    await new Promise((resolve) => setTimeout(resolve, 0));
    last = performance.now();
  };
}

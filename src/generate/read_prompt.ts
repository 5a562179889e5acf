/**
 * Reading a prompt, and the pace at which a device is fed.
 *
 * @module
 */
import type { Engine } from "./engine.ts";

/** Prompt chunks that may be enqueued while an earlier one is worked on. */
const CHUNKS_AHEAD = 2;

/** Options of {@link readPrompt}. */
export interface ReadPromptOptions {
  /** Prompt ids per chunk. */
  readonly chunk: number;
  /** Sequence that reads the prompt (default 0). */
  readonly sequence?: number;
  /** Stops with the signal's reason. */
  readonly signal?: AbortSignal | undefined;
  /** Told after each chunk of the prompt is enqueued. */
  readonly onPrefill?: ((done: number, total: number) => void) | undefined;
  /** Called after each chunk; see {@link createBreather}. */
  readonly breathe: () => Promise<void>;
}

/**
 * Enqueues the prompt chunk by chunk, a few chunks ahead of the device, and
 * samples the id after it.
 */
export async function readPrompt(
  engine: Engine,
  prompt: readonly number[],
  { chunk, sequence = 0, signal, onPrefill, breathe }: ReadPromptOptions,
): Promise<void> {
  const pending: Promise<void>[] = [];
  for (let at = 0; at < prompt.length; at += chunk) {
    signal?.throwIfAborted();
    const ids = prompt.slice(at, at + chunk);
    const done = at + ids.length;
    engine.prefill(ids, {
      sequence,
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
export function quiet<T>(promise: Promise<T>): Promise<T> {
  promise.catch(() => {});
  return promise;
}

/**
 * Returns a function that lets timers and signals run now and then: work on
 * the CPU backend is done before its promise is made, so awaiting that alone
 * would never return to the event loop.
 */
export function createBreather(): () => Promise<void> {
  let last = performance.now();
  return async () => {
    if (performance.now() - last < 10) return;
    await new Promise((resolve) => setTimeout(resolve, 0));
    last = performance.now();
  };
}

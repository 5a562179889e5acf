/**
 * Reading a prompt, and the pace at which a device is fed.
 *
 * @module
 */
import type { Engine } from "./engine.ts";

/** Pieces of a prompt that may be enqueued while an earlier one is worked on. */
const PIECES_AHEAD = 2;

/** Options of {@link readPrompt}. */
export interface ReadPromptOptions {
  /** Sequence that reads the prompt (default 0). */
  readonly sequence?: number;
  /** Stops with the signal's reason. */
  readonly signal?: AbortSignal | undefined;
  /** Told after each piece of the prompt is enqueued. */
  readonly onPrefill?: ((done: number, total: number) => void) | undefined;
  /** Called after each piece; see {@link createBreather}. */
  readonly breathe: () => Promise<void>;
}

/**
 * Enqueues the pieces of a prompt, a few of them ahead of the device, and
 * samples the id after the last one.
 */
export async function readPrompt(
  engine: Engine,
  pieces: readonly (readonly number[])[],
  { sequence = 0, signal, onPrefill, breathe }: ReadPromptOptions,
): Promise<void> {
  const total = pieces.reduce((sum, { length }) => sum + length, 0);
  const pending: Promise<void>[] = [];
  let done = 0;
  for (const piece of pieces) {
    signal?.throwIfAborted();
    done += piece.length;
    engine.prefill(piece, {
      sequence,
      then: done === total ? "sample" : "nothing",
    });
    pending.push(quiet(engine.done()));
    if (pending.length > PIECES_AHEAD) await pending.shift();
    onPrefill?.(done, total);
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

/**
 * Ctrl-C: the first one stops what is running, the next one the program.
 *
 * @module
 */

/** Exit status of a program that Ctrl-C ended. */
export const INTERRUPTED = 130;

/** Reason of a signal that Ctrl-C aborted. */
export class InterruptedError extends Error {
  /** Constructs a new instance. */
  constructor() {
    super("Cannot go on: interrupted");
    this.name = "InterruptedError";
  }
}

/** Listens for Ctrl-C until it is disposed. */
export class Interrupts implements Disposable {
  #running: AbortController | undefined;

  /** Starts listening. */
  constructor() {
    Deno.addSignalListener("SIGINT", this.#interrupt);
  }

  /** A signal for the next thing that Ctrl-C may stop. */
  next(): AbortSignal {
    this.#running = new AbortController();
    return this.#running.signal;
  }

  readonly #interrupt = (): void => {
    if (this.#running === undefined || this.#running.signal.aborted) {
      Deno.exit(INTERRUPTED);
    }
    this.#running.abort(new InterruptedError());
  };

  /** Says that nothing is running: Ctrl-C ends the program. */
  finish(): void {
    this.#running = undefined;
  }

  /** Stops listening. */
  [Symbol.dispose](): void {
    Deno.removeSignalListener("SIGINT", this.#interrupt);
  }
}

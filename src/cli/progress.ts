/**
 * A progress bar for what takes long.
 *
 * @module
 */
import { ProgressBar } from "@std/cli/unstable-progress-bar";
import type { LoadProgress } from "../model/weights.ts";

/** Milliseconds that something may take before a bar appears. */
const PATIENCE = 300;

/** Progress of one thing, on standard error while that is a terminal. */
export class Progress {
  readonly #label: string;
  readonly #start = performance.now();
  readonly #enabled: boolean;
  #bar: ProgressBar | undefined;

  /** Constructs a new instance; it prints nothing yet. */
  constructor(label: string, { enabled }: { enabled: boolean }) {
    this.#label = label.padEnd(7);
    this.#enabled = enabled && Deno.stderr.isTerminal();
  }

  /** Notes how much is done. */
  update(done: number, total: number): void {
    if (!this.#enabled) return;
    if (this.#bar !== undefined) {
      this.#bar.value = done;
    } else if (
      done < total && performance.now() - this.#start > PATIENCE
    ) {
      this.#bar = new ProgressBar({
        ...{ value: done, max: total, barLength: 40, clear: true },
        fmt: ({ progressBar, value, max }) =>
          `${this.#label} [${progressBar}] ${Math.floor(value / max * 100)} %`,
      });
    }
  }

  /** Takes the bar away. */
  async stop(): Promise<void> {
    await this.#bar?.stop();
    this.#bar = undefined;
  }
}

/** Progress of loading a model. */
export class LoadingProgress extends Progress {
  /** Constructs a new instance; it prints nothing yet. */
  constructor(options: { enabled: boolean }) {
    super("Loading", options);
  }

  /** Notes how far loading is. */
  readonly onProgress = ({ stage, bytes, totalBytes }: LoadProgress): void => {
    // The files are read twice: once to check them, once to upload them.
    this.update(
      stage === "check" ? bytes : totalBytes + bytes,
      2 * totalBytes,
    );
  };
}

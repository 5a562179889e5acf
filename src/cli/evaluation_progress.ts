/**
 * How far an evaluation is, on standard error.
 *
 * @module
 */
import type { RunProgress } from "../evaluate/run.ts";
import { Progress } from "./progress.ts";
import { faint, printError } from "./terminal.ts";

/** Milliseconds between lines where standard error is no terminal. */
const INTERVAL = 10_000;

/** A bar in a terminal, and a line now and then in a log. */
export class EvaluationProgress {
  readonly #enabled: boolean;
  readonly #bar: Progress;
  #started = false;
  #last = -Infinity;

  /** Constructs a new instance; it prints nothing yet. */
  constructor({ enabled }: { enabled: boolean }) {
    this.#enabled = enabled;
    this.#bar = new Progress("Measure", { enabled });
  }

  /** Notes how far the run is. */
  update({ done, total, skipped, label }: RunProgress): void {
    if (!this.#enabled) return;
    if (!this.#started) {
      this.#started = true;
      const known = skipped === 0 ? "" : `, ${skipped} of them known`;
      printError(faint(`${total} measurements${known}`) + "\n");
    }
    this.#bar.update(done, total);
    const now = performance.now();
    if (label === "" || Deno.stderr.isTerminal()) return;
    if (now - this.#last < INTERVAL) return;
    this.#last = now;
    printError(`${done}/${total} ${label}\n`);
  }

  /** Takes the bar away. */
  async stop(): Promise<void> {
    await this.#bar.stop();
  }
}

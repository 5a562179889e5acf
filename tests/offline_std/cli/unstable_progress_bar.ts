/**
 * Stand-in for `@std/cli/unstable-progress-bar`.
 *
 * @module
 */

/** What the text of a {@link ProgressBar} is made from. */
export interface ProgressBarFormatter {
  /** Time since the start, `mm:ss`. */
  styledTime: string;
  /** The bar. */
  progressBar: string;
  /** Milliseconds since the start. */
  time: number;
  /** The same at the update before. */
  previousTime: number;
  /** The value. */
  value: number;
  /** The value at the update before. */
  previousValue: number;
  /** The value at the end. */
  max: number;
}

/** Options of a {@link ProgressBar}. */
export interface ProgressBarOptions {
  /** Where the bar is written, standard error unless told otherwise. */
  writable?: WritableStream<Uint8Array>;
  /** The value at the start, 0 unless told otherwise. */
  value?: number;
  /** The value at the end. */
  max: number;
  /** Characters of the bar, 50 unless told otherwise. */
  barLength?: number;
  /** Character of the part that is done. */
  fillChar?: string;
  /** Character of the part that is not. */
  emptyChar?: string;
  /** Whether the bar goes away at the end. */
  clear?: boolean;
  /** Makes the text. */
  fmt?: (fmt: ProgressBarFormatter) => string;
  /** Whether `writable` stays open at the end, as it does unless told not to. */
  keepOpen?: boolean;
}

/** A line of text that is written once a second until {@link stop}. */
export class ProgressBar {
  /** The value, set by the owner. */
  value: number;
  /** The value at the end. */
  max: number;
  readonly #options: Required<Omit<ProgressBarOptions, "value" | "max">>;
  readonly #writer: WritableStreamDefaultWriter<Uint8Array>;
  readonly #start = Date.now();
  readonly #timer: ReturnType<typeof setInterval>;
  #previousTime = 0;
  #previousValue: number;

  /** Constructs a new instance and writes its first line. */
  constructor(options: ProgressBarOptions) {
    const { value = 0, max, ...others } = options;
    this.value = value;
    this.max = max;
    this.#options = {
      writable: others.writable ?? Deno.stderr.writable,
      barLength: others.barLength ?? 50,
      fillChar: others.fillChar ?? "#",
      emptyChar: others.emptyChar ?? "-",
      clear: others.clear ?? false,
      fmt: others.fmt ??
        ((x) =>
          `[${x.styledTime}] [${x.progressBar}] [${bytes(x.value, x.max)}]`),
      keepOpen: others.keepOpen ?? true,
    };
    this.#previousValue = value;
    this.#writer = this.#options.writable.getWriter();
    this.#timer = setInterval(() => this.#print(), 1000);
    this.#print();
  }

  /** Writes the last line and lets go of the stream. */
  async stop(): Promise<void> {
    clearInterval(this.#timer);
    if (this.#options.clear) await this.#write("");
    else {
      await this.#print();
      await this.#write("\n", "");
    }
    // A stream that broke has nothing left to close.
    if (!this.#options.keepOpen) await this.#writer.close().catch(() => {});
    this.#writer.releaseLock();
  }

  async #print(): Promise<void> {
    const { barLength, fillChar, emptyChar, fmt } = this.#options;
    const time = Date.now() - this.#start;
    const share = Math.min(Math.max(this.value / this.max, 0), 1);
    const filled = Math.trunc(share * barLength);
    const seconds = Math.trunc(time / 1000);
    const text = fmt({
      styledTime: [Math.trunc(seconds / 60), seconds % 60]
        .map((part) => String(part).padStart(2, "0")).join(":"),
      progressBar: fillChar.repeat(filled) +
        emptyChar.repeat(barLength - filled),
      time,
      previousTime: this.#previousTime,
      value: this.value,
      previousValue: this.#previousValue,
      max: this.max,
    });
    this.#previousTime = time;
    this.#previousValue = this.value;
    await this.#write(text);
  }

  /** Writes over the line; a broken stream must not end the program. */
  async #write(text: string, start = "\r\x1b[K"): Promise<void> {
    try {
      await this.#writer.write(new TextEncoder().encode(start + text));
    } catch {
      clearInterval(this.#timer);
    }
  }
}

/** Both numbers in the unit that fits the larger one. */
function bytes(value: number, max: number): string {
  const units = ["KiB", "MiB", "GiB", "TiB"];
  const power = Math.floor(Math.log2(Math.max(max, 1024)) / 10);
  const unit = Math.min(power, units.length);
  const [part, whole] = [value, max].map((n) => (n / 1024 ** unit).toFixed(2));
  return `${part}/${whole} ${units[unit - 1]}`;
}

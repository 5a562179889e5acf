/**
 * Finds stop strings in text that arrives in pieces.
 *
 * Text that may turn out to be the beginning of a stop string is held back
 * until that is decided.
 */
export class StopStrings {
  readonly #stops: readonly string[];
  #held = "";

  /**
   * Constructs a new instance.
   *
   * @throws {TypeError} If a stop string is empty.
   */
  constructor(stops: readonly string[]) {
    checkStopStrings(stops);
    this.#stops = stops;
  }

  /** Adds a piece; returns what may be shown, and whether a stop was found. */
  push(piece: string): { text: string; stopped: boolean } {
    const text = this.#held + piece;
    const found = this.#stops.map((stop) => text.indexOf(stop))
      .filter((at) => at >= 0);
    if (found.length > 0) {
      this.#held = "";
      return { text: text.slice(0, Math.min(...found)), stopped: true };
    }
    const held = Math.max(0, ...this.#stops.map((stop) => overlap(text, stop)));
    this.#held = text.slice(text.length - held);
    return { text: text.slice(0, text.length - held), stopped: false };
  }

  /** Returns what was held back. */
  flush(): string {
    const text = this.#held;
    this.#held = "";
    return text;
  }
}

/**
 * Checks stop strings before anything is done with them.
 *
 * @throws {TypeError} If one is empty.
 */
export function checkStopStrings(stops: readonly string[]): void {
  if (!stops.includes("")) return;
  throw new TypeError(
    "Cannot use an empty stop string: expected at least one character",
  );
}

/** Length of the longest end of `text` that begins `stop`. */
function overlap(text: string, stop: string): number {
  for (let n = Math.min(text.length, stop.length - 1); n > 0; n--) {
    if (stop.startsWith(text.slice(-n))) return n;
  }
  return 0;
}

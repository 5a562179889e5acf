/**
 * From the ids of one text to what is shown of it.
 *
 * @module
 */
import { TextStream } from "../tokens/text_stream.ts";
import type { Tokenizer } from "../tokens/tokenizer.ts";
import type { GeneratedToken } from "./options.ts";
import type { SampledId } from "./sampled_ids.ts";
import { StopStrings } from "./stop_strings.ts";

/** What a text is written with. */
export interface TextWriterOptions {
  readonly tokenizer: Tokenizer;
  /** Ids that the text follows. */
  readonly context: readonly number[];
  /** Strings that end it. */
  readonly stop: readonly string[];
  /** Ids that end it. */
  readonly stopIds: readonly number[];
  /** Ids that it has at most. */
  readonly limit: number;
  /** Position of its first id. */
  readonly position: number;
}

/** What ended a text: a stop id, a stop string, or the number of its ids. */
export type TextEnd = "stopId" | "stopString" | "limit";

/** Writes one text, id by id. */
export class TextWriter {
  readonly #options: TextWriterOptions;
  readonly #text: TextStream;
  readonly #stops: StopStrings;
  #count = 0;
  #end: TextEnd | undefined;

  /** Constructs the writer of a text that has no ids yet. */
  constructor(options: TextWriterOptions) {
    this.#options = options;
    this.#text = new TextStream(options.tokenizer, options);
    this.#stops = new StopStrings(options.stop);
  }

  /** What ended the text; undefined while it goes on. */
  get end(): TextEnd | undefined {
    return this.#end;
  }

  /** Adds an id; a stop id has no text of its own. */
  push({ id, logprob }: SampledId): GeneratedToken {
    const { stopIds, limit, position } = this.#options;
    const at = position + this.#count++;
    const stop = stopIds.includes(id);
    const last = stop || this.#count === limit;
    const piece = stop ? "" : this.#text.push(id);
    const shown = this.#stops.push(last ? piece + this.#text.flush() : piece);
    const rest = last && !shown.stopped ? this.#stops.flush() : "";
    if (shown.stopped) this.#end = "stopString";
    else if (last) this.#end = stop ? "stopId" : "limit";
    return { id, text: shown.text + rest, logprob, position: at };
  }
}

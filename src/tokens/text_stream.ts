/**
 * Ids to text, one id at a time.
 *
 * A character may be spread over several ids, and whether an id starts with a
 * space may depend on the one before. So each id is decoded together with the
 * few before it, and what they have given already is cut off. The window that
 * is decoded holds a handful of ids however long the text becomes.
 *
 * @module
 */
import type { Tokenizer } from "./tokenizer.ts";

/** What a decoder puts for bytes that are not (yet) a character. */
const REPLACEMENT = "\uFFFD";

/**
 * Ids that decide how a text ends: a character has at most four bytes, and an
 * id that gives text at least one.
 */
const CHARACTER_IDS = 4;

/** Ids in the window above which it is cut although bytes are missing. */
const MAX_WINDOW = 16;

/** Options of {@linkcode TextStream}. */
export interface TextStreamOptions {
  /**
   * Ids that the text follows, such as those of the prompt. They give no text,
   * but the first id may continue a character or a sentence of theirs.
   */
  readonly context?: readonly number[] | undefined;
  /** Whether special ids give no text; true unless told otherwise. */
  readonly skipSpecialTokens?: boolean | undefined;
}

/**
 * Turns a stream of ids into text, holding back bytes until they are whole
 * characters. All that `push` and `flush` return makes the text that decoding
 * the ids at once would give.
 */
export class TextStream {
  readonly #tokenizer: Tokenizer;
  readonly #skipSpecialTokens: boolean;
  /** Ids that are decoded together with the next one. */
  #window: number[] = [];
  /** Ids of the window that came before the text was last complete. */
  #settled = 0;
  /** Characters of the window's text that have been returned. */
  #returned = 0;

  /** Constructs a new instance for the ids of a tokenizer. */
  constructor(
    tokenizer: Tokenizer,
    { context = [], skipSpecialTokens = true }: TextStreamOptions = {},
  ) {
    this.#tokenizer = tokenizer;
    this.#skipSpecialTokens = skipSpecialTokens;
    for (const id of context.slice(-2 * CHARACTER_IDS)) this.push(id);
  }

  /** The text that is complete with the id: often a word, sometimes none. */
  push(id: number): string {
    // Ids without text are no context: the space that some decoders drop from
    // the start of a text would be that of the next id.
    const silent = !this.#tokenizer.token(id) ||
      (this.#skipSpecialTokens && this.#tokenizer.isSpecial(id));
    if (silent) return "";
    this.#window.push(id);
    const text = this.#decode(this.#window);
    const complete = !text.endsWith(REPLACEMENT);
    const end = complete ? text.length : text.length - REPLACEMENT.length;
    const fresh = text.slice(this.#returned, end);
    this.#returned = Math.max(this.#returned, end);
    if (complete) this.#settle();
    else if (this.#window.length > MAX_WINDOW) this.#cut(text.length);
    return fresh;
  }

  /**
   * The text of bytes that no character came of, as replacement characters.
   * What is pushed afterwards starts a new text.
   */
  flush(): string {
    const rest = this.#decode(this.#window).slice(this.#returned);
    this.#window = [];
    this.#settled = 0;
    this.#returned = 0;
    return rest;
  }

  /** The text of ids. */
  #decode(ids: readonly number[]): string {
    return this.#tokenizer.decode(ids, {
      skipSpecialTokens: this.#skipSpecialTokens,
    });
  }

  /** Drops the ids before the last complete text; the rest is context. */
  #settle(): void {
    this.#window = this.#window.slice(this.#settled);
    this.#settled = this.#window.length;
    this.#returned = this.#decode(this.#window).length;
  }

  /**
   * Drops all but the ids that decide how the text ends, for a model that
   * writes one invalid byte after another.
   */
  #cut(length: number): void {
    const held = length - this.#returned;
    this.#window = this.#window.slice(-CHARACTER_IDS);
    this.#settled = 0;
    this.#returned = this.#decode(this.#window).length - held;
  }
}

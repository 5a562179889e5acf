/**
 * Text to ids and back, as `tokenizer.json` and `tokenizer_config.json` say.
 *
 * The algorithm is `@huggingface/tokenizers`; this class checks the files,
 * settles which special ids frame a text and never lets a missing id through.
 *
 * @module
 */
import { Tokenizer as Engine } from "@huggingface/tokenizers";
import { ModelFormatError } from "../errors.ts";
import { show } from "../model/json.ts";
import {
  parseTokenizerFiles,
  type SourceText,
  type TokenizerFiles,
} from "./tokenizer_files.ts";

/** Options of {@linkcode Tokenizer.encode}. */
export interface EncodeOptions {
  /**
   * Whether the ids that the model expects around a text are added, such as
   * one that starts it; true unless told otherwise. Text that comes out of a
   * chat template has them already.
   */
  readonly addSpecialTokens?: boolean | undefined;
}

/** Options of {@linkcode Tokenizer.decode}. */
export interface DecodeOptions {
  /** Whether special ids give no text; true unless told otherwise. */
  readonly skipSpecialTokens?: boolean | undefined;
}

/** The tokenizer of a model. */
export class Tokenizer {
  readonly #files: TokenizerFiles;
  readonly #engine: Engine;
  readonly #prefix: readonly number[];
  readonly #suffix: readonly number[];

  /**
   * Constructs a new instance from the text of `tokenizer.json` and, where the
   * model has one, `tokenizer_config.json`.
   *
   * @throws {ModelFormatError} If a field is missing or cannot be served.
   */
  constructor(tokenizer: SourceText, config?: SourceText) {
    this.#files = parseTokenizerFiles(tokenizer, config);
    const { json, settings } = this.#files;
    this.#engine = this.#blameFile(() => new Engine(json, settings));
    const { prefix, suffix } = this.#probeFrame();
    this.#prefix = this.#frameSide("bos_token", prefix);
    this.#suffix = this.#frameSide("eos_token", suffix);
  }

  /** One more than the largest id. */
  get size(): number {
    return this.#files.size;
  }

  /** Texts of the named special tokens, such as `bos_token`. */
  get specialTokens(): Readonly<Record<string, string>> {
    return this.#files.specialTokens;
  }

  /** Id that starts a text, where the tokenizer names one. */
  get bosId(): number | undefined {
    return this.#namedId("bos_token");
  }

  /** Id that ends a text, where the tokenizer names one. */
  get eosId(): number | undefined {
    return this.#namedId("eos_token");
  }

  /**
   * The ids of a text. Texts of special tokens within it become their ids, as
   * in transformers.
   *
   * @throws {TypeError} If the text is not a string.
   */
  encode(
    text: string,
    { addSpecialTokens = true }: EncodeOptions = {},
  ): number[] {
    if (typeof text !== "string") {
      throw new TypeError(
        `Cannot encode the text: it is ${typeof text}, expected a string`,
      );
    }
    const ids = this.#encodeText(text);
    return addSpecialTokens ? [...this.#prefix, ...ids, ...this.#suffix] : ids;
  }

  /**
   * The text of ids. Ids that the tokenizer does not know give no text: models
   * often have more of them than their tokenizer. Spaces before punctuation
   * stay, whatever `clean_up_tokenization_spaces` says, as in transformers 5.
   */
  decode(
    ids: readonly number[],
    { skipSpecialTokens = true }: DecodeOptions = {},
  ): string {
    const known = ids.filter((id) =>
      this.token(id) !== undefined &&
      !(skipSpecialTokens && this.isSpecial(id))
    );
    // The engine takes an empty list for a mistake.
    if (known.length === 0) return "";
    return this.#blameFile(() =>
      this.#engine.decode(known, { clean_up_tokenization_spaces: false })
    );
  }

  /** Whether the id marks structure and gives no text. */
  isSpecial(id: number): boolean {
    return this.#files.specialIds.has(id);
  }

  /** The entry of the vocabulary with the id, as it is spelled there. */
  token(id: number): string | undefined {
    return this.#engine.id_to_token(id);
  }

  /** The id of an entry of the vocabulary, as it is spelled there. */
  tokenId(token: string): number | undefined {
    return this.#engine.token_to_id(token);
  }

  /** The ids of a text alone. */
  #encodeText(text: string): number[] {
    const { ids } = this.#blameFile(() =>
      this.#engine.encode(text, { add_special_tokens: false })
    );
    // A vocabulary without an unknown token has no id for what it lacks.
    return ids.filter((id) => id !== undefined);
  }

  /**
   * Runs the engine. It takes most of the file on trust, so what it throws is
   * the file's fault.
   */
  #blameFile<T>(run: () => T): T {
    try {
      return run();
    } catch (cause) {
      throw new ModelFormatError(
        this.#files.file,
        `the tokenizer does not work: ${
          cause instanceof Error ? cause.message : String(cause)
        }`,
        { cause },
      );
    }
  }

  /** What the post-processor puts before and after a text. */
  #probeFrame(): { prefix: number[]; suffix: number[] } {
    const probe = "a";
    const text = this.#encodeText(probe);
    const { ids } = this.#blameFile(() => this.#engine.encode(probe));
    const extra = ids.length - text.length;
    for (let start = 0; start <= extra; start++) {
      if (text.every((id, i) => ids[start + i] === id)) {
        return {
          prefix: ids.slice(0, start),
          suffix: ids.slice(start + text.length),
        };
      }
    }
    return { prefix: [], suffix: [] };
  }

  /** One side of the frame, with `add_bos_token` or `add_eos_token` obeyed. */
  #frameSide(name: "bos_token" | "eos_token", probed: number[]): number[] {
    const { frame, settingsFile } = this.#files;
    const wanted = frame[name];
    if (wanted === undefined) return probed;
    const id = this.#namedId(name);
    if (!wanted) return probed.filter((other) => other !== id);
    if (id === undefined) {
      throw new ModelFormatError(
        settingsFile,
        `${name} is ${
          show(this.specialTokens[name])
        }, expected an entry of the vocabulary because add_${name} is true`,
      );
    }
    return probed.includes(id) ? probed : [id];
  }

  /** Id of a named special token. */
  #namedId(name: string): number | undefined {
    const text = this.specialTokens[name];
    return text === undefined ? undefined : this.tokenId(text);
  }
}

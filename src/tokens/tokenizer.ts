/**
 * Text to ids and back, as `tokenizer.json` and `tokenizer_config.json` say.
 *
 * The algorithm is `@huggingface/tokenizers`; this class checks the files,
 * settles which special ids frame a text and never lets a missing id through.
 *
 * @module
 */
import { Tokenizer as Engine } from "@huggingface/tokenizers";
import * as v from "valibot";
import { ModelFormatError } from "../errors.ts";
import { checkSchema, integer, parseJson, show } from "../model/json.ts";

/** A text file that was read. */
export interface SourceText {
  /** Its name for error messages. */
  readonly file: string;
  /** What it says. */
  readonly text: string;
}

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

const id = integer(0, 2 ** 31 - 1);
const component = v.nullable(
  v.object({ type: v.string("a type name") }, "an object or null"),
);

const TokenizerFile = v.object({
  model: v.object({
    // Checked by one loop: a schema per entry takes seconds for large ones.
    vocab: v.custom<Readonly<Record<string, number>> | readonly unknown[]>(
      isVocabulary,
      "an object of ids or a list of pairs",
    ),
  }, "an object"),
  added_tokens: v.array(
    v.object({
      id,
      content: v.string("a string"),
      special: v.boolean("true or false"),
    }, "an object"),
    "a list of tokens",
  ),
  normalizer: component,
  pre_tokenizer: component,
  post_processor: component,
  decoder: component,
}, "an object");

const token = v.nullish(
  v.union([
    v.string(),
    v.object({ content: v.string() }),
  ], "a string or an object with content"),
);
const flag = v.nullish(v.boolean("true or false"));
const tokens = {
  bos_token: token,
  eos_token: token,
  unk_token: token,
  sep_token: token,
  pad_token: token,
  cls_token: token,
  mask_token: token,
};

const ConfigFile = v.object({
  ...tokens,
  add_bos_token: flag,
  add_eos_token: flag,
}, "an object");

/** The tokenizer of a model. */
export class Tokenizer {
  /** One more than the largest id. */
  readonly size: number;
  /** Texts of the named special tokens, such as `bos_token`. */
  readonly specialTokens: Readonly<Record<string, string>>;
  readonly #engine: Engine;
  readonly #specialIds: ReadonlySet<number>;
  readonly #prefix: readonly number[];
  readonly #suffix: readonly number[];

  /**
   * Constructs a new instance from the text of `tokenizer.json` and, where the
   * model has one, `tokenizer_config.json`.
   *
   * @throws {ModelFormatError} If a field is missing or cannot be served.
   */
  constructor(tokenizer: SourceText, config?: SourceText) {
    const json = parseJson(tokenizer.text, tokenizer.file);
    const { model, added_tokens } = checkSchema(
      TokenizerFile,
      json,
      tokenizer.file,
    );
    const settings = config ? parseJson(config.text, config.file) : {};
    const checked = checkSchema(
      ConfigFile,
      settings,
      config?.file ?? tokenizer.file,
    );
    try {
      this.#engine = new Engine(json as object, settings as object);
    } catch (cause) {
      throw new ModelFormatError(
        tokenizer.file,
        `the tokenizer cannot be built: ${
          cause instanceof Error ? cause.message : String(cause)
        }`,
        { cause },
      );
    }
    this.size = 1 +
      Math.max(largestId(model.vocab), ...added_tokens.map(({ id }) => id));
    this.#specialIds = new Set(
      added_tokens.filter(({ special }) => special).map(({ id }) => id),
    );
    this.specialTokens = Object.fromEntries(
      Object.keys(tokens).flatMap((name) => {
        const found = checked[name as keyof typeof tokens] ?? undefined;
        if (found === undefined) return [];
        return [[name, typeof found === "string" ? found : found.content]];
      }),
    );
    const frame = this.#probeFrame();
    const file = config?.file ?? tokenizer.file;
    this.#prefix = this.#frameSide(frame.prefix, {
      wanted: checked.add_bos_token,
      name: "bos_token",
      file,
    });
    this.#suffix = this.#frameSide(frame.suffix, {
      wanted: checked.add_eos_token,
      name: "eos_token",
      file,
    });
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
   */
  encode(
    text: string,
    { addSpecialTokens = true }: EncodeOptions = {},
  ): number[] {
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
    return this.#engine.decode(known, { clean_up_tokenization_spaces: false });
  }

  /** Whether the id marks structure and gives no text. */
  isSpecial(id: number): boolean {
    return this.#specialIds.has(id);
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
    const { ids } = this.#engine.encode(text, { add_special_tokens: false });
    // A vocabulary without an unknown token has no id for what it lacks.
    return ids.filter((id) => id !== undefined);
  }

  /** What the post-processor puts before and after a text. */
  #probeFrame(): { prefix: number[]; suffix: number[] } {
    const probe = "a";
    const text = this.#encodeText(probe);
    const { ids } = this.#engine.encode(probe);
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
  #frameSide(
    probed: number[],
    { wanted, name, file }: {
      wanted: boolean | null | undefined;
      name: "bos_token" | "eos_token";
      file: string;
    },
  ): number[] {
    if (wanted === undefined || wanted === null) return probed;
    const id = this.#namedId(name);
    if (!wanted) return probed.filter((other) => other !== id);
    if (id === undefined) {
      throw new ModelFormatError(
        file,
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

/** Whether the value maps texts to ids (BPE) or lists texts (Unigram). */
function isVocabulary(value: unknown): boolean {
  if (typeof value !== "object" || value === null) return false;
  if (Array.isArray(value)) {
    return value.every((entry) =>
      Array.isArray(entry) && typeof entry[0] === "string"
    );
  }
  return Object.values(value).every((id) =>
    Number.isInteger(id) && id >= 0 && id < 2 ** 31
  );
}

/** The largest id of a vocabulary. */
function largestId(
  vocabulary: Readonly<Record<string, number>> | readonly unknown[],
): number {
  if (Array.isArray(vocabulary)) return vocabulary.length - 1;
  return Object.values(vocabulary as Readonly<Record<string, number>>).reduce(
    (largest, id) => Math.max(largest, id),
    -1,
  );
}

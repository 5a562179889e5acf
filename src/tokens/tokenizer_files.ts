/**
 * `tokenizer.json` and `tokenizer_config.json`: checking and reading what the
 * tokenizer needs to know beside its algorithm.
 *
 * @module
 */
import * as v from "valibot";
import { checkSchema, integer, parseJson } from "../model/json.ts";

/** A text file that was read. */
export interface SourceText {
  /** Its name for error messages. */
  readonly file: string;
  /** What it says. */
  readonly text: string;
}

/** What the two files say. */
export interface TokenizerFiles {
  /** Name of `tokenizer.json`. */
  readonly file: string;
  /** Name of the file that has the settings. */
  readonly settingsFile: string;
  /** All of `tokenizer.json`. */
  readonly json: object;
  /** All of `tokenizer_config.json`; empty where there is none. */
  readonly settings: object;
  /** One more than the largest id. */
  readonly size: number;
  /** Ids that mark structure. */
  readonly specialIds: ReadonlySet<number>;
  /** Texts of the named special tokens, such as `bos_token`. */
  readonly specialTokens: Readonly<Record<string, string>>;
  /** Whether a text is framed by `bos_token` and `eos_token`, if they say. */
  readonly frame: Readonly<
    Record<"bos_token" | "eos_token", boolean | undefined>
  >;
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

/**
 * Reads the text of the two files.
 *
 * @throws {ModelFormatError} If a field is missing or has a wrong type.
 */
export function parseTokenizerFiles(
  tokenizer: SourceText,
  config: SourceText | undefined,
): TokenizerFiles {
  const { file } = tokenizer;
  const json = parseJson(tokenizer.text, file);
  const { model, added_tokens } = checkSchema(TokenizerFile, json, file);
  const settingsFile = config?.file ?? file;
  const settings = config ? parseJson(config.text, config.file) : {};
  const checked = checkSchema(ConfigFile, settings, settingsFile);
  const specialTokens: Record<string, string> = {};
  for (const name of Object.keys(tokens) as (keyof typeof tokens)[]) {
    const found = checked[name];
    if (found === undefined || found === null) continue;
    specialTokens[name] = typeof found === "string" ? found : found.content;
  }
  const specials = added_tokens.filter(({ special }) => special);
  return {
    file,
    settingsFile,
    // The schemas let objects through alone.
    json: json as object,
    settings: settings as object,
    size: added_tokens.reduce(
      (size, { id }) => Math.max(size, id + 1),
      vocabularySize(model.vocab),
    ),
    specialIds: new Set(specials.map(({ id }) => id)),
    specialTokens,
    frame: {
      bos_token: checked.add_bos_token ?? undefined,
      eos_token: checked.add_eos_token ?? undefined,
    },
  };
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

/** One more than the largest id of a vocabulary. */
function vocabularySize(
  vocabulary: Readonly<Record<string, number>> | readonly unknown[],
): number {
  if (Array.isArray(vocabulary)) return vocabulary.length;
  return Object.values(vocabulary as Readonly<Record<string, number>>).reduce(
    (size, id) => Math.max(size, id + 1),
    0,
  );
}

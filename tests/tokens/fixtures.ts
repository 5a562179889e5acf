/** Tokenizers for tests: the one of the example model, and small ones. */
import { Tokenizer } from "../../src/tokens/tokenizer.ts";
import type { SourceText } from "../../src/tokens/tokenizer_files.ts";

/** The parts of a `tokenizer.json` that tests change. */
export type TokenizerJson = Record<string, unknown> & {
  added_tokens: Record<string, unknown>[];
  model: Record<string, unknown>;
};

const docs = new URL("../../examples/models/docs-7m/", import.meta.url);

/** The tokenizer of the example model: BPE over bytes. */
export function docsTokenizer(): Tokenizer {
  const source = (name: string): SourceText => ({
    file: name,
    text: Deno.readTextFileSync(new URL(name, docs)),
  });
  return new Tokenizer(
    source("tokenizer.json"),
    source("tokenizer_config.json"),
  );
}

/**
 * A `tokenizer.json` in the manner of Llama 2: spaces are `▁`, one is put in
 * front, characters without an entry become bytes, and the decoder drops the
 * first space.
 */
export function sentencePieceJson(): TokenizerJson {
  const merges = ["▁ h", "e l", "l o", "▁h el", "▁hel lo", "▁ w", "o r"];
  const bytes = Array.from(
    { length: 256 },
    (_, byte) => `<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`,
  );
  const entries = [
    ...["<unk>", "<s>", "</s>", ...bytes, "▁", ..."abcdehlorwé,.!"],
    ...merges.map((merge) => merge.replace(" ", "")),
  ];
  return {
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: ["<unk>", "<s>", "</s>"].map((content, id) => ({
      id,
      content,
      single_word: false,
      lstrip: false,
      rstrip: false,
      normalized: false,
      special: true,
    })),
    normalizer: {
      type: "Sequence",
      normalizers: [
        { type: "Prepend", prepend: "▁" },
        { type: "Replace", pattern: { String: " " }, content: "▁" },
      ],
    },
    pre_tokenizer: null,
    post_processor: {
      type: "TemplateProcessing",
      single: [
        { SpecialToken: { id: "<s>", type_id: 0 } },
        { Sequence: { id: "A", type_id: 0 } },
      ],
      pair: [
        { SpecialToken: { id: "<s>", type_id: 0 } },
        { Sequence: { id: "A", type_id: 0 } },
        { SpecialToken: { id: "<s>", type_id: 1 } },
        { Sequence: { id: "B", type_id: 1 } },
      ],
      special_tokens: { "<s>": { id: "<s>", ids: [1], tokens: ["<s>"] } },
    },
    decoder: {
      type: "Sequence",
      decoders: [
        { type: "Replace", pattern: { String: "▁" }, content: " " },
        { type: "ByteFallback" },
        { type: "Fuse" },
        { type: "Strip", content: " ", start: 1, stop: 0 },
      ],
    },
    model: {
      type: "BPE",
      dropout: null,
      unk_token: "<unk>",
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: true,
      byte_fallback: true,
      ignore_merges: false,
      vocab: Object.fromEntries(entries.map((entry, id) => [entry, id])),
      merges,
    },
  };
}

/** Makes a tokenizer of the two files, given as values. */
export function makeTokenizer(tokenizer: unknown, config?: unknown): Tokenizer {
  const source = (file: string, value: unknown): SourceText => ({
    file,
    text: JSON.stringify(value),
  });
  return new Tokenizer(
    source("tokenizer.json", tokenizer),
    config === undefined ? undefined : source("tokenizer_config.json", config),
  );
}

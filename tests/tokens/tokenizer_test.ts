import {
  assertEquals,
  assertInstanceOf,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import { ModelFormatError } from "../../src/errors.ts";
import { Tokenizer } from "../../src/tokens/tokenizer.ts";
import { docsTokenizer, makeTokenizer, sentencePieceJson } from "./fixtures.ts";

const golden = new URL("../golden/", import.meta.url);

function readGolden(name: string): Promise<string> {
  return Deno.readTextFile(new URL(name, golden));
}

Deno.test("encode gives the ids of the reference tokenizer", async () => {
  const tokenizer = docsTokenizer();
  const cases: { text: string; ids: number[] }[] = JSON.parse(
    await readGolden("tokenizer-docs-7m.json"),
  );
  for (const { text, ids } of cases) {
    assertEquals(tokenizer.encode(text), ids, JSON.stringify(text));
    assertEquals(tokenizer.decode(ids, { skipSpecialTokens: false }), text);
  }
});

Deno.test("prompts and greedy texts agree with the reference", async () => {
  const tokenizer = docsTokenizer();
  const { items } = JSON.parse(await readGolden("docs-7m.json"));
  for (const { prompt, ids, greedy_ids, greedy_text } of items) {
    assertEquals(tokenizer.encode(prompt), ids, prompt);
    assertEquals(tokenizer.decode(greedy_ids), greedy_text);
  }
});

Deno.test("special ids give no text unless wanted", () => {
  const tokenizer = docsTokenizer();
  const ids = tokenizer.encode("a<|im_end|>b");
  assertEquals(tokenizer.decode(ids), "ab");
  assertEquals(
    tokenizer.decode(ids, { skipSpecialTokens: false }),
    "a<|im_end|>b",
  );
  assertEquals(tokenizer.decode([2]), "");
  assertEquals(tokenizer.decode([]), "");
  assertEquals(tokenizer.isSpecial(2), true);
  assertEquals(tokenizer.isSpecial(3), false);
});

Deno.test("ids beyond the tokenizer give no text", () => {
  const tokenizer = docsTokenizer();
  assertEquals(tokenizer.size, 4096);
  assertEquals(tokenizer.token(4096), undefined);
  assertEquals(tokenizer.decode([67, 4096, 1e6, 68]), "ab");
});

Deno.test("a sentence-piece tokenizer gives the ids of the Rust one", () => {
  // Ids by version 0.23 of the tokenizers crate.
  const tokenizer = makeTokenizer(sentencePieceJson(), {});
  const cases: [string, number[]][] = [
    ["hello world", [278, 279, 280, 266, 263]],
    [" hello", [259, 278]],
    ["hello  world", [278, 259, 279, 280, 266, 263]],
    ["   a", [259, 259, 259, 259, 260]],
    ["日", [259, 233, 154, 168]],
    ["hello</s>world", [278, 2, 279, 280, 266, 263]],
  ];
  for (const [text, ids] of cases) {
    assertEquals(tokenizer.encode(text, { addSpecialTokens: false }), ids);
    assertEquals(tokenizer.encode(text), [1, ...ids]);
  }
  assertEquals(tokenizer.decode([1, 259, 233, 154, 168]), "日");
});

Deno.test("add_bos_token and add_eos_token overrule the post-processor", () => {
  const tokens = { bos_token: "<s>", eos_token: { content: "</s>" } };
  const encode = (config: object): number[] =>
    makeTokenizer(sentencePieceJson(), { ...tokens, ...config }).encode("a");
  assertEquals(encode({}), [1, 259, 260]);
  assertEquals(encode({ add_bos_token: null }), [1, 259, 260]);
  assertEquals(encode({ add_bos_token: true }), [1, 259, 260]);
  assertEquals(encode({ add_bos_token: false }), [259, 260]);
  assertEquals(encode({ add_eos_token: true }), [1, 259, 260, 2]);
  const tokenizer = makeTokenizer(sentencePieceJson(), tokens);
  assertEquals([tokenizer.bosId, tokenizer.eosId], [1, 2]);
  assertEquals(tokenizer.specialTokens, {
    bos_token: "<s>",
    eos_token: "</s>",
  });
  assertEquals(makeTokenizer(sentencePieceJson()).bosId, undefined);
});

Deno.test("only strings are encoded", () => {
  const tokenizer = makeTokenizer(sentencePieceJson(), {});
  assertThrows(
    () => tokenizer.encode(undefined as unknown as string),
    TypeError,
    "it is undefined, expected a string",
  );
});

Deno.test("spaces before punctuation stay", () => {
  const tokenizer = makeTokenizer(sentencePieceJson(), {
    clean_up_tokenization_spaces: true,
  });
  assertEquals(tokenizer.decode(tokenizer.encode("hello . a")), "hello . a");
});

/** Makes a change to the tokenizer, and names what the error must say. */
interface BadCase {
  readonly tokenizer?: (json: ReturnType<typeof sentencePieceJson>) => unknown;
  readonly config?: unknown;
  readonly says: string;
}

const badCases: Record<string, BadCase> = {
  "no object": { tokenizer: () => 5, says: "is 5, expected an object" },
  "no model": {
    tokenizer: ({ model: _, ...rest }) => rest,
    says: "model is missing",
  },
  "no vocabulary": {
    tokenizer: (json) => ({ ...json, model: { type: "BPE", merges: [] } }),
    says: "model.vocab is missing",
  },
  "no merges": {
    tokenizer: (json) => ({ ...json, model: { ...json.model, merges: null } }),
    says: "the tokenizer does not work",
  },
  "no added tokens": {
    tokenizer: ({ added_tokens: _, ...rest }) => rest,
    says: "added_tokens is missing",
  },
  "an added token without an id": {
    tokenizer: (json) => ({ ...json, added_tokens: [{ content: "<s>" }] }),
    says: "added_tokens.0.id is missing",
  },
  "no decoder": {
    tokenizer: ({ decoder: _, ...rest }) => rest,
    says: "decoder is missing",
  },
  "no normalizer": {
    tokenizer: ({ normalizer: _, ...rest }) => rest,
    says: "normalizer is missing",
  },
  "an unknown decoder": {
    tokenizer: (json) => ({ ...json, decoder: { type: "Mystery" } }),
    says: "Mystery",
  },
  "ids that are not ids": {
    tokenizer: (json) => ({
      ...json,
      model: { ...json.model, vocab: { a: -1 } },
    }),
    says: "model.vocab is an object, expected",
  },
  "a flag that is none": {
    config: { add_bos_token: "yes" },
    says: 'add_bos_token is "yes", expected true or false',
  },
  "add_bos_token without bos_token": {
    config: { add_bos_token: true },
    says: "bos_token is undefined, expected an entry of the vocabulary",
  },
  "a bos_token outside the vocabulary": {
    config: { add_bos_token: true, bos_token: "<nothing>" },
    says: 'bos_token is "<nothing>", expected an entry of the vocabulary',
  },
};

for (const [name, { tokenizer, config, says }] of Object.entries(badCases)) {
  Deno.test(`a tokenizer with ${name} is rejected`, () => {
    const json = sentencePieceJson();
    const error = assertThrows(
      () => makeTokenizer(tokenizer ? tokenizer(json) : json, config),
      ModelFormatError,
    );
    assertStringIncludes(error.message, says);
    assertEquals(
      error.file,
      config === undefined ? "tokenizer.json" : "tokenizer_config.json",
    );
  });
}

Deno.test("damaged JSON is rejected", () => {
  const error = assertThrows(
    () => new Tokenizer({ file: "tokenizer.json", text: '{"model":' }),
  );
  assertInstanceOf(error, ModelFormatError);
});

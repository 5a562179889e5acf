import { assert, assertEquals, assertLessOrEqual } from "@std/assert";
import { TextStream } from "../../src/tokens/text_stream.ts";
import { Tokenizer } from "../../src/tokens/tokenizer.ts";
import { docsTokenizer, makeTokenizer, sentencePieceJson } from "./fixtures.ts";

/** Streams ids and returns the pieces, the flushed one last. */
function pieces(tokenizer: Tokenizer, ids: readonly number[]): string[] {
  const stream = new TextStream(tokenizer);
  return [...ids.map((id) => stream.push(id)), stream.flush()];
}

/** Numbers below `limit` that are the same in every run. */
function randomIntegers(seed: number): (limit: number) => number {
  let state = seed;
  return (limit) => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return Math.floor(state / 2 ** 32 * limit);
  };
}

/** The id of one byte in the sentence-piece tokenizer. */
const byteId = (byte: number): number => 3 + byte;

Deno.test("text comes out word by word", () => {
  const tokenizer = docsTokenizer();
  const ids = tokenizer.encode("The SELECT statement");
  assertEquals(pieces(tokenizer, ids), [
    ...ids.map((id) => tokenizer.decode([id])),
    "",
  ]);
});

Deno.test("a character over several ids is held back until whole", () => {
  const tokenizer = docsTokenizer();
  const ids = tokenizer.encode("a日本🙂b");
  const stream = new TextStream(tokenizer);
  const out = ids.map((id) => stream.push(id));
  assertEquals(out.join(""), "a日本🙂b");
  assert(!out.some((piece) => piece.includes("\uFFFD")));
  assert(out.includes(""), "no piece was held back");
  assertEquals(stream.flush(), "");
});

Deno.test("flush gives what never became a character", () => {
  const tokenizer = docsTokenizer();
  const ids = tokenizer.encode("日").slice(0, -1);
  const stream = new TextStream(tokenizer);
  assertEquals(ids.map((id) => stream.push(id)).join(""), "");
  assertEquals(stream.flush(), "\uFFFD");
  assertEquals(stream.flush(), "");
});

Deno.test("spaces between sentence pieces stay, the first one goes", () => {
  const tokenizer = makeTokenizer(sentencePieceJson(), {});
  const ids = tokenizer.encode("hello  world日 a");
  assertEquals(pieces(tokenizer, ids).join(""), "hello  world日 a");
  assertEquals(pieces(tokenizer, [278, 278, 259, 259, 278]), [
    "hello",
    " hello",
    " ",
    " ",
    " hello",
    "",
  ]);
});

Deno.test("ids without text change nothing around them", () => {
  const json = sentencePieceJson();
  // Models have more ids than tokenizers, and some tokenizers an empty entry.
  const nothing = json.added_tokens.length + 1000;
  const empty = nothing + 1;
  json.added_tokens.push({ id: empty, content: "", special: false });
  const tokenizer = makeTokenizer(json, {});
  for (const id of [nothing, empty]) {
    const ids = [278, id, 278, id, id, 279, 280, id];
    assertEquals(pieces(tokenizer, ids), [
      ...["hello", "", " hello", "", "", " w", "or", "", ""],
    ]);
    const bytes = [0xe6, 0x97, 0xa5].map(byteId);
    const apart = bytes.flatMap((byte) => [byte, ...new Array(20).fill(id)]);
    assertEquals(pieces(tokenizer, apart).join(""), "日");
  }
});

Deno.test("after a context the first space stays", () => {
  const tokenizer = makeTokenizer(sentencePieceJson(), {});
  const context = tokenizer.encode("hello");
  const stream = new TextStream(tokenizer, { context });
  assertEquals(stream.push(278), " hello");
  // A character that the context began is finished.
  const half = new TextStream(tokenizer, {
    context: [...context, byteId(0xc3)],
  });
  assertEquals(half.push(byteId(0xa9)), "é");
});

Deno.test("special ids neither show nor separate bytes", () => {
  const tokenizer = docsTokenizer();
  const [first, ...rest] = tokenizer.encode("é");
  const ids = [0, first!, 1, ...rest, 2];
  assertEquals(pieces(tokenizer, ids).join(""), tokenizer.decode(ids));
  const stream = new TextStream(tokenizer, { skipSpecialTokens: false });
  assertEquals(stream.push(2), "<|im_end|>");
});

Deno.test("pieces add up to the text of all ids, whatever they are", () => {
  for (
    const tokenizer of [
      docsTokenizer(),
      makeTokenizer(sentencePieceJson(), {}),
    ]
  ) {
    const random = randomIntegers(7);
    for (let run = 0; run < 200; run++) {
      // Mostly single bytes, so that sequences are valid, cut and invalid.
      const ids = Array.from(
        { length: 1 + random(40) },
        () => random(4) === 0 ? random(tokenizer.size) : 3 + random(256),
      );
      assertEquals(
        pieces(tokenizer, ids).join(""),
        tokenizer.decode(ids),
        `ids ${ids}`,
      );
    }
  }
});

Deno.test("no replacement character comes out of valid text", () => {
  const tokenizer = makeTokenizer(sentencePieceJson(), {});
  const random = randomIntegers(11);
  for (let run = 0; run < 50; run++) {
    const text = String.fromCodePoint(
      ...Array.from(
        { length: 1 + random(10) },
        () => [0x61, 0xe9, 0x65e5, 0x1f642, 0x20, 0xffff][random(6)]!,
      ),
    );
    const bytes = [...new TextEncoder().encode(text)].map(byteId);
    const out = pieces(tokenizer, bytes);
    assert(!out.some((piece) => piece.includes("\uFFFD")), text);
    // The decoder drops a first space.
    assertEquals(out.join(""), text.replace(/^ /, ""));
  }
});

/** Counts the ids that are decoded. */
class CountingTokenizer extends Tokenizer {
  largest = 0;

  override decode(ids: readonly number[]): string {
    this.largest = Math.max(this.largest, ids.length);
    return super.decode(ids);
  }
}

Deno.test("the window stays small however long the text is", () => {
  const text = JSON.stringify(sentencePieceJson());
  const cases = {
    words: 278,
    spaces: 259,
    "no text": 5000,
    "invalid bytes": byteId(0x80),
    "starts of characters": byteId(0xf0),
  };
  for (const [name, id] of Object.entries(cases)) {
    const tokenizer = new CountingTokenizer({ file: "tokenizer.json", text });
    const stream = new TextStream(tokenizer);
    let out = "";
    for (let i = 0; i < 1000; i++) out += stream.push(id);
    out += stream.flush();
    assertEquals(out, tokenizer.decode(new Array(1000).fill(id)), name);
    tokenizer.largest = 0;
    for (let i = 0; i < 1000; i++) stream.push(id);
    assertLessOrEqual(tokenizer.largest, 17, name);
  }
});

Deno.test("a character after many invalid bytes is whole", () => {
  const tokenizer = makeTokenizer(sentencePieceJson(), {});
  const bytes = [...new TextEncoder().encode("🙂")].map(byteId);
  for (let junk = 0; junk < 40; junk++) {
    const ids = [...new Array(junk).fill(byteId(0x80)), ...bytes];
    assertEquals(
      pieces(tokenizer, ids).join(""),
      "\uFFFD".repeat(junk) + "🙂",
      `${junk} bytes`,
    );
  }
});

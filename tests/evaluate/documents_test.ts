import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import {
  documentId,
  halfOf,
  loadDocuments,
  parseDocuments,
} from "../../src/evaluate/documents.ts";
import { EvaluationFormatError } from "../../src/evaluate/format_error.ts";
import { piecesFromEnd } from "../../src/evaluate/feed.ts";
import { selectWindows, slideWindows } from "../../src/evaluate/windows.ts";
import { tinyDocuments } from "./tiny_evaluation.ts";

const codec = {
  encode: (text: string) => Array.from(text, (c) => c.charCodeAt(0)),
  decode: (ids: readonly number[]) => String.fromCharCode(...ids),
};

function line(name: string, text = "words"): string {
  return JSON.stringify({ source: "s", name, text });
}

Deno.test("documents are read line by line", () => {
  const documents = parseDocuments(`${line("a")}\n\n${line("b")}\n`, "d.jsonl");
  assertEquals(documents.map(documentId), ["s/a", "s/b"]);
  assertEquals(documents[0]!.text, "words");
});

Deno.test("errors name file, line and field", () => {
  const fails = (text: string, message: string) =>
    assertThrows(
      () => parseDocuments(text, "d.jsonl"),
      EvaluationFormatError,
      message,
    );
  fails(`${line("a")}\n{"source":`, "Cannot read d.jsonl: line 2 is damaged");
  fails(
    '{"source":"s","name":"a"}',
    "Cannot read d.jsonl: line 1: text is missing",
  );
  fails('{"source":1,"name":"a","text":"b"}', "line 1: source is 1, expected");
  fails(line("a", ""), 'line 1: text is "", expected a text');
  fails("[1]", "line 1: source is missing");
  fails("1", "line 1: the value is 1, expected an object");
  fails(
    `${line("a")}\n${line("a")}`,
    "line 2: the document s/a is also in line 1",
  );
  fails("\n", "there is no document");
});

Deno.test("a missing file is an error that says so", async () => {
  await assertRejects(
    () => loadDocuments("there/is/none.jsonl"),
    EvaluationFormatError,
    "there is no such file",
  );
});

Deno.test("halves follow from names alone", () => {
  const documents = Array.from({ length: 400 }, (_, i) => ({
    source: "s",
    name: `page ${i}`,
    text: "x",
  }));
  const halves = documents.map(halfOf);
  assertEquals(documents.toReversed().map(halfOf).toReversed(), halves);
  assertEquals(halfOf({ ...documents[3]!, text: "other" }), halves[3]);
  // 400 fair coins: 200 heads, standard deviation 10; five of them.
  const tune = halves.filter((half) => half === "tune").length;
  assert(tune > 150 && tune < 250, `${tune}`);
});

Deno.test("windows slide, and score no token twice", () => {
  const ids = Array.from({ length: 10 }, (_, i) => i);
  const windows = slideWindows(ids, { prompt: 4, continuation: 2 });
  assertEquals(windows.map(({ start }) => start), [0, 2, 4]);
  assertEquals(windows[1]!.prompt, [2, 3, 4, 5]);
  assertEquals(windows.map((w) => w.continuation), [[4, 5], [6, 7], [8, 9]]);
  const wide = slideWindows(ids, { prompt: 4, continuation: 2, stride: 3 });
  assertEquals(wide.map(({ start }) => start), [0, 3]);
  assertEquals(slideWindows(ids, { prompt: 10, continuation: 1 }), []);
});

Deno.test("the choice of windows follows from the seed", () => {
  const select = (seed: number) =>
    selectWindows(tinyDocuments, codec, {
      prompt: 60,
      continuation: 20,
      windowsPerDocument: 2,
      documents: 4,
      seed,
    });
  const windows = select(1);
  assertEquals(windows, select(1));
  assertEquals(windows.length, 8);
  assertEquals(new Set(windows.map((w) => w.document)).size, 4);
  assert(JSON.stringify(select(2)) !== JSON.stringify(windows));
  assertThrows(
    () => selectWindows(tinyDocuments, codec, { prompt: 1e5, continuation: 1 }),
    RangeError,
    "a window of 100001 tokens",
  );
});

Deno.test("chunks are cut so that the end stays together", () => {
  const ids = [1, 2, 3, 4, 5, 6, 7];
  const every = (chunk: number) => ({ kind: "streaming", chunk } as const);
  assertEquals(piecesFromEnd(ids, every(3)), [[1], [2, 3, 4], [5, 6, 7]]);
  assertEquals(piecesFromEnd(ids.slice(0, 6), every(3)), [[1, 2, 3], [
    4,
    5,
    6,
  ]]);
  assertEquals(piecesFromEnd(ids, every(7)), [ids]);
  assertEquals(piecesFromEnd(ids, every(100)), [ids]);
  assertEquals(piecesFromEnd([], every(3)), []);
  assertEquals(piecesFromEnd(ids, { kind: "whole", longest: 8 }), [ids]);
});

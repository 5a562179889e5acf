import {
  assert,
  assertEquals,
  assertMatch,
  assertNotEquals,
  assertThrows,
} from "@std/assert";
import { fillerLines } from "../../src/evaluate/haystack.ts";
import { encodeRetrieval } from "../../src/evaluate/retrieval.ts";
import {
  createRetrieval,
  retrievalForms,
  type RetrievalSource,
} from "../../src/evaluate/retrieval_tasks.ts";
import { ADJECTIVES, NOUNS } from "../../src/evaluate/retrieval_words.ts";
import { tinyDocuments } from "./tiny_evaluation.ts";

const codec = {
  encode: (text: string) => Array.from(text, (c) => c.charCodeAt(0)),
  decode: (ids: readonly number[]) => String.fromCharCode(...ids),
};
const source: RetrievalSource = {
  model: {
    codec,
    renderChat: (messages) => `<u>${messages[0]!.content}</u>\n<a>`,
  },
  filler: fillerLines(tinyDocuments),
};
const place = { length: 900, depth: 0.5, seed: 1 };

Deno.test("the same seed gives the same task, and others another one", () => {
  for (const form of retrievalForms) {
    const task = createRetrieval(form, place, source);
    assertEquals(createRetrieval(form, place, source), task);
    assertNotEquals(createRetrieval(form, { ...place, seed: 2 }, source), task);
  }
});

Deno.test("each task holds its answer once, and fits", () => {
  for (const form of retrievalForms) {
    for (const seed of [1, 2, 3, 4, 5]) {
      const task = createRetrieval(form, { ...place, seed }, source);
      assertMatch(task.answer, /^[1-9]\d{3,5}$/);
      assertEquals(task.context.split(task.answer).length, 2, task.context);
      assert(!task.question.includes(task.answer));
      const { context, question } = encodeRetrieval(source.model, task);
      const length = context.length + question.length;
      // What is left is shorter than a line.
      assert(length <= 900 && length > 860, `${form}: ${length}`);
    }
  }
});

Deno.test("the fact is at its depth", () => {
  for (const form of retrievalForms) {
    for (const depth of [0, 0.25, 0.5, 0.75, 1]) {
      const { context, answer } = createRetrieval(
        form,
        { ...place, depth },
        source,
      );
      const lines = context.trimEnd().split("\n");
      const at = lines.findIndex((line) => line.includes(answer));
      const before = lines.slice(0, at).join("\n").length / context.length;
      // A line, and the facts that stand between, of 900 characters.
      assert(Math.abs(before - depth) < 0.12, `${form} ${depth}: ${before}`);
    }
  }
});

Deno.test("questions have the form that models were trained with", () => {
  const needle = createRetrieval("needle", place, source);
  const [, attribute, name] = /Question: What is the (.+) for the (.+)\?/
    .exec(needle.question)!;
  assertEquals(
    needle.question,
    `\nQuestion: What is the ${attribute} for the ${name}?\nAnswer: The ${attribute} for the ${name} is`,
  );
  assert(
    needle.context.includes(
      `The ${attribute} for the ${name} is ${needle.answer}.\n`,
    ),
  );
  const chat = createRetrieval("chat", place, source);
  assert(chat.context.startsWith("<u>"));
  assertMatch(chat.question, /^\nWhat is the .+ for the .+\?<\/u>\n<a>$/);
  const ledger = createRetrieval("ledger", place, source);
  const [, entry] = /^\nLookups\n(.+):$/.exec(ledger.question)!;
  assert(ledger.context.startsWith("Ledger\n"));
  assert(ledger.context.includes(`\n${entry}: ${ledger.answer}\n`));
});

Deno.test("several needles are several facts of one kind", () => {
  const { context } = createRetrieval("needles", place, {
    ...source,
    needles: 5,
  });
  const facts = context.match(/^The .+ for the .+ is \d+\.$/gm)!;
  assertEquals(facts.length, 5);
  assertEquals(new Set(facts.map((f) => f.split(" for ")[0])).size, 1);
  assertEquals(new Set(facts).size, 5);
});

Deno.test("words are different", () => {
  for (const words of [ADJECTIVES, NOUNS]) {
    assertEquals(new Set(words).size, words.length);
    for (const word of words) assertMatch(word, /^[a-z]+$/);
  }
});

Deno.test("a length without room is refused", () => {
  for (const form of retrievalForms) {
    assertThrows(
      () => createRetrieval(form, { ...place, length: 20 }, source),
      RangeError,
      "Cannot hide a fact",
    );
  }
});

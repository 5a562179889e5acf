/**
 * Texts that hide facts and ask for one: needles in a haystack, a ledger, a
 * chat. The same seed gives the same text.
 *
 * Forms and wording are those that the models of this project were trained
 * with: `The access code for the silver heron is 48213.`, asked for with
 * `Question: What is the access code for the silver heron?`, and in a ledger
 * `silver heron: 48213`, looked up under `Lookups`.
 *
 * @module
 */
import type { EvaluationModel } from "./model.ts";
import { checkRoom, hide, lineTokens, takeFiller } from "./haystack.ts";
import { Random } from "./random.ts";
import { ADJECTIVES, ATTRIBUTES, NOUNS } from "./retrieval_words.ts";

/**
 * What a retrieval task looks like.
 *
 * - `needle`: one fact in other text;
 * - `needles`: several facts in other text, one of them asked for;
 * - `ledger`: nothing but names and numbers;
 * - `chat`: one fact in other text, all in the message of a chat.
 */
export type RetrievalForm = "needle" | "needles" | "ledger" | "chat";

/** All forms. */
export const retrievalForms = ["needle", "needles", "ledger", "chat"] as const;

/** Where a fact is hidden. */
export interface RetrievalPlace {
  /** Tokens of context and question at most. */
  readonly length: number;
  /** Share of the context before the fact, from 0 to 1. */
  readonly depth: number;
  /** Seed of names, numbers and the text around them. */
  readonly seed: number;
}

/** What a task is made from. */
export interface RetrievalSource {
  /** Tokenizer and chat template. */
  readonly model: Pick<EvaluationModel, "codec" | "renderChat">;
  /** Text around the facts, see {@linkcode fillerLines}. */
  readonly filler: readonly string[];
  /** Facts of the form `needles` (default 4). */
  readonly needles?: number;
}

/** One task. */
export interface RetrievalExample {
  /** Text up to the question. */
  readonly context: string;
  /** The question, up to where the answer begins. */
  readonly question: string;
  /** Digits of the answer. */
  readonly answer: string;
  /** Tokens after which an answer can no longer come. */
  readonly answerTokens: number;
}

/** A name and the number that belongs to it. */
interface Fact {
  readonly name: string;
  readonly value: string;
}

/** Tokens beside digits in an answer that begins with the number itself. */
const SHORT_ANSWER = 4;
/** The same where the model first has to say what it is asked for. */
const LONG_ANSWER = 32;

/**
 * Makes a task.
 *
 * @throws {RangeError} If it does not fit into `length` tokens.
 */
export function createRetrieval(
  form: RetrievalForm,
  place: RetrievalPlace,
  source: RetrievalSource,
): RetrievalExample {
  const random = new Random(
    place.seed,
    `${form} ${place.length} ${place.depth}`,
  );
  return form === "ledger"
    ? createLedger(place, source, random)
    : createNeedles(form, place, { ...source, random });
}

/** Facts with different names, as many as there are names. */
function* drawFacts(random: Random): Generator<Fact, never, undefined> {
  const known = new Set<string>();
  while (true) {
    if (known.size === ADJECTIVES.length * NOUNS.length) {
      throw new RangeError(
        `Cannot make more than ${known.size} facts: expected a shorter length`,
      );
    }
    const name = `${random.sample(ADJECTIVES, 1)[0]} ${
      random.sample(NOUNS, 1)[0]
    }`;
    const digits = 4 + random.below(3);
    const value = String(
      10 ** (digits - 1) + random.below(9 * 10 ** (digits - 1)),
    );
    if (known.has(name)) continue;
    known.add(name);
    yield { name, value };
  }
}

function createNeedles(
  form: Exclude<RetrievalForm, "ledger">,
  { length, depth }: RetrievalPlace,
  { model, filler, needles = 4, random }: RetrievalSource & { random: Random },
): RetrievalExample {
  const attribute = random.sample(ATTRIBUTES, 1)[0]!;
  const facts = drawFacts(random);
  const target = facts.next().value;
  const say = ({ name, value }: Fact) =>
    `The ${attribute} for the ${name} is ${value}.`;
  const others = Array.from(
    { length: form === "needles" ? needles - 1 : 0 },
    (_, i) => ({
      line: say(facts.next().value),
      depth: (i + 0.5) / (needles - 1),
    }),
  );
  const hidden = [{ line: say(target), depth }, ...others];
  const subject = `the ${attribute} for the ${target.name}`;
  const ask = `What is ${subject}?`;
  const render = (lines: readonly string[]) =>
    form === "chat" ? splitChat(model, `${lines.join("\n")}\n`, `\n${ask}`) : {
      context: `${lines.join("\n")}\n`,
      question: `\nQuestion: ${ask}\nAnswer: The ${subject.slice(4)} is`,
    };
  const room = length -
    countTokens(model, render(hidden.map(({ line }) => line)));
  const { lines, tokens } = takeFiller(filler, { model, room, random });
  return {
    ...render(hide(lines, tokens, hidden)),
    answer: target.value,
    answerTokens: target.value.length +
      (form === "chat" ? LONG_ANSWER : SHORT_ANSWER),
  };
}

function createLedger(
  { length, depth }: RetrievalPlace,
  { model }: RetrievalSource,
  random: Random,
): RetrievalExample {
  const facts = drawFacts(random);
  const target = facts.next().value;
  const say = ({ name, value }: Fact) => `${name}: ${value}`;
  const question = `\nLookups\n${target.name}:`;
  const hidden = [{ line: say(target), depth }];
  let room = length - countTokens(model, {
    context: `Ledger\n${say(target)}\n`,
    question,
  });
  checkRoom(room);
  const lines: string[] = [];
  const tokens: number[] = [];
  while (true) {
    const line = say(facts.next().value);
    const count = lineTokens(model, line);
    if (count > room) break;
    room -= count;
    lines.push(line);
    tokens.push(count);
  }
  const context = `Ledger\n${hide(lines, tokens, hidden).join("\n")}\n`;
  return {
    context,
    question,
    answer: target.value,
    answerTokens: target.value.length + SHORT_ANSWER,
  };
}

/** Splits a rendered chat before its question. */
function splitChat(
  model: RetrievalSource["model"],
  context: string,
  question: string,
): { context: string; question: string } {
  const text = model.renderChat([
    { role: "user", content: context + question },
  ]);
  const at = text.lastIndexOf(question);
  return { context: text.slice(0, at), question: text.slice(at) };
}

function countTokens(
  { codec }: RetrievalSource["model"],
  { context, question }: { context: string; question: string },
): number {
  const options = { addSpecialTokens: false };
  return codec.encode(context, options).length +
    codec.encode(question, options).length;
}

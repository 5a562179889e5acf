/**
 * Whether a fact can still be found in a compressed cache.
 *
 * @module
 */
import { sampleTokens } from "../generate/token_loop.ts";
import type { Policy } from "../policies/parts.ts";
import { piecesFromEnd } from "./feed.ts";
import { type EvaluationModel, GREEDY, openEngine } from "./model.ts";
import type { RetrievalExample } from "./retrieval_tasks.ts";
import type { QuestionSetting } from "./settings.ts";

/** What came of a task. */
export interface RetrievalOutcome {
  /** Whether the first number said is the one asked for, digit by digit. */
  readonly correct: boolean;
  /** The number asked for. */
  readonly expected: string;
  /** What the model said up to the end of the first number. */
  readonly answer: string;
}

/** A task as ids. */
export interface RetrievalIds {
  /** Ids of the context. */
  readonly context: readonly number[];
  /** Ids of the question. */
  readonly question: readonly number[];
}

/** How a task is run. */
export interface RetrievalOptions {
  /** The task. */
  readonly example: RetrievalExample;
  /** What compressing the context knows of the question. */
  readonly question: QuestionSetting;
  /** Stops with the signal's reason. */
  readonly signal?: AbortSignal | undefined;
}

/**
 * The ids of a task. Both parts are encoded on their own, so that they are the
 * same in both question settings.
 */
export function encodeRetrieval(
  { codec }: Pick<EvaluationModel, "codec">,
  { context, question }: Pick<RetrievalExample, "context" | "question">,
): RetrievalIds {
  const options = { addSpecialTokens: false };
  return {
    context: codec.encode(context, options),
    question: codec.encode(question, options),
  };
}

/**
 * The pieces that are read before a compression may happen: context and
 * question together where it is seen, or one after the other.
 */
export function promptParts(
  { context, question }: RetrievalIds,
  setting: QuestionSetting,
): (readonly number[])[] {
  return setting === "seen" ? [[...context, ...question]] : [context, question];
}

/** The policy with a question as its probe, where it observes attention. */
function observing(policy: Policy, question: readonly number[]): Policy {
  return policy.probe.kind === "none"
    ? policy
    : { ...policy, probe: { kind: "instruction", tokens: question } };
}

/**
 * Reads context and question as the policy's schedule says, then takes
 * the most likely ids as the answer.
 */
export async function runRetrieval(
  model: EvaluationModel,
  policy: Policy,
  { example, question, signal }: RetrievalOptions,
): Promise<RetrievalOutcome> {
  const ids = encodeRetrieval(model, example);
  using engine = await openEngine(
    model,
    question === "probe" ? observing(policy, ids.question) : policy,
  );
  engine.start(GREEDY, example.answerTokens);
  const pieces = promptParts(ids, question)
    .flatMap((part) => piecesFromEnd(part, policy.schedule));
  const sampled = sampleTokens(engine, pieces, {
    stepsPerRead: model.backend.stepsPerRead,
    limit: example.answerTokens,
    stopIds: [],
    signal,
  });
  const said: number[] = [];
  let text = "";
  for await (const { id } of sampled) {
    said.push(id);
    text = model.codec.decode(said);
    if (/\d\D/.test(text)) break;
  }
  const [answer = text, number] = /^\D*(\d+)/.exec(text) ?? [];
  return {
    correct: number === example.answer,
    expected: example.answer,
    answer,
  };
}

/**
 * What an evaluation does: policies × budgets × settings × tasks × seeds.
 *
 * @module
 */
import * as v from "valibot";
import { definePolicy, type PolicyParts } from "../policies/define_policy.ts";
import { checkKinds } from "../policies/part_kinds.ts";
import { validatePolicy } from "../policies/validate_policy.ts";
import { policies as registry } from "../policies/registry.ts";
import type { Budget, Policy } from "../policies/parts.ts";
import type { Half } from "./documents.ts";
import {
  checkFields,
  EvaluationFormatError,
  parseJsonAt,
} from "./format_error.ts";
import { type ProbeQueries, probeQueries } from "./perturbation.ts";
import { type PlanBudget, PlanBudgetSchema } from "./plan_budget.ts";
import { type RetrievalForm, retrievalForms } from "./retrieval_tasks.ts";
import {
  type QuestionSetting,
  questionSettings,
  type Setting,
} from "./settings.ts";

/** A policy of a plan, without its budget. */
export interface PlanPolicy {
  /** What tables call it. */
  readonly label: string;
  /** The policy with a budget. */
  readonly create: (budget: Budget) => Policy;
}

/** Perplexity, or agreement with the full cache, on windows of documents. */
export interface TextTask {
  /** What is measured. */
  readonly kind: "perplexity" | "agreement";
  /** Ids that are read first. */
  readonly prompt: number;
  /** Ids that are scored, token by token. */
  readonly continuation: number;
  /** Distance between windows (default: `continuation`). */
  readonly stride?: number | undefined;
  /** Windows per document and seed at most (default 1). */
  readonly windowsPerDocument?: number | undefined;
  /** Documents at most (default: all that are long enough). */
  readonly documents?: number | undefined;
}

/** Perturbation of attention outputs on windows of documents. */
export interface PerturbationTask {
  /** What is measured. */
  readonly kind: "perturbation";
  /** Ids that are read and compressed. */
  readonly prompt: number;
  /** Tokens whose queries are used. */
  readonly probes: number;
  /** Which tokens those are (default `"after"`). */
  readonly queries?: ProbeQueries | undefined;
  /** Windows per document and seed at most (default 1). */
  readonly windowsPerDocument?: number | undefined;
  /** Documents at most (default: all that are long enough). */
  readonly documents?: number | undefined;
}

/** Facts hidden in text; one task per length, depth and seed. */
export interface RetrievalTask {
  /** What is measured. */
  readonly kind: "retrieval";
  /** What the texts look like. */
  readonly form: RetrievalForm;
  /** Tokens of context and question. */
  readonly lengths: readonly number[];
  /** Shares of the context before the fact. */
  readonly depths: readonly number[];
  /** What compression knows of the question (default: seen and unseen). */
  readonly questions?: readonly QuestionSetting[] | undefined;
  /** Facts of the form `needles` (default 4). */
  readonly needles?: number | undefined;
}

/** Speed and memory. */
export interface ThroughputTask {
  /** What is measured. */
  readonly kind: "throughput";
  /** Ids that are read. */
  readonly prompt: number;
  /** Ids to generate, at least two. */
  readonly generate: number;
  /** Times to measure (default 3). */
  readonly repeats?: number | undefined;
}

/** A task of a plan. */
export type PlanTask =
  | TextTask
  | PerturbationTask
  | RetrievalTask
  | ThroughputTask;

/** What an evaluation does. */
export interface EvaluationPlan {
  /** Policies to compare; the full cache is always there. */
  readonly policies: readonly PlanPolicy[];
  /** Budgets that each of them gets. */
  readonly budgets: readonly PlanBudget[];
  /** How prompts are read. */
  readonly settings: readonly Setting[];
  /** Tokens per chunk of the streaming setting. */
  readonly chunk: number;
  /** Seeds of windows and retrieval tasks. */
  readonly seeds: readonly number[];
  /**
   * Windows that are scored together, each in a sequence of its own. Results
   * are those of each alone; a GPU is kept busier.
   */
  readonly batch: number;
  /** Documents to use. */
  readonly half: Half | "all";
  /** What to measure. */
  readonly tasks: readonly PlanTask[];
}

const whole = (min: number, max = Number.MAX_SAFE_INTEGER) => {
  const message = max === Number.MAX_SAFE_INTEGER
    ? `a whole number of at least ${min}`
    : `a whole number from ${min} to ${max}`;
  return v.pipe(
    v.number(message),
    v.integer(message),
    v.minValue(min, message),
    v.maxValue(max, message),
  );
};
const share = v.pipe(
  v.number("a number from 0 to 1"),
  v.minValue(0, "a number from 0 to 1"),
  v.maxValue(1, "a number from 0 to 1"),
);
const list = <T>(item: v.GenericSchema<unknown, T>) =>
  v.pipe(
    v.array(item, "a list"),
    v.nonEmpty("at least one entry"),
  );
const oneOf = <const T extends readonly string[]>(names: T) =>
  v.picklist(names, `one of ${names.join(", ")}`);

/** The longest prompt that a policy may read whole. */
const promptTokens = whole(1, 2 ** 17);

const TaskSchema = v.variant("kind", [
  v.strictObject({
    kind: v.picklist(["perplexity", "agreement"]),
    prompt: promptTokens,
    continuation: whole(1),
    stride: v.optional(whole(1)),
    windowsPerDocument: v.optional(whole(1)),
    documents: v.optional(whole(1)),
  }, "a known field"),
  v.strictObject({
    kind: v.literal("perturbation"),
    prompt: promptTokens,
    probes: promptTokens,
    queries: v.optional(oneOf(probeQueries)),
    windowsPerDocument: v.optional(whole(1)),
    documents: v.optional(whole(1)),
  }, "a known field"),
  v.strictObject({
    kind: v.literal("retrieval"),
    form: oneOf(retrievalForms),
    lengths: list(promptTokens),
    depths: list(share),
    questions: v.optional(list(oneOf(questionSettings))),
    needles: v.optional(whole(2, 100)),
  }, "a known field"),
  v.strictObject({
    kind: v.literal("throughput"),
    prompt: promptTokens,
    generate: whole(2),
    repeats: v.optional(whole(1)),
  }, "a known field"),
], "one of perplexity, agreement, perturbation, retrieval, throughput");

const anObject = v.record(v.string(), v.unknown(), "an object");
const PolicySchema = v.pipe(
  v.strictObject({
    policy: v.optional(oneOf(Object.keys(registry))),
    label: v.optional(v.string("a string")),
    options: v.optional(anObject),
    parts: v.optional(anObject),
  }, "a known field"),
  v.check(
    ({ policy, label, options, parts }) =>
      parts === undefined
        ? policy !== undefined
        : label !== undefined && policy === undefined && options === undefined,
    "policy, label and options, or label and parts",
  ),
);

const PlanSchema = v.strictObject({
  policies: list(PolicySchema),
  budgets: list(PlanBudgetSchema),
  settings: v.optional(list(oneOf(["whole", "streaming"])), [
    "whole",
    "streaming",
  ]),
  chunk: v.optional(whole(1, 4096), 64),
  seeds: v.optional(list(whole(0)), [1]),
  batch: v.optional(whole(1, 256), 4),
  half: v.optional(oneOf(["tune", "report", "all"]), "report"),
  tasks: list(TaskSchema),
}, "a known field");

/**
 * Parses a plan in JSON. Policies are `{ policy, label?, options? }`: the name
 * of a published method and what its function takes beside the budget; or
 * `{ label, parts }`: what `definePolicy` takes beside name and budget.
 *
 * @throws {EvaluationFormatError} If a field is missing, unknown or out of
 * range, naming it.
 * @throws {TypeError} If a part of a policy is of no kind that there is.
 * @throws {RangeError} If a number of a policy is out of range.
 */
export function parsePlan(text: string, file: string): EvaluationPlan {
  const at = { file, place: "the plan" };
  const plan = checkFields(PlanSchema, parseJsonAt(text, at), at);
  // The full cache is always there, and takes no budget.
  const policies = plan.policies.filter(({ policy }) => policy !== "full")
    .map(planPolicy);
  const labels = policies.map(({ label }) => label);
  const twice = labels.find((label, i) => labels.indexOf(label) !== i);
  if (twice !== undefined) {
    throw new EvaluationFormatError(
      file,
      `the plan: policies has the label "${twice}" twice, expected labels that differ`,
    );
  }
  for (const { create } of policies) {
    const policy = create(64);
    checkKinds(policy);
    validatePolicy(policy);
  }
  return { ...plan, policies };
}

/** The policy of an entry of a plan, which has either `parts` or `policy`. */
function planPolicy(
  { policy, label, options, parts }: v.InferOutput<typeof PolicySchema>,
): PlanPolicy {
  const name = label ?? policy!;
  return {
    label: name,
    create: (budget) =>
      parts === undefined
        ? registry[policy!]!({ ...options, budget })
        // The kinds of the parts are checked before the policy is used.
        : definePolicy({ ...parts, name, budget } as PolicyParts),
  };
}

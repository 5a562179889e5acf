/**
 * What an evaluation does: policies × budgets × settings × tasks × seeds.
 *
 * @module
 */
import * as v from "valibot";
import { validatePolicy } from "../policies/validate_policy.ts";
import { policies as registry } from "../policies/registry.ts";
import type { Budget, Policy } from "../policies/parts.ts";
import type { Half } from "./documents.ts";
import {
  checkFields,
  EvaluationFormatError,
  parseJsonAt,
} from "./format_error.ts";
import { type RetrievalForm, retrievalForms } from "./retrieval_tasks.ts";
import type { QuestionSetting, Setting } from "./settings.ts";

/** A policy of a plan, without its budget. */
export interface PlanPolicy {
  /** What tables call it. */
  readonly label: string;
  /** The policy with a budget. */
  readonly create: (budget: Budget) => Policy;
}

/**
 * A budget of a plan: slots per head, or `{ ratio }`, a share of the tokens of
 * each prompt.
 */
export type PlanBudget = number | { readonly ratio: number };

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
  /** Tokens after the prompt whose queries are used. */
  readonly probes: number;
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
  /** Whether compression sees the question (default: both). */
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

/** A prompt is one chunk in the setting `whole`, and chunks have a limit. */
const promptTokens = whole(1, 4096);

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
    windowsPerDocument: v.optional(whole(1)),
    documents: v.optional(whole(1)),
  }, "a known field"),
  v.strictObject({
    kind: v.literal("retrieval"),
    form: oneOf(retrievalForms),
    lengths: list(promptTokens),
    depths: list(share),
    questions: v.optional(list(oneOf(["seen", "unseen"]))),
    needles: v.optional(whole(2, 100)),
  }, "a known field"),
  v.strictObject({
    kind: v.literal("throughput"),
    prompt: promptTokens,
    generate: whole(2),
    repeats: v.optional(whole(1)),
  }, "a known field"),
], "one of perplexity, agreement, perturbation, retrieval, throughput");

const PolicySchema = v.strictObject({
  policy: oneOf(Object.keys(registry)),
  label: v.optional(v.string("a string")),
  options: v.optional(v.record(v.string(), v.unknown(), "an object")),
}, "a known field");

const BUDGET = 'a number of slots, or a share of the prompt such as "10%"';
const BudgetSchema = v.union([
  whole(1),
  v.pipe(
    v.string(BUDGET),
    v.regex(/^\d+(\.\d+)?%$/, BUDGET),
    v.check((text) => {
      const percent = parseFloat(text);
      return percent > 0 && percent <= 100;
    }, BUDGET),
    v.transform((text) => ({ ratio: parseFloat(text) / 100 })),
  ),
], BUDGET);

const PlanSchema = v.strictObject({
  policies: list(PolicySchema),
  budgets: list(BudgetSchema),
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
 * of a published method and what its function takes beside the budget.
 *
 * @throws {EvaluationFormatError} If a field is missing, unknown or out of
 * range, naming it.
 */
export function parsePlan(text: string, file: string): EvaluationPlan {
  const at = { file, place: "the plan" };
  const plan = checkFields(PlanSchema, parseJsonAt(text, at), at);
  // The full cache is always there, and takes no budget.
  const named = plan.policies.filter(({ policy }) => policy !== "full");
  const policies = named.map(({ policy, label = policy, options }) => ({
    label,
    create: (budget: Budget) => registry[policy]!({ ...options, budget }),
  }));
  const labels = policies.map(({ label }) => label);
  const twice = labels.find((label, i) => labels.indexOf(label) !== i);
  if (twice !== undefined) {
    throw new EvaluationFormatError(
      file,
      `the plan: policies has the label "${twice}" twice, expected labels that differ`,
    );
  }
  for (const { create } of policies) validatePolicy(create(64));
  return { ...plan, policies };
}

/** How tables write a budget. */
export function budgetLabel(budget: PlanBudget): string {
  return typeof budget === "number"
    ? String(budget)
    // Shares such as 7 % are no binary fractions.
    : `${Number((budget.ratio * 100).toPrecision(6))}%`;
}

/** Slots per head for a prompt of `tokens` tokens. */
export function budgetSlots(budget: PlanBudget, tokens: number): number {
  return typeof budget === "number"
    ? budget
    : Math.max(1, Math.floor(budget.ratio * tokens + 1e-9));
}

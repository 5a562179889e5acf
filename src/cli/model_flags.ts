/**
 * Flags that `generate` and `chat` share, and what they mean to the library.
 *
 * @module
 */
import type { BackendName } from "../backends/backend.ts";
import type { ChatOptions, PolicyForModel } from "../generate/options.ts";
import { readHeadLosses } from "../model/head_losses_file.ts";
import type { Budget, Precision } from "../policies/parts.ts";
import { createPolicy, policies } from "../policies/registry.ts";
import { steady } from "../policies/steady.ts";
import { BUDGET_FORMS, parseBudget } from "../policies/parse_budget.ts";
import {
  choice,
  list,
  number,
  one,
  text,
  toggle,
  UsageError,
  type Values,
  whole,
} from "./flags.ts";

/** Model that is used where there is no `--model`, seen from this repository. */
const DEFAULT_MODEL = "examples/models/docs-7m";

/** Which model runs where, in how much memory. */
export const modelFlags = {
  model: text("FOLDER", `Folder of the model (default: ${DEFAULT_MODEL})`),
  backend: choice("NAME", {
    help: "cuda, webgpu, cpu, or auto: the first of them that this machine " +
      "has (default: auto)",
    words: ["auto", "cuda", "webgpu", "cpu"] satisfies (BackendName | "auto")[],
  }),
  precision: choice("TYPE", {
    help:
      "How keys and values are stored: half, or bfloat16 for models whose " +
      "numbers are too large for that; bfloat16 needs CUDA (default: half)",
    words: ["half", "bfloat16"] satisfies Precision["kind"][],
  }),
  policy: choice("NAME", {
    help: `${Object.keys(policies).join(", ")} (default: steady)`,
    words: Object.keys(policies),
  }),
  budget: one<Budget>("AMOUNT", {
    help: "What the cache may hold: slots per head (256), a share of the " +
      "model's context (10%), or memory (64MiB, 64MB) (default: 25%, and " +
      "100% for the policy full)",
    expected: BUDGET_FORMS,
    parse: parseBudget,
  }),
  losses: text(
    "FILE",
    "Spread the budget of the policy steady over the heads by this file of " +
      "deno task calibrate (default: head_losses.json of the model, or evenly " +
      "where it has none)",
  ),
  chunk: whole("TOKENS", {
    help: "Tokens of the prompt read at a time (default: 256)",
    from: 1,
    to: 4096,
  }),
  whole: whole("TOKENS", {
    help: "Read prompts of up to so many tokens in one piece, and compress " +
      "once at the end; memory grows with them",
    from: 1,
    to: 2 ** 17,
  }),
} as const;

/** How ids are drawn and when the text ends. */
export const samplingFlags = {
  "max-tokens": whole("N", {
    help: "Tokens to generate at most (default: 256)",
    from: 1,
  }),
  temperature: number("T", {
    help: "Randomness; 0 takes the most likely token (default: the model's)",
    expected: "a number from 0 to 100",
    allows: (n) => n >= 0 && n <= 100,
  }),
  "top-k": whole("N", {
    help: "Keep the N most likely tokens; 0 keeps all",
    from: 0,
  }),
  "top-p": number("P", {
    help: "Keep the fewest tokens whose probabilities reach P",
    expected: "a number above 0 and at most 1",
    allows: (n) => n > 0 && n <= 1,
  }),
  "min-p": number("P", {
    help: "Keep tokens at least P times as likely as the first",
    expected: "a number from 0 to 1",
    allows: (n) => n >= 0 && n <= 1,
  }),
  "repetition-penalty": number("R", {
    help: "Make tokens seen before less likely; 1 changes nothing",
    expected: "a number above 0",
    allows: (n) => n > 0 && n < Infinity,
  }),
  seed: whole("N", {
    help: "Seed of the random numbers: the same seed gives the same text",
    from: 0,
  }),
  stop: list("TEXT", "End before this text; may be given several times"),
} as const;

/** Flags that every command has. */
export const commonFlags = {
  help: toggle("Print this help (also -h)"),
} as const;

/** What is printed beside the text. */
export const quietFlag = {
  quiet: toggle("Print nothing but the text: no progress, no statistics"),
} as const;

/**
 * What makes the policy that the flags describe, once the model is known.
 *
 * @throws {UsageError} If the flags ask for two schedules, or for losses with
 * a policy that takes none.
 * @throws {ModelFormatError} If the file of `--losses` is missing or damaged.
 */
export async function policyOf(
  values: Values<typeof modelFlags>,
): Promise<PolicyForModel> {
  const { policy: name = "steady", budget, losses: file } = values;
  const { precision, chunk, whole: longest } = values;
  if (file !== undefined && name !== "steady") {
    throw new UsageError(
      `Cannot use --losses with --policy ${name}: expected --policy steady`,
    );
  }
  if (chunk !== undefined && longest !== undefined) {
    throw new UsageError(
      "Cannot read a prompt in chunks and whole: expected --chunk or --whole",
    );
  }
  const amount = budget ?? { ratio: name === "full" ? 1 : 0.25 };
  const given = file === undefined ? undefined : await readHeadLosses(file);
  return ({ headLosses }) => ({
    ...name === "steady"
      ? steady({ budget: amount, losses: given ?? headLosses })
      : createPolicy(name, amount),
    ...precision !== undefined && { precision: { kind: precision } },
    ...longest !== undefined
      ? { schedule: { kind: "whole", longest } }
      : chunk !== undefined && { schedule: { kind: "streaming", chunk } },
  });
}

/** Options of a generation that the flags describe. */
export function generationOf(
  values: Values<typeof samplingFlags>,
): ChatOptions {
  return defined({
    maxTokens: values["max-tokens"],
    temperature: values.temperature,
    topK: values["top-k"],
    topP: values["top-p"],
    minP: values["min-p"],
    repetitionPenalty: values["repetition-penalty"],
    seed: values.seed,
    stop: values.stop,
  });
}

/**
 * Folder of the model.
 *
 * @throws {UsageError} If none is given and the default one is not there.
 */
export async function modelFolderOf(
  { model }: Pick<Values<typeof modelFlags>, "model">,
): Promise<string> {
  if (model !== undefined) return model;
  try {
    await Deno.stat(DEFAULT_MODEL);
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
    throw new UsageError(
      `Cannot find ${DEFAULT_MODEL} from this folder: expected --model FOLDER`,
    );
  }
  return DEFAULT_MODEL;
}

/** The fields that have a value. */
function defined<T extends object>(
  fields: T,
): { [K in keyof T]?: Exclude<T[K], undefined> } {
  return Object.fromEntries(
    Object.entries(fields).filter(([, value]) => value !== undefined),
  ) as { [K in keyof T]?: Exclude<T[K], undefined> };
}

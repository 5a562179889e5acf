/**
 * Flags that say what an evaluation measures.
 *
 * @module
 */
import { retrievalForms } from "../evaluate/retrieval_tasks.ts";
import { parseBudget } from "../policies/parse_budget.ts";
import { questionSettings } from "../evaluate/settings.ts";
import { policies } from "../policies/registry.ts";
import {
  choice,
  type Flag,
  text,
  UsageError,
  type Values,
  whole,
} from "./flags.ts";

/** Tasks by name. */
export const TASKS = [
  "perplexity",
  "agreement",
  "perturbation",
  ...retrievalForms,
  "throughput",
] as const;

/** A flag that may be repeated, and may have several values in one. */
function several<T>(
  value: string,
  { help, expected, parse }: {
    help: string;
    expected: string;
    parse: (text: string) => T | undefined;
  },
): Flag<readonly T[] | undefined> {
  return {
    ...{ value, help },
    read(texts, name) {
      if (texts.length === 0) return undefined;
      return texts.flatMap((text) => text.split(",")).map((part) => {
        const parsed = parse(part.trim());
        if (parsed !== undefined) return parsed;
        throw new UsageError(
          `Cannot use --${name} ${part}: expected ${expected}`,
        );
      });
    },
  };
}

/** A flag of {@linkcode several} words. */
function words<T extends string>(
  value: string,
  help: string,
  known: readonly T[],
): Flag<readonly T[] | undefined> {
  return several(value, {
    help,
    expected: `one of ${known.join(", ")}`,
    parse: (text) => known.find((word) => word === text),
  });
}

/** A flag of {@linkcode several} numbers; whoever uses them checks their range. */
export function numbers(
  value: string,
  help: string,
): Flag<readonly number[] | undefined> {
  return several(value, {
    help,
    expected: "a number",
    parse: (text) => /^\d+(\.\d+)?$/.test(text) ? Number(text) : undefined,
  });
}

/** What is measured. */
export const evaluationFlags = {
  policy: words(
    "NAME",
    `${Object.keys(policies).join(", ")} (default: all; the full cache is ` +
      "always there)",
    Object.keys(policies),
  ),
  budget: several<number | string>("AMOUNT", {
    help: "Slots per head (64), a share of each prompt (10%), or memory of " +
      "the slots (4MiB) (default: 50%, 20%, 10%)",
    expected: "slots (64), a share of the prompt (10%) or memory (4MiB)",
    parse: (text) => {
      const budget = parseBudget(text);
      return typeof budget === "object" ? text : budget as number | undefined;
    },
  }),
  tasks: words("NAME", `${TASKS.join(", ")} (default: perplexity)`, TASKS),
  setting: words("NAME", "whole, streaming (default: both)", [
    "whole",
    "streaming",
  ]),
  question: words(
    "NAME",
    "What compression knows of the question: seen, probe, unseen (default: " +
      "seen and unseen)",
    questionSettings,
  ),
  half: choice("NAME", {
    help: "Documents to use: tune, report or all (default: report)",
    words: ["tune", "report", "all"],
  }),
  seed: numbers("N", "Seeds of windows and retrieval tasks (default: 1)"),
  plan: text("FILE", "A plan in JSON; flags beside it change what it says"),
} as const;

/** How much is measured. */
export const sizeFlags = {
  prompt: whole("N", {
    help: "Tokens that are read first (default: 512)",
    from: 1,
    to: 2 ** 17,
  }),
  continuation: whole("N", {
    help: "Tokens that are scored (default: 128)",
    from: 2,
  }),
  probes: whole("N", {
    help: "Tokens whose attention is measured (default: 8)",
    from: 1,
  }),
  "max-documents": whole("N", {
    help: "Documents at most (default: all that are long enough)",
    from: 1,
  }),
  windows: whole("N", {
    help: "Windows per document and seed at most (default: 1)",
    from: 1,
  }),
  length: numbers("N", "Tokens of retrieval tasks (default: 256, 512)"),
  depth: numbers("SHARE", "Depths of facts (default: 0, 0.25, 0.5, 0.75, 1)"),
  chunk: whole("N", {
    help: "Tokens per chunk of the setting streaming (default: 64)",
    from: 1,
    to: 4096,
  }),
  batch: whole("N", {
    help: "Windows that are scored together (default: 4)",
    from: 1,
    to: 256,
  }),
} as const;

/** Values of the flags. */
export type PlanValues = Values<typeof evaluationFlags & typeof sizeFlags>;

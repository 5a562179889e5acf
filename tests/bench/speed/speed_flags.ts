/** The command line of `deno task bench:speed`. */
import type { BackendName } from "../../../src/backends/backend.ts";
import {
  choice,
  type Flag,
  number,
  one,
  text,
  type Values,
  whole,
} from "../../../src/cli/flags.ts";
import { commonFlags } from "../../../src/cli/model_flags.ts";
import { policies } from "../../../src/policies/registry.ts";
import type { Ceilings } from "./bounds.ts";
import { type PlanOptions, sectionNames } from "./plan.ts";
import type { CacheSpec } from "./setup.ts";
import { shapeNames } from "./shapes.ts";

/** What is measured. */
export const whatFlags = {
  backend: choice("NAME", {
    help: "cuda, webgpu, cpu, or auto: the first of them that this machine " +
      "has (default: auto)",
    words: ["auto", "cuda", "webgpu", "cpu"] satisfies (BackendName | "auto")[],
  }),
  sections: words("LIST", {
    help: `What to measure, of ${sectionNames.join(", ")} (default: decode)`,
    words: sectionNames,
  }),
  shapes: words("LIST", {
    help: `Models, of ${shapeNames.join(", ")} (default: qwen2.5-0.5b)`,
    words: shapeNames,
  }),
  caches: one<CacheSpec[]>("LIST", {
    help: "Policies and slots per head (default: " +
      "full:512,full:32768,keepkv:3277)",
    expected: "a list such as full:512,keepkv:3277",
    parse: parseCaches,
  }),
  batches: numbers("LIST", "Sequences in one step (default: 1)"),
  chunks: numbers("LIST", "Prompt tokens read at a time (default: 1024)"),
  prompt: whole("N", { help: "Tokens of a prompt (default: 32768)", from: 1 }),
  tokens: whole("N", {
    help: "Tokens generated in the section flat (default: 20000)",
    from: 1,
  }),
} as const;

/** How often and how long. */
export const howFlags = {
  steps: whole("N", { help: "Steps of one round (default: 32)", from: 1 }),
  rounds: whole("N", {
    help: "Rounds, of which the median counts (default: 5)",
    from: 1,
  }),
  seconds: whole("N", {
    help: "Begin no measurement after so many seconds (default: no end)",
    from: 0,
  }),
} as const;

/** What is known of the device. */
export const deviceFlags = {
  stream: number("GB/S", {
    help: "What the device reads from memory at most (default: measured, " +
      "where the backend can)",
    expected: "a number above 0",
    allows: (n) => n > 0,
  }),
  matrix: number("TFLOP/S", {
    help: "What its matrix units do at most (default: not known)",
    expected: "a number above 0",
    allows: (n) => n > 0,
  }),
  memory: number("GIB", {
    help: "Memory for caches, where the largest batch is looked for " +
      "(default: what nvidia-smi says is free)",
    expected: "a number above 0",
    allows: (n) => n > 0,
  }),
} as const;

/** What becomes of the results. */
export const outputFlags = {
  json: text("FILE", "Write all results, each round and each failure"),
  ...commonFlags,
} as const;

/** All flags. */
export const flags = {
  ...whatFlags,
  ...howFlags,
  ...deviceFlags,
  ...outputFlags,
} as const;

/** The plan that the flags describe. */
export function planOf(
  values: Values<typeof flags>,
  ceilings: Ceilings,
): PlanOptions {
  return {
    sections: values.sections ?? ["decode"],
    caches: values.caches ?? [
      { policy: "full", slots: 512 },
      { policy: "full", slots: 32_768 },
      { policy: "keepkv", slots: 3277 },
    ],
    batches: values.batches ?? [1],
    chunks: values.chunks ?? [1024],
    prompt: values.prompt ?? 32_768,
    tokens: values.tokens ?? 20_000,
    steps: values.steps ?? 32,
    rounds: values.rounds ?? 5,
    memory: values.memory === undefined ? undefined : values.memory * 2 ** 30,
    ceilings,
  };
}

/** A flag whose value is a list of some words. */
function words<T extends string>(
  value: string,
  { help, words }: { help: string; words: readonly T[] },
): Flag<T[] | undefined> {
  return one<T[]>(value, {
    ...{ help, expected: `a list of ${words.join(", ")}` },
    parse(text) {
      const found = text.split(",").map((part) =>
        words.find((word) => word === part)
      );
      return found.includes(undefined) ? undefined : found as T[];
    },
  });
}

/** A flag whose value is a list of whole numbers above 0. */
function numbers(value: string, help: string): Flag<number[] | undefined> {
  return one<number[]>(value, {
    ...{ help, expected: "a list of whole numbers above 0" },
    parse(text) {
      const found = text.split(",").map((part) =>
        /^\d+$/.test(part) ? Number(part) : 0
      );
      return found.includes(0) ? undefined : found;
    },
  });
}

/** Caches such as `full:512,keepkv:64`; undefined if it is no such list. */
export function parseCaches(text: string): CacheSpec[] | undefined {
  const caches = text.split(",").map((part) => {
    const [policy = "", slots = ""] = part.split(":");
    const known = Object.hasOwn(policies, policy) && /^[1-9]\d*$/.test(slots);
    return known ? { policy, slots: Number(slots) } : undefined;
  });
  return caches.includes(undefined) ? undefined : caches as CacheSpec[];
}

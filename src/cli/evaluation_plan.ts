/**
 * The plan that flags describe.
 *
 * @module
 */
import { dirname, resolve } from "@std/path";
import {
  EvaluationFormatError,
  parseJsonAt,
} from "../evaluate/format_error.ts";
import { type EvaluationPlan, parsePlan } from "../evaluate/plan.ts";
import { policies as registry } from "../policies/registry.ts";
import type { PlanValues, TASKS } from "./evaluation_flags.ts";
import { UsageError } from "./flags.ts";
import { readLosses } from "./losses_file.ts";

/**
 * The plan that the flags describe: that of `--plan`, where it is given, with
 * what other flags change, or one of their own.
 *
 * @throws {UsageError} If a flag is out of range, or cannot change a plan.
 * @throws {EvaluationFormatError} If the file of `--plan` is damaged.
 * @throws {Error} If a file of losses that it names is missing or damaged.
 */
export async function planOf(values: PlanValues): Promise<EvaluationPlan> {
  const { plan: file } = values;
  if (file !== undefined) {
    if (values.tasks !== undefined) {
      throw new UsageError(
        "Cannot change the tasks of --plan: expected --tasks without it",
      );
    }
    const at = { file, place: "the plan" };
    const plan = parseJsonAt(await readPlan(file), at);
    const own = await withLosses(plan, dirname(file));
    return parsePlan(JSON.stringify(changePlan(own, values)), file);
  }
  const plan = {
    policies: Object.keys(registry).map((policy) => ({ policy })),
    budgets: ["50%", "20%", "10%"],
    tasks: (values.tasks ?? ["perplexity"]).map(taskOf),
  };
  try {
    return parsePlan(
      JSON.stringify(changePlan(plan, values)),
      "the command line",
    );
  } catch (cause) {
    if (!(cause instanceof EvaluationFormatError)) throw cause;
    throw new UsageError(cause.message);
  }
}

/** Puts in place of `options.losses`, a path from the plan, what the file says. */
async function withLosses(plan: unknown, folder: string): Promise<unknown> {
  const { policies } = (plan ?? {}) as { policies?: unknown };
  if (!Array.isArray(policies)) return plan;
  const entries = policies.map(async (entry) => {
    const losses: unknown = entry?.options?.losses;
    if (typeof losses !== "string") return entry;
    const options = {
      ...entry.options,
      losses: await readLosses(resolve(folder, losses)),
    };
    return { ...entry, options };
  });
  return { ...plan as object, policies: await Promise.all(entries) };
}

/** The fields that flags give, over those of a plan in JSON. */
function changePlan(plan: unknown, values: PlanValues): unknown {
  if (typeof plan !== "object" || plan === null) return plan;
  const { policies, tasks } = plan as { policies?: unknown; tasks?: unknown };
  return {
    ...plan,
    ...given({
      policies: values.policy && choosePolicies(values.policy, policies),
      budgets: values.budget,
      settings: values.setting,
      chunk: values.chunk,
      batch: values.batch,
      seeds: values.seed,
      half: values.half,
    }),
    ...(Array.isArray(tasks) && {
      tasks: tasks.map((task) => changeTask(task, values)),
    }),
  };
}

/**
 * The entries of a plan that have one of these names; names without an entry
 * get one.
 */
function choosePolicies(names: readonly string[], entries: unknown): object[] {
  const known: { policy?: unknown }[] = Array.isArray(entries) ? entries : [];
  return [...new Set(names)].flatMap((policy) => {
    const own = known.filter((entry) => entry?.policy === policy);
    return own.length > 0 ? own : [{ policy }];
  });
}

/** What flags change in a task; those about other tasks change nothing. */
function changeTask(task: unknown, values: PlanValues): unknown {
  if (typeof task !== "object" || task === null) return task;
  const { kind } = task as { kind?: unknown };
  const { prompt, continuation, probes } = values;
  const amount = {
    windowsPerDocument: values.windows,
    documents: values["max-documents"],
  };
  const changes = kind === "retrieval"
    ? {
      lengths: values.length,
      depths: values.depth,
      questions: values.question,
    }
    : kind === "throughput"
    ? { prompt, generate: continuation }
    : kind === "perturbation"
    ? { prompt, probes, ...amount }
    : { prompt, continuation, ...amount };
  return { ...task, ...given(changes) };
}

/** A task in JSON, in its default size. */
function taskOf(task: typeof TASKS[number]): object {
  switch (task) {
    case "perplexity":
    case "agreement":
      return { kind: task, prompt: 512, continuation: 128 };
    case "perturbation":
      return { kind: task, prompt: 512, probes: 8 };
    case "throughput":
      return { kind: task, prompt: 512, generate: 128 };
    default:
      return {
        kind: "retrieval",
        form: task,
        lengths: [256, 512],
        depths: [0, 0.25, 0.5, 0.75, 1],
      };
  }
}

/** The fields that have a value. */
function given(fields: object): object {
  return Object.fromEntries(
    Object.entries(fields).filter(([, value]) => value !== undefined),
  );
}

async function readPlan(file: string): Promise<string> {
  try {
    return await Deno.readTextFile(file);
  } catch (cause) {
    if (!(cause instanceof Deno.errors.NotFound)) throw cause;
    throw new EvaluationFormatError(file, "there is no such file", { cause });
  }
}

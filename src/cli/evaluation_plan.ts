/**
 * The plan that flags describe.
 *
 * @module
 */
import { dirname, join, resolve } from "@std/path";
import {
  EvaluationFormatError,
  parseJsonAt,
} from "../evaluate/format_error.ts";
import { type EvaluationPlan, parsePlan } from "../evaluate/plan.ts";
import { HEAD_LOSSES_FILE, readHeadLosses } from "../model/head_losses_file.ts";
import { policies as registry } from "../policies/registry.ts";
import type { PlanValues, TASKS } from "./evaluation_flags.ts";
import { UsageError } from "./flags.ts";

/**
 * The plan that the flags describe: that of `--plan`, where it is given, with
 * what other flags change, or one of their own.
 *
 * @param model Folder of the model, whose losses the plan may ask for.
 * @throws {UsageError} If a flag is out of range, or cannot change a plan.
 * @throws {EvaluationFormatError} If the file of `--plan` is damaged.
 * @throws {ModelFormatError} If a file of losses that it names is missing or
 * damaged.
 */
export async function planOf(
  values: PlanValues,
  model: string,
): Promise<EvaluationPlan> {
  const { plan: file } = values;
  if (file !== undefined) {
    if (values.tasks !== undefined) {
      throw new UsageError(
        "Cannot change the tasks of --plan: expected --tasks without it",
      );
    }
    const at = { file, place: "the plan" };
    const plan = parseJsonAt(await readPlan(file), at);
    const own = await withLosses(plan, { folder: dirname(file), model });
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

/** Where files of losses are. */
interface Folders {
  /** That of the plan. */
  readonly folder: string;
  /** That of the model. */
  readonly model: string;
}

/**
 * Puts in place of every field `losses` of a policy, its own or that of an
 * allocation, what the file says: a path from the plan, or, where it is `true`,
 * the file of the model.
 */
async function withLosses(
  plan: unknown,
  folders: Folders,
): Promise<unknown> {
  if (!isObject(plan)) return plan;
  const { policies, ...rest } = plan;
  return {
    ...rest,
    ...("policies" in plan &&
      { policies: await readInside(policies, folders) }),
  };
}

async function readInside(
  value: unknown,
  folders: Folders,
): Promise<unknown> {
  if (Array.isArray(value)) {
    return await Promise.all(value.map((item) => readInside(item, folders)));
  }
  if (!isObject(value)) return value;
  const fields = Object.entries(value).map(async ([name, field]) => {
    const file = name !== "losses"
      ? undefined
      : field === true
      ? join(folders.model, HEAD_LOSSES_FILE)
      : typeof field === "string"
      ? resolve(folders.folder, field)
      : undefined;
    return [
      name,
      file === undefined
        ? await readInside(field, folders)
        : await readHeadLosses(file),
    ];
  });
  return Object.fromEntries(await Promise.all(fields));
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** The fields that flags give, over those of a plan in JSON. */
function changePlan(plan: unknown, values: PlanValues): unknown {
  if (!isObject(plan)) return plan;
  const { policies, tasks } = plan;
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
  if (!isObject(task)) return task;
  const { kind } = task;
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

/**
 * Runs a plan: every policy, budget and setting on every text.
 *
 * @module
 */
import { backendLabel, checkPrecision } from "../backends/check_precision.ts";
import { resolveBudget } from "../cache/budget.ts";
import { fullCache } from "../policies/full_cache.ts";
import { validatePolicy } from "../policies/validate_policy.ts";
import type { Policy } from "../policies/parts.ts";
import { stageRows } from "../policies/schedule.ts";
import { type EvaluationDocument, halfOf } from "./documents.ts";
import { fullCacheBytes, measureMemory, slotsWithin } from "./memory.ts";
import type { EvaluationModel } from "./model.ts";
import type { EvaluationPlan } from "./plan.ts";
import { budgetLabel, promptBudget } from "./plan_budget.ts";
import { RESULT_VERSION, type ResultRow, type ResultStore } from "./results.ts";
import { type Setting, withSetting } from "./settings.ts";
import type { TextGroup } from "./text_group.ts";
import { createGroups } from "./text_groups.ts";

/** How far a run is. */
export interface RunProgress {
  /** Results that are there. */
  readonly done: number;
  /** Results in all. */
  readonly total: number;
  /** Those of them that were there before. */
  readonly skipped: number;
  /** What is measured next, in words; empty at the end. */
  readonly label: string;
}

/** What {@linkcode runPlan} needs. */
export interface RunOptions {
  /** The model. */
  readonly model: EvaluationModel;
  /** All documents; the plan says which half is used. */
  readonly documents: readonly EvaluationDocument[];
  /** What to do. */
  readonly plan: EvaluationPlan;
  /** Where results are kept; what it has already is not measured again. */
  readonly results: ResultStore;
  /** Told before each measurement, and at the end. */
  readonly onProgress?: (progress: RunProgress) => void;
  /** Stops with the signal's reason; results so far are kept. */
  readonly signal?: AbortSignal | undefined;
}

/** A policy with budget and schedule, on the texts of a group. */
interface Cell {
  /** One for each text. */
  readonly keys: readonly string[];
  readonly group: TextGroup;
  readonly policy: Policy;
  readonly labels: Pick<ResultRow, "policy" | "budget" | "setting">;
}

/**
 * Runs what is left of a plan.
 *
 * Groups of texts are the outer loop, so that what the full cache says of
 * them is computed once, for all policies.
 *
 * @returns The results of the plan, in its order.
 * @throws {TypeError} If the backend has not the precision of a policy, before
 * anything is measured.
 * @throws {RangeError} If a budget does not suit a policy, or the documents
 * are too short, before anything is measured.
 */
export async function runPlan(options: RunOptions): Promise<ResultRow[]> {
  const { model, results, onProgress, signal } = options;
  const cells = await createCells(options);
  const known = new Map(results.rows.map((row) => [row.key, row]));
  const keys = cells.flatMap(({ keys }) => keys);
  const skipped = keys.filter((key) => known.has(key)).length;
  const total = keys.length;
  const rows: ResultRow[] = [];
  let done = skipped;
  for (const [index, { keys, group, policy, labels }] of cells.entries()) {
    signal?.throwIfAborted();
    const wanted = [...keys.keys()].filter((text) => !known.has(keys[text]!));
    if (wanted.length > 0) {
      const label = [group.task, ...Object.values(labels)].join(", ");
      onProgress?.({ done, total, skipped, label });
      const shared = {
        version: RESULT_VERSION,
        task: group.task,
        model: model.name,
        backend: backendLabel(model.backend),
        ...labels,
        memory: {
          ...measureMemory(model, policy),
          fullBytes: fullCacheBytes(model, group.totalTokens),
        },
      };
      const measured = await group.measure(policy, wanted, signal);
      for (const [i, text] of wanted.entries()) {
        const row = { ...shared, key: keys[text]!, ...measured[i]! };
        await results.append(row);
        known.set(row.key, row);
        done++;
      }
    }
    // What was measured may have had another name then.
    rows.push(
      ...keys.map((key) => ({
        ...known.get(key)!,
        ...labels,
        task: group.task,
      })),
    );
    if (cells[index + 1]?.group !== group) group.release();
  }
  onProgress?.({ done: total, total, skipped, label: "" });
  return rows;
}

/** Every policy, budget and setting on every group, the full cache first. */
async function createCells(
  { model, documents, plan }: RunOptions,
): Promise<Cell[]> {
  const { half, seeds, batch } = plan;
  const used = half === "all"
    ? documents
    : documents.filter((document) => halfOf(document) === half);
  const source = { model, documents: used, seeds, batch };
  const cells: Cell[] = [];
  for (
    const group of plan.tasks.flatMap((task) => createGroups(task, source))
  ) {
    const add = async (
      policy: Policy,
      setting: Setting,
      labels: Cell["labels"],
    ) => {
      const own = withSetting(policy, setting, {
        promptLength: group.longestPart,
        chunk: plan.chunk,
      });
      checkBudget(model, own);
      const keys = await Promise.all(group.identities.map((identity) =>
        hash({
          version: RESULT_VERSION,
          model: model.name,
          config: model.config,
          backend: backendLabel(model.backend),
          identity,
          policy: own,
        })
      ));
      cells.push({ keys, group, policy: own, labels });
    };
    if (group.measuresFull) {
      await add(fullCache({ budget: group.totalTokens }), "whole", {
        policy: "full",
        budget: "full",
        setting: "either",
      });
    }
    for (const setting of plan.settings) {
      for (const { label, create } of plan.policies) {
        for (const budget of plan.budgets) {
          const amount = promptBudget(budget, group.promptTokens);
          const policy = create(amount);
          // Sequences of a batch have the bytes that each would have alone.
          const slots = typeof amount === "number"
            ? amount
            : slotsWithin(model, policy, amount.bytes);
          await add({ ...policy, budget: slots }, setting, {
            policy: label,
            budget: budgetLabel(budget),
            setting,
          });
        }
      }
    }
  }
  return cells;
}

/** Finds out what an engine would refuse, before anything is measured. */
function checkBudget(
  { config, backend }: EvaluationModel,
  policy: Policy,
): void {
  validatePolicy(policy);
  checkPrecision(policy, backend);
  try {
    resolveBudget(policy, {
      ...config,
      sequences: 1,
      stageRows: stageRows(policy),
      halfBytes: backend.halfBytes,
    });
  } catch (cause) {
    if (!(cause instanceof RangeError)) throw cause;
    throw new RangeError(
      `Cannot evaluate ${policy.name} at ${
        JSON.stringify(policy.budget)
      } slots: ${cause.message}`,
      { cause },
    );
  }
}

/** The first 96 bits of the SHA-256 of a value's JSON, in hexadecimal. */
async function hash(value: unknown): Promise<string> {
  const bytes = new TextEncoder().encode(JSON.stringify(value));
  const digest = await crypto.subtle.digest("SHA-256", bytes);
  return new Uint8Array(digest).slice(0, 12).toHex();
}

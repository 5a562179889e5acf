/**
 * Runs a plan: every policy, budget and setting on every text.
 *
 * @module
 */
import { resolveBudget } from "../cache/budget.ts";
import { fullCache } from "../policies/full_cache.ts";
import { validatePolicy } from "../policies/validate_policy.ts";
import type { Policy } from "../policies/parts.ts";
import { type EvaluationDocument, halfOf } from "./documents.ts";
import type { EvaluationItem } from "./evaluation_item.ts";
import { createItems } from "./items.ts";
import { fullCacheBytes, measureMemory } from "./memory.ts";
import type { EvaluationModel } from "./model.ts";
import { budgetLabel, budgetSlots, type EvaluationPlan } from "./plan.ts";
import { RESULT_VERSION, type ResultRow, type ResultStore } from "./results.ts";
import { type Setting, withSetting } from "./settings.ts";

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

/** A policy with budget and schedule, on one text. */
interface Cell {
  readonly key: string;
  readonly item: EvaluationItem;
  readonly policy: Policy;
  readonly labels: Pick<ResultRow, "policy" | "budget" | "setting">;
}

/**
 * Runs what is left of a plan.
 *
 * Texts are the outer loop, so that what the full cache says of one is
 * computed once, for all policies.
 *
 * @returns The results of the plan, in its order.
 * @throws {RangeError} If a budget does not suit a policy, or the documents
 * are too short, before anything is measured.
 */
export async function runPlan(options: RunOptions): Promise<ResultRow[]> {
  const { model, results, onProgress, signal } = options;
  const cells = await createCells(options);
  const known = new Map(results.rows.map((row) => [row.key, row]));
  const skipped = cells.filter(({ key }) => known.has(key)).length;
  const total = cells.length;
  const rows: ResultRow[] = [];
  let done = skipped;
  for (const [index, { key, item, policy, labels }] of cells.entries()) {
    signal?.throwIfAborted();
    let row = known.get(key);
    if (row === undefined) {
      const label = [item.task, ...Object.values(labels)].join(", ");
      onProgress?.({ done: done++, total, skipped, label });
      row = {
        version: RESULT_VERSION,
        key,
        task: item.task,
        model: model.name,
        backend: model.backend.name,
        ...labels,
        memory: {
          ...measureMemory(model, policy),
          fullBytes: fullCacheBytes(model, item.totalTokens),
        },
        ...await item.measure(policy, signal),
      };
      await results.append(row);
      known.set(key, row);
    }
    // What was measured may have had another name then.
    rows.push({ ...row, ...labels, task: item.task });
    if (cells[index + 1]?.item !== item) item.release();
  }
  onProgress?.({ done: total, total, skipped, label: "" });
  return rows;
}

/** Every policy, budget and setting on every text, the full cache first. */
async function createCells(
  { model, documents, plan }: RunOptions,
): Promise<Cell[]> {
  const { half, seeds } = plan;
  const used = half === "all"
    ? documents
    : documents.filter((document) => halfOf(document) === half);
  const source = { model, documents: used, seeds };
  const cells: Cell[] = [];
  for (const item of plan.tasks.flatMap((task) => createItems(task, source))) {
    const add = async (
      policy: Policy,
      setting: Setting,
      labels: Cell["labels"],
    ) => {
      const own = withSetting(policy, setting, {
        promptLength: item.longestPart,
        chunk: plan.chunk,
      });
      checkBudget(model, own);
      const key = await hash({
        version: RESULT_VERSION,
        model: model.name,
        config: model.config,
        backend: model.backend.name,
        identity: item.identity,
        policy: own,
      });
      cells.push({ key, item, policy: own, labels });
    };
    if (item.measuresFull) {
      await add(fullCache({ budget: item.totalTokens }), "whole", {
        policy: "full",
        budget: "full",
        setting: "either",
      });
    }
    for (const setting of plan.settings) {
      for (const { label, create } of plan.policies) {
        for (const budget of plan.budgets) {
          await add(create(budgetSlots(budget, item.promptTokens)), setting, {
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
  try {
    resolveBudget(policy, {
      ...config,
      sequences: 1,
      stageRows: policy.schedule.chunk,
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

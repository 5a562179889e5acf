/**
 * What the results of an evaluation say: means with confidence intervals.
 *
 * @module
 */
import type { ResultRow } from "../results.ts";
import type { Throughput } from "../throughput.ts";
import { rowsOf, type TableName, tablesOf, type Variant } from "./grouping.ts";
import {
  type PerturbationTable,
  summarizePerturbation,
} from "./summarize_perturbation.ts";
import {
  type RetrievalTable,
  summarizeRetrieval,
} from "./summarize_retrieval.ts";
import {
  type AgreementTable,
  type MergeTable,
  type PerplexityTable,
  summarizeAgreement,
  summarizeMerges,
  summarizePerplexity,
} from "./summarize_text.ts";

/** Speed and memory of a policy at a budget. */
export type ThroughputEntry = Variant & Throughput;

/** Table of speeds. */
export interface ThroughputTable extends TableName {
  /** One per policy and budget. */
  readonly entries: readonly ThroughputEntry[];
}

/** All that a report shows. */
export interface EvaluationSummary {
  /** Name of the model. */
  readonly model: string;
  /** Backends that results come from. */
  readonly backends: readonly string[];
  /** Results that it comes from. */
  readonly results: number;
  /** Labels of policies, in the order of the plan; the full cache first. */
  readonly policies: readonly string[];
  /** Perplexity on text. */
  readonly perplexity: readonly PerplexityTable[];
  /** Agreement with the full cache. */
  readonly agreement: readonly AgreementTable[];
  /** Facts found. */
  readonly retrieval: readonly RetrievalTable[];
  /** Change of attention outputs. */
  readonly perturbation: readonly PerturbationTable[];
  /** What merging did. */
  readonly merges: readonly MergeTable[];
  /** Speed and memory. */
  readonly throughput: readonly ThroughputTable[];
}

/**
 * Sums up results. Settings are never mixed: each table is of one.
 *
 * @throws {RangeError} If there are no results, or those of several models.
 */
export function summarize(rows: readonly ResultRow[]): EvaluationSummary {
  const models = new Set(rows.map(({ model }) => model));
  if (models.size !== 1) {
    throw new RangeError(
      `Cannot sum up results of ${models.size} models: expected one`,
    );
  }
  const [model] = models;
  return {
    model: model!,
    backends: [...new Set(rows.map(({ backend }) => backend))],
    results: rows.length,
    policies: [...new Set(["full", ...rows.map(({ policy }) => policy)])],
    perplexity: summarizePerplexity(rows),
    agreement: summarizeAgreement(rows),
    retrieval: summarizeRetrieval(rows),
    perturbation: summarizePerturbation(rows),
    merges: summarizeMerges(rows),
    throughput: summarizeThroughput(rows),
  };
}

function summarizeThroughput(rows: readonly ResultRow[]): ThroughputTable[] {
  return tablesOf(rowsOf(rows, "throughput")).map(({ name, variants }) => ({
    ...name,
    entries: variants.map(({ variant, rows }) => ({
      ...variant,
      ...rows.at(-1)!.result,
    })),
  }));
}

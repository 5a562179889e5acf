/**
 * Tables of facts found.
 *
 * @module
 */
import type { ResultRow } from "../results.ts";
import type { RetrievalForm } from "../retrieval_tasks.ts";
import { type QuestionSetting, questionSettings } from "../settings.ts";
import { type Estimate, estimateShare } from "../statistics.ts";
import { rowsOf, type TableName, tablesOf, type Variant } from "./grouping.ts";

/** Tasks at one length and depth. */
export interface RetrievalCell {
  /** Tokens of context and question. */
  readonly length: number;
  /** Share of the context before the fact. */
  readonly depth: number;
  /** Tasks answered. */
  readonly correct: number;
  /** Tasks in all. */
  readonly count: number;
}

/** Retrieval under a policy at a budget. */
export interface RetrievalEntry extends Variant {
  /** Share of tasks answered. */
  readonly accuracy: Estimate;
  /** The same by length and depth. */
  readonly cells: readonly RetrievalCell[];
}

/** Table of retrieval: one form of text, one question setting. */
export interface RetrievalTable extends TableName {
  /** What the texts look like. */
  readonly form: RetrievalForm;
  /** Whether compression saw the question. */
  readonly question: QuestionSetting;
  /** One per policy and budget. */
  readonly entries: readonly RetrievalEntry[];
}

/** Tables of retrieval, one per form, setting and question setting. */
export function summarizeRetrieval(
  rows: readonly ResultRow[],
): RetrievalTable[] {
  const own = rowsOf(rows, "retrieval");
  return questionSettings.flatMap((question) =>
    tablesOf(own.filter((row) => row.question === question))
      .map(({ name, variants }) => ({
        ...name,
        form: variants[0]!.rows[0]!.item.form,
        question,
        entries: variants.map(({ variant, rows }) => {
          const correct = (some: typeof rows) =>
            some.filter(({ result }) => result.correct).length;
          const places = Map.groupBy(
            rows,
            ({ item }) => `${item.length} ${item.depth}`,
          );
          return {
            ...variant,
            accuracy: estimateShare(correct(rows), rows.length),
            cells: [...places.values()].map((some) => ({
              length: some[0]!.item.length,
              depth: some[0]!.item.depth,
              correct: correct(some),
              count: some.length,
            })),
          };
        }),
      }))
  );
}

/**
 * Sorting results into the tables that they belong to.
 *
 * @module
 */
import type { MeasurementKind, ResultRow, RowOf } from "../results.ts";
import type { Setting } from "../settings.ts";
import { mean } from "../statistics.ts";

/** One line of a table: a policy at a budget. */
export interface Variant {
  /** Label of the policy. */
  readonly policy: string;
  /** Label of the budget. */
  readonly budget: string;
  /** Mean bytes of slots. */
  readonly slotBytes: number;
  /** Mean share of the bytes of a full cache for the same text. */
  readonly share: number;
}

/** What a table is about. */
export interface TableName {
  /** Name of the task. */
  readonly task: string;
  /** How prompts were read. Tables never mix settings. */
  readonly setting: Setting;
}

/** The results of one policy at one budget in one table. */
export interface VariantRows<K extends MeasurementKind> {
  /** Policy, budget and memory. */
  readonly variant: Variant;
  /** Its results. */
  readonly rows: readonly RowOf<K>[];
}

/** The results of one kind. */
export function rowsOf<K extends MeasurementKind>(
  rows: readonly ResultRow[],
  kind: K,
): RowOf<K>[] {
  return rows.filter((row): row is RowOf<K> => row.kind === kind);
}

/**
 * Sorts results into tables, one per task and setting, and those into
 * variants. Results of the full cache, which no setting changes, are in the
 * tables of both settings.
 */
export function tablesOf<K extends MeasurementKind>(
  rows: readonly RowOf<K>[],
  nameOf: (row: RowOf<K>) => string = ({ task }) => task,
): { name: TableName; variants: VariantRows<K>[] }[] {
  return (["whole", "streaming"] as const).flatMap((setting) => {
    if (!rows.some((row) => row.setting === setting)) return [];
    const own = rows.filter((row) =>
      row.setting === setting || row.setting === "either"
    );
    return [...Map.groupBy(own, nameOf)].map(([task, rows]) => ({
      name: { task, setting },
      variants: variantsOf<K>(rows),
    }));
  });
}

function variantsOf<K extends MeasurementKind>(
  rows: readonly RowOf<K>[],
): VariantRows<K>[] {
  const groups = Map.groupBy(
    rows,
    ({ policy, budget }) => JSON.stringify([policy, budget]),
  );
  return [...groups.values()].map((rows) => {
    const { policy, budget } = rows[0]!;
    return {
      variant: {
        policy,
        budget,
        slotBytes: mean(rows.map(({ memory }) => memory.slotBytes)),
        share: mean(
          rows.map(({ memory }) => memory.slotBytes / memory.fullBytes),
        ),
      },
      rows,
    };
  });
}

/**
 * Means per document, in the order of documents: windows of one document are
 * not independent, so each document counts once.
 */
export function byDocument<
  R extends { readonly item: { readonly document: string } },
>(rows: readonly R[], valueOf: (row: R) => number): number[] {
  const groups = Map.groupBy(rows, ({ item }) => item.document);
  return [...groups.keys()].sort()
    .map((document) => mean(groups.get(document)!.map(valueOf)));
}

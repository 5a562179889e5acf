/**
 * Tables of numbers.
 *
 * @module
 */
import type { Estimate } from "../statistics.ts";
import { bytes, percent } from "./format.ts";
import type { Variant } from "./grouping.ts";
import { type Markup, markup, type MarkupValue } from "./markup.ts";

/** One column of a table. */
export interface Column<T> {
  /** Its head. */
  readonly head: string;
  /** What it says of an entry. */
  readonly cell: (entry: T) => MarkupValue;
  /** What is best where it is lowest: the best of a budget is set in bold. */
  readonly rank?: (entry: T) => number;
}

/**
 * A table of policies and budgets; a line is drawn between budgets, so that
 * policies of the same budget stand together.
 */
export function variantTable<T extends Variant>(
  entries: readonly T[],
  columns: readonly Column<T>[],
): Markup {
  const groups = Map.groupBy(entries, ({ budget }) => budget);
  const rows = [...groups.values()].flatMap((group) =>
    group.map((entry, i) => {
      const { policy, budget, slotBytes, share } = entry;
      const cells = columns.map((column) => {
        const best = isBest(column, entry, group) ? "best" : "";
        return markup`<td class="${best}">${column.cell(entry)}</td>`;
      });
      const first = i === 0 ? "first" : "";
      return markup`<tr class="${first}"><td class="name">${policy}</td>
<td>${budget}</td><td>${bytes(slotBytes)}</td>
<td>${percent(1)(share)}</td>${cells}</tr>
`;
    })
  );
  const heads = ["Budget", "Bytes", "of full", ...columns.map((c) => c.head)];
  return table({ corner: "Policy", heads, rows, className: "list" });
}

/** A table with a head. */
function table({ corner, heads, rows, className }: {
  corner: string;
  heads: readonly string[];
  rows: readonly Markup[];
  className: string;
}): Markup {
  return markup`<div class="scroll"><table class="${className}">
<thead><tr><th class="name">${corner}</th>${
    heads.map((head) => markup`<th>${head}</th>`)
  }</tr></thead>
<tbody>${rows}</tbody></table></div>
`;
}

/** Whether an entry has the lowest rank of its budget. */
function isBest<T>(
  { rank }: Column<T>,
  entry: T,
  group: readonly T[],
): boolean {
  return rank !== undefined &&
    group.every((other) => rank(entry) <= rank(other)) &&
    group.some((other) => rank(entry) < rank(other));
}

/** Values below which an interval says too little for a verdict. */
const ENOUGH = 5;

/** Whether an interval lies below or above a number. */
export function verdictOf(
  { low, high, count }: Estimate,
  { border, better }: { border: number; better: "below" | "above" },
): MatrixCell["verdict"] {
  if (count < ENOUGH || low <= border && high >= border) return "open";
  return (high < border) === (better === "below") ? "better" : "worse";
}

/** A cell of a {@linkcode matrixTable}. */
export interface MatrixCell {
  /** What it says. */
  readonly content: Markup;
  /** Whether the policy of the row is surely better or worse. */
  readonly verdict: "better" | "worse" | "open";
}

/** A table of policies by policies. */
export function matrixTable(
  corner: string,
  policies: readonly string[],
  cellOf: (row: string, column: string) => MatrixCell | undefined,
): Markup {
  const rows = policies.map((row) => {
    const cells = policies.map((column) => {
      const cell = row === column ? undefined : cellOf(row, column);
      const verdict = cell?.verdict ?? "open";
      return markup`<td class="${verdict}">${cell?.content}</td>`;
    });
    return markup`<tr><td class="name">${row}</td>${cells}</tr>
`;
  });
  return table({ corner, heads: policies, rows, className: "matrix" });
}

/**
 * Tables of how much attention outputs change.
 *
 * @module
 */
import type { ResultRow } from "../results.ts";
import { type Estimate, estimateMean, mean } from "../statistics.ts";
import {
  byDocument,
  rowsOf,
  type TableName,
  tablesOf,
  type Variant,
} from "./grouping.ts";

/** How often a policy changes a head less than another one does. */
export interface LowerShare {
  /** Label of the other policy, at the same budget. */
  readonly policy: string;
  /** Share of heads. */
  readonly share: Estimate;
  /** `(layers)`: share of the heads of a layer. */
  readonly layers: readonly Estimate[];
}

/** Perturbation under a policy at a budget. */
export interface PerturbationEntry extends Variant {
  /** Share of a head's output that changes: mean over all heads. */
  readonly relative: Estimate;
  /** `(layers)`: the same, mean over the heads of a layer. */
  readonly layers: readonly Estimate[];
  /** Share of heads whose output changes less than under another policy. */
  readonly lowerThan: readonly LowerShare[];
}

/** Table of perturbations. */
export interface PerturbationTable extends TableName {
  /** One per policy and budget. */
  readonly entries: readonly PerturbationEntry[];
}

/** Tables of perturbations, one per task and setting. */
export function summarizePerturbation(
  rows: readonly ResultRow[],
): PerturbationTable[] {
  return tablesOf(rowsOf(rows, "perturbation")).map(({ name, variants }) => ({
    ...name,
    entries: variants.map(({ variant, rows }) => {
      const layers = rows[0]!.result.relative.length;
      const others = variants.filter((other) =>
        other.variant.budget === variant.budget &&
        other.variant.policy !== variant.policy
      );
      return {
        ...variant,
        relative: estimateMean(
          byDocument(rows, ({ result }) => mean(result.relative.flat())),
        ),
        layers: Array.from({ length: layers }, (_, layer) =>
          estimateMean(
            byDocument(rows, ({ result }) => mean(result.relative[layer]!)),
          )),
        lowerThan: others.flatMap((other) => {
          const byKey = new Map(
            other.rows.map((row) => [JSON.stringify(row.item), row]),
          );
          const pairs = rows.flatMap((row) => {
            const match = byKey.get(JSON.stringify(row.item));
            return match ? [{ item: row.item, a: row, b: match }] : [];
          });
          if (pairs.length === 0) return [];
          return [{
            policy: other.variant.policy,
            share: estimateMean(
              byDocument(
                pairs,
                ({ a, b }) => mean(lowerHeads(a.result, b.result).flat()),
              ),
            ),
            layers: Array.from({ length: layers }, (_, layer) =>
              estimateMean(
                byDocument(
                  pairs,
                  ({ a, b }) => mean(lowerHeads(a.result, b.result)[layer]!),
                ),
              )),
          }];
        }),
      };
    }),
  }));
}

/** `(layers, heads)`: 1 where `a` changes the output less than `b`, else 0. */
function lowerHeads(
  a: { readonly absolute: readonly (readonly number[])[] },
  b: { readonly absolute: readonly (readonly number[])[] },
): number[][] {
  return a.absolute.map((heads, layer) =>
    heads.map((value, head) => value < b.absolute[layer]![head]! ? 1 : 0)
  );
}

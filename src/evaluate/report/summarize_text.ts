/**
 * Tables of perplexity, agreement and merging.
 *
 * @module
 */
import type { ResultRow } from "../results.ts";
import {
  type Estimate,
  estimateDifference,
  estimateMean,
  type PairedEstimate,
} from "../statistics.ts";
import {
  byDocument,
  rowsOf,
  type TableName,
  tablesOf,
  type Variant,
} from "./grouping.ts";

/** Perplexity of a policy at a budget. */
export interface PerplexityEntry extends Variant {
  /** Tokens scored. */
  readonly tokens: number;
  /** Exponential of the mean loss over documents. */
  readonly perplexity: Estimate;
  /** Loss above the full cache on the same tokens, in nats. */
  readonly excess: PairedEstimate;
}

/** Two policies at one budget, on the same documents. */
export interface PerplexityPair {
  /** Label of the budget. */
  readonly budget: string;
  /** Label of one policy. */
  readonly a: string;
  /** Label of the other one. */
  readonly b: string;
  /** Loss of `a` minus loss of `b`, in nats. */
  readonly difference: PairedEstimate;
}

/** Table of perplexities. */
export interface PerplexityTable extends TableName {
  /** One per policy and budget. */
  readonly entries: readonly PerplexityEntry[];
  /** Every two policies at the same budget. */
  readonly pairs: readonly PerplexityPair[];
}

/** Agreement of a policy at a budget with the full cache. */
export interface AgreementEntry extends Variant {
  /** Tokens compared. */
  readonly tokens: number;
  /** Share of tokens at which both think the same id the most likely. */
  readonly sameTop: Estimate;
  /** KL(full ‖ policy) in nats per token. */
  readonly divergence: Estimate;
}

/** Table of agreements. */
export interface AgreementTable extends TableName {
  /** One per policy and budget. */
  readonly entries: readonly AgreementEntry[];
}

/** What merging did under a policy at a budget, over all texts. */
export interface MergeEntry extends Variant {
  /** Slots merged per layer and text, over all heads. */
  readonly merged: number;
  /** Slots dropped per layer and text, over all heads. */
  readonly dropped: number;
  /** Tokens that they stood for. */
  readonly droppedTokens: number;
  /** Share of ZIP merges whose scale was unsafe. */
  readonly guardedShare: number;
  /** Mean of KL(merge weights ‖ vote shares) over merges, in nats. */
  readonly divergence: number;
  /** Share of live slots with `2^i ≤ votes < 2^(i+1)`. */
  readonly votes: readonly number[];
}

/** Table of what merging did. */
export interface MergeTable extends TableName {
  /** One per policy and budget that merges or drops. */
  readonly entries: readonly MergeEntry[];
}

/** Tables of perplexities, one per task and setting. */
export function summarizePerplexity(
  rows: readonly ResultRow[],
): PerplexityTable[] {
  return tablesOf(rowsOf(rows, "perplexity")).map(({ name, variants }) => {
    const losses = variants.map(({ variant, rows }) => ({
      variant,
      tokens: rows.reduce((sum, { result }) => sum + result.tokens, 0),
      own: byDocument(rows, ({ result }) => result.loss),
      full: byDocument(rows, ({ result }) => result.fullLoss),
    }));
    const pairs = losses.flatMap((a, i) =>
      losses.slice(i + 1)
        .filter((b) =>
          a.variant.budget === b.variant.budget &&
          a.own.length === b.own.length
        )
        .map((b) => ({
          budget: a.variant.budget,
          a: a.variant.policy,
          b: b.variant.policy,
          difference: estimateDifference(a.own, b.own),
        }))
    );
    return {
      ...name,
      entries: losses.map(({ variant, tokens, own, full }) => ({
        ...variant,
        tokens,
        perplexity: exponential(estimateMean(own)),
        excess: estimateDifference(own, full),
      })),
      pairs,
    };
  });
}

function exponential({ mean, low, high, count }: Estimate): Estimate {
  return {
    mean: Math.exp(mean),
    low: Math.exp(low),
    high: Math.exp(high),
    count,
  };
}

/** Tables of agreement with the full cache, one per task and setting. */
export function summarizeAgreement(
  rows: readonly ResultRow[],
): AgreementTable[] {
  return tablesOf(rowsOf(rows, "agreement")).map(({ name, variants }) => ({
    ...name,
    entries: variants.map(({ variant, rows }) => ({
      ...variant,
      tokens: rows.reduce((sum, { result }) => sum + result.tokens, 0),
      sameTop: estimateMean(byDocument(rows, ({ result }) => result.sameTop)),
      divergence: estimateMean(
        byDocument(rows, ({ result }) => result.divergence),
      ),
    })),
  }));
}

/** Tables of what merging did, from the texts of the perplexity tasks. */
export function summarizeMerges(rows: readonly ResultRow[]): MergeTable[] {
  return tablesOf(rowsOf(rows, "perplexity")).map(({ name, variants }) => ({
    ...name,
    entries: variants.flatMap(({ variant, rows }) => {
      const layers = rows.flatMap(({ result }) => result.merges.layers);
      const sum = (counter: keyof typeof layers[number]) =>
        layers.reduce((total, layer) => total + layer[counter], 0);
      const merged = sum("merged");
      if (merged + sum("dropped") === 0) return [];
      const live = sum("live");
      const bins = Math.max(
        ...rows.map(({ result }) => result.merges.votes.length),
      );
      return [{
        ...variant,
        merged: merged / layers.length,
        dropped: sum("dropped") / layers.length,
        droppedTokens: sum("droppedTokens") / layers.length,
        guardedShare: merged === 0 ? 0 : sum("guarded") / merged,
        divergence: merged === 0 ? 0 : sum("divergence") / merged,
        votes: Array.from({ length: bins }, (_, bin) =>
          rows.reduce(
            (total, { result }) => total + (result.merges.votes[bin] ?? 0),
            0,
          ) / live),
      }];
    }),
  })).filter(({ entries }) => entries.length > 0);
}

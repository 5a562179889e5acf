/**
 * Texts that policies are measured on.
 *
 * @module
 */
import type { Policy } from "../policies/parts.ts";
import type { EvaluationDocument } from "./documents.ts";
import type { EvaluationModel } from "./model.ts";
import type { Measurement } from "./results.ts";

/** Texts of the same sizes that may be measured together. */
export interface TextGroup {
  /** What the task is called. */
  readonly task: string;
  /** What else the result of each text follows from, for its key. */
  readonly identities: readonly unknown[];
  /** Tokens that the share of a budget is taken of. */
  readonly promptTokens: number;
  /** Tokens that a full cache has to hold. */
  readonly totalTokens: number;
  /** Tokens of the longest piece that is read at once in the setting `whole`. */
  readonly longestPart: number;
  /** Whether the full cache is measured too, or only compared with. */
  readonly measuresFull: boolean;
  /**
   * Measures a policy whose schedule is set.
   *
   * @param texts Indices of the texts to measure it on.
   * @returns Their measurements, in the same order.
   */
  measure(
    policy: Policy,
    texts: readonly number[],
    signal?: AbortSignal,
  ): Promise<Measurement[]>;
  /** Forgets what was kept for the policies to come. */
  release(): void;
}

/** What groups are made from. */
export interface TextSource {
  /** The model. */
  readonly model: EvaluationModel;
  /** Documents to use. */
  readonly documents: readonly EvaluationDocument[];
  /** Seeds of windows and retrieval tasks. */
  readonly seeds: readonly number[];
  /** Texts per group at most, where a task can take several. */
  readonly batch: number;
}

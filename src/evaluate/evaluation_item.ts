/**
 * A text that policies are measured on.
 *
 * @module
 */
import type { Policy } from "../policies/parts.ts";
import type { EvaluationDocument } from "./documents.ts";
import type { EvaluationModel } from "./model.ts";
import type { Measurement } from "./results.ts";

/** One text that all policies of a plan are measured on. */
export interface EvaluationItem {
  /** What the task is called. */
  readonly task: string;
  /** What else the results follow from, for their key. */
  readonly identity: unknown;
  /** Tokens that the share of a budget is taken of. */
  readonly promptTokens: number;
  /** Tokens that a full cache has to hold. */
  readonly totalTokens: number;
  /** Tokens of the longest piece that is read at once in the setting `whole`. */
  readonly longestPart: number;
  /** Whether the full cache is measured too, or only compared with. */
  readonly measuresFull: boolean;
  /** Measures a policy whose schedule is set. */
  measure(policy: Policy, signal?: AbortSignal): Promise<Measurement>;
  /** Forgets what was kept for the policies to come. */
  release(): void;
}

/** What items are made from. */
export interface ItemSource {
  /** The model. */
  readonly model: EvaluationModel;
  /** Documents to use. */
  readonly documents: readonly EvaluationDocument[];
  /** Seeds of windows and retrieval tasks. */
  readonly seeds: readonly number[];
}

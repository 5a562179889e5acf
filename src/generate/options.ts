/**
 * Options and results of generation.
 *
 * @module
 */
import type { Backend, BackendName } from "../backends/backend.ts";
import type { LoadProgress } from "../model/weights.ts";
import type { HeadLosses } from "../policies/allocations/head_losses.ts";
import type { Policy } from "../policies/parts.ts";
import type { SamplingOptions } from "./sampling.ts";

/**
 * Makes a policy for a model: `({ headLosses: losses }) => steady({ budget:
 * 256, losses })` spreads its budget as the model's folder says.
 */
export type PolicyForModel = (model: {
  /** `head_losses.json` of the model's folder, where it has one. */
  readonly headLosses: HeadLosses | undefined;
}) => Policy;

/** Options of `Generator.load`. */
export interface LoadOptions {
  /**
   * Which backend to open, or an open one, which the caller then disposes
   * (default `"auto"`).
   */
  readonly backend?: BackendName | "auto" | Backend;
  /**
   * Cache policy and budget, or what makes them once the model's folder is
   * read (default: KeepKV, a quarter of the context).
   */
  readonly cache?: Policy | PolicyForModel;
  /**
   * Texts that are generated together at most, see `Generator.generateBatch`
   * (default 1). The cache is so many times as large, whatever is generated.
   */
  readonly sequences?: number;
  /** Told how far loading is. */
  readonly onProgress?: (progress: LoadProgress) => void;
  /** Stops loading with the signal's reason; everything is freed. */
  readonly signal?: AbortSignal;
  /**
   * Whether all weights are checked for values that are not finite before
   * anything is allocated (default true). When false they are checked while
   * they are uploaded, which saves one read of the files.
   */
  readonly verify?: boolean;
}

/** Options of `Generator.chat`. */
export interface ChatOptions extends SamplingOptions {
  /** Tokens to generate at most, at least 1 (default 256). */
  readonly maxTokens?: number;
  /** Strings that end the text; they are not part of it. */
  readonly stop?: readonly string[];
  /** Ids that end the text (default: those of the model). */
  readonly stopIds?: readonly number[];
  /** Stops with the signal's reason within a few steps. */
  readonly signal?: AbortSignal;
  /** Told after each chunk of the prompt how many of its tokens are read. */
  readonly onPrefill?: (done: number, total: number) => void;
}

/** Options of `Generator.generate`. */
export interface GenerateOptions extends ChatOptions {
  /**
   * Continues the text that is in the cache instead of starting a new one
   * (default false). A stop id that ended it is not part of the text.
   */
  readonly append?: boolean;
}

/** A piece of generated text. */
export interface GeneratedToken {
  /** Id of the token. A stop id comes last, with no text of its own. */
  readonly id: number;
  /**
   * Text that is certain once the token is known. It may be empty, or hold
   * what earlier tokens began: an incomplete character or a possible stop
   * string is held back.
   */
  readonly text: string;
  /** Natural-log probability of the id before temperature and filters. */
  readonly logprob: number;
  /** Position of the token in the text. */
  readonly position: number;
}

/** A piece of one of the texts of a batch. */
export interface BatchToken extends GeneratedToken {
  /** Index of the text's prompt. */
  readonly sequence: number;
  /** Whether the text ends with this piece. */
  readonly last: boolean;
}

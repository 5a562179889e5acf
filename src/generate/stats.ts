/**
 * What a generator did and what it holds.
 *
 * @module
 */
import type { BackendName } from "../backends/backend.ts";
import type { CacheStats } from "../cache/slot_cache.ts";

/** Statistics of the last generation and of the memory it runs in. */
export interface GeneratorStats {
  /** Backend in use. */
  readonly backend: BackendName;
  /** The device in words. */
  readonly device: string;
  /** Name of the cache policy. */
  readonly policy: string;
  /** Texts that can be generated together: the cache has room for each. */
  readonly sequences: number;
  /** Tokens of the prompt that were read; of a batch, of all prompts. */
  readonly promptTokens: number;
  /** Tokens of the prompt that were in the cache already. */
  readonly reusedTokens: number;
  /** Tokens generated, over all texts. */
  readonly generatedTokens: number;
  /** Tokens that the cache has seen since it was last emptied, of all texts. */
  readonly contextTokens: number;
  /** Seconds from the call to the first token. */
  readonly timeToFirstToken: number;
  /** Prompt tokens read per second. */
  readonly promptTokensPerSecond: number;
  /** Tokens generated per second after the first one. */
  readonly tokensPerSecond: number;
  /** Bytes of weights on the device. */
  readonly weightBytes: number;
  /** Bytes of activations, state and logits on the device. */
  readonly workingBytes: number;
  /**
   * Bytes that the backend holds in all: the above, the cache, scratch and
   * staging memory, and whatever else was allocated on the same backend.
   */
  readonly deviceBytes: number;
  /** The cache; `bytes` is what the device really holds for it. */
  readonly cache: CacheStats;
}

/** Counts and times of one generation. */
type RunStats = Pick<
  GeneratorStats,
  | "promptTokens"
  | "reusedTokens"
  | "generatedTokens"
  | "timeToFirstToken"
  | "promptTokensPerSecond"
  | "tokensPerSecond"
>;

/** Counts and times one generation. */
export class Stopwatch {
  #start = 0;
  #first = 0;
  #last = 0;
  #tokens = 0;
  #promptTokens = 0;
  #reusedTokens = 0;

  /** Starts anew. */
  start(): void {
    this.#start = performance.now();
    this.#first = this.#last = this.#start;
    this.#tokens = this.#promptTokens = this.#reusedTokens = 0;
  }

  /** Notes the prompt: tokens to read, and tokens in the cache already. */
  prompt(read: number, reused: number): void {
    this.#promptTokens = read;
    this.#reusedTokens = reused;
  }

  /** Counts one generated token. */
  token(): void {
    this.#last = performance.now();
    if (this.#tokens++ === 0) this.#first = this.#last;
  }

  /** What was counted; rates are 0 where there is nothing to divide by. */
  stats(): RunStats {
    const toFirst = (this.#first - this.#start) / 1000;
    const decoding = (this.#last - this.#first) / 1000;
    return {
      promptTokens: this.#promptTokens,
      reusedTokens: this.#reusedTokens,
      generatedTokens: this.#tokens,
      timeToFirstToken: toFirst,
      promptTokensPerSecond: toFirst > 0 ? this.#promptTokens / toFirst : 0,
      tokensPerSecond: decoding > 0 ? (this.#tokens - 1) / decoding : 0,
    };
  }
}

/**
 * The parts that a cache policy is composed of.
 *
 * A policy is data. Each part is a `kind` and the numbers that belong to it;
 * the reference functions interpret them, GPU backends specialise their
 * kernels with them. A published method is a short function that returns one
 * {@link Policy}; a method of your own is another choice of the same parts.
 *
 * @module
 */

/**
 * How much the cache may hold.
 *
 * - a number: slots per KV head, averaged over the layers;
 * - `{ ratio, of }`: that share of `of` tokens (of the model's context length
 *   when `of` is left out);
 * - `{ bytes }`: bytes that the device holds for the whole cache.
 */
export type Budget =
  | number
  | { readonly ratio: number; readonly of?: number }
  | { readonly bytes: number };

/** Which attention rows are observed when a chunk of a prompt is read. */
export type Probe =
  /** No row: the score needs none. */
  | { readonly kind: "none" }
  /** Every row. */
  | { readonly kind: "all" }
  /** The last `rows` rows of each chunk. */
  | { readonly kind: "last"; readonly rows: number }
  /**
   * The rows of an instruction that is known beforehand (CItruS): its `tokens`
   * are read after each chunk, at the positions that follow, and see slots,
   * chunk and each other. They are observed, and then forgotten.
   */
  | { readonly kind: "instruction"; readonly tokens: readonly number[] };

/** What makes a slot important; the slot with the lowest score goes first. */
export type Score =
  /** Its position: old slots go first (StreamingLLM). */
  | { readonly kind: "position" }
  /** Sum of the attention weights it received (H2O). */
  | { readonly kind: "accumulated" }
  /** Mean of the attention weights it received: the sum over its rows (WeightedKV). */
  | { readonly kind: "mean" }
  /**
   * Bias-corrected exponential moving average of its score (KeepKV, eq. 8):
   * `S ← alpha · S + (1 − alpha) · s`, `ŝ = S / (1 − alphaⁿ)`.
   */
  | {
    readonly kind: "ema";
    /** Weight of the past, in `[0, 1)`. */
    readonly alpha: number;
    /**
     * What `s` is. `raw`: `exp(q·k/√d)`, as in the paper. `normalized`: the
     * same divided by the row's softmax sum, which does not depend on the
     * length of the query.
     */
    readonly scale: "raw" | "normalized";
    /** Whether eviction ranks by `votes · ŝ` instead of `ŝ`. */
    readonly countVotes: boolean;
  };

/** How the budget is spread over layers and KV heads. */
export interface Allocate {
  /** Slots of a layer, as a mean over its KV heads. */
  readonly layers: LayerAllocation;
  /** Slots of the KV heads within a layer. */
  readonly heads: HeadAllocation;
}

/** How the budget is spread over the layers. */
export type LayerAllocation =
  /** The same for every layer. */
  | { readonly kind: "uniform" }
  /**
   * KeepKV's pyramid: the part beside the recent window falls from 1 to
   * `floor` along half a cosine from the first layer to the last.
   */
  | { readonly kind: "cosine"; readonly floor: number };

/** How the budget of a layer is spread over its KV heads. */
export type HeadAllocation = /** The same for every KV head. */
  { readonly kind: "uniform" };

/** Which slots are never evicted. */
export interface Select {
  /** First tokens of the text that are never evicted. */
  readonly sinks: number;
  /**
   * Positions that the sinks have for later queries: those of the `text`, or
   * those of their place in the `cache` (StreamingLLM).
   */
  readonly sinkPositions: "text" | "cache";
  /**
   * Newest tokens that are never evicted: a share of the budget, or slots.
   * Where the share `countsSinks`, the sinks are taken from it.
   */
  readonly recent:
    | { readonly ratio: number; readonly countsSinks?: boolean }
    | { readonly slots: number };
}

/** What happens to a slot that has to go. */
export type Merge =
  /** It is dropped. */
  | { readonly kind: "drop" }
  /** Nothing ever goes: the cache holds all tokens up to its capacity. */
  | { readonly kind: "never" }
  /** It is merged into the slot with the most similar key (KeepKV). */
  | {
    readonly kind: "votes";
    /**
     * How the merged key keeps the current output unchanged.
     *
     * - `zip`: the paper's scaled mean key (eq. 7), guarded;
     * - `minNorm`: the key nearest to the mean that has the exact logit;
     * - `realVotes`: the mean key, and votes shrunk to the exact mass;
     * - `convex`: the mean key and summed votes: not exact, as released.
     */
    readonly key: "zip" | "minNorm" | "realVotes" | "convex";
    /** Cosine that the two keys must exceed; otherwise the slot is dropped. */
    readonly threshold: number;
    /** Order in a prefill: merge similar pairs first, or evict first. */
    readonly prefill: "mergeFirst" | "evictFirst";
    /** One vote bias per query head of the group instead of one per slot. */
    readonly votesPerQueryHead: boolean;
    /** Smallest and largest scale that `zip` may apply to a key. */
    readonly guard: readonly [number, number];
  }
  /**
   * Its value goes to the slot with the next higher position, which keeps its
   * key, its score and its votes (WeightedKV). Without such a slot it is
   * dropped.
   */
  | {
    readonly kind: "rightNeighbour";
    /**
     * How the neighbour's value changes.
     *
     * - `convex`: the mean of both values, weighted by the mean attention that
     *   the slots have received: the paper's algorithm 1;
     * - `exact`: `v₂ + A₁/A₂ · (v₁ − o)` for the attention `A` and the output
     *   `o` of the current row, which leaves that output unchanged. A chunk of
     *   a prompt, whose rows have no one output, is compressed by `convex`.
     */
    readonly rule: "convex" | "exact";
    /** Largest `A₁/A₂` that `exact` applies; what is above is cut to it. */
    readonly cap: number;
  };

/** How keys and values are stored. */
export type Precision =
  /** The backend's half type. */
  { readonly kind: "half" };

/** When the cache is compressed while a prompt is read. */
export type Schedule =
  /** After every `chunk` tokens: constant memory for a prompt of any length. */
  | { readonly kind: "streaming"; readonly chunk: number }
  /**
   * Once, at the end of the prompt, which is read in full before: the setting
   * of most papers. A prompt has at most `longest` tokens, and the memory that
   * it is read in grows with them: the stage of the cache by one slot per KV
   * head and token, activations by one row.
   */
  | { readonly kind: "whole"; readonly longest: number };

/** A cache policy. */
export interface Policy {
  /** Name of the method. */
  readonly name: string;
  /** How much the cache may hold. */
  readonly budget: Budget;
  /** Which attention rows are observed. */
  readonly probe: Probe;
  /** What makes a slot important. */
  readonly score: Score;
  /** How the budget is spread. */
  readonly allocate: Allocate;
  /** Which slots are never evicted. */
  readonly select: Select;
  /** What happens to a slot that has to go. */
  readonly merge: Merge;
  /** How keys and values are stored. */
  readonly precision: Precision;
  /** When a prompt is compressed. */
  readonly schedule: Schedule;
}

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

import type { HeadLosses } from "./allocations/head_losses.ts";

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
  /** The attention weight that it received from the newest row (TOVA). */
  | { readonly kind: "last" }
  /**
   * Mean of the attention weights that it received at another scale than the
   * model's: `softmax(g · (q·k/√d + ln votes))`, `g = √(2 ln(t/b))` for `t` tokens of text
   * and `b` slots of the head, 0 while they all fit. The longer the text, the
   * sharper the scores, so that as many slots stand out as there is room for
   * (AhaKV).
   */
  | { readonly kind: "stepGain" }
  /**
   * When it last mattered: the number `t` of tokens that the newest row had
   * seen which gave it at least `1/t` of its attention (CORM). Slots that never
   * mattered have 0.
   */
  | { readonly kind: "age" }
  /**
   * How far its key points away from the others: `−cos(kᵢ, Σ kⱼ / ‖kⱼ‖)` over
   * the slots of the head. No row is needed (KeyDiff).
   */
  | { readonly kind: "keyDistance" }
  /**
   * The attention that queries of the next `horizon` positions are expected to
   * give it, if queries are as they were so far (ExpectedAttention). No row is
   * needed: for each query head, the mean `μ` and the scatter of its unrotated
   * queries are kept beside the slots. Rotated by the mean `R̄` of the
   * rotations by the next positions they give
   *
   * `softmax(μ̄·k/√d + kᵀ Σ̄ k / (2d) + ln votes)`, `μ̄ = R̄ μ`, `Σ̄ = R̄ Σ R̄ᵀ`,
   *
   * over the slots that are no sinks; the score is the logarithm of its mean
   * over the query heads of the group.
   *
   * `Σ` is not the covariance itself, which would take `d²` numbers per query
   * head, but the nearest matrix that is a multiple of the identity on each
   * RoPE pair: `σ² = E‖q − μ‖² / 2` of the pair. A rotation of the pair leaves
   * such a block as it is, so `kᵀ Σ̄ k = Σ |R̄|² σ² ‖k‖²` over the pairs.
   */
  | {
    readonly kind: "expected";
    /** Positions after the newest one that queries are expected at. */
    readonly horizon: number;
  }
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

/** Whether the values of slots count beside their scores. */
export type Values =
  /** Scores alone rank slots. */
  | { readonly kind: "ignored" }
  /**
   * A slot's score counts times the norm of its value, beside a part of the
   * budget that goes by scores alone (CriticalKV). Of the slots that may be
   * evicted, `b` of which fit, the `⌊first · b⌋` with the highest scores `A`
   * stay whatever their values; of the others those with the lowest
   * `(A + epsilon) · u^power` go.
   */
  | {
    readonly kind: "norm";
    /**
     * What `u` is. `projected`: the mean over the query heads `h` of the group
     * of `‖v · W_O[h]‖₁`, `W_O[h]` being the head's slice of the output
     * projection. `plain`: `‖v‖₂`.
     */
    readonly of: "projected" | "plain";
    /** Share of the budget that goes by scores alone, in `[0, 1]`. */
    readonly first: number;
    /** Whether norms count as they are or squared (AhaKV). */
    readonly power: 1 | 2;
    /** What a slot without any score counts as. */
    readonly epsilon: number;
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
  | { readonly kind: "cosine"; readonly floor: number }
  /**
   * In proportion to `shares`, one positive number per layer, as a calibration
   * gives them. No layer gets less than its sinks, its recent tokens and one
   * slot more; what that takes comes from the others in proportion.
   */
  | { readonly kind: "shares"; readonly shares: readonly number[] }
  /**
   * PyramidKV's pyramid: the part beside the recent window, `b` slots as a
   * mean, falls along a line from `2b − b / beta` in the first layer to
   * `b / beta` in the last.
   */
  | { readonly kind: "linear"; readonly beta: number };

/** How the budget of a layer is spread over its KV heads. */
export type HeadAllocation =
  /** The same for every KV head. */
  | { readonly kind: "uniform" }
  /**
   * In proportion to `shares`, one positive number per layer and KV head, with
   * the same least number of slots as for layers.
   */
  | {
    readonly kind: "shares";
    readonly shares: readonly (readonly number[])[];
  }
  /**
   * So that the sum of the measured losses of all heads of all layers is small:
   * see `lossSlots`. The budget is that of all layers together, so
   * `layers` has nothing to say; every head gets its sinks, its recent tokens
   * and one slot more at least.
   */
  | { readonly kind: "losses"; readonly losses: HeadLosses }
  /**
   * By the scores of the first chunk of a text (Ada-KV, arXiv 2407.11550,
   * algorithm 1 with its safeguard). Of all evictable rows of the layer's
   * heads, `cₕ` of head `h` are among the `Σ F` with the highest scores, `F`
   * being the slots that a head has beside its sinks and recent tokens when
   * the layer's are spread evenly; it gets `(1 − floor) · cₕ + floor · F`.
   *
   * The heads keep these budgets until the cache is emptied. They stay even
   * if the first chunk is no longer than the budget, or if a text begins with
   * decode steps, since nothing is to be chosen then.
   */
  | {
    readonly kind: "adaptive";
    /** Share of the budget that is spread evenly, in `[0, 1]`. */
    readonly floor: number;
  };

/**
 * How scores are spread over neighbouring positions when a chunk of a prompt
 * is compressed. The window is the slots outside the recent ones whose
 * positions lie at most `(width − 1) / 2` from the slot's own, which is in it.
 * A decode step, which evicts one slot at a time, pools nothing.
 */
export type Pool =
  /** Each slot has its own score. */
  | { readonly kind: "none" }
  /** The mean or the largest score of the window (SnapKV). */
  | { readonly kind: "mean" | "max"; readonly width: number };

/** Which slots are never evicted, and how scores rank the others. */
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
   * Where the share `countsSinks`, the sinks are taken from it; it is `atMost`
   * so many slots.
   */
  readonly recent:
    | {
      readonly ratio: number;
      readonly countsSinks?: boolean;
      readonly atMost?: number;
    }
    | { readonly slots: number };
  /** How scores are spread over neighbours when a chunk is compressed. */
  readonly pool: Pool;
  /**
   * Whether each KV head evicts by its own scores, or all heads of a `layer`
   * evict the same tokens, by the mean of their scores (TOVA).
   */
  readonly scope: "head" | "layer";
}

/** How slots are merged so that the one that stays has the mass of both. */
export interface VoteMerge {
  /**
   * How the merged key keeps the current output unchanged.
   *
   * - `zip`: the paper's scaled mean key (KeepKV, eq. 7), guarded;
   * - `minNorm`: the key nearest to the mean that has the exact logit;
   * - `realVotes`: the mean key, and votes shrunk to the exact mass;
   * - `convex`: the mean key and summed votes: not exact, as released.
   */
  readonly key: "zip" | "minNorm" | "realVotes" | "convex";
  /** One vote bias per query head of the group instead of one per slot. */
  readonly votesPerQueryHead: boolean;
  /** Smallest and largest scale that `zip` may apply to a key. */
  readonly guard: readonly [number, number];
}

/** What happens to a slot that has to go. */
export type Merge =
  /** It is dropped. */
  | { readonly kind: "drop" }
  /** Nothing ever goes: the cache holds all tokens up to its capacity. */
  | { readonly kind: "never" }
  /** It is merged into the slot with the most similar key (KeepKV). */
  | (
    & {
      readonly kind: "votes";
      /** Cosine that the two keys must exceed; otherwise the slot is dropped. */
      readonly threshold: number;
      /** Order in a prefill: merge similar pairs first, or evict first. */
      readonly prefill: "mergeFirst" | "evictFirst";
    }
    & VoteMerge
  )
  /**
   * No slot is singled out: of all pairs of slots that may go, the one whose
   * merge costs least is merged (Ward, 1963, "Hierarchical Grouping to
   * Optimize an Objective Function"). With the weights `w = votes · ŝ` of the
   * merge itself it costs `wₐ w_b / (wₐ + w_b) · D`, where `D` is how far the
   * two are apart: see `distance`. Of the two, the one with the lower score
   * goes.
   */
  | (
    & {
      readonly kind: "pair";
      /**
       * How far two slots are apart. With `K = ‖kₐ − k_b‖² / √d` and
       * `V = ‖vₐ − v_b‖² / var`, `var` being the mean squared distance of the
       * values of the head's slots from their mean:
       *
       * - `sum`: `keyWeight · K + valueWeight · V`. The cost is what the merge
       *   adds to the weighted squared distance of all members from their
       *   slots;
       * - `product`: `keyWeight · K · (1 + valueWeight · V)`. A query that
       *   tells the keys apart moves weight between the two, which changes the
       *   output by the difference of the values; the 1 stands for the weight
       *   itself, which moves to or from all other slots.
       */
      readonly distance: "sum" | "product";
      /** Weight of squared distances of keys over `√d`; 1/4 is a good start. */
      readonly keyWeight: number;
      /** Weight of squared distances of values over their variance. */
      readonly valueWeight: number;
      /**
       * Rounds of pairing that a chunk of a prompt gets: in each, every slot
       * proposes to its cheapest heavier partner, and the cheapest proposals
       * without a slot in common are merged. What is over the budget after
       * that goes to its cheapest partner among the slots that stay.
       */
      readonly rounds: number;
      /**
       * How a decode step finds the pair. `exhaustive`: all pairs are compared.
       * `incremental`: each slot remembers its nearest partner, and what changed
       * is compared again in one step of several; where all are compared, the pair
       * that is found costs at most twice what the cheapest does (see
       * `src/reference/partners.ts`).
       */
      readonly search: "exhaustive" | "incremental";
    }
    & VoteMerge
  )
  /**
   * It is merged into the slot with the most similar key if their cosine
   * reaches a moving average of such cosines, and is dropped if not (D2O).
   */
  | {
    readonly kind: "cosine";
    /** Weight of the past in the moving average, in `[0, 1)`. */
    readonly keep: number;
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
  }
  /**
   * Its value is added to those of the slots in the next positions, and its key
   * is dropped (CaM). A chunk of a prompt ends as if its slots had gone one by
   * one.
   */
  | {
    readonly kind: "nextValues";
    /** Positions after the slot whose values take its value in, up to 256. */
    readonly count: number;
    /**
     * Whether it is passed on: drawn with the probability that the paper
     * gives, or `expected`, that probability of it always.
     */
    readonly rule: "sampled" | "expected";
    /** Seed of the draws, below 2^32. */
    readonly seed: number;
  }
  /**
   * Slots that follow each other in the text and have similar keys become one
   * (KVMerger). A link joins a slot with the next one if both may be evicted
   * and neither is a heavy hitter. As many links as slots are too many, those
   * with the highest cosines of keys, are closed, and slots that closed links
   * connect become one: see `src/reference/segments.ts` for its key and value.
   * Where there are too few links, the slots with the lowest scores are dropped
   * after that.
   */
  | {
    readonly kind: "segments";
    /**
     * Share of the budget beside sinks and recent tokens that is for the slots
     * with the highest scores, which are not merged, in `[0, 1]`.
     */
    readonly heavy: number;
  };

/** How keys and values are stored. */
export type Precision =
  /**
   * The backend's half type: 16-bit floats on a GPU, 32-bit floats on the CPU,
   * unless it was opened for another type. Numbers above 65504 overflow.
   */
  | { readonly kind: "half" }
  /**
   * bfloat16, in as many bytes: the range of 32-bit floats with 8 bits of
   * precision in place of 11, for models whose keys or values overflow. CUDA
   * alone, by a library of its own (`deno task build:cuda --cache bfloat16`).
   */
  | { readonly kind: "bfloat16" };

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
  /** Whether the values of slots count beside their scores. */
  readonly values: Values;
  /** How the budget is spread. */
  readonly allocate: Allocate;
  /** Which slots are never evicted, and how scores rank the others. */
  readonly select: Select;
  /** What happens to a slot that has to go. */
  readonly merge: Merge;
  /** How keys and values are stored. */
  readonly precision: Precision;
  /** When a prompt is compressed. */
  readonly schedule: Schedule;
}

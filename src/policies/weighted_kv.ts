import { definePolicy, type MethodOptions } from "./define_policy.ts";
import type { Policy } from "./parts.ts";

/** Options of {@link weightedKV}. */
export interface WeightedKVOptions extends MethodOptions {
  /**
   * How the neighbour's value changes (default `"convex"`, the paper's
   * algorithm). `"exact"` leaves the output of the current row unchanged.
   */
  readonly rule?: "convex" | "exact";
  /**
   * Largest ratio `A₁/A₂` of attention weights that `"exact"` applies
   * (default 1: a slot is moved by no more than the whole distance). The paper
   * names none.
   */
  readonly cap?: number;
  /** First tokens of the text that are never evicted (default 4). */
  readonly sinks?: number;
  /**
   * Sinks and newest tokens never evicted, as a share of the budget (default
   * 0.5).
   */
  readonly recent?: number;
}

/**
 * WeightedKV: of a slot that must go, the key is dropped and the value is
 * merged into that of its right neighbour, since values, unlike keys, do not
 * lie near a space of few dimensions.
 *
 * The slot `j` with the lowest mean attention `ā = a/n` goes (`a`: the sum of
 * the weights it received, `n`: the rows that could see it), and
 * `v_{j+1} ← (ā_j v_j + ā_{j+1} v_{j+1}) / (ā_j + ā_{j+1})`; the neighbour's
 * key, `a` and `n` stay. Keys are not touched, so rotary positions play no
 * part.
 *
 * Source: "WeightedKV: Attention Scores Weighted Key-Value Cache Merging for
 * Large Language Models", arXiv 2503.01330, section III and algorithm 1; 4
 * sinks and `B/2 − 4` recent tokens as there. The exact rule is the paper's
 * lossless merge of section III-B, written with the output that the step has
 * already: `v₂ + A₁/A₂ · (v₁ − o)`. The paper's models have one query head per
 * KV head; for groups, attention is averaged over the heads. A chunk of a
 * prompt ends as if its slots had gone one by one.
 *
 * @example
 * ```ts
 * import { weightedKV } from "@steadykv/steadykv";
 * import { assertEquals } from "@std/assert";
 *
 * assertEquals(weightedKV({ budget: 256 }).name, "weightedkv");
 * ```
 */
export function weightedKV(options: WeightedKVOptions): Policy {
  return definePolicy({
    name: "weightedkv",
    budget: options.budget,
    score: { kind: "mean" },
    allocate: options.allocate,
    select: {
      sinks: options.sinks ?? 4,
      recent: { ratio: options.recent ?? 0.5, countsSinks: true },
    },
    merge: {
      kind: "rightNeighbour",
      rule: options.rule ?? "convex",
      cap: options.cap ?? 1,
    },
    schedule: options.schedule,
  });
}

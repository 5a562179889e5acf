import { definePolicy, type MethodOptions } from "./define_policy.ts";
import type { Policy } from "./parts.ts";

/** Options of {@link ahaKV}. */
export interface AhaKVOptions extends MethodOptions {
  /**
   * Rows at the end of each prompt chunk that are observed, which are also the
   * newest tokens that are never evicted (default 32).
   */
  readonly window?: number;
  /** First tokens of the text that are never evicted (default 0). */
  readonly sinks?: number;
}

/**
 * AhaKV: attention at a scale that keeps its entropy near `ln b` for a budget
 * of `b` slots, times the squared norms of the values.
 *
 * The score is the mean of `softmax(g · q·k/√d)` over the last `window` rows,
 * `g = √(2 ln(t/b))` for `t` tokens of text: with the model's own scale the
 * weights of a long text spread out until the slots that count do not stand
 * out. Slots go by that times `‖v‖₂²`.
 *
 * Source: "AhaKV: Adaptive Holistic Attention-Driven KV Cache Eviction for
 * Efficient Inference of Large Language Models", arXiv 2506.03762. There the
 * squared norms are averaged over neighbouring tokens first; here each slot
 * has its own. Decoding goes on under the budget with the mean over all rows
 * observed so far. The query heads of a group share a slot, so their weights
 * are averaged.
 */
export function ahaKV(options: AhaKVOptions): Policy {
  const window = options.window ?? 32;
  return definePolicy({
    name: "ahakv",
    budget: options.budget,
    probe: { kind: "last", rows: window },
    score: { kind: "stepGain" },
    values: { kind: "norm", of: "plain", first: 0, power: 2, epsilon: 0 },
    allocate: options.allocate,
    select: { sinks: options.sinks ?? 0, recent: { slots: window } },
    merge: { kind: "drop" },
    schedule: options.schedule,
  });
}

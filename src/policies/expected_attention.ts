import { definePolicy, type MethodOptions } from "./define_policy.ts";
import type { Policy } from "./parts.ts";

/** Options of {@link expectedAttention}. */
export interface ExpectedAttentionOptions extends MethodOptions {
  /** Positions ahead that queries are expected at (default 512). */
  readonly horizon?: number;
  /**
   * First tokens of the text that are never evicted, and whose queries do not
   * count (default 4).
   */
  readonly sinks?: number;
  /** Newest tokens that are never evicted (default 1). */
  readonly recent?: number;
  /** What is added to the expected attention of each slot (default 0). */
  readonly epsilon?: number;
}

/**
 * ExpectedAttention: drops the tokens that future queries are expected to take
 * least from, if they are distributed as queries were so far.
 *
 * For queries with mean `μ` and covariance `Σ`, moved to the next `horizon`
 * positions by the mean `R̄` of their rotations, a slot's rank is
 *
 * `(softmax(μ̄·k/√d + kᵀ Σ̄ k / (2d)) + epsilon) · ‖v‖₂`, `μ̄ = R̄ μ`,
 * `Σ̄ = R̄ Σ R̄ᵀ`,
 *
 * the softmax being a mean over the query heads of the group. No attention has
 * to be observed.
 *
 * Source: "Expected Attention: KV Cache Compression by Estimating Attention
 * from Future Queries Distribution", arXiv 2510.00636. The horizon, the sinks
 * and `epsilon` are defaults of the authors' code, which also leaves the
 * queries and keys of sinks out. Three things differ here. Of `Σ`, one variance
 * per RoPE pair is kept instead of `d²` numbers per query head (see the score
 * `expected`). The statistics go on while text is generated. And which recent
 * tokens stay is this project's choice, since the paper compresses a prompt
 * once.
 */
export function expectedAttention(options: ExpectedAttentionOptions): Policy {
  return definePolicy({
    name: "expected-attention",
    budget: options.budget,
    probe: { kind: "none" },
    score: { kind: "expected", horizon: options.horizon ?? 512 },
    values: {
      kind: "norm",
      of: "plain",
      first: 0,
      power: 1,
      epsilon: options.epsilon ?? 0,
    },
    allocate: options.allocate,
    select: {
      sinks: options.sinks ?? 4,
      recent: { slots: options.recent ?? 1 },
    },
    merge: { kind: "drop" },
    schedule: options.schedule,
  });
}

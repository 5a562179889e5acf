import { definePolicy, type MethodOptions } from "./define_policy.ts";
import type { Merge, Policy } from "./parts.ts";

/** Options of {@link cam}. */
export interface CamOptions extends MethodOptions {
  /** First tokens of the text that are never evicted (default 4). */
  readonly sinks?: number;
  /** Positions after a slot whose values take its value in (default 32). */
  readonly count?: number;
  /** Draw whether a value is passed on, or take the mean (default `"sampled"`). */
  readonly rule?: Extract<Merge, { kind: "nextValues" }>["rule"];
  /** Seed of the draws (default 0). */
  readonly seed?: number;
}

/**
 * CaM: keeps the first tokens and the newest ones; the value of a token that
 * leaves is spread over the tokens after it, its key is dropped.
 *
 * - `vᵢ ← vᵢ + vⱼ · M / m` for the slots in the `m` positions after `j`;
 * - `M ~ Bernoulli(min(1, Aⱼ / Ā))` with the sums of attention `A`, `Ā` their
 *   mean over those slots. `expected` puts the probability itself for `M`.
 *
 * The sum of the values stays what it was while the softmax gives the slots
 * that stay all of the attention. In a head whose attention is flat, `M` is
 * almost always 1 and the output grows with the share of tokens that went: such
 * heads in the first layer are enough to spoil a model. `A` of heads that pick
 * few tokens is low for most, so that little is passed on.
 *
 * Source: "CaM: Cache Merging for Memory-efficient LLMs Inference", Zhang et
 * al., ICML 2024; `m = 32` as in the authors' code, which keeps a share of the
 * prompt at its start where this keeps sinks. Each KV head draws for itself.
 * That code merges while tokens are read one by one, and drops what a prompt
 * that is read in one piece has too many; here a prompt ends as if it had been
 * read one by one.
 *
 * @example
 * ```ts
 * import { cam } from "@steadykv/steadykv";
 * import { assertEquals } from "@std/assert";
 *
 * assertEquals(cam({ budget: 256 }).score, { kind: "position" });
 * ```
 */
export function cam(options: CamOptions): Policy {
  return definePolicy({
    name: "cam",
    budget: options.budget,
    score: { kind: "position" },
    allocate: options.allocate,
    select: { sinks: options.sinks ?? 4, recent: { slots: 1 } },
    merge: {
      kind: "nextValues",
      count: options.count ?? 32,
      rule: options.rule ?? "sampled",
      seed: options.seed ?? 0,
    },
    schedule: options.schedule,
  });
}

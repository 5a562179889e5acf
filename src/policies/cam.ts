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
 * Source: "CaM: Cache Merging for Memory-efficient LLMs Inference", Zhang et
 * al., ICML 2024; `m = 32` as in the authors' code, which keeps a share of the
 * prompt at its start where this keeps sinks. Each KV head draws for itself.
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

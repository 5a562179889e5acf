import { definePolicy } from "./define_policy.ts";
import type { Budget, Policy } from "./parts.ts";

/** Options of {@link fullCache}. */
export interface FullCacheOptions {
  /**
   * Tokens that the cache has room for (default: the model's context length).
   * One token more is an error.
   */
  readonly budget?: Budget;
}

/** The identity: every token keeps its slot. What the others are compared with. */
export function fullCache(options: FullCacheOptions = {}): Policy {
  return definePolicy({
    name: "full",
    budget: options.budget ?? { ratio: 1 },
    probe: { kind: "none" },
    score: { kind: "position" },
    select: { sinks: 0, recent: { slots: 0 } },
    merge: { kind: "never" },
  });
}

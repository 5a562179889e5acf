import { definePolicy, type MethodOptions } from "./define_policy.ts";
import type { Policy } from "./parts.ts";

/** Options of {@link keyDiff}. */
export interface KeyDiffOptions extends MethodOptions {
  /** First tokens of the text that are never evicted (default 0). */
  readonly sinks?: number;
  /** Newest tokens that are never evicted (default 1). */
  readonly recent?: number;
}

/**
 * KeyDiff: keeps the keys that differ most from the others, since a key that
 * points where most do tends to receive little attention.
 *
 * The score is `−cos(kᵢ, mean of kⱼ / ‖kⱼ‖)` over the slots of a head. It needs
 * neither queries nor attention, so a chunk is compressed without observing
 * any row.
 *
 * Source: "KeyDiff: Key Similarity-Based KV Cache Eviction for Long-Context
 * LLM Inference in Resource-Constrained Environments", arXiv 2504.15364. Keys
 * are compared as the cache has them, after RoPE. Which recent tokens stay is
 * this project's choice.
 */
export function keyDiff(options: KeyDiffOptions): Policy {
  return definePolicy({
    name: "keydiff",
    budget: options.budget,
    probe: { kind: "none" },
    score: { kind: "keyDistance" },
    allocate: options.allocate,
    select: {
      sinks: options.sinks ?? 0,
      recent: { slots: options.recent ?? 1 },
    },
    merge: { kind: "drop" },
    schedule: options.schedule,
  });
}

/** What every measurement of speed works with. */
import type { Backend } from "../../../src/backends/backend.ts";
import type { ModelConfig } from "../../../src/model/config.ts";
import type { Weights } from "../../../src/model/weights.ts";
import { fullCache } from "../../../src/policies/full_cache.ts";
import type { Policy } from "../../../src/policies/parts.ts";
import { createPolicy } from "../../../src/policies/registry.ts";

/** A policy and the slots that each head of it has. */
export interface CacheSpec {
  /** Name of the policy. */
  readonly policy: string;
  /** Slots per KV head that attention reads. */
  readonly slots: number;
}

/** A model on a device. */
export interface Setup {
  readonly backend: Backend;
  /** Name of the model's shape. */
  readonly shape: string;
  readonly config: ModelConfig;
  readonly weights: Weights;
}

/** How often things are done. */
export interface Repeats {
  /** Decode steps of one round. */
  readonly steps: number;
  /** Rounds, of which the median counts. */
  readonly rounds: number;
}

/** A cache as the command line names it. */
export function cacheName({ policy, slots }: CacheSpec): string {
  return `${policy}:${slots}`;
}

/** Whether every token keeps its slot. */
export function keepsAll({ policy }: CacheSpec): boolean {
  return policy === "full";
}

/**
 * The policy of a cache with room for more tokens than the cache names. Keys
 * are random here, so KeepKV would find none that are similar and only evict:
 * its threshold is lowered, and it merges at every step.
 */
export function policyOf(
  { policy: name, slots }: CacheSpec,
  { room = 0, chunk }: { room?: number; chunk: number },
): Policy {
  const budget = slots + room;
  const policy = name === "full"
    ? fullCache({ budget })
    : createPolicy(name, budget);
  const { allocate, merge } = policy;
  return {
    ...policy,
    // The same number of slots in every layer, as in a full cache.
    allocate: { ...allocate, layers: { kind: "uniform" } },
    merge: merge.kind === "votes" ? { ...merge, threshold: -1 } : merge,
    schedule: { kind: "streaming", chunk },
  };
}

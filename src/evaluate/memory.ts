/**
 * What a cache takes on the device.
 *
 * @module
 */
import type { Backend } from "../backends/backend.ts";
import { resolveBudget } from "../cache/budget.ts";
import { SlotCache } from "../cache/slot_cache.ts";
import type { ModelConfig } from "../model/config.ts";
import { fullCache } from "../policies/full_cache.ts";
import type { Policy } from "../policies/parts.ts";
import { stageRows } from "../policies/schedule.ts";

/** Bytes that a cache holds on the device. */
export interface CacheMemory {
  /**
   * Bytes of slots and head table: what stays for the whole generation, and
   * what policies are compared by.
   */
  readonly slotBytes: number;
  /**
   * Bytes of the stage, which holds one chunk of a prompt: all of it in the
   * setting `whole`.
   */
  readonly stageBytes: number;
}

/** Where a cache would be, and for which model. */
export interface CachePlace {
  /** The model. */
  readonly config: ModelConfig;
  /** The device. */
  readonly backend: Backend;
}

/**
 * Allocates the cache of a policy and reads what it takes.
 *
 * @throws {RangeError} If the budget does not suit the policy or the model.
 */
export function measureMemory(
  { config, backend }: CachePlace,
  policy: Policy,
): CacheMemory {
  using cache = new SlotCache(backend, policy, {
    ...config,
    sequences: 1,
    stageRows: stageRows(policy),
  });
  const { keys, values, side } = cache.layers[0]!.stage;
  const stageBytes = keys.byteLength + values.byteLength + side.byteLength;
  return { slotBytes: cache.bytes - stageBytes, stageBytes };
}

/** Bytes of slots and head table of a full cache for `tokens` tokens. */
export function fullCacheBytes(place: CachePlace, tokens: number): number {
  const policy = fullCache({ budget: tokens });
  return measureMemory(place, policy).slotBytes;
}

/**
 * Slots per head, averaged, that a policy may have where slots and head table
 * take at most `bytes`. The stage does not count.
 *
 * @throws {RangeError} If the bytes do not suit the policy or the model.
 */
export function slotsWithin(
  { config, backend }: CachePlace,
  policy: Policy,
  bytes: number,
): number {
  const budgets = resolveBudget({ ...policy, budget: { bytes } }, {
    ...config,
    sequences: 1,
    stageRows: 0,
    halfBytes: backend.halfBytes,
  }).flat();
  const total = budgets.reduce((sum, { slots }) => sum + slots, 0);
  return Math.round(total / budgets.length);
}

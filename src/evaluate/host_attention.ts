/**
 * Attention over voted slots on the host, in f64, for measurements.
 *
 * @module
 */
import { inverseFrequencies } from "../model/rope.ts";
import type { ModelConfig } from "../model/config.ts";
import type { LiveSlot } from "./live_slots.ts";

/** How {@linkcode attendOnHost} sees a slot. */
export interface HostAttention {
  /** `(headDim)`, rotated to its position. */
  readonly query: Float32Array;
  /** Slots that it attends to. */
  readonly slots: readonly LiveSlot[];
  /** Vote lane of the query's head. */
  readonly lane: number;
  /** Another query for the slots before this position: see {@link turnQuery}. */
  readonly sinks?: { readonly query: Float32Array; readonly end: number };
}

/**
 * `Σ pᵢ sᵢ vᵢ / Σ pᵢ sᵢ` with `s = exp(q·k/√d)`: KeepKV eq. 6; zeros without
 * any slot.
 */
export function attendOnHost(
  { query, slots, lane, sinks }: HostAttention,
): Float64Array {
  const root = Math.sqrt(query.length);
  const logits = slots.map(({ key, bias, position }) => {
    const own = sinks !== undefined && position < sinks.end
      ? sinks.query
      : query;
    let sum = 0;
    for (let i = 0; i < key.length; i++) sum += own[i]! * key[i]!;
    return sum / root + (bias[lane] ?? bias[0]!);
  });
  const max = logits.reduce((a, b) => Math.max(a, b), -Infinity);
  const output = new Float64Array(query.length);
  let total = 0;
  slots.forEach(({ value }, s) => {
    const weight = Math.exp(logits[s]! - max);
    total += weight;
    for (let i = 0; i < output.length; i++) output[i]! += weight * value[i]!;
  });
  return total === 0 ? output : output.map((value) => value / total);
}

/**
 * Turns a rotated query by `distance` positions, for sinks that have the
 * position of their place in the cache.
 */
export function turnQuery(
  query: Float32Array,
  distance: number,
  { rope }: Pick<ModelConfig, "rope">,
): Float32Array {
  const half = query.length / 2;
  const { inverse } = inverseFrequencies(rope, query.length);
  const turned = new Float32Array(query.length);
  for (let i = 0; i < half; i++) {
    const angle = distance * inverse[i]!;
    const [cos, sin] = [Math.cos(angle), Math.sin(angle)];
    const [a, b] = [query[i]!, query[i + half]!];
    turned[i] = a * cos - b * sin;
    turned[i + half] = b * cos + a * sin;
  }
  return turned;
}

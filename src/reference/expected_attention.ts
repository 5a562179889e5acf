/**
 * The attention that slots are expected to receive (ExpectedAttention).
 *
 * @module
 */
import {
  type CacheLayer,
  type HostTensor,
  type ModelSizes,
  queryStatisticsLayout,
} from "../backends/backend.ts";
import type { Policy } from "../policies/parts.ts";
import { dot, logSumExp } from "./arithmetic.ts";
import { keyOf, positionOf, type Slot, voteBias } from "./host.ts";

/** The queries that are expected of one query head. */
export interface FutureQueries {
  /** `(headDim)`: their mean, rotated like keys. */
  readonly mean: Float32Array;
  /** `(headDim / 2)`: their variance per element, per RoPE pair. */
  readonly variance: Float32Array;
}

/** What `query_statistics` expects of the query heads of a KV head's group. */
export function futureQueries(
  { statistics }: CacheLayer<HostTensor>,
  { sequence, kvHead, sizes: { heads, kvHeads, headDim } }: {
    sequence: number;
    kvHead: number;
    sizes: ModelSizes;
  },
): FutureQueries[] {
  if (statistics === undefined) return [];
  const { future, variance, length } = queryStatisticsLayout(headDim);
  const group = heads / kvHeads;
  return Array.from({ length: group }, (_, g) => {
    const at = (sequence * heads + kvHead * group + g) * length;
    const slice = (from: number, count: number) =>
      statistics.f32.subarray(at + from, at + from + count);
    return {
      mean: slice(future, headDim),
      variance: slice(variance, headDim / 2),
    };
  });
}

/**
 * For each slot of a head, ln of the mean over the group of
 * `softmax(μ̄·k/√d + kᵀ Σ̄ k / (2d) + ln votes)`: the expectation of the
 * exponential of a normally distributed logit. The softmax is over the slots
 * that are no sinks.
 */
export function expectedScores(
  slots: readonly Slot[],
  { futures, policy, lanes }: {
    futures: readonly FutureQueries[];
    policy: Policy;
    lanes: number;
  },
): number[] {
  const isSink = slots.map((slot) => positionOf(slot) < policy.select.sinks);
  const weights = futures.map((future, g) => {
    const logits = slots.map((slot) =>
      expectedLogit(slot, future) + voteBias(slot, g, lanes)
    );
    const sum = logSumExp(logits.filter((_, i) => !isSink[i]));
    return logits.map((logit) => logit - sum);
  });
  return slots.map((_, i) =>
    logSumExp(weights.map((head) => head[i]!)) - Math.log(futures.length)
  );
}

/** `μ̄·k/√d + kᵀ Σ̄ k / (2d)`. */
function expectedLogit(slot: Slot, { mean, variance }: FutureQueries): number {
  const headDim = mean.length;
  const key = keyOf(slot, headDim);
  const pairs = headDim / 2;
  const spread = variance.reduce(
    (sum, v, i) => sum + v * (key[i]! ** 2 + key[i + pairs]! ** 2),
    0,
  );
  return dot(mean, key) / Math.sqrt(headDim) + spread / (2 * headDim);
}

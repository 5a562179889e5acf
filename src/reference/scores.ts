/**
 * Logits of slots, and the scores that rows of attention leave on them.
 *
 * @module
 */
import {
  type HostTensor,
  type ModelSizes,
  SlotField,
} from "../backends/backend.ts";
import type { Policy, Score } from "../policies/parts.ts";
import { cosine, dot, logSumExp } from "./arithmetic.ts";
import { expectedScores, type FutureQueries } from "./expected_attention.ts";
import {
  getFloat,
  getWord,
  keyOf,
  positionOf,
  setFloat,
  setWord,
  type Slot,
  voteBias,
} from "./host.ts";

/** The queries of one row that share a KV head. */
export interface QueryGroup {
  /** `(group)` vectors `(headDim)`. */
  readonly queries: readonly Float32Array[];
  /** The same for sinks, where they have cache positions. */
  readonly sinkQueries?: readonly Float32Array[];
}

/** Where the queries of a step are, as kernel arguments have them. */
export interface StepQueries {
  /** `(rows, heads, headDim)`. */
  readonly queries: HostTensor;
  /** `(rows, heads, headDim)`. */
  readonly sinkQueries?: HostTensor;
  readonly sizes: ModelSizes;
}

/** The queries of `row` that belong to `kvHead`. */
export function queryGroup(
  { queries, sinkQueries, sizes }: StepQueries,
  row: number,
  kvHead: number,
): QueryGroup {
  const { heads, kvHeads, headDim } = sizes;
  const group = heads / kvHeads;
  const slice = (tensor: HostTensor) =>
    Array.from({ length: group }, (_, g) => {
      const at = (row * heads + kvHead * group + g) * headDim;
      return tensor.f32.subarray(at, at + headDim);
    });
  return sinkQueries === undefined
    ? { queries: slice(queries) }
    : { queries: slice(queries), sinkQueries: slice(sinkQueries) };
}

/** `(group)` raw logits `q·k/√headDim` of a slot, votes not counted. */
export function rawLogits(
  group: QueryGroup,
  slot: Slot,
  policy: Policy,
): number[] {
  const sink = positionOf(slot) < policy.select.sinks;
  const queries = sink ? group.sinkQueries ?? group.queries : group.queries;
  const headDim = queries[0]!.length;
  const { home: { keys }, index } = slot;
  return queries.map((query) =>
    dot(query, keys.f32, index * headDim) / Math.sqrt(headDim)
  );
}

/**
 * What a row's logits are multiplied with for its scores: 1, or the gain of a
 * policy whose scores have a scale of their own.
 *
 * @param position Position of the row's token in the text.
 * @param budget Slots of the head.
 */
export function scoreGain(
  { score }: Policy,
  { position, budget }: { position: number; budget: number },
): number {
  if (score.kind !== "stepGain") return 1;
  return Math.sqrt(2 * Math.max(0, Math.log((position + 1) / budget)));
}

/** ln votes of a slot for the group: the mean over its lanes. */
export function pooledBias(slot: Slot, lanes: number): number {
  let sum = 0;
  for (let lane = 0; lane < lanes; lane++) {
    sum += getFloat(slot, SlotField.bias + lane);
  }
  return sum / lanes;
}

/** Weight of the past in the moving sum; 0 where the policy keeps none. */
function emaAlpha({ score }: Policy): number {
  return score.kind === "ema" ? score.alpha : 0;
}

/**
 * Adds one row of attention to a slot's scores; where only the newest row
 * counts, it takes the place of those before it.
 *
 * The moving sum is kept as its logarithm, because `exp` of a raw logit
 * overflows: `E ← ln(alpha · exp(E) + (1 − alpha) · s)`.
 *
 * @param logits `(group)` raw logits of the slot.
 * @param gain What they and the votes' are multiplied with: see {@link scoreGain}.
 * @param logSums `(group)` ln of the row's softmax sums at that scale.
 * @param position Position of the row's token in the text.
 */
export function observeRow(
  slot: Slot,
  { logits, gain, logSums, position, lanes, policy }: {
    logits: readonly number[];
    gain: number;
    logSums: readonly number[];
    position: number;
    lanes: number;
    policy: Policy;
  },
): void {
  const group = logits.length;
  const raw = policy.score.kind === "ema" && policy.score.scale === "raw";
  const score =
    logSumExp(logits.map((l, g) => raw ? gain * l : gain * l - logSums[g]!)) -
    Math.log(group);
  const weight = logits.reduce(
    (sum, l, g) =>
      sum +
      Math.exp(gain * (l + voteBias(slot, g, lanes)) - logSums[g]!),
    0,
  ) / group;
  const alpha = emaAlpha(policy);
  const past = getFloat(slot, SlotField.ema);
  const ema = alpha === 0
    ? score
    : logSumExp([past + Math.log(alpha), score + Math.log(1 - alpha)]);
  setFloat(slot, SlotField.ema, ema);
  const replaces = policy.score.kind === "last";
  const before = getFloat(slot, SlotField.accumulated);
  const seen = position + 1;
  const matters = weight * seen >= LEAST_SHARE;
  setFloat(
    slot,
    SlotField.accumulated,
    policy.score.kind === "age"
      ? (matters ? seen : before)
      : (replaces ? 0 : before) + weight,
  );
  setWord(
    slot,
    SlotField.observations,
    (replaces ? 0 : getWord(slot, SlotField.observations)) + 1,
  );
}

/**
 * Share of the mean attention that a slot needs in order to matter: less than
 * 1, so that rounding does not take it from the only token of a text.
 */
const LEAST_SHARE = 0.999;

/** `ln(1 − alphaⁿ)`: the bias correction of a moving sum of `n` terms. */
export function emaCorrection(n: number, policy: Policy): number {
  return Math.log(1 - Math.pow(emaAlpha(policy), n));
}

/** ln of the corrected score `ŝ` of a slot; 0 if no row observed it yet. */
export function logScore(slot: Slot, policy: Policy): number {
  const n = getWord(slot, SlotField.observations);
  return n === 0 ? 0 : getFloat(slot, SlotField.ema) - emaCorrection(n, policy);
}

/** ln of the weight that a slot has in a merge: `votes · ŝ`. */
export function logWeight(
  slot: Slot,
  { policy, lanes }: { policy: Policy; lanes: number },
): number {
  return pooledBias(slot, lanes) + logScore(slot, policy);
}

/** Mean attention weight of the rows that observed a slot. */
export function meanAttention(slot: Slot): number {
  return getFloat(slot, SlotField.accumulated) /
    Math.max(1, getWord(slot, SlotField.observations));
}

/** What the policy's score says of a slot by itself. */
function ownScore(
  slot: Slot,
  score: Exclude<Score, { kind: "keyDistance" | "expected" }>,
  { policy, lanes }: { policy: Policy; lanes: number },
): number {
  switch (score.kind) {
    case "position":
      return positionOf(slot);
    case "accumulated":
    case "last":
    case "age":
      return getFloat(slot, SlotField.accumulated);
    case "mean":
    case "stepGain":
      return meanAttention(slot);
    case "ema":
      return logScore(slot, policy) +
        (score.countVotes ? pooledBias(slot, lanes) : 0);
  }
}

/** What the policy's score says of the slots of one head. */
export function ownScores(
  slots: readonly Slot[],
  { policy, lanes, headDim, futures }: {
    policy: Policy;
    lanes: number;
    headDim: number;
    futures: readonly FutureQueries[];
  },
): number[] {
  const { score } = policy;
  if (score.kind === "keyDistance") return keyDistances(slots, headDim);
  if (score.kind === "expected") {
    return expectedScores(slots, { futures, policy, lanes });
  }
  return slots.map((slot) => ownScore(slot, score, { policy, lanes }));
}

/** Whether the numbers that a score says are logarithms. */
export function isLogarithm({ kind }: Score): boolean {
  return kind === "ema" || kind === "expected";
}

/** `−cos(kᵢ, Σ kⱼ / ‖kⱼ‖)`: how far each key points away from the others. */
function keyDistances(slots: readonly Slot[], headDim: number): number[] {
  const keys = slots.map((slot) => keyOf(slot, headDim));
  const mean = new Float32Array(headDim);
  for (const key of keys) {
    const norm = Math.sqrt(dot(key, key));
    for (let i = 0; i < headDim && norm > 0; i++) mean[i]! += key[i]! / norm;
  }
  return keys.map((key) => -cosine(key, mean));
}

/** Whether a slot may be evicted: neither a sink nor a recent token. */
export function isEvictable(
  slot: Slot,
  { policy, recent, newest }: {
    policy: Policy;
    recent: number;
    newest: number;
  },
): boolean {
  const position = positionOf(slot);
  return position >= policy.select.sinks && position + recent <= newest;
}

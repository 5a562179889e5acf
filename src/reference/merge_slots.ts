/**
 * Merging slots: Electoral Votes and Zero Inference-Perturbation merging.
 *
 * Source: "KeepKV: Eliminating Output Perturbation in KV Cache Compression for
 * Efficient LLMs Inference" (arXiv 2504.09936), eq. 7, 25 and 27. The key
 * forms `minNorm` and `realVotes` solve the same condition, that the merged
 * slot has the mass of its members, without scaling the key.
 *
 * @module
 */
import { type ModelSizes, SlotField } from "../backends/backend.ts";
import type { Policy } from "../policies/parts.ts";
import { cosine, dot, logSumExp } from "./arithmetic.ts";
import {
  getFloat,
  getWord,
  type HeadView,
  keyOf,
  positionOf,
  setFloat,
  setWord,
  type Slot,
  tokensOf,
  valueOf,
  voteBias,
} from "./host.ts";
import {
  emaCorrection,
  logScore,
  logWeight,
  pooledBias,
  type QueryGroup,
  rawLogits,
} from "./scores.ts";

/** What a merge needs beside its members. */
export interface MergeContext {
  readonly head: HeadView;
  /** Queries of the current row. */
  readonly group: QueryGroup;
  readonly lanes: number;
  readonly policy: Policy;
  readonly sizes: ModelSizes;
}

/** Frees a slot. */
export function freeSlot(slot: Slot, bias: number, lanes: number): void {
  setWord(slot, SlotField.tokens, 0);
  for (let lane = 0; lane < lanes; lane++) {
    setFloat(slot, SlotField.bias + lane, bias);
  }
}

/** Whether victims may be merged into a slot: sinks stay as they are. */
export function isTarget(slot: Slot, { select }: Policy): boolean {
  return positionOf(slot) >= select.sinks;
}

/** The target with the most similar key; ties go to the lower position. */
export function nearestKey(
  slot: Slot,
  targets: readonly Slot[],
  headDim: number,
): { target: Slot; similarity: number } | undefined {
  let best: { target: Slot; similarity: number } | undefined;
  for (const target of targets) {
    const similarity = cosine(keyOf(slot, headDim), keyOf(target, headDim));
    if (
      best === undefined || similarity > best.similarity ||
      (similarity === best.similarity &&
        positionOf(target) < positionOf(best.target))
    ) best = { target, similarity };
  }
  return best;
}

/**
 * Merges `members` into the first of them, which keeps its position. The
 * caller frees the others.
 */
export function mergeSlots(
  members: readonly Slot[],
  context: MergeContext,
): void {
  const { head, group, lanes, policy } = context;
  if (!("votesPerQueryHead" in policy.merge)) {
    throw new TypeError(`Cannot merge votes: merge is ${policy.merge.kind}`);
  }
  const { merge } = policy;
  const headDim = group.queries[0]!.length;
  const kept = members[0]!;

  // Merge weights a ∝ votes · ŝ, and how far they are from the vote shares.
  const scores = members.map((slot) => logScore(slot, policy));
  const biases = members.map((slot) => pooledBias(slot, lanes));
  const masses = members.map((slot) => logWeight(slot, { policy, lanes }));
  const mass = logSumExp(masses);
  const votes = logSumExp(biases);
  const weights = masses.map((m) => Math.exp(m - mass));
  const meanScore = weights.reduce((sum, a, i) => sum + a * scores[i]!, 0);
  const divergence = meanScore - (mass - votes);

  // Per query head: ln of the members' votes, and by how much the mean key
  // overstates their mass for the current query.
  const logits = members.map((slot) => rawLogits(group, slot, policy));
  const perHead = group.queries.map((_, g) => {
    const bias = members.map((slot) => voteBias(slot, g, lanes));
    const current = weights.reduce((sum, a, i) => sum + a * logits[i]![g]!, 0);
    const exact = logSumExp(bias.map((b, i) => b + logits[i]![g]!));
    const laneVotes = logSumExp(bias);
    return { votes: laneVotes, excess: current - (exact - laneVotes) };
  });

  const key = weightedMean(members.map((s) => keyOf(s, headDim)), weights);
  const value = weightedMean(members.map((s) => valueOf(s, headDim)), weights);
  let laneBias = lanes === 1 ? [votes] : perHead.map((h) => h.votes);
  const realVotes = () =>
    lanes === 1 ? [votes - divergence] : perHead.map((h) => h.votes - h.excess);
  switch (merge.key) {
    case "convex":
      break;
    case "realVotes":
      laneBias = realVotes();
      break;
    case "zip": {
      const scale = (mass - votes) / meanScore;
      const [low, high] = merge.guard;
      if (scale >= low && scale <= high) {
        for (let i = 0; i < headDim; i++) key[i]! *= scale;
      } else {
        laneBias = realVotes();
        head.set("guarded", head.get("guarded") + 1);
      }
      break;
    }
    case "minNorm":
      shiftKey(key, group, perHead.map((h) => -h.excess));
      break;
  }

  // The merged slot's score is the one that gives its votes the members' mass.
  const bias = laneBias.reduce((sum, b) => sum + b, 0) / lanes;
  const observations = Math.max(
    ...members.map((slot) => getWord(slot, SlotField.observations)),
  );
  const accumulated = members.reduce(
    (sum, slot) => sum + getFloat(slot, SlotField.accumulated),
    0,
  );
  const tokens = members.reduce((sum, slot) => sum + tokensOf(slot), 0);
  // At least the norm of the mean value, by the triangle inequality.
  const valueNorm = members.reduce(
    (sum, slot, i) => sum + weights[i]! * getFloat(slot, SlotField.valueNorm),
    0,
  );
  keyOf(kept, headDim).set(key);
  valueOf(kept, headDim).set(value);
  if (observations > 0) {
    setFloat(
      kept,
      SlotField.ema,
      mass - bias + emaCorrection(observations, policy),
    );
  }
  setFloat(kept, SlotField.accumulated, accumulated);
  setFloat(kept, SlotField.valueNorm, valueNorm);
  setWord(kept, SlotField.observations, observations);
  setWord(kept, SlotField.tokens, tokens);
  laneBias.forEach((b, lane) => setFloat(kept, SlotField.bias + lane, b));
  head.set("merged", head.get("merged") + members.length - 1);
  head.addDivergence(divergence);
}

/** `Σ weightᵢ · vectorᵢ`. */
function weightedMean(
  vectors: readonly Float32Array[],
  weights: readonly number[],
): Float32Array {
  const mean = new Float32Array(vectors[0]!.length);
  vectors.forEach((vector, i) => {
    for (let j = 0; j < mean.length; j++) mean[j]! += weights[i]! * vector[j]!;
  });
  return mean;
}

/**
 * Moves `key` by the smallest vector that changes the logit of every query
 * head `g` by `shift[g]`. It lies in the span of the queries; its coordinates
 * solve their Gram system, with a little ridge for parallel queries.
 */
function shiftKey(
  key: Float32Array,
  { queries }: QueryGroup,
  shift: readonly number[],
): void {
  const size = queries.length;
  const root = Math.sqrt(key.length);
  const gram = queries.map((q) => queries.map((p) => dot(q, p) / root));
  const mean = gram.reduce((sum, row, g) => sum + row[g]!, 0) / size;
  if (mean === 0) return;
  gram.forEach((row, g) => row[g]! += RIDGE * mean);
  const solution = [...shift];
  // Gram matrices are positive definite: elimination needs no pivoting.
  for (let column = 0; column < size; column++) {
    for (let row = column + 1; row < size; row++) {
      const factor = gram[row]![column]! / gram[column]![column]!;
      for (let i = column; i < size; i++) {
        gram[row]![i]! -= factor * gram[column]![i]!;
      }
      solution[row]! -= factor * solution[column]!;
    }
  }
  for (let row = size - 1; row >= 0; row--) {
    for (let i = row + 1; i < size; i++) {
      solution[row]! -= gram[row]![i]! * solution[i]!;
    }
    solution[row]! /= gram[row]![row]!;
  }
  queries.forEach((query, g) => {
    for (let i = 0; i < key.length; i++) key[i]! += solution[g]! * query[i]!;
  });
}

/** Share of the mean squared query added to the Gram matrix's diagonal. */
const RIDGE = 1e-6;

/**
 * Merging slots by the cosines of their keys, under a moving threshold.
 *
 * Source: "D2O: Dynamic Discriminative Operations for Efficient Generative
 * Inference of Large Language Models", arXiv 2406.13035, section on dynamic
 * token merging.
 *
 * @module
 */
import { SlotField } from "../backends/backend.ts";
import type { Policy } from "../policies/parts.ts";
import { cosine } from "./arithmetic.ts";
import {
  getFloat,
  type HeadView,
  keyOf,
  setFloat,
  setWord,
  type Slot,
  tokensOf,
  valueOf,
} from "./host.ts";

/**
 * Moves a head's threshold: `τ ← keep · τ + (1 − keep) · s`, where `s` is the
 * mean cosine of the slots that go now with the kept slots that are most
 * similar to them. The first `s` is the first threshold.
 *
 * @param similarities Those cosines, not empty.
 * @returns The cosine that a slot needs to be merged.
 */
export function moveThreshold(
  head: HeadView,
  policy: Policy,
  similarities: readonly number[],
): number {
  const keep = policy.merge.kind === "cosine" ? policy.merge.keep : 0;
  const mean = similarities.reduce((sum, s) => sum + s, 0) /
    similarities.length;
  const past = head.getFloat("threshold");
  const threshold = past === 0 ? mean : keep * past + (1 - keep) * mean;
  head.setFloat("threshold", threshold);
  return threshold;
}

/**
 * Merges `members` into the first of them, whose position, score and bias stay.
 * Keys and values are means with the weights `exp(cos(kᵢ, k₁))`, so that of the
 * kept slot itself is `e`. The caller frees the others.
 */
export function blendSlots(
  members: readonly Slot[],
  { head, headDim }: { head: HeadView; headDim: number },
): void {
  const kept = members[0]!;
  const weights = members.map((slot) =>
    slot === kept
      ? Math.E
      : Math.exp(cosine(keyOf(slot, headDim), keyOf(kept, headDim)))
  );
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  for (const vectorOf of [keyOf, valueOf]) {
    const mean = new Float64Array(headDim);
    members.forEach((slot, m) =>
      vectorOf(slot, headDim).forEach((x, i) =>
        mean[i]! += weights[m]! / total * x
      )
    );
    vectorOf(kept, headDim).set(mean);
  }
  // At least the norm of the mean value, by the triangle inequality.
  const norm = members.reduce(
    (sum, slot, m) =>
      sum + weights[m]! / total * getFloat(slot, SlotField.valueNorm),
    0,
  );
  const tokens = members.reduce((sum, slot) => sum + tokensOf(slot), 0);
  setFloat(kept, SlotField.valueNorm, norm);
  setWord(kept, SlotField.tokens, tokens);
  head.set("merged", head.get("merged") + members.length - 1);
}

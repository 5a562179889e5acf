/**
 * Merging the value of a slot into its right neighbour, whose key stays.
 *
 * Source: "WeightedKV: Attention Scores Weighted Key-Value Cache Merging for
 * Large Language Models" (arXiv 2503.01330), section III and algorithm 1.
 *
 * @module
 */
import { type HostTensor, SlotField } from "../backends/backend.ts";
import type { Policy } from "../policies/parts.ts";
import {
  getFloat,
  type HeadView,
  positionOf,
  setFloat,
  setWord,
  type Slot,
  tokensOf,
  valueOf,
  voteBias,
} from "./host.ts";
import { meanAttention, type QueryGroup, rawLogits } from "./scores.ts";
import { byRank, type Ratings } from "./selection.ts";

/** The slot with the lowest position above that of `slot`. */
export function rightNeighbour(
  slot: Slot,
  slots: readonly Slot[],
): Slot | undefined {
  const position = positionOf(slot);
  let best: Slot | undefined;
  for (const other of slots) {
    const isNearer = best === undefined || positionOf(other) < positionOf(best);
    if (positionOf(other) > position && isNearer) best = other;
  }
  return best;
}

/**
 * Weights that the values of a run have in the one that is kept.
 *
 * A run is slots that all go, in the order of their positions, and the kept
 * slot to the right of them. One at a time they would go lowest rank first,
 * each into the nearest slot to its right that is still there:
 * `u ← (āₗ uₗ + ā u) / (āₗ + ā)` with the mean attention `ā` of both, which a
 * merge does not change. So a slot takes in, nearest first, those to its left
 * that go before it and that no slot between takes; and that is what a stack
 * holds when the run is read from left to right.
 */
export function runWeights(
  members: readonly Slot[],
  ratings: Ratings,
): number[] {
  const goesFirst = byRank(ratings);
  const kept = members.at(-1)!;
  const stack: { slot: Slot; weights: number[] }[] = [];
  for (const slot of members) {
    let weights: number[] = members.map((member) => member === slot ? 1 : 0);
    for (;;) {
      const left = stack.at(-1);
      if (
        left === undefined || slot !== kept && goesFirst(left.slot, slot) > 0
      ) break;
      stack.pop();
      const share = shareOf(meanAttention(left.slot), meanAttention(slot));
      weights = weights.map((weight, i) =>
        share * left.weights[i]! + (1 - share) * weight
      );
    }
    stack.push({ slot, weights });
  }
  return stack[0]!.weights;
}

/** `a / (a + b)`; a half where no attention tells the two apart. */
function shareOf(a: number, b: number): number {
  return a + b === 0 ? 0.5 : a / (a + b);
}

/**
 * Merges the values of a run into its last slot; see {@link runWeights}. The
 * caller frees the others.
 */
export function mergeRun(
  members: readonly Slot[],
  { head, ratings, headDim }: {
    head: HeadView;
    ratings: Ratings;
    headDim: number;
  },
): void {
  const weights = runWeights(members, ratings);
  const value = new Float64Array(headDim);
  let norm = 0;
  members.forEach((slot, m) => {
    const own = valueOf(slot, headDim);
    for (let i = 0; i < headDim; i++) value[i]! += weights[m]! * own[i]!;
    norm += weights[m]! * getFloat(slot, SlotField.valueNorm);
  });
  // At least the norm of the mean, by the triangle inequality.
  setFloat(members.at(-1)!, SlotField.valueNorm, norm);
  takeOver(members, value, head);
}

/** What the exact rule knows of the current row. */
export interface CurrentRow {
  readonly group: QueryGroup;
  /** `(group)` ln of the row's softmax sums. */
  readonly logSums: readonly number[];
  /** `(group, headDim)`: its attention output. */
  readonly outputs: readonly Float32Array[];
}

/**
 * Merges a value so that the current output stays: without slot 1 and with
 * `v₂ + x` in slot 2 the output is `o + (A₁ (o − v₁) + A₂ x) / (1 − A₁)`, which
 * is `o` for `x = A₁/A₂ · (v₁ − o)`.
 *
 * The heads of a group share the value. Their changes, each times the mass
 * `1 − A₁` that is left of it, add up to 0 for
 * `x = Σ A₁ (v₁ − o) / Σ A₂`. `Σ A₂` counts as at least `Σ A₁ / cap`.
 */
export function mergeExactly(
  [kept, goes]: readonly [Slot, Slot],
  { row, head, policy, lanes }: {
    row: CurrentRow;
    head: HeadView;
    policy: Policy;
    lanes: number;
  },
): void {
  const { merge } = policy;
  const cap = merge.kind === "rightNeighbour" ? merge.cap : 1;
  const headDim = row.outputs[0]!.length;
  const attention = (slot: Slot) =>
    rawLogits(row.group, slot, policy).map((logit, g) =>
      Math.exp(logit + voteBias(slot, g, lanes) - row.logSums[g]!)
    );
  const from = attention(goes);
  const lost = from.reduce((sum, a) => sum + a, 0);
  const left = attention(kept).reduce((sum, a) => sum + a, 0);
  const scale = Math.max(left, lost / cap);
  const value = Float64Array.from(valueOf(kept, headDim));
  const own = valueOf(goes, headDim);
  for (let i = 0; i < headDim && scale > 0; i++) {
    from.forEach((a, g) =>
      value[i]! += a * (own[i]! - row.outputs[g]![i]!) / scale
    );
  }
  takeOver([goes, kept], value, head);
}

/** Gives the last of `members` the value and the tokens of all. */
function takeOver(
  members: readonly Slot[],
  value: Float64Array,
  head: HeadView,
): void {
  const kept = members.at(-1)!;
  const tokens = members.reduce((sum, slot) => sum + tokensOf(slot), 0);
  valueOf(kept, value.length).set(value);
  setWord(kept, SlotField.tokens, tokens);
  head.set("merged", head.get("merged") + members.length - 1);
}

/** The rows of a `(rows, heads, headDim)` tensor that a group has. */
export function groupRows(
  tensor: HostTensor,
  { at, group, headDim }: { at: number; group: number; headDim: number },
): Float32Array[] {
  return Array.from(
    { length: group },
    (_, g) => tensor.f32.subarray((at + g) * headDim, (at + g + 1) * headDim),
  );
}

/**
 * Adding the value of a slot that goes to those of the slots after it.
 *
 * Source: "CaM: Cache Merging for Memory-efficient LLMs Inference", ICML 2024,
 * section 3; the Bernoulli mask and its bound are theirs.
 *
 * @module
 */
import { SlotField } from "../backends/backend.ts";
import type { Merge } from "../policies/parts.ts";
import {
  getFloat,
  type HeadView,
  positionOf,
  setFloat,
  setWord,
  type Slot,
  tokensOf,
  valueOf,
} from "./host.ts";

/** Where a slot is, as far as its random number goes. */
export interface DrawPlace {
  readonly layer: number;
  readonly kvHead: number;
  readonly position: number;
}

/**
 * A number in `[0, 1)` that depends on the seed and the place alone, so that
 * every backend draws the same in whatever order it works: a multiply-xorshift
 * hash of the four words, its upper 24 bits.
 */
export function drawUniform(
  seed: number,
  { layer, kvHead, position }: DrawPlace,
): number {
  let hash = seed >>> 0;
  for (const word of [layer, kvHead, position]) {
    hash = (hash ^ word) >>> 0;
    hash = Math.imul(hash ^ (hash >>> 16), 0x7feb352d);
    hash = Math.imul(hash ^ (hash >>> 15), 0x846ca68b);
    hash = (hash ^ (hash >>> 16)) + 0x9e3779b9 >>> 0;
  }
  return (hash >>> 8) / 2 ** 24;
}

/**
 * Adds `M / count` of a slot's value to every slot in the `count` positions
 * after it. `M` is 1 with the probability `min(1, A / Ā)`, or is that
 * probability itself (`expected`), where `A` are sums of attention weights and
 * `Ā` is their mean over the slots after it. Its tokens go to the nearest.
 *
 * @param others The other slots that are still there.
 * @returns Whether anything was added; the caller frees the slot.
 */
export function passOnValue(
  slot: Slot,
  others: readonly Slot[],
  { merge, head, headDim, layer, kvHead }: {
    merge: Extract<Merge, { kind: "nextValues" }>;
    head: HeadView;
    headDim: number;
    layer: number;
    kvHead: number;
  },
): boolean {
  const position = positionOf(slot);
  const after = others
    .filter((other) =>
      positionOf(other) > position &&
      positionOf(other) <= position + merge.count
    )
    .sort((a, b) => positionOf(a) - positionOf(b));
  const [nearest] = after;
  if (nearest === undefined) return false;
  const attention = (of: Slot) => getFloat(of, SlotField.accumulated);
  const mean = after.reduce((sum, other) => sum + attention(other), 0) /
    after.length;
  const own = attention(slot);
  const chance = own < mean ? own / mean : 1;
  const mask = merge.rule === "expected"
    ? chance
    : drawUniform(merge.seed, { layer, kvHead, position }) < chance
    ? 1
    : 0;
  if (mask === 0) return false;
  const value = valueOf(slot, headDim);
  const norm = (of: Slot) => getFloat(of, SlotField.valueNorm);
  for (const other of after) {
    const sum = valueOf(other, headDim);
    // At least the norm of the sum, by the triangle inequality.
    setFloat(
      other,
      SlotField.valueNorm,
      norm(other) + mask / merge.count * norm(slot),
    );
    for (let i = 0; i < headDim; i++) {
      sum[i]! += mask / merge.count * value[i]!;
    }
  }
  setWord(nearest, SlotField.tokens, tokensOf(nearest) + tokensOf(slot));
  head.set("merged", head.get("merged") + 1);
  return true;
}

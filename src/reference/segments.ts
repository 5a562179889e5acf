/**
 * Merging slots that follow each other in the text and have similar keys.
 *
 * Source: "Model Tells You Where to Merge: Adaptive KV Cache Merging for LLMs
 * on Long-Context Tasks" (KVMerger), arXiv 2407.08454: the sets of neighbours
 * above a threshold of similarity, and their merge by a Gaussian kernel around
 * the token with the most attention. The threshold is the one that meets the
 * budget: instead of searching for it, links are taken in their order.
 *
 * @module
 */
import { FREE_BIAS, SlotField } from "../backends/backend.ts";
import type { Policy } from "../policies/parts.ts";
import { cosine, logSumExp, squaredDistance } from "./arithmetic.ts";
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
} from "./host.ts";
import { freeSlot } from "./merge_slots.ts";
import { emaCorrection, isEvictable, logScore } from "./scores.ts";
import { belowFirst, type Ratings } from "./selection.ts";

/** The head whose neighbours are merged. */
export interface SegmentContext {
  readonly head: HeadView;
  readonly slots: readonly Slot[];
  readonly recent: number;
  /** Position of the newest token. */
  readonly newest: number;
  readonly policy: Policy;
  readonly lanes: number;
  readonly sizes: { readonly headDim: number };
}

/** A slot that may be merged with the next one in the text. */
interface Link {
  readonly left: Slot;
  readonly right: Slot;
  readonly similarity: number;
}

/**
 * The `count` links with the most similar keys, the left one of equal ones;
 * fewer if there are no more. The slots beside a link may both be evicted, and
 * are not among those with the highest scores.
 */
function closestLinks(
  context: SegmentContext,
  { count, ratings }: { count: number; ratings: Ratings },
): Link[] {
  const { slots, policy: { merge }, sizes: { headDim } } = context;
  if (merge.kind !== "segments") return [];
  const light = new Set(
    belowFirst(slots.filter((slot) => isEvictable(slot, context)), {
      share: merge.heavy,
      count,
      ratings,
    }),
  );
  const inText = slots.toSorted((a, b) => positionOf(a) - positionOf(b));
  const links = inText.flatMap((left, i): Link[] => {
    const right = inText[i + 1];
    if (right === undefined || !light.has(left) || !light.has(right)) return [];
    const similarity = cosine(keyOf(left, headDim), keyOf(right, headDim));
    return [{ left, right, similarity }];
  });
  return links.sort((a, b) =>
    b.similarity - a.similarity || positionOf(a.left) - positionOf(b.left)
  ).slice(0, count);
}

/**
 * The slots that become one if one has to go, the pivot first: those beside the
 * closest link, if there is one.
 */
export function closestSegment(
  context: SegmentContext,
  ratings: Ratings,
): Slot[] {
  const [link] = closestLinks(context, { count: 1, ratings });
  return link === undefined ? [] : pivotFirst([link.left, link.right]);
}

/**
 * Closes as many links as the head has slots too many, or all that there are,
 * and merges what they connect.
 *
 * @returns The slots that are left.
 */
export function mergeSegments(
  context: SegmentContext,
  ratings: Ratings,
): Slot[] {
  const { head, slots, lanes } = context;
  const count = slots.length - head.get("budget");
  if (count <= 0) return [...slots];
  const next = new Map(
    closestLinks(context, { count, ratings })
      .map(({ left, right }) => [left, right]),
  );
  const ends = new Set(next.values());
  const gone = new Set<Slot>();
  for (const first of next.keys()) {
    if (ends.has(first)) continue;
    const members = [first];
    for (let slot = next.get(first); slot; slot = next.get(slot)) {
      members.push(slot);
    }
    const ordered = pivotFirst(members);
    mergeSegment(ordered, context);
    for (const slot of ordered.slice(1)) {
      freeSlot(slot, FREE_BIAS, lanes);
      gone.add(slot);
    }
  }
  return slots.filter((slot) => !gone.has(slot));
}

/** The members, the one with the most attention first; ties go by position. */
function pivotFirst(members: readonly Slot[]): Slot[] {
  const attention = (slot: Slot) => getFloat(slot, SlotField.accumulated);
  const pivot = members.reduce((best, slot) =>
    attention(slot) > attention(best) ? slot : best
  );
  return [pivot, ...members.filter((slot) => slot !== pivot)];
}

/**
 * Merges `members`, whose first is their pivot `p`, into it. The caller frees
 * the others. Key and value are means with the weights
 *
 * `gᵢ = exp(−‖kᵢ − kₚ‖² / 2σ²)`, `σ = Σ ‖kᵢ − kₚ‖ / (√2 · n)` over `n` members,
 *
 * so that the exponent is the square of a distance in means of all distances,
 * the pivot's 0 among them. The paper defines σ by a sum over the weights
 * themselves, which depend on it; we read the distances there. Members whose
 * keys are all the same have equal weights.
 *
 * The pivot keeps its position and its vote bias: attention does not count how
 * many slots it stands for. Its scores become the sums of the members' scores,
 * seen by as many rows as the member that most rows have seen.
 */
export function mergeSegment(
  members: readonly Slot[],
  { head, policy, sizes: { headDim } }: SegmentContext,
): void {
  const pivot = members[0]!;
  const squares = members.map((slot) =>
    squaredDistance(keyOf(slot, headDim), keyOf(pivot, headDim))
  );
  const mean = squares.reduce((sum, d) => sum + Math.sqrt(d), 0) /
    members.length;
  const weights = squares.map((d) => mean > 0 ? Math.exp(-d / mean ** 2) : 1);
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  const sum = (of: (slot: Slot, m: number) => number) =>
    members.reduce((all, slot, m) => all + of(slot, m), 0);

  for (const vectorOf of [keyOf, valueOf]) {
    const vectors = members.map((slot) => vectorOf(slot, headDim));
    vectorOf(pivot, headDim).set(Float64Array.from(
      { length: headDim },
      (_, i) => sum((_, m) => weights[m]! / total * vectors[m]![i]!),
    ));
  }
  // At least the norm of the mean value, by the triangle inequality.
  const norm = sum((slot, m) =>
    weights[m]! / total * getFloat(slot, SlotField.valueNorm)
  );
  const observations = Math.max(
    ...members.map((slot) => getWord(slot, SlotField.observations)),
  );
  const score = logSumExp(members.map((slot) => logScore(slot, policy)));
  const accumulated = sum((slot) => getFloat(slot, SlotField.accumulated));
  const tokens = sum(tokensOf);
  if (observations > 0) {
    setFloat(
      pivot,
      SlotField.ema,
      score + emaCorrection(observations, policy),
    );
  }
  setFloat(pivot, SlotField.accumulated, accumulated);
  setWord(pivot, SlotField.observations, observations);
  setFloat(pivot, SlotField.valueNorm, norm);
  setWord(pivot, SlotField.tokens, tokens);
  head.set("merged", head.get("merged") + members.length - 1);
}

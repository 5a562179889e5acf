/**
 * How slots are rated, and which of them go.
 *
 * A slot's rating starts with its own score. A chunk of a prompt may pool the
 * scores of neighbours, and the heads of a layer may share the mean of theirs.
 * The rank, by which slots go, then counts the norms of values.
 *
 * @module
 */
import { SlotField } from "../backends/backend.ts";
import type { Policy, Pool } from "../policies/parts.ts";
import { logSumExp } from "./arithmetic.ts";
import type { FutureQueries } from "./expected_attention.ts";
import { getFloat, positionOf, type Slot } from "./host.ts";
import { isEvictable, isLogarithm, ownScores } from "./scores.ts";

/** What a slot is ranked by, lowest first. */
export interface Rating {
  /** What the policy's score says. */
  readonly score: number;
  /** The same, times the norm of the slot's value where that counts. */
  readonly rank: number;
}

/** The ratings of a head's slots. */
export type Ratings = ReadonlyMap<Slot, Rating>;

/** The slots of one head that a rating compares. */
export interface RatedHead {
  readonly slots: readonly Slot[];
  /** Newest tokens that are never evicted. */
  readonly recent: number;
  /** The queries that are expected of the group, where the score needs them. */
  readonly futures?: readonly FutureQueries[];
}

/** What rating needs beside the slots. */
export interface RatingOptions {
  readonly policy: Policy;
  readonly lanes: number;
  readonly headDim: number;
  /** Position of the newest token. */
  readonly newest: number;
  /** How neighbours share their scores. */
  readonly pool: Pool;
}

/**
 * Rates the slots of all KV heads of a layer. Where they share their scores,
 * their slots stand for the same tokens in the same order.
 */
export function rateLayer(
  heads: readonly RatedHead[],
  options: RatingOptions,
): Ratings[] {
  const { policy } = options;
  const scores = heads.map((head) =>
    pooled(
      ownScores(head.slots, { ...options, futures: head.futures ?? [] }),
      head,
      options,
    )
  );
  const shared = policy.select.scope === "head"
    ? scores
    : scores.map((own) =>
      own.map((_, i) => meanOf(scores.map((head) => head[i]!), policy))
    );
  return heads.map(({ slots }, h) =>
    new Map(slots.map((slot, i) => {
      const score = shared[h]![i]!;
      return [slot, { score, rank: rankOf(score, slot, policy) }];
    }))
  );
}

/** Scores of neighbouring positions, outside the recent window, pooled. */
function pooled(
  scores: readonly number[],
  { slots, recent }: RatedHead,
  { pool, newest, policy }: RatingOptions,
): readonly number[] {
  if (pool.kind === "none") return scores;
  const reach = (pool.width - 1) / 2;
  const older = (slot: Slot) => positionOf(slot) + recent <= newest;
  return slots.map((slot, i) => {
    if (!older(slot)) return scores[i]!;
    const window = scores.filter((_, j) =>
      older(slots[j]!) &&
      Math.abs(positionOf(slots[j]!) - positionOf(slot)) <= reach
    );
    return pool.kind === "max" ? Math.max(...window) : meanOf(window, policy);
  });
}

/** The mean of scores; where they are logarithms, that of what they stand for. */
function meanOf(scores: readonly number[], { score }: Policy): number {
  return isLogarithm(score)
    ? logSumExp(scores) - Math.log(scores.length)
    : scores.reduce((sum, x) => sum + x, 0) / scores.length;
}

/** Smallest norm that counts; the logarithm of less is of no use. */
const LEAST_NORM = 1e-30;

/**
 * `(score + epsilon) · u^power` for the norm `u` of the slot's value, or its
 * logarithm where the score is one.
 */
function rankOf(score: number, slot: Slot, { score: kind, values }: Policy) {
  if (values.kind === "ignored") return score;
  const norm = getFloat(slot, SlotField.valueNorm);
  if (!isLogarithm(kind)) {
    return (score + values.epsilon) * norm ** values.power;
  }
  return logSumExp([score, Math.log(values.epsilon)]) +
    values.power * Math.log(Math.max(norm, LEAST_NORM));
}

/** Sorts slots so that the first is evicted first; ties go by position. */
export function byRank(ratings: Ratings): (a: Slot, b: Slot) => number {
  return (a, b) =>
    ratings.get(a)!.rank - ratings.get(b)!.rank ||
    positionOf(a) - positionOf(b);
}

function byScore(ratings: Ratings): (a: Slot, b: Slot) => number {
  return (a, b) =>
    ratings.get(a)!.score - ratings.get(b)!.score ||
    positionOf(a) - positionOf(b);
}

/**
 * The `count` slots of a head that go, in the order in which they go; fewer if
 * the rest may not. Where values count, the slots that stay by their scores
 * alone are taken out first.
 */
export function chooseVictims(
  { slots, recent }: RatedHead,
  { count, ratings, policy, newest }: {
    count: number;
    ratings: Ratings;
    policy: Policy;
    newest: number;
  },
): Slot[] {
  let evictable = slots.filter((slot) =>
    isEvictable(slot, { policy, recent, newest })
  );
  const { values } = policy;
  if (values.kind === "norm") {
    evictable = belowFirst(evictable, { share: values.first, count, ratings });
  }
  return evictable.sort(byRank(ratings)).slice(0, count);
}

/**
 * Slots but for those with the highest scores, which are a share of as many as
 * stay when `count` go.
 */
export function belowFirst(
  slots: readonly Slot[],
  { share, count, ratings }: {
    share: number;
    count: number;
    ratings: Ratings;
  },
): Slot[] {
  const fitting = Math.max(0, slots.length - count);
  // The product as 32-bit floats have it, so that all backends agree.
  const first = Math.floor(Math.fround(Math.fround(share) * fitting));
  return slots.toSorted(byScore(ratings)).slice(0, slots.length - first);
}

/**
 * Heads of which a pair has to merge, and what that costs by its definition.
 */
import { steady, type SteadyOptions } from "../../src/policies/steady.ts";
import type { Policy } from "../../src/policies/parts.ts";
import {
  exactAttention,
  freshSlot,
  layerSizes,
  normalVector,
  randomNumbers,
  type TestSlot,
} from "./layer_harness.ts";

/** Width of the head. */
export const HEAD_DIM = 16;
/** Its budget, unless a test says otherwise. */
export const BUDGET = 11;

/** Sizes of the layer. */
export const sizes = layerSizes({ headDim: HEAD_DIM });

/** The policy whose scores are those of the current step alone. */
export function instant(options: Partial<SteadyOptions>): Policy {
  return steady({
    budget: BUDGET,
    alpha: 0,
    sinks: 2,
    search: "exhaustive",
    distance: "sum",
    ...options,
  });
}

/** A head over its budget by one, and the query of the step. */
export function scene(
  seed: number,
): { slots: TestSlot[]; query: Float32Array } {
  const random = randomNumbers(seed);
  const slots = Array.from({ length: BUDGET + 1 }, (_, position) => {
    const isNewest = position === BUDGET;
    const tokens = isNewest ? 1 : 1 + Math.floor(random() * 4);
    return {
      ...freshSlot(random, { headDim: HEAD_DIM, lanes: 1, position }),
      tokens,
      bias: [Math.log(tokens)],
      observations: isNewest ? 0 : 1,
    };
  });
  return { slots, query: normalVector(random, HEAD_DIM) };
}

/** A slot: what it weighs, and its scaled key and value. */
export interface Point {
  readonly w: number;
  readonly x: Float64Array;
}

/** What a set of weighted points adds to the distance from their mean. */
export function scatter(points: readonly Point[]): number {
  const total = points.reduce((sum, { w }) => sum + w, 0);
  const mean = new Float64Array(points[0]!.x.length);
  for (const { w, x } of points) {
    x.forEach((e, i) => mean[i]! += w * e / total);
  }
  return points.reduce(
    (sum, { w, x }) =>
      sum + w * x.reduce((s, e, i) => s + (e - mean[i]!) ** 2, 0),
    0,
  );
}

/** How far the values of slots scatter. */
export function spreadOf(slots: readonly TestSlot[]): number {
  const values = slots.map(({ value }) => ({
    w: 1,
    x: Float64Array.from(value),
  }));
  return scatter(values) / slots.length;
}

/**
 * What slots weigh and where they lie, so that Ward's cost is the scatter,
 * relative to a `spread` of values, their own unless told otherwise.
 */
export function pointsOf(
  slots: readonly TestSlot[],
  { query, options, spread = spreadOf(slots) }: {
    query: Float32Array;
    options: Partial<SteadyOptions>;
    spread?: number;
  },
): Point[] {
  const { weights } = exactAttention(query, slots);
  const keys = Math.sqrt((options.keyWeight ?? 0.25) / Math.sqrt(HEAD_DIM));
  const values = Math.sqrt((options.valueWeight ?? 1) / spread);
  return slots.map(({ key, value }, i) => ({
    w: weights[i]!,
    x: Float64Array.from([
      ...Array.from(key, (x) => keys * x),
      ...Array.from(value, (x) => values * x),
    ]),
  }));
}

/** What it costs to merge two points. */
export function costOf(
  [a, b]: readonly [Point, Point],
  { distance = "sum" }: Partial<SteadyOptions>,
): number {
  if (distance === "sum") return scatter([a, b]);
  const part = (from: number, to: number) =>
    a.x.subarray(from, to)
      .reduce((sum, e, i) => sum + (e - b.x[from + i]!) ** 2, 0);
  return a.w * b.w / (a.w + b.w) * part(0, HEAD_DIM) *
    (1 + part(HEAD_DIM, 2 * HEAD_DIM));
}

/** How far two points are apart. */
export function distanceOf(
  [a, b]: readonly [Point, Point],
  options: Partial<SteadyOptions>,
): number {
  // Of equal weight, they are twice as far apart as they scatter.
  return 2 * costOf([{ ...a, w: 1 }, { ...b, w: 1 }], options);
}

/** The pair of points from `first` to `end` whose merge costs least. */
export function cheapest(
  points: readonly Point[],
  { first, end, options }: {
    first: number;
    end: number;
    options: Partial<SteadyOptions>;
  },
): { cost: number; pair: [number, number] } {
  let best = { cost: Infinity, pair: [-1, -1] as [number, number] };
  for (let a = first; a < end; a++) {
    for (let b = a + 1; b < end; b++) {
      const cost = costOf([points[a]!, points[b]!], options);
      if (cost < best.cost) best = { cost, pair: [a, b] };
    }
  }
  return best;
}

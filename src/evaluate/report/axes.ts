/**
 * Scales and ticks of plots.
 *
 * @module
 */

/** How numbers become places. */
export type ScaleKind = "linear" | "log";

/** An axis: its range and what is written along it. */
export interface Axis {
  /** Numbers that have a label. */
  readonly ticks: readonly number[];
  /** The place of a number, from 0 at the start of the axis to 1 at its end. */
  readonly place: (value: number) => number;
  /** Decimals that tell the ticks apart. */
  readonly decimals: number;
}

/** Makes an axis that shows all values. */
export function createAxis(
  values: readonly number[],
  { kind = "linear", ticks = 6 }: { kind?: ScaleKind; ticks?: number } = {},
): Axis {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  return kind === "log" ? logAxis(low, high) : linearAxis(low, high, ticks);
}

function linearAxis(low: number, high: number, count: number): Axis {
  const span = high - low || Math.abs(high) || 1;
  const step = roundStep(span / (count - 1));
  // Whole steps, so that the first and last tick are the ends of the axis.
  const first = Math.floor(low / step + 1e-9);
  const last = Math.max(Math.ceil(high / step - 1e-9), first + 1);
  const [start, end] = [first * step, last * step];
  return {
    // Multiples of a decimal step, without what binary fractions add.
    ticks: Array.from(
      { length: last - first + 1 },
      (_, i) => Number(((first + i) * step).toPrecision(12)),
    ),
    place: (value) => (value - start) / (end - start),
    decimals: decimalsOf(step),
  };
}

/** The nearest larger of 1, 2, 2.5 and 5 times a power of ten. */
function roundStep(step: number): number {
  const power = 10 ** Math.floor(Math.log10(step) + 1e-9);
  const factor = [1, 2, 2.5, 5, 10].find((f) => f * power >= step * 0.999);
  return (factor ?? 10) * power;
}

/** Decimals of a number that has few. */
function decimalsOf(value: number): number {
  const [, fraction = ""] = String(Number(value.toPrecision(3))).split(".");
  return Math.min(fraction.length, 6);
}

/** Ticks within a decade, coarse to fine. */
const FACTORS = [
  [1, 2, 5],
  [1, 1.5, 2, 3, 4, 5, 7],
  Array.from({ length: 90 }, (_, i) => (i + 10) / 10),
];

/** Round numbers from `from` to `to`. */
function logTicks(
  factors: readonly number[],
  { from, to }: { from: number; to: number },
): number[] {
  const ticks: number[] = [];
  for (let power = Math.floor(Math.log10(from)); 10 ** power <= to; power++) {
    for (const factor of factors) {
      const tick = Number((factor * 10 ** power).toPrecision(3));
      if (tick >= from && tick <= to) ticks.push(tick);
    }
  }
  return ticks;
}

function logAxis(low: number, high: number): Axis {
  // A little room, so that no mark lies on the frame.
  const [start, end] = [Math.log(low / 1.15), Math.log(high * 1.15)];
  const all = FACTORS.map((factors) =>
    logTicks(factors, { from: low / 1.15, to: high * 1.15 })
  );
  const ticks = all.find(({ length }) => length >= 3) ?? all.at(-1)!;
  return {
    ticks,
    place: (value) => (Math.log(value) - start) / (end - start),
    decimals: decimalsOf(Math.min(...ticks, low)),
  };
}

/**
 * Numbers as a report writes them.
 *
 * @module
 */
import type { Estimate } from "../statistics.ts";
import { type Markup, markup } from "./markup.ts";

/** Writes a number. */
export type Format = (value: number) => string;

/** A number with `digits` decimals. */
export function decimals(digits: number): Format {
  return (value) => minus(value.toFixed(digits));
}

/** A number with `digits` decimals and its sign. */
export function signed(digits: number): Format {
  return (value) => (value > 0 ? "+" : "") + minus(value.toFixed(digits));
}

/** A share as a percentage. */
export function percent(digits: number): Format {
  return (value) => `${minus((value * 100).toFixed(digits))} %`;
}

/** A number that is large or small, with three significant digits. */
export function compact(value: number): string {
  if (value === 0) return "0";
  return minus(
    Math.abs(value) >= 100 ? value.toFixed(0) : value.toPrecision(3),
  );
}

/** Bytes in the unit that fits. */
export function bytes(value: number): string {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const power = Math.min(
    Math.max(Math.floor(Math.log2(Math.max(value, 1)) / 10), 0),
    units.length - 1,
  );
  const scaled = value / 1024 ** power;
  return `${scaled.toFixed(power === 0 || scaled >= 100 ? 0 : 1)} ${
    units[power]
  }`;
}

/** A p-value. */
export function probability(p: number): string {
  return p < 0.001 ? "< 0.001" : p.toFixed(3);
}

/** A mean and its interval. */
export function interval(
  { mean, low, high, count }: Estimate,
  format: Format,
): Markup {
  const range = `[${format(low)}, ${format(high)}]`;
  return markup`<span title="n = ${count}">${
    format(mean)
  } <small>${range}</small></span>`;
}

/** A minus sign as wide as the plus sign; no sign before a rounded zero. */
function minus(text: string): string {
  return /^-0(\.0*)?$/.test(text) ? text.slice(1) : text.replace("-", "\u2212");
}

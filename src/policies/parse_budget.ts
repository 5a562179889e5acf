/**
 * Budgets as people type them.
 *
 * @module
 */
import type { Budget } from "./parts.ts";

/** What {@linkcode parseBudget} understands, in words. */
export const BUDGET_FORMS =
  "slots (256), a share of the context (10%) or memory (64MiB, 64MB)";

/** Bytes of each unit, decimal and binary. */
const units: Readonly<Record<string, number>> = {
  b: 1,
  kb: 1e3,
  mb: 1e6,
  gb: 1e9,
  kib: 2 ** 10,
  mib: 2 ** 20,
  gib: 2 ** 30,
};

/**
 * Reads a budget: `256` slots per head, `10%` of the model's context or `64MiB`
 * for the whole cache.
 *
 * @returns `undefined` if the text is none of these.
 *
 * @example
 * ```ts ignore
 * import { assertEquals } from "@std/assert";
 *
 * assertEquals(parseBudget("256"), 256);
 * assertEquals(parseBudget("10%"), { ratio: 0.1 });
 * assertEquals(parseBudget("64MiB"), { bytes: 64 * 2 ** 20 });
 * ```
 */
export function parseBudget(text: string): Budget | undefined {
  const parts = /^(\d+(?:\.\d+)?) ?(%|[kmg]?i?b)?$/i.exec(text.trim());
  if (parts === null) return undefined;
  const number = Number(parts[1]);
  const unit = parts[2]?.toLowerCase();
  if (!(number > 0)) return undefined;
  if (unit === undefined) {
    return Number.isSafeInteger(number) ? number : undefined;
  }
  if (unit === "%") return number <= 100 ? { ratio: number / 100 } : undefined;
  const size = units[unit];
  return size === undefined ? undefined : { bytes: Math.floor(number * size) };
}

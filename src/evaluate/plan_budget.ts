/**
 * Budgets of a plan.
 *
 * @module
 */
import * as v from "valibot";
import { parseBudget } from "../policies/parse_budget.ts";

/**
 * A budget of a plan:
 *
 * - a number: slots per head;
 * - `{ ratio }`: that share of the tokens of each prompt;
 * - `{ bytes }`: bytes of slots and head table, as results have them. The
 *   stage does not count: it depends on the setting alone.
 */
export type PlanBudget =
  | number
  | { readonly ratio: number }
  | { readonly bytes: number };

const BUDGET =
  'a number of slots, a share of the prompt ("10%") or memory ("4MiB")';
/** A budget in the JSON of a plan. */
export const PlanBudgetSchema: v.GenericSchema<unknown, PlanBudget> = v.union([
  v.pipe(v.number(BUDGET), v.integer(BUDGET), v.minValue(1, BUDGET)),
  v.pipe(
    v.string(BUDGET),
    v.transform(parseBudget),
    v.custom<PlanBudget>((budget) => typeof budget === "object", BUDGET),
  ),
], BUDGET);

/** Units of memory, the largest first. */
const UNITS = [["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10]] as const;

/** How tables write a budget. */
export function budgetLabel(budget: PlanBudget): string {
  if (typeof budget === "number") return String(budget);
  // Shares such as 7 % are no binary fractions.
  const short = (x: number) => Number(x.toPrecision(6));
  if ("ratio" in budget) return `${short(budget.ratio * 100)}%`;
  const { bytes } = budget;
  const [unit, size] = UNITS.find(([, size]) => bytes >= size) ?? ["B", 1];
  return `${short(bytes / size)} ${unit}`;
}

/** The budget of a policy for a prompt of `tokens` tokens. */
export function promptBudget(
  budget: PlanBudget,
  tokens: number,
): number | { readonly bytes: number } {
  return typeof budget === "object" && "ratio" in budget
    ? Math.max(1, Math.floor(budget.ratio * tokens + 1e-9))
    : budget;
}

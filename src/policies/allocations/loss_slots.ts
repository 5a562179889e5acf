import type { HeadLosses } from "./head_losses.ts";

/** Options of {@linkcode lossSlots}. */
export interface LossSlotsOptions {
  /** Slots per head, averaged over all heads of all layers. */
  readonly budget: number;
  /** Slots that each head has at least. */
  readonly minimum: number;
}

/** Slots that are given to a head at once, at most. */
const STEPS = [1, 2, 4, 8, 16, 32, 64] as const;

/** What a loss at or below 0, which is rounding, counts as, in nats. */
const LEAST_LOSS = 1e-9;

/**
 * Spreads slots over all heads of all layers so that the sum of their measured
 * losses is small: what one head loses hardly depends on the others.
 *
 * Every head starts at `minimum`. Then 1, 2, 4 … or 64 slots at a time go to
 * the head whose loss falls most per slot; longer steps look past budgets at
 * which a curve is flat for a while. Between the measured budgets the logarithm
 * of the loss is a line over the logarithm of the budget, and beyond them the
 * line goes on, but never so that more slots lose more. Where no slot
 * helps, the head with the fewest gets it.
 *
 * @returns `(layers, kvHeads)` slots, `budget` on average.
 * @throws {RangeError} If the budget is below the minimum.
 *
 * @example
 * ```ts
 * import { lossSlots } from "@steadykv/steadykv";
 * import { assertEquals } from "@std/assert";
 *
 * // Twice the slots halve the loss of both heads; the first has 4 times more
 * // to lose, so it gets √4 times more slots.
 * const losses = {
 *   budgets: [16, 32],
 *   tokens: 512,
 *   loss: [[[0.4, 0.2], [0.1, 0.05]]],
 * };
 * const slots = lossSlots(losses, { budget: 48, minimum: 8 });
 * assertEquals(slots, [[64, 32]]);
 * ```
 */
export function lossSlots(
  { budgets, loss }: HeadLosses,
  { budget, minimum }: LossSlotsOptions,
): number[][] {
  const heads = loss.flat().map((losses) => new Head(curve(budgets, losses)));
  let left = (budget - minimum) * heads.length;
  if (left < 0) {
    throw new RangeError(
      `Cannot spread ${budget} slots per head: expected at least the minimum of ${minimum}`,
    );
  }
  for (const head of heads) head.give(minimum, left);
  while (left > 0) {
    let best = heads[0]!;
    for (const head of heads) {
      if (head.step > left) head.give(0, left);
      if (
        head.gain > best.gain ||
        head.gain === best.gain && head.slots < best.slots
      ) best = head;
    }
    left -= best.step;
    best.give(best.step, left);
  }
  const slots = heads.map((head) => head.slots);
  return loss.map((layer) => slots.splice(0, layer.length));
}

/** A head, and the step that helps it most. */
class Head {
  slots = 0;
  /** Slots of the step, and by how much the loss falls for each of them. */
  step = 0;
  gain = 0;
  readonly #loss: (slots: number) => number;

  constructor(loss: (slots: number) => number) {
    this.#loss = loss;
  }

  /** Gives the head slots, when `left` are left for all. */
  give(slots: number, left: number): void {
    this.slots += slots;
    this.gain = -Infinity;
    const now = this.#loss(this.slots);
    for (const step of STEPS) {
      if (step > left) break;
      const gain = (now - this.#loss(this.slots + step)) / step;
      if (gain > this.gain) [this.gain, this.step] = [gain, step];
    }
  }
}

/** The loss at any number of slots. */
function curve(
  budgets: readonly number[],
  losses: readonly number[],
): (slots: number) => number {
  const x = budgets.map(Math.log);
  const y = losses.map((loss) => Math.log(Math.max(loss, LEAST_LOSS)));
  const last = x.length - 1;
  const slope = (i: number) => (y[i + 1]! - y[i]!) / (x[i + 1]! - x[i]!);
  const [before, after] = last === 0
    ? [0, 0]
    : [Math.min(0, slope(0)), Math.min(0, slope(last - 1))];
  return (slots) => {
    const at = Math.log(slots);
    if (at <= x[0]!) return Math.exp(y[0]! + before * (at - x[0]!));
    const next = x.findIndex((known) => at <= known);
    return next === -1
      ? Math.exp(y[last]! + after * (at - x[last]!))
      : Math.exp(y[next]! + slope(next - 1) * (at - x[next]!));
  };
}

/**
 * What merging two slots costs: Ward's criterion.
 *
 * A slot stands for members with the total weight `w`, and lies at their mean.
 * Merging two slots adds `wₐ w_b / (wₐ + w_b) · D(a, b)` to the weighted
 * squared distance of all members from the slots that stand for them, where
 * `D` is the squared distance. With `K = keyWeight · ‖kₐ − k_b‖² / √d` and
 * `V = valueWeight · ‖vₐ − v_b‖² / var` there are two of them:
 *
 * - `sum`: `D = K + V`;
 * - `product`: `D = K · (1 + V)`. A query `q` shifts the logits of two slots
 *   that were merged by about `q · (kₐ − k_b) / √d` against each other, and so
 *   the output by that times `vₐ − v_b` and times `wₐ w_b / (wₐ + w_b)`: where
 *   keys or values agree, little is lost. The 1 stands for the change of the
 *   weight of both together, which all other slots see.
 *
 * Keys count by the logits that they give, values by how much they scatter:
 * `var` is the same for both, and neither depends on `w`.
 * Source of the criterion: Ward, "Hierarchical Grouping to Optimize an
 * Objective Function", Journal of the American Statistical Association, 1963.
 *
 * @module
 */
import type { Policy } from "../policies/parts.ts";
import { logSumExp, squaredDistance } from "./arithmetic.ts";
import { keyOf, positionOf, type Slot, valueOf } from "./host.ts";
import type { Proposal } from "./pairing.ts";
import { logWeight } from "./scores.ts";

/**
 * Mean squared distance of the values of `slots` from their mean:
 * `Σ ‖vᵢ − v̄‖² / n`, every slot counted once.
 */
export function valueSpread(slots: readonly Slot[], headDim: number): number {
  const mean = new Float64Array(headDim);
  for (const slot of slots) {
    valueOf(slot, headDim).forEach((x, i) => mean[i]! += x / slots.length);
  }
  let sum = 0;
  for (const slot of slots) {
    valueOf(slot, headDim).forEach((x, i) => sum += (x - mean[i]!) ** 2);
  }
  return sum / slots.length;
}

/** The costs of merging pairs of some slots, as their scores are now. */
export class PairCosts {
  readonly #weights: ReadonlyMap<Slot, number>;
  readonly #headDim: number;
  readonly #keyWeight: number;
  readonly #valueWeight: number;
  readonly #isProduct: boolean;

  /**
   * Weighs `slots`.
   *
   * @param spread See {@linkcode valueSpread}; where it is 0, no two values
   * differ, and they do not count.
   */
  constructor(
    slots: readonly Slot[],
    { policy, lanes, headDim, spread }: {
      policy: Policy;
      lanes: number;
      headDim: number;
      spread: number;
    },
  ) {
    if (policy.merge.kind !== "pair") {
      throw new TypeError(`Cannot price pairs: merge is ${policy.merge.kind}`);
    }
    const { distance, keyWeight, valueWeight } = policy.merge;
    this.#weights = new Map(
      slots.map((slot) => [slot, logWeight(slot, { policy, lanes })]),
    );
    this.#headDim = headDim;
    this.#keyWeight = keyWeight / Math.sqrt(headDim);
    this.#valueWeight = spread > 0 ? valueWeight / spread : 0;
    this.#isProduct = distance === "product";
  }

  /** The distance `D` of two slots. */
  distance(a: Slot, b: Slot): number {
    const dim = this.#headDim;
    const keys = this.#keyWeight *
      squaredDistance(keyOf(a, dim), keyOf(b, dim));
    const values = this.#valueWeight *
      squaredDistance(valueOf(a, dim), valueOf(b, dim));
    return this.#isProduct ? keys * (1 + values) : keys + values;
  }

  /** ln of the cost of merging two slots. */
  cost(a: Slot, b: Slot): number {
    return this.costAt(this.distance(a, b), [a, b]);
  }

  /** The same of two slots whose distance is known. */
  costAt(distance: number, [a, b]: readonly [Slot, Slot]): number {
    const [x, y] = [this.#weights.get(a)!, this.#weights.get(b)!];
    return x + y - logSumExp([x, y]) +
      Math.log(Math.max(distance, LEAST_DISTANCE));
  }

  /** Whether `a` weighs more than `b`; of equal ones the left one does. */
  isHeavier(a: Slot, b: Slot): boolean {
    const difference = this.#weights.get(a)! - this.#weights.get(b)!;
    return difference > 0 ||
      difference === 0 && positionOf(a) < positionOf(b);
  }

  /** The cheapest of some targets for `slot`; ties go to the lower position. */
  cheapest(slot: Slot, targets: readonly Slot[]): Proposal | undefined {
    let best: Proposal | undefined;
    for (const target of targets) {
      const cost = this.cost(slot, target);
      if (
        best === undefined || cost < best.cost ||
        cost === best.cost && positionOf(target) < positionOf(best.target)
      ) best = { slot, target, cost };
    }
    return best;
  }

  /**
   * The proposals of all slots to their cheapest heavier partner. Each pair is
   * looked at from its lighter end, so the cheapest pair of all is among them;
   * and no light slot is everybody's choice.
   */
  proposals(slots: readonly Slot[]): Proposal[] {
    return slots.flatMap((slot) => {
      const heavier = slots.filter((other) =>
        other !== slot && this.isHeavier(other, slot)
      );
      return this.cheapest(slot, heavier) ?? [];
    });
  }
}

/** Where two slots are the same, their cost still has a logarithm. */
const LEAST_DISTANCE = 1e-30;

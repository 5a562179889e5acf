/**
 * From a policy's budget to slots: what each head of each layer may hold.
 *
 * @module
 */
import type { ModelSizes } from "../backends/backend.ts";
import type { HeadLosses } from "../policies/allocations/head_losses.ts";
import { lossSlots } from "../policies/allocations/loss_slots.ts";
import type { Policy } from "../policies/parts.ts";
import { cacheBytes } from "./layout.ts";
import { roundToTotal, shareSlots } from "./share_slots.ts";

/** What one KV head of one layer may hold. */
export interface HeadBudget {
  /** Slots that may be live after a step. */
  readonly slots: number;
  /** Newest tokens that are never evicted. */
  readonly recent: number;
  /** Slots the head owns: one more than its budget if it ever evicts. */
  readonly capacity: number;
}

/** What a budget is worked out for. */
export interface BudgetOptions {
  readonly sizes: ModelSizes;
  readonly layers: number;
  /** Tokens of context that the model was trained for. */
  readonly contextLength: number;
  /** Sequences that share the cache. */
  readonly sequences: number;
  /** Rows of the prefill stage. */
  readonly stageRows: number;
  /** Bytes of one stored key or value element. */
  readonly halfBytes: number;
}

/**
 * Works out the budget of each layer and KV head.
 *
 * @returns `(layers, kvHeads)` budgets; their mean is the policy's budget.
 * @throws {RangeError} If a head would have no slot left beside its sinks and
 * recent tokens, or the budget is not a positive number.
 */
export function resolveBudget(
  policy: Policy,
  options: BudgetOptions,
): HeadBudget[][] {
  const { layers, sizes } = options;
  if (
    typeof policy.budget === "object" && "bytes" in policy.budget
  ) return largestFitting(policy, policy.budget.bytes, options);
  const means = spread(policy, meanSlots(policy, options), layers);
  const { heads } = policy.allocate;
  return heads.kind === "losses"
    ? spreadByLosses(policy, means[0]!, { losses: heads.losses, ...options })
    : means.map((mean, layer) => spreadHeads(policy, mean, { layer, sizes }));
}

/** Budgets of the heads of all layers, which hold `mean` on average. */
function spreadByLosses(
  policy: Policy,
  mean: HeadBudget,
  { losses, layers, sizes: { kvHeads } }: BudgetOptions & {
    losses: HeadLosses;
  },
): HeadBudget[][] {
  const [first] = losses.loss;
  if (losses.loss.length !== layers || first?.length !== kvHeads) {
    throw new RangeError(
      `Cannot spread the budget over ${layers} layers of ${kvHeads} heads: allocate.heads.losses has ${losses.loss.length} layers of ${
        first?.length ?? 0
      }: expected those of the same model`,
    );
  }
  return lossSlots(losses, {
    budget: mean.slots,
    minimum: leastSlots(policy, mean),
  }).map((layer) => layer.map((slots) => withSlots(mean, slots)));
}

/** The least that a head may have. */
function leastSlots(
  { select, merge }: Policy,
  { recent }: Pick<HeadBudget, "recent">,
): number {
  return merge.kind === "never" ? 1 : select.sinks + recent + 1;
}

/** The same budget with other slots. */
function withSlots(budget: HeadBudget, slots: number): HeadBudget {
  return { ...budget, slots, capacity: slots + budget.capacity - budget.slots };
}

/** Budgets of the heads of a layer, which hold `mean` on average. */
function spreadHeads(
  policy: Policy,
  mean: HeadBudget,
  { layer, sizes: { kvHeads } }: { layer: number; sizes: ModelSizes },
): HeadBudget[] {
  const { heads: allocation } = policy.allocate;
  // Adaptive heads begin alike: the first chunk of a text decides.
  if (allocation.kind !== "shares") {
    return Array.from({ length: kvHeads }, () => mean);
  }
  const shares = allocation.shares[layer] ?? [];
  if (shares.length !== kvHeads) {
    throw new RangeError(
      `Cannot spread the budget of layer ${layer} over its heads: allocate.heads.shares has ${shares.length} for it: expected ${kvHeads}`,
    );
  }
  return shareSlots(mean.slots * kvHeads, {
    shares,
    minimum: leastSlots(policy, mean),
  }).map((slots) => withSlots(mean, slots));
}

/** Slots per head, averaged over the layers. */
function meanSlots(
  { budget }: Policy,
  { contextLength }: BudgetOptions,
): number {
  if (typeof budget === "number") return positive(budget, "budget");
  if ("bytes" in budget) throw new TypeError("Cannot count slots of bytes");
  const of = positive(budget.of ?? contextLength, "budget.of");
  if (!(budget.ratio > 0 && budget.ratio <= 1)) {
    throw new RangeError(
      `Cannot use budget.ratio ${budget.ratio}: expected a number above 0 and at most 1`,
    );
  }
  return Math.max(1, Math.floor(budget.ratio * of));
}

function positive(value: number, name: string): number {
  if (!Number.isSafeInteger(value) || value < 1) {
    throw new RangeError(
      `Cannot use ${name} ${value}: expected a whole number of at least 1`,
    );
  }
  return value;
}

/** Budgets of all layers, with `mean` slots on average. */
function spread(policy: Policy, mean: number, layers: number): HeadBudget[] {
  const { allocate: { layers: allocation }, select, merge } = policy;
  const ratio = "ratio" in select.recent ? select.recent.ratio : undefined;
  const share = ratio ?? 0;
  // The recent window is the same everywhere; the rest follows the allocation.
  const rest = Array.from({ length: layers }, (_, layer) => {
    // Shares are of all slots, not of those beside the recent window.
    if (
      allocation.kind === "uniform" || allocation.kind === "shares" ||
      layers === 1
    ) return 1;
    if (allocation.kind === "linear") {
      const window = "slots" in select.recent
        ? select.recent.slots / mean
        : share;
      const last = 1 / allocation.beta;
      const fall = 2 * (1 - last) * layer / (layers - 1);
      return window + (1 - window) * (2 - last - fall);
    }
    const falling = (Math.cos(Math.PI * layer / layers) + 1) / 2;
    return (1 - share) * (allocation.floor + (1 - allocation.floor) * falling) +
      share;
  });
  const total = mean * layers;
  const sum = rest.reduce((a, b) => a + b, 0);
  const recent = "slots" in select.recent ? select.recent.slots : Math.min(
    select.recent.atMost ?? Infinity,
    Math.max(
      1,
      Math.round(select.recent.ratio / sum * total) -
        (select.recent.countsSinks ? select.sinks : 0),
    ),
  );
  const slots = allocation.kind === "shares"
    ? shareSlots(total, {
      shares: layerShares(allocation.shares, layers),
      minimum: leastSlots(policy, { recent }),
    })
    : roundToTotal(rest.map((r) => r / sum * total), total);
  return slots.map((slots, layer) => {
    if (merge.kind === "never") return { slots, recent: 0, capacity: slots };
    if (slots < select.sinks + recent + 1) {
      throw new RangeError(
        `Cannot keep ${select.sinks} sinks and ${recent} recent tokens in the ${slots} slots of layer ${layer}: expected a budget of at least ${
          select.sinks + recent + 1
        } slots`,
      );
    }
    return { slots, recent, capacity: slots + 1 };
  });
}

function layerShares(shares: readonly number[], layers: number): typeof shares {
  if (shares.length === layers) return shares;
  throw new RangeError(
    `Cannot spread the budget over ${layers} layers: allocate.layers.shares has ${shares.length}: expected ${layers}`,
  );
}

/** The largest mean budget whose whole cache takes at most `bytes`. */
function largestFitting(
  policy: Policy,
  bytes: number,
  options: BudgetOptions,
): HeadBudget[][] {
  const attempt = (mean: number) =>
    resolveBudget({ ...policy, budget: mean }, options);
  const bytesOf = (budgets: HeadBudget[][]) =>
    cacheBytes(budgets, policy, options);
  // Budgets that do not fit and budgets too small for the policy lie at the
  // two ends, so the search must not stop at the second kind.
  let [low, high] = [0, 2 ** 30];
  while (high - low > 1) {
    const middle = Math.floor((low + high) / 2);
    if (estimate(middle) <= bytes) low = middle;
    else high = middle;
  }
  function estimate(mean: number): number {
    const capacity = mean + (policy.merge.kind === "never" ? 0 : 1);
    const uniform = { slots: mean, recent: 0, capacity };
    return bytesOf(
      Array.from(
        { length: options.layers },
        () => Array.from({ length: options.sizes.kvHeads }, () => uniform),
      ),
    );
  }
  if (low === 0) {
    throw new RangeError(
      `Cannot hold a cache in ${bytes} bytes: expected at least ${estimate(1)}`,
    );
  }
  return attempt(low);
}

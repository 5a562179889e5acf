import { checkHeadLosses } from "./allocations/head_losses.ts";
import type { Policy } from "./parts.ts";

/**
 * Checks the numbers of a policy, before anything is allocated for it.
 *
 * @throws {RangeError} If a number is out of range, naming the part and field.
 * @throws {TypeError} If two parts do not go together, or measured losses are
 * damaged.
 */
export function validatePolicy(policy: Policy): void {
  const { probe, score, values, allocate, select, merge, schedule } = policy;
  const check = (field: string, value: number, range: Range) => {
    const whole = !range.whole && !range.odd || Number.isSafeInteger(value);
    const odd = !range.odd || value % 2 === 1;
    const above = range.above === undefined || value > range.above;
    if (
      whole && odd && above && value >= (range.from ?? -Infinity) &&
      value <= (range.to ?? Infinity) && value < (range.below ?? Infinity)
    ) return;
    throw new RangeError(
      `Cannot use policy "${policy.name}": ${field} is ${value}: expected ${
        describe(range)
      }`,
    );
  };
  if (probe.kind === "last") {
    check("probe.rows", probe.rows, { from: 1, whole: true });
  }
  if (probe.kind === "instruction") {
    check("probe.tokens.length", probe.tokens.length, {
      from: 1,
      to: 2 ** 12,
      whole: true,
    });
    for (const [i, id] of probe.tokens.entries()) {
      check(`probe.tokens[${i}]`, id, { from: 0, whole: true });
    }
  }
  if (score.kind === "ema") {
    check("score.alpha", score.alpha, { from: 0, below: 1 });
  }
  if (score.kind === "expected") {
    check("score.horizon", score.horizon, {
      from: 1,
      to: 2 ** 24,
      whole: true,
    });
  }
  if (values.kind === "norm") {
    check("values.first", values.first, { from: 0, to: 1 });
    check("values.epsilon", values.epsilon, { from: 0, below: Infinity });
  }
  const { layers, heads } = allocate;
  if (layers.kind === "cosine") {
    check("allocate.layers.floor", layers.floor, { above: 0, to: 1 });
  }
  if (layers.kind === "linear") {
    check("allocate.layers.beta", layers.beta, { from: 1, below: Infinity });
  }
  const checkShares = (field: string, shares: readonly number[]) =>
    shares.forEach((share, i) =>
      check(`${field}[${i}]`, share, { above: 0, below: Infinity })
    );
  if (layers.kind === "shares") {
    checkShares("allocate.layers.shares", layers.shares);
  }
  if (heads.kind === "shares") {
    heads.shares.forEach((shares, layer) =>
      checkShares(`allocate.heads.shares[${layer}]`, shares)
    );
  }
  if (heads.kind === "losses") {
    checkHeadLosses(heads.losses, `policy "${policy.name}"`);
  }
  if (heads.kind === "adaptive") {
    check("allocate.heads.floor", heads.floor, { from: 0, to: 1 });
  }
  check("select.sinks", select.sinks, { from: 0, whole: true });
  if ("ratio" in select.recent) {
    check("select.recent.ratio", select.recent.ratio, { from: 0, below: 1 });
    const { atMost = 1 } = select.recent;
    check("select.recent.atMost", atMost, { from: 1, whole: true });
  } else {
    check("select.recent.slots", select.recent.slots, { from: 0, whole: true });
  }
  if (select.pool.kind !== "none") {
    check("select.pool.width", select.pool.width, { from: 1, odd: true });
  }
  const rows = { from: 1, to: 2 ** 17, whole: true };
  if (schedule.kind === "whole") {
    check("schedule.longest", schedule.longest, rows);
  } else {
    check("schedule.chunk", schedule.chunk, rows);
  }
  checkPairs(policy);
  if (merge.kind === "rightNeighbour") {
    check("merge.cap", merge.cap, { above: 0 });
  }
  if (merge.kind === "votes") {
    check("merge.threshold", merge.threshold, { from: -1, to: 1 });
  }
  if (merge.kind === "cosine") {
    check("merge.keep", merge.keep, { from: 0, below: 1 });
  }
  if (merge.kind === "nextValues") {
    check("merge.count", merge.count, { from: 1, to: 256, whole: true });
    check("merge.seed", merge.seed, { from: 0, below: 2 ** 32, whole: true });
  }
  if (merge.kind === "segments") {
    check("merge.heavy", merge.heavy, { from: 0, to: 1 });
  }
  if (merge.kind === "pair") {
    check("merge.keyWeight", merge.keyWeight, {
      // Without it all products are 0.
      ...(merge.distance === "product" ? { above: 0 } : { from: 0 }),
      to: 1e6,
    });
    check("merge.valueWeight", merge.valueWeight, { from: 0, to: 1e6 });
    check("merge.rounds", merge.rounds, { from: 0, to: 64, whole: true });
  }
  if (!("votesPerQueryHead" in merge)) return;
  check("merge.guard[0]", merge.guard[0], { above: 0, to: 1 });
  check("merge.guard[1]", merge.guard[1], { from: 1 });
  if (
    merge.key === "zip" && !(score.kind === "ema" && score.scale === "raw")
  ) {
    throw new TypeError(
      `Cannot use policy "${policy.name}": merge.key "zip" scales keys by a ratio of raw logits: expected a score of kind "ema" with scale "raw"`,
    );
  }
}

/** Checks what `values` and `select` need of the other parts. */
function checkPairs(policy: Policy): void {
  const { score, values, allocate, select, merge } = policy;
  const refuse = (reason: string) => {
    throw new TypeError(`Cannot use policy "${policy.name}": ${reason}`);
  };
  if (values.kind === "norm") {
    if (
      score.kind === "position" || score.kind === "age" ||
      score.kind === "keyDistance"
    ) {
      refuse(
        `values of kind "norm" scale attention, score is of kind "${score.kind}": expected "accumulated", "mean", "last", "stepGain", "expected" or "ema"`,
      );
    }
    if (merge.kind === "rightNeighbour" && merge.rule === "exact") {
      refuse(
        'values of kind "norm" do not know the norm that merge.rule "exact" leaves: expected merge.rule "convex"',
      );
    }
  }
  if (
    allocate.heads.kind === "losses" && allocate.layers.kind !== "uniform"
  ) {
    refuse(
      `allocate.heads "losses" spreads the budget over all layers, allocate.layers is of kind "${allocate.layers.kind}": expected kind "uniform"`,
    );
  }
  if (allocate.heads.kind === "adaptive" && merge.kind === "never") {
    refuse(
      'allocate.heads "adaptive" goes by what is evicted, merge is of kind "never": expected another kind of merge',
    );
  }
  if (score.kind === "age" && merge.kind !== "drop") {
    refuse(
      `a score of kind "age" says nothing of how much attention slots have, merge is of kind "${merge.kind}": expected kind "drop"`,
    );
  }
  if (select.scope === "layer") {
    if (allocate.heads.kind !== "uniform") {
      refuse(
        `select.scope "layer" evicts the same tokens in all heads, allocate.heads is of kind "${allocate.heads.kind}": expected kind "uniform"`,
      );
    }
    if (merge.kind === "pair" || merge.kind === "segments") {
      refuse(
        `select.scope "layer" evicts the same tokens in all heads, merge of kind "${merge.kind}" chooses them head by head: expected another kind of merge`,
      );
    }
    if (merge.kind === "votes" && merge.prefill === "mergeFirst") {
      refuse(
        'select.scope "layer" evicts the same tokens in all heads, merge.prefill "mergeFirst" pairs tokens head by head: expected merge.prefill "evictFirst"',
      );
    }
  }
}

/** A range of numbers. */
interface Range {
  readonly from?: number;
  readonly above?: number;
  readonly to?: number;
  readonly below?: number;
  readonly whole?: boolean;
  readonly odd?: boolean;
}

function describe({ from, above, to, below, whole, odd }: Range): string {
  const bounds = [
    from === undefined ? "" : `at least ${from}`,
    above === undefined ? "" : `above ${above}`,
    to === undefined ? "" : `at most ${to}`,
    below === undefined ? "" : `below ${below}`,
  ].filter((bound) => bound !== "");
  return `${odd ? "an odd" : whole ? "a whole" : "a"} number ${
    bounds.join(" and ")
  }`;
}

import type { Policy } from "./parts.ts";

/**
 * Checks the numbers of a policy, before anything is allocated for it.
 *
 * @throws {RangeError} If a number is out of range, naming the part and field.
 * @throws {TypeError} If two parts do not go together.
 */
export function validatePolicy(policy: Policy): void {
  const { probe, score, allocate, select, merge, schedule } = policy;
  const check = (field: string, value: number, range: Range) => {
    const whole = !range.whole || Number.isSafeInteger(value);
    const above = range.above === undefined || value > range.above;
    if (
      whole && above && value >= (range.from ?? -Infinity) &&
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
  const { layers } = allocate;
  if (layers.kind === "cosine") {
    check("allocate.layers.floor", layers.floor, { above: 0, to: 1 });
  }
  check("select.sinks", select.sinks, { from: 0, whole: true });
  if ("ratio" in select.recent) {
    check("select.recent.ratio", select.recent.ratio, { from: 0, below: 1 });
  } else {
    check("select.recent.slots", select.recent.slots, { from: 0, whole: true });
  }
  const rows = { from: 1, to: 2 ** 17, whole: true };
  if (schedule.kind === "whole") {
    check("schedule.longest", schedule.longest, rows);
  } else {
    check("schedule.chunk", schedule.chunk, rows);
  }
  if (merge.kind === "rightNeighbour") {
    check("merge.cap", merge.cap, { above: 0 });
  }
  if (merge.kind !== "votes") return;
  check("merge.threshold", merge.threshold, { from: -1, to: 1 });
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

/** A range of numbers. */
interface Range {
  readonly from?: number;
  readonly above?: number;
  readonly to?: number;
  readonly below?: number;
  readonly whole?: boolean;
}

function describe({ from, above, to, below, whole }: Range): string {
  const bounds = [
    from === undefined ? "" : `at least ${from}`,
    above === undefined ? "" : `above ${above}`,
    to === undefined ? "" : `at most ${to}`,
    below === undefined ? "" : `below ${below}`,
  ].filter((bound) => bound !== "");
  return `a ${whole ? "whole " : ""}number ${bounds.join(" and ")}`;
}

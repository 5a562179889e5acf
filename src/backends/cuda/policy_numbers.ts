/**
 * The numbers that kernels have for the parts of a policy.
 *
 * @module
 */
import { floorParts } from "../../cache/adaptive_heads.ts";
import type { Policy } from "../../policies/parts.ts";
import type { Layouts, StructValues } from "./structs.ts";

function flag(value: boolean): number {
  return value ? 1 : 0;
}

const PROBES = { none: 0, all: 1, last: 2, instruction: 3 } as const;
const SCORES = {
  position: 0,
  accumulated: 1,
  ema: 2,
  mean: 3,
  last: 4,
  age: 5,
  keyDistance: 6,
} as const;
const POOLS = { none: 0, mean: 1, max: 2 } as const;
const MERGES = { never: 0, drop: 1, votes: 2, rightNeighbour: 3 } as const;
const KEYS = { zip: 0, minNorm: 1, realVotes: 2, convex: 3 } as const;

/** ln 0 for kernels: far below any logit, and still a number. */
const LOG_ZERO = -1e30;

/**
 * The number of a part's kind.
 *
 * @throws {RangeError} If the kernels do not have it.
 */
function known(
  part: string,
  kind: string,
  numbers: Readonly<Record<string, number>>,
): number {
  const number = numbers[kind];
  if (number !== undefined) return number;
  throw new RangeError(
    `Cannot record CUDA kernels for a ${part} of kind "${kind}": expected one of ${
      Object.keys(numbers).join(", ")
    }`,
  );
}

/**
 * The numbers of a policy for kernels.
 *
 * @throws {RangeError} If the kernels do not have one of its parts.
 */
export function policyNumbers(
  policy: Policy,
): StructValues<Layouts["policy"]> {
  const { probe, score, values, allocate, select, merge } = policy;
  const alpha = score.kind === "ema" ? score.alpha : 0;
  const votes = merge.kind === "votes" ? merge : undefined;
  const right = merge.kind === "rightNeighbour" ? merge : undefined;
  const norm = values.kind === "norm" ? values : undefined;
  const { pool } = select;
  return {
    probe: known("probe", probe.kind, PROBES),
    probeRows: probe.kind === "last" ? probe.rows : 0,
    score: known("score", score.kind, SCORES),
    logAlpha: Math.max(Math.log(alpha), LOG_ZERO),
    logRest: Math.log1p(-alpha),
    rawScale: flag(score.kind === "ema" && score.scale === "raw"),
    countVotes: flag(score.kind === "ema" && score.countVotes),
    sinks: select.sinks,
    merge: known("merge", merge.kind, MERGES),
    key: votes === undefined ? 0 : KEYS[votes.key],
    threshold: votes?.threshold ?? 0,
    mergeFirst: flag(votes?.prefill === "mergeFirst"),
    guardLow: votes?.guard[0] ?? 0,
    guardHigh: votes?.guard[1] ?? 0,
    observe: flag(
      votes !== undefined || right !== undefined ||
        (merge.kind === "drop" && score.kind !== "position" &&
          score.kind !== "keyDistance"),
    ),
    countValues: flag(norm !== undefined),
    valuePower: norm?.power ?? 1,
    valueEpsilon: norm?.epsilon ?? 0,
    logValueEpsilon: Math.max(Math.log(norm?.epsilon ?? 0), LOG_ZERO),
    firstStage: norm?.first ?? 0,
    pool: POOLS[pool.kind],
    poolReach: pool.kind === "none" ? 0 : (pool.width - 1) / 2,
    layerScope: flag(select.scope === "layer"),
    exactValues: flag(right?.rule === "exact"),
    ratioCap: right?.cap ?? 1,
    adaptive: flag(allocate.heads.kind === "adaptive"),
    floorParts: floorParts(policy),
  };
}

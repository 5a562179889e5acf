/**
 * The numbers that kernels have for the parts of a policy.
 *
 * @module
 */
import { floorParts } from "../../cache/adaptive_heads.ts";
import { remembersPartners } from "../../cache/layout.ts";
import type { Policy } from "../../policies/parts.ts";
import { type ModelSizes, SEARCH_EVERY, SEARCH_SLOTS } from "../backend.ts";
import {
  KEY_CODES,
  MERGE_CODES,
  POOL_CODES,
  safeLog,
  SCORE_CODES,
} from "../policy_codes.ts";
import { needsScores } from "../policy_needs.ts";
import type { Layouts, StructValues } from "./structs.ts";

function flag(value: boolean): number {
  return value ? 1 : 0;
}

const PROBES = { none: 0, all: 1, last: 2, instruction: 3 } as const;

/** The numbers of a policy for kernels. */
export function policyNumbers(
  policy: Policy,
  { headDim }: ModelSizes,
): StructValues<Layouts["policy"]> {
  const { probe, score, values, allocate, select, merge } = policy;
  const ema = score.kind === "ema" ? score : undefined;
  const alpha = ema?.alpha ?? 0;
  const norm = values.kind === "norm" ? values : undefined;
  const votes = merge.kind === "votes" ? merge : undefined;
  const pair = merge.kind === "pair" ? merge : undefined;
  const right = merge.kind === "rightNeighbour" ? merge : undefined;
  const next = merge.kind === "nextValues" ? merge : undefined;
  const keeps = votes ?? pair;
  const { pool } = select;
  return {
    probe: PROBES[probe.kind],
    probeRows: probe.kind === "last" ? probe.rows : 0,
    score: SCORE_CODES[score.kind],
    logAlpha: safeLog(alpha),
    logRest: Math.log1p(-alpha),
    rawScale: flag(ema?.scale === "raw"),
    countVotes: flag(ema?.countVotes ?? false),
    sinks: select.sinks,
    merge: MERGE_CODES[merge.kind],
    key: keeps === undefined ? 0 : KEY_CODES[keeps.key],
    threshold: votes?.threshold ?? 0,
    mergeFirst: flag(votes?.prefill === "mergeFirst"),
    guardLow: keeps?.guard[0] ?? 0,
    guardHigh: keeps?.guard[1] ?? 0,
    observe: flag(needsScores(policy)),
    countValues: flag(norm !== undefined),
    valuePower: norm?.power ?? 1,
    valueEpsilon: norm?.epsilon ?? 0,
    logValueEpsilon: safeLog(norm?.epsilon ?? 0),
    firstStage: norm?.first ?? 0,
    pool: POOL_CODES[pool.kind],
    poolReach: pool.kind === "none" ? 0 : (pool.width - 1) / 2,
    layerScope: flag(select.scope === "layer"),
    exactValues: flag(right?.rule === "exact"),
    ratioCap: right?.cap ?? 1,
    adaptive: flag(allocate.heads.kind === "adaptive"),
    floorParts: floorParts(policy),
    searchEvery: remembersPartners(policy) ? SEARCH_EVERY : 0,
    searchSlots: SEARCH_SLOTS,
    rounds: pair?.rounds ?? 0,
    productDistance: flag(pair?.distance === "product"),
    keyWeight: (pair?.keyWeight ?? 0) / Math.sqrt(headDim),
    valueWeight: pair?.valueWeight ?? 0,
    thresholdKeep: merge.kind === "cosine" ? merge.keep : 0,
    nextCount: next?.count ?? 0,
    expectedValues: flag(next?.rule === "expected"),
    drawSeed: next?.seed ?? 0,
    heavy: merge.kind === "segments" ? merge.heavy : 0,
  };
}

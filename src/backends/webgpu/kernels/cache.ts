/**
 * Constants, parameters and bindings of the slot cache and of policies.
 *
 * @module
 */
import {
  type CacheLayer,
  type DeviceBuffer,
  type ModelSizes,
  SEARCH_EVERY,
  SEARCH_SLOTS,
  type Slots,
} from "../../backend.ts";
import { remembersPartners } from "../../../cache/layout.ts";
import type { Policy } from "../../../policies/parts.ts";
import {
  KEY_CODES,
  MERGE_CODES,
  POOL_CODES,
  safeLog,
  SCORE_CODES,
} from "../../policy_codes.ts";
import { needsScores, takesAllKeys } from "../../policy_needs.ts";
import type { Constants } from "../pipelines.ts";
import type { Bindable } from "../recorder.ts";

/** Most query heads that may share a KV head. */
const MAX_GROUP = 16;

/** Widest head. */
const MAX_HEAD_DIM = 256;

/** What kernels that touch the cache take. */
export interface CacheArgs {
  readonly cache: CacheLayer<DeviceBuffer>;
  readonly sizes: ModelSizes;
}

/**
 * Constants of the slots.
 *
 * @throws {RangeError} If the heads are of a shape that kernels do not have.
 */
export function cacheConstants({ cache, sizes }: CacheArgs): Constants {
  const { heads, kvHeads, headDim } = sizes;
  const group = heads / kvHeads;
  if (headDim % 4 !== 0 || headDim > MAX_HEAD_DIM) {
    throw new RangeError(
      `Cannot record kernels for heads of width ${headDim}: expected a multiple of 4, at most ${MAX_HEAD_DIM}`,
    );
  }
  if (group > MAX_GROUP) {
    throw new RangeError(
      `Cannot record kernels for ${group} query heads per KV head: expected at most ${MAX_GROUP}`,
    );
  }
  return {
    HEADS: heads,
    KV_HEADS: kvHeads,
    GROUP: group,
    HEAD_DIM: headDim,
    ROOT: 1 / Math.sqrt(headDim),
    LANES: cache.lanes,
  };
}

/** Parameters that find a layer's slots. */
export function cacheParams({ cache, sizes }: CacheArgs): {
  layer: number;
  first_head: number;
  total: number;
  stage_total: number;
  stage_rows: number;
  max_capacity: number;
} {
  return {
    layer: cache.layer,
    first_head: cache.layer * cache.sequences * sizes.kvHeads,
    total: cache.slots.total,
    stage_total: cache.stage.total,
    stage_rows: cache.stageRows,
    max_capacity: cache.maxCapacity,
  };
}

/** Bindings of slots. */
export function slotBindings({ keys, values, side }: Slots<DeviceBuffer>): {
  keys: Bindable;
  values: Bindable;
  side: Bindable;
} {
  return { keys, values, side };
}

/** Bindings of slots and staged rows. */
export function stagedBindings(
  { slots, stage, table }: CacheLayer<DeviceBuffer>,
): Readonly<Record<string, Bindable>> {
  return {
    ...slotBindings(slots),
    stage_keys: stage.keys,
    stage_values: stage.values,
    stage_side: stage.side,
    table,
  };
}

/** Largest float that fits in the guard of a shader. */
const GUARD_MAX = 3e38;

/** Constants of `lib/policy.wgsl` and of the merges. */
export function policyConstants(
  policy: Policy,
  { headDim }: ModelSizes,
): Constants {
  const { score, values, select, merge } = policy;
  const alpha = score.kind === "ema" ? score.alpha : 0;
  const guard = (bound: number) =>
    Math.max(-GUARD_MAX, Math.min(GUARD_MAX, bound));
  return {
    SINKS: select.sinks,
    SCORE: SCORE_CODES[score.kind],
    LOG_ALPHA: safeLog(alpha),
    LOG_REST: Math.log1p(-alpha),
    RAW_SCALE: score.kind === "ema" && score.scale === "raw",
    COUNT_VOTES: score.kind === "ema" && score.countVotes,
    STEP_GAIN: score.kind === "stepGain",
    OBSERVE: needsScores(policy),
    COUNT_VALUES: values.kind === "norm",
    ...(values.kind === "norm" && {
      FIRST_STAGE: values.first,
      VALUE_POWER: values.power,
      VALUE_EPSILON: values.epsilon,
      LOG_VALUE_EPSILON: safeLog(values.epsilon),
    }),
    LAYER_SCOPE: select.scope === "layer",
    MERGE: MERGE_CODES[merge.kind],
    PARTNERS: remembersPartners(policy),
    SEARCH_EVERY,
    SEARCH_SLOTS,
    ...(merge.kind === "votes" && { THRESHOLD: merge.threshold }),
    ...(merge.kind === "cosine" && { THRESHOLD_KEEP: merge.keep }),
    ...(merge.kind === "segments" && { HEAVY: merge.heavy }),
    ...(merge.kind === "nextValues" && {
      NEXT_COUNT: merge.count,
      EXPECTED: merge.rule === "expected",
      DRAW_SEED: merge.seed,
    }),
    ...(merge.kind === "pair" && {
      PRODUCT_DISTANCE: merge.distance === "product",
      KEY_WEIGHT: merge.keyWeight / Math.sqrt(headDim),
      VALUE_WEIGHT: merge.valueWeight,
    }),
    ...("votesPerQueryHead" in merge && {
      KEY_FORM: KEY_CODES[merge.key],
      GUARD_LOW: guard(merge.guard[0]),
      GUARD_HIGH: guard(merge.guard[1]),
    }),
    ...(merge.kind === "rightNeighbour" && {
      EXACT_VALUES: merge.rule === "exact",
      RATIO_CAP: guard(merge.cap),
    }),
  };
}

/** Constants of candidates whose scores take more than their slots' fields. */
export function ratingConstants(
  { score, select: { pool, scope } }: Policy,
): Constants {
  return {
    RATED: pool.kind !== "none" || scope === "layer" ||
      takesAllKeys(score),
    POOL: POOL_CODES[pool.kind],
    POOL_REACH: pool.kind === "none" ? 0 : (pool.width - 1) / 2,
  };
}

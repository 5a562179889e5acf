import type { Compress, DeviceBuffer } from "../../backend.ts";
import { floorParts } from "../../../cache/adaptive_heads.ts";
import type { Merge } from "../../../policies/parts.ts";
import type { Constants } from "../pipelines.ts";
import { takesAllKeys } from "../../policy_needs.ts";
import type { Recorder } from "../recorder.ts";
import {
  cacheConstants,
  cacheParams,
  policyConstants,
  ratingConstants,
  stagedBindings,
} from "./cache.ts";
import { searchConstants } from "./search.ts";
import { stepBindings, stepConstants } from "./step.ts";

/** Most workgroups per head that merge sets. */
const MERGE_GROUPS = 64;

/** Threads of a workgroup, where each has a candidate. */
const THREADS = 256;

/** Sections of the scratch memory, each with a word per candidate. */
const WORK_SECTIONS = 9;

/** The same where runs are merged. */
const RUN_SECTIONS = 12;

/** Counters of a head. */
const COUNTERS = 6;

/** Entry points in their order, with their workgroups and own constants. */
type Steps = (readonly [string, readonly [number, number?], Constants?])[];

/** Records `shaders/compress.wgsl`, which lists the steps. */
export function compress(
  recorder: Recorder,
  args: Compress<DeviceBuffer>,
): void {
  const { cache, step, sizes, policy } = args;
  const { score, merge, select, allocate } = policy;
  const ratings = ratingConstants(policy);
  const { kvHeads } = sizes;
  const rounds = pairingRounds(merge);
  const candidates = cache.maxCapacity + cache.stageRows;
  const mergeGroups = Math.min(MERGE_GROUPS, candidates);
  const tiles = searchConstants(policy, sizes);
  const common = {
    constants: {
      ...stepConstants(step),
      ...cacheConstants(args),
      ...policyConstants(policy, sizes),
      ...ratings,
      ...tiles,
      FLOOR: floorParts(policy),
    },
    params: {
      ...cacheParams(args),
      candidates,
      merge_groups: mergeGroups,
    },
    bindings: {
      ...stepBindings(step),
      ...stagedBindings(cache),
      queries: args.queries,
      statistics: cache.statistics,
      work: recorder.scratch(
        "candidates",
        (merge.kind === "rightNeighbour" ? RUN_SECTIONS : WORK_SECTIONS) *
          kvHeads * candidates,
      ),
      marks: recorder.scratch("pair marks", 2 * kvHeads * candidates),
      counters: recorder.scratch("compress counters", COUNTERS * kvHeads),
    },
  };
  const perHead = [kvHeads] as const;
  const searches = [Math.ceil(candidates / tiles.PROPOSERS), kvHeads] as const;
  const merges = [mergeGroups, kvHeads] as const;
  const perCandidate = [Math.ceil(candidates / THREADS), kvHeads] as const;
  const rate: Steps = [];
  if (takesAllKeys(score)) rate.push(["rate_keys", perHead]);
  else if (ratings.RATED) rate.push(["rate", perCandidate]);
  if (select.pool.kind !== "none") rate.push(["pool", perCandidate]);
  if (select.scope === "layer") rate.push(["share", [perCandidate[0]]]);
  const isAdaptive = allocate.heads.kind === "adaptive";
  const steps: Steps = [];
  if (isAdaptive) steps.push(...rate, ["allocate_heads", [1]]);
  steps.push(["survey", perHead]);
  for (let round = 0; round < rounds; round++) {
    steps.push(
      ["list_pairs", perHead],
      ["find_targets", searches, { HEAVIER_TARGETS: true }],
      ...rate,
      ["pair", perHead],
      ["merge", merges],
    );
  }
  const isSegmented = merge.kind === "segments";
  if (isSegmented) {
    if (!isAdaptive) steps.push(...rate);
    steps.push(
      ["list_light", perHead],
      ["neighbours", perCandidate],
      ["measure_links", perCandidate],
      ["close_links", perHead],
      ["merge", merges],
    );
  }
  if (merge.kind !== "never") {
    // Nothing has changed since heads were allocated, unless slots merged.
    if (!isAdaptive || rounds > 0 || isSegmented) steps.push(...rate);
    steps.push(["select_victims", perHead]);
  }
  if ("votesPerQueryHead" in merge || merge.kind === "cosine") {
    steps.push(
      ["find_targets", searches],
      ["link", perHead],
      ["merge", merges],
    );
  }
  if (merge.kind === "nextValues") steps.push(["pass_values", perHead]);
  if (merge.kind === "rightNeighbour") {
    steps.push(
      ["neighbours", perCandidate],
      ["weigh", perHead],
      ["merge_runs", merges],
    );
  }
  steps.push(["settle", perHead]);
  for (const [entry, workgroups, special] of steps) {
    const constants = { ...common.constants, ...special };
    recorder.dispatch("compress", { ...common, constants, entry, workgroups });
  }
}

/** How often pairs are merged before anything is evicted. */
function pairingRounds(merge: Merge): number {
  switch (merge.kind) {
    case "pair":
      return merge.rounds;
    case "votes":
      return merge.prefill === "mergeFirst" ? 1 : 0;
    default:
      return 0;
  }
}

import type { Compress, DeviceBuffer } from "../../backend.ts";
import { floorParts } from "../../../cache/adaptive_heads.ts";
import type { Recorder } from "../recorder.ts";
import {
  cacheConstants,
  cacheParams,
  policyConstants,
  ratingConstants,
  stagedBindings,
} from "./cache.ts";
import { stepBindings, stepConstants } from "./step.ts";

/** Candidates that one workgroup searches the nearest keys of. */
const PROPOSERS = 32;

/** Most workgroups per head that merge sets. */
const MERGE_GROUPS = 64;

/** Threads of a workgroup, where each has a candidate. */
const THREADS = 256;

/** Sections of the scratch memory, each with a word per candidate. */
const WORK_SECTIONS = 8;

/** The same where runs are merged. */
const RUN_SECTIONS = 11;

/** Counters of a head. */
const COUNTERS = 4;

/** Entry points in their order, with their workgroups. */
type Steps = (readonly [string, readonly [number, number?]])[];

/** Records `shaders/compress.wgsl`, which lists the steps. */
export function compress(
  recorder: Recorder,
  args: Compress<DeviceBuffer>,
): void {
  const { cache, step, sizes, policy } = args;
  const { score, merge, select, allocate } = policy;
  const ratings = ratingConstants(policy);
  const { kvHeads, headDim } = sizes;
  const candidates = cache.maxCapacity + cache.stageRows;
  const mergeGroups = Math.min(MERGE_GROUPS, candidates);
  const isMergeFirst = merge.kind === "votes" && merge.prefill === "mergeFirst";
  // Two tiles in workgroup memory: narrower for the widest heads.
  const keyTile = headDim > 128 ? 16 : 32;
  const common = {
    constants: {
      ...stepConstants(step),
      ...cacheConstants(args),
      ...policyConstants(policy),
      ...ratings,
      KEY_TILE: keyTile,
      KEY_WORDS: keyTile * (headDim / 2 + 1),
      PROPOSER_WORDS: PROPOSERS * headDim / 2,
      MERGE_FIRST: isMergeFirst,
      FLOOR: floorParts(args.policy),
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
  const searches = [Math.ceil(candidates / PROPOSERS), kvHeads] as const;
  const merges = [mergeGroups, kvHeads] as const;
  const perCandidate = [Math.ceil(candidates / THREADS), kvHeads] as const;
  const rate: Steps = [];
  if (score.kind === "keyDistance") rate.push(["rate_keys", perHead]);
  else if (ratings.RATED) rate.push(["rate", perCandidate]);
  if (select.pool.kind !== "none") rate.push(["pool", perCandidate]);
  if (select.scope === "layer") rate.push(["share", [perCandidate[0]]]);
  const isAdaptive = allocate.heads.kind === "adaptive";
  const steps: Steps = [];
  if (isAdaptive) steps.push(...rate, ["allocate_heads", [1]]);
  steps.push(["survey", perHead]);
  if (isMergeFirst) {
    steps.push(["search", searches], ...rate);
    steps.push(["pair", perHead], ["merge", merges]);
  }
  if (merge.kind !== "never") {
    // Nothing has changed since heads were allocated, unless pairs merged.
    if (!isAdaptive || isMergeFirst) steps.push(...rate);
    steps.push(["select_victims", perHead]);
  }
  if (merge.kind === "votes") {
    steps.push(["search", searches], ["link", perHead], ["merge", merges]);
  }
  if (merge.kind === "rightNeighbour") {
    steps.push(
      ["neighbours", perCandidate],
      ["weigh", perHead],
      ["merge_runs", merges],
    );
  }
  steps.push(["settle", perHead]);
  for (const [entry, workgroups] of steps) {
    recorder.dispatch("compress", { ...common, entry, workgroups });
  }
}

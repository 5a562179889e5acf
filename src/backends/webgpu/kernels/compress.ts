import type { Compress, DeviceBuffer } from "../../backend.ts";
import { floorParts } from "../../../cache/adaptive_heads.ts";
import type { Recorder } from "../recorder.ts";
import {
  cacheConstants,
  cacheParams,
  policyConstants,
  stagedBindings,
} from "./cache.ts";
import { stepBindings, stepConstants } from "./step.ts";

/** Candidates that one workgroup searches the nearest keys of. */
const PROPOSERS = 32;

/** Most workgroups per head that merge sets. */
const MERGE_GROUPS = 64;

/** Threads of a workgroup, each with a victim whose neighbour it finds. */
const THREADS = 256;

/** Sections of the scratch memory, each with a word per candidate. */
const WORK_SECTIONS = 6;

/** The same where runs are merged. */
const RUN_SECTIONS = 9;

/** Counters of a head. */
const COUNTERS = 4;

/** Records `shaders/compress.wgsl`, which lists the steps. */
export function compress(
  recorder: Recorder,
  args: Compress<DeviceBuffer>,
): void {
  const { cache, step, sizes, policy: { merge, allocate } } = args;
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
      ...policyConstants(args.policy),
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
  const steps: (readonly [string, readonly [number, number?]])[] = [];
  if (allocate.heads.kind === "adaptive") steps.push(["allocate_heads", [1]]);
  steps.push(["survey", perHead]);
  if (isMergeFirst) {
    steps.push(["search", searches], ["pair", perHead], ["merge", merges]);
  }
  if (merge.kind !== "never") steps.push(["select_victims", perHead]);
  if (merge.kind === "votes") {
    steps.push(["search", searches], ["link", perHead], ["merge", merges]);
  }
  if (merge.kind === "rightNeighbour") {
    const finders = [Math.ceil(candidates / THREADS), kvHeads] as const;
    steps.push(
      ["neighbours", finders],
      ["weigh", perHead],
      ["merge_runs", merges],
    );
  }
  steps.push(["settle", perHead]);
  for (const [entry, workgroups] of steps) {
    recorder.dispatch("compress", { ...common, entry, workgroups });
  }
}

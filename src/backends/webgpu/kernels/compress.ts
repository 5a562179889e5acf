import type { Compress, DeviceBuffer } from "../../backend.ts";
import type { Merge } from "../../../policies/parts.ts";
import type { Constants } from "../pipelines.ts";
import type { Recorder } from "../recorder.ts";
import {
  cacheConstants,
  cacheParams,
  policyConstants,
  stagedBindings,
} from "./cache.ts";
import { searchConstants } from "./search.ts";
import { stepBindings, stepConstants } from "./step.ts";

/** Most workgroups per head that merge sets. */
const MERGE_GROUPS = 64;

/** Threads of a workgroup, each with a victim whose neighbour it finds. */
const THREADS = 256;

/** Sections of the scratch memory, each with a word per candidate. */
const WORK_SECTIONS = 7;

/** The same where runs are merged. */
const RUN_SECTIONS = 9;

/** Counters of a head. */
const COUNTERS = 6;

/** Records `shaders/compress.wgsl`, which lists the steps. */
export function compress(
  recorder: Recorder,
  args: Compress<DeviceBuffer>,
): void {
  const { cache, step, sizes, policy: { merge } } = args;
  const { kvHeads } = sizes;
  const candidates = cache.maxCapacity + cache.stageRows;
  const mergeGroups = Math.min(MERGE_GROUPS, candidates);
  const rounds = pairingRounds(merge);
  const tiles = searchConstants(args.policy, sizes);
  const common = {
    constants: {
      ...stepConstants(step),
      ...cacheConstants(args),
      ...policyConstants(args.policy, sizes),
      ...tiles,
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
  const searches = [Math.ceil(candidates / tiles.PROPOSERS), kvHeads] as const;
  const merges = [mergeGroups, kvHeads] as const;
  const steps: Step[] = [["survey", perHead]];
  for (let round = 0; round < rounds; round++) {
    steps.push(
      ["list_pairs", perHead],
      ["find_targets", searches, { HEAVIER_TARGETS: true }],
      ["pair", perHead],
      ["merge", merges],
    );
  }
  if (merge.kind !== "never") steps.push(["select_victims", perHead]);
  if ("votesPerQueryHead" in merge || merge.kind === "cosine") {
    steps.push(["find_targets", searches], ["link", perHead], [
      "merge",
      merges,
    ]);
  }
  if (merge.kind === "nextValues") steps.push(["pass_values", perHead]);
  if (merge.kind === "rightNeighbour") {
    const finders = [Math.ceil(candidates / THREADS), kvHeads] as const;
    steps.push(
      ["neighbours", finders],
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

/** An entry point, its workgroups, and constants of its own. */
type Step = readonly [
  entry: string,
  workgroups: readonly [number, number?],
  constants?: Constants,
];

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

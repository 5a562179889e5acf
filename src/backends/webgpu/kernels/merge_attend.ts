import type { DeviceBuffer, MergeAttend } from "../../backend.ts";
import { remembersPartners } from "../../../cache/layout.ts";
import { needsScores, takesAllKeys } from "../../policy_needs.ts";
import type { Recorder } from "../recorder.ts";
import {
  cacheConstants,
  cacheParams,
  policyConstants,
  slotBindings,
} from "./cache.ts";
import { searchConstants } from "./search.ts";
import { tileConstants } from "./score_tile.ts";
import { stepBindings, stepConstants } from "./step.ts";

const KERNEL = "merge_attend";

/** Slots of a workgroup, unless that makes more than {@link MAX_SPLITS}. */
const SPLIT_SLOTS = 128;

/** Most workgroups that share a head; one workgroup joins their results. */
const MAX_SPLITS = 256;

/** Words and sections of `shaders/lib/pair_step.wgsl`. */
const PAIR_HEADER = 3;
const PAIR_SECTIONS = 3;

/** Records `shaders/merge_attend.wgsl`. */
export function mergeAttend(
  recorder: Recorder,
  args: MergeAttend<DeviceBuffer>,
): void {
  const { cache, step, sizes, policy } = args;
  const { heads, kvHeads, headDim } = sizes;
  const group = heads / kvHeads;
  const splitSlots = SPLIT_SLOTS *
    Math.ceil(cache.maxCapacity / (SPLIT_SLOTS * MAX_SPLITS));
  const splits = Math.ceil(cache.maxCapacity / splitSlots);
  const remembers = remembersPartners(policy);
  const isShared = policy.select.scope === "layer";
  const isRated = isShared || takesAllKeys(policy.score);
  const { layer, first_head, total, max_capacity } = cacheParams(args);
  const common = {
    constants: {
      ...stepConstants(step),
      ...cacheConstants(args),
      ...policyConstants(policy, sizes),
      ...tileConstants({
        headDim,
        workgroupBytes: recorder.workgroupBytes,
        queryTiles: [group],
        keyTiles: [64, 32, 16],
      }),
      ...searchConstants(policy, sizes),
      HEAVIER_TARGETS: !remembers,
      BY_DISTANCE: remembers,
      SINK_QUERIES: args.sinkQueries !== undefined,
      RATED: isRated,
    },
    params: {
      layer,
      first_head,
      total,
      max_capacity,
      splits,
      split_slots: splitSlots,
    },
    bindings: {
      ...stepBindings(step),
      ...slotBindings(cache.slots),
      output: args.output,
      queries: args.queries,
      sink_queries: args.sinkQueries,
      table: cache.table,
      statistics: cache.statistics,
      raw_logits: needsScores(policy)
        ? recorder.scratch("raw logits", step.rows * heads * max_capacity)
        : undefined,
      ratings: isRated
        ? recorder.scratch("ratings", step.rows * kvHeads * max_capacity)
        : undefined,
      partials: recorder.scratch(
        "partial softmax states",
        step.rows * heads * splits * (headDim + 2),
      ),
      pairs: policy.merge.kind === "pair"
        ? recorder.scratch(
          "pairs",
          step.rows * kvHeads * (PAIR_HEADER + PAIR_SECTIONS * max_capacity),
        )
        : undefined,
    },
  };
  recorder.dispatch(KERNEL, {
    ...common,
    entry: "attend",
    workgroups: [splits, kvHeads, step.rows],
  });
  for (const entry of isShared ? ["score", "choose"] : ["finish"]) {
    recorder.dispatch(KERNEL, {
      ...common,
      entry,
      workgroups: [kvHeads, step.rows],
    });
  }
  if (policy.merge.kind !== "pair") return;
  recorder.dispatch(KERNEL, {
    ...common,
    entry: "find_partners",
    workgroups: [
      Math.ceil(max_capacity / common.constants.PROPOSERS),
      kvHeads,
      step.rows,
    ],
  });
  recorder.dispatch(KERNEL, {
    ...common,
    entry: "merge_pair",
    workgroups: [kvHeads, step.rows],
  });
}

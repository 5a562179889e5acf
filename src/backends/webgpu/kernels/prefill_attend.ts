import type { DeviceBuffer, PrefillAttend } from "../../backend.ts";
import type { Recorder } from "../recorder.ts";
import {
  cacheConstants,
  cacheParams,
  policyConstants,
  stagedBindings,
} from "./cache.ts";
import { tileConstants } from "./score_tile.ts";
import { stepBindings, stepConstants } from "./step.ts";

/** Records `shaders/prefill_attend.wgsl`. */
export function prefillAttend(
  recorder: Recorder,
  args: PrefillAttend<DeviceBuffer>,
): void {
  const { cache, step, sizes, policy } = args;
  const { heads, kvHeads, headDim } = sizes;
  const tiles = tileConstants({
    headDim,
    workgroupBytes: recorder.workgroupBytes,
    queryTiles: [32, 16, 8],
    keyTiles: [32, 16],
  });
  recorder.dispatch("prefill_attend", {
    entry: "attend",
    constants: {
      ...stepConstants(step),
      ...cacheConstants(args),
      ...policyConstants(policy, sizes),
      ...tiles,
      MAX_TILE: tiles.QUERY_TILE,
      SINK_QUERIES: args.sinkQueries !== undefined,
    },
    params: cacheParams(args),
    bindings: {
      ...stepBindings(step),
      ...stagedBindings(cache),
      output: args.output,
      log_sums: args.logSums,
      queries: args.queries,
      sink_queries: args.sinkQueries,
    },
    workgroups: [
      Math.ceil(step.rows * heads / kvHeads / tiles.QUERY_TILE),
      kvHeads,
    ],
  });
}

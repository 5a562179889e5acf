import type { Compress, DeviceBuffer } from "../../backend.ts";
import { needsScores } from "../../policy_needs.ts";
import type { Recorder } from "../recorder.ts";
import {
  cacheConstants,
  cacheParams,
  policyConstants,
  stagedBindings,
} from "./cache.ts";
import { tileConstants } from "./score_tile.ts";
import { stepBindings, stepConstants } from "./step.ts";

/**
 * Records `shaders/observe.wgsl`, unless no row is observed or nothing reads
 * what rows leave.
 */
export function observe(
  recorder: Recorder,
  args: Compress<DeviceBuffer>,
): void {
  const { cache, step, sizes, policy } = args;
  const { probe } = policy;
  if (probe.kind === "none" || !needsScores(policy)) return;
  const { heads, kvHeads, headDim } = sizes;
  const group = heads / kvHeads;
  // Tiles hold whole rows of queries.
  const wholeRows = (queries: number) =>
    Math.max(1, Math.floor(queries / group)) * group;
  const tiles = tileConstants({
    headDim,
    workgroupBytes: recorder.workgroupBytes,
    queryTiles: [32, 16, 8].map(wholeRows),
    keyTiles: [32, 16],
  });
  const cacheTiles = Math.ceil(cache.maxCapacity / tiles.KEY_TILE);
  recorder.dispatch("observe", {
    entry: "observe",
    constants: {
      ...stepConstants(step),
      ...cacheConstants(args),
      ...policyConstants(policy, sizes),
      ...tiles,
      SINK_QUERIES: args.sinkQueries !== undefined,
    },
    params: {
      ...cacheParams(args),
      cache_tiles: cacheTiles,
      probe_rows: probe.kind === "all"
        ? step.rows
        : probe.kind === "last"
        ? probe.rows
        : probe.tokens.length,
    },
    bindings: {
      ...stepBindings(step),
      ...stagedBindings(cache),
      queries: args.queries,
      sink_queries: args.sinkQueries,
      log_sums: args.logSums,
    },
    workgroups: [
      cacheTiles + Math.ceil(cache.stageRows / tiles.KEY_TILE),
      kvHeads,
    ],
  });
}

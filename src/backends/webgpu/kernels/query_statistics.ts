import type { DeviceBuffer, QueryStatistics } from "../../backend.ts";
import type { Recorder } from "../recorder.ts";
import { cacheConstants } from "./cache.ts";
import { stepBindings, stepConstants } from "./step.ts";

/** Records `shaders/query_statistics.wgsl`. */
export function queryStatistics(
  recorder: Recorder,
  args: QueryStatistics<DeviceBuffer>,
): void {
  const { queries, rope, ahead, cache, step, sizes, policy } = args;
  recorder.dispatch("query_statistics", {
    entry: "count_queries",
    constants: {
      ...stepConstants(step),
      ...cacheConstants(args),
      SINKS: policy.select.sinks,
    },
    params: {},
    bindings: {
      ...stepBindings(step),
      statistics: cache.statistics,
      queries,
      rope,
      ahead,
    },
    workgroups: [sizes.heads, step.kind === "prefill" ? 1 : step.rows],
  });
}

import type { DeviceBuffer, DeviceMatrix, ValueNorms } from "../../backend.ts";
import type { Recorder } from "../recorder.ts";
import { cacheConstants, cacheParams, slotBindings } from "./cache.ts";
import { blocksOf } from "./matrix.ts";
import { stepBindings, stepConstants } from "./step.ts";

const KERNEL = "value_norms";

/** Outputs and rows of a workgroup. */
const TILE_OUTPUTS = 64;
const TILE_ROWS = 32;

/** Records `shaders/value_norms.wgsl`. */
export function valueNorms(
  recorder: Recorder,
  args: ValueNorms<DeviceBuffer, DeviceMatrix>,
): void {
  const { cache, step, sizes, weight } = args;
  const { first_head, stage_rows } = cacheParams(args);
  const home = step.kind === "prefill" ? cache.stage : cache.slots;
  const blocks = weight === undefined ? [] : blocksOf(weight);
  const partsOf = ({ rows }: { rows: number }) =>
    Math.ceil(rows / TILE_OUTPUTS);
  const parts = blocks.reduce((sum, block) => sum + partsOf(block), 0);
  const { values, side } = slotBindings(home);
  const common = {
    constants: {
      ...stepConstants(step),
      ...cacheConstants(args),
      ROWS: step.rows,
      PROJECTED: weight !== undefined,
    },
    bindings: {
      ...stepBindings(step),
      values,
      side,
      table: cache.table,
      weight: undefined,
      partials: weight === undefined
        ? undefined
        : recorder.scratch("value norms", step.rows * sizes.heads * parts),
    },
  };
  const params = {
    outputs: 0,
    pitch: 0,
    first_part: 0,
    parts,
    first_head,
    total: home.total,
    stage_rows,
  };
  let firstPart = 0;
  for (const block of blocks) {
    recorder.dispatch(KERNEL, {
      ...common,
      entry: "project",
      params: {
        ...params,
        outputs: block.rows,
        pitch: Math.ceil(weight!.columns / 8) * 4,
        first_part: firstPart,
      },
      bindings: { ...common.bindings, weight: block.gpu },
      workgroups: [
        partsOf(block),
        sizes.heads,
        Math.ceil(step.rows / TILE_ROWS),
      ],
    });
    firstPart += partsOf(block);
  }
  recorder.dispatch(KERNEL, {
    ...common,
    entry: "collect",
    params,
    workgroups: [sizes.kvHeads, step.rows],
  });
}

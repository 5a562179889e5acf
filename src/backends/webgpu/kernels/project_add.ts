import type { DeviceBuffer, DeviceMatrix, ProjectAdd } from "../../backend.ts";
import type { Recorder } from "../recorder.ts";
import { recordProduct } from "./matrix.ts";

/** Records `shaders/project_add.wgsl`. */
export function projectAdd(
  recorder: Recorder,
  { hidden, input, weight, bias, step }: ProjectAdd<DeviceBuffer, DeviceMatrix>,
): void {
  recordProduct(recorder, "project_add", {
    step,
    rows: step.rows,
    weight,
    constants: { BIAS: bias !== undefined },
    bindings: { hidden, input, norm: undefined, bias },
    params: ({ firstRow, rows }) => ({
      first_output: firstRow,
      outputs: rows,
      pitch: weight.rows,
    }),
  });
}

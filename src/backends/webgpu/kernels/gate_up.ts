import type { DeviceBuffer, DeviceMatrix, GateUp } from "../../backend.ts";
import type { Recorder } from "../recorder.ts";
import { recordProduct } from "./matrix.ts";

/**
 * Records `shaders/gate_up.wgsl`.
 *
 * @throws {RangeError} If the weight is split between a gate and its up row.
 */
export function gateUp(
  recorder: Recorder,
  { output, hidden, norm, weight, bias, step, sizes }: GateUp<
    DeviceBuffer,
    DeviceMatrix
  >,
): void {
  recordProduct(recorder, "gate_up", {
    step,
    rows: step.rows,
    weight,
    normEpsilon: sizes.normEpsilon,
    constants: { BIAS: bias !== undefined },
    bindings: { output, input: hidden, norm, bias },
    params: ({ firstRow, rows }) => {
      if (rows % 2 !== 0) {
        throw new RangeError(
          `Cannot record gate_up with ${weight.label} in blocks of ${rows} rows: expected a row group of 2`,
        );
      }
      return {
        first_output: firstRow / 2,
        block_rows: rows,
        pitch: sizes.ffn,
      };
    },
  });
}

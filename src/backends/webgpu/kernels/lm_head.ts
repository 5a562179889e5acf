import type { DeviceBuffer, DeviceMatrix, LmHead } from "../../backend.ts";
import type { Recorder } from "../recorder.ts";
import { recordProduct } from "./matrix.ts";

/** Records `shaders/lm_head.wgsl`. */
export function lmHead(
  recorder: Recorder,
  { logits, hidden, norm, weight, rows, step, sizes }: LmHead<
    DeviceBuffer,
    DeviceMatrix
  >,
): void {
  const last = rows === "last" && step.kind === "prefill";
  recordProduct(recorder, "lm_head", {
    step,
    rows: last ? 1 : step.rows,
    weight,
    normEpsilon: sizes.normEpsilon,
    constants: { LAST: last },
    bindings: { logits, input: hidden, norm },
    params: ({ firstRow, rows }) => ({
      first_output: firstRow,
      outputs: rows,
      pitch: sizes.vocabulary,
    }),
  });
}

import type { DeviceBuffer, DeviceMatrix, Embed } from "../../backend.ts";
import type { Recorder } from "../recorder.ts";
import { blocksOf } from "./matrix.ts";
import { stepBindings, stepConstants } from "./step.ts";

/** Records `shaders/embed.wgsl`. */
export function embed(
  recorder: Recorder,
  { hidden, seen, embedding, step, sizes }: Embed<DeviceBuffer, DeviceMatrix>,
): void {
  for (const block of blocksOf(embedding)) {
    recorder.dispatch("embed", {
      entry: "embed",
      constants: {
        ...stepConstants(step),
        HIDDEN: sizes.hidden,
        PITCH: Math.ceil(sizes.hidden / 8) * 4,
      },
      params: {
        first_id: block.firstRow,
        block_rows: block.rows,
        seen_words: Math.ceil(sizes.vocabulary / 32),
      },
      bindings: {
        ...stepBindings(step),
        hidden,
        seen,
        embedding: block.gpu,
        tokens: step.tokens,
      },
      workgroups: [step.rows],
    });
  }
}

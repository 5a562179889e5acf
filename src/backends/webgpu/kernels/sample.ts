import type { DeviceBuffer, Sample } from "../../backend.ts";
import type { Recorder } from "../recorder.ts";
import { stepConstants } from "./step.ts";

/** Records `shaders/sample.wgsl`. */
export function sample(recorder: Recorder, args: Sample<DeviceBuffer>): void {
  const { step, sizes, ring } = args;
  recorder.dispatch("sample", {
    entry: "sample",
    constants: stepConstants(step),
    params: {
      vocabulary: sizes.vocabulary,
      seen_words: Math.ceil(sizes.vocabulary / 32),
      ring,
    },
    bindings: {
      next_tokens: args.nextTokens,
      output: args.output,
      forced: args.forced,
      logits: args.logits,
      sampling: args.sampling,
      seen: args.seen,
      chunk: step.kind === "prefill" ? step.chunk : undefined,
      state: step.state,
    },
    workgroups: [step.kind === "prefill" ? 1 : step.rows],
  });
}

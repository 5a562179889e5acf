/**
 * What all kernels need to know about the rows of a step.
 *
 * @module
 */
import type { Step } from "../../backend.ts";
import type { Constants } from "../pipelines.ts";
import type { Bindable } from "../recorder.ts";

/** Constants of `lib/step.wgsl`. */
export function stepConstants(step: Step<Bindable>): Constants {
  return { PREFILL: step.kind === "prefill" };
}

/** The words that say which rows are live. */
export function stepBindings(
  step: Step<Bindable>,
): { step_words: Bindable } {
  return { step_words: step.kind === "prefill" ? step.chunk : step.state };
}

/**
 * Kernels that record their dispatches instead of running.
 *
 * @module
 */
import type { Kernels } from "../../backend.ts";
import type { Recorder } from "../recorder.ts";
import { compress } from "./compress.ts";
import { embed } from "./embed.ts";
import { gateUp } from "./gate_up.ts";
import { lmHead } from "./lm_head.ts";
import { mergeAttend } from "./merge_attend.ts";
import { observe } from "./observe.ts";
import { prefillAttend } from "./prefill_attend.ts";
import { projectAdd } from "./project_add.ts";
import { qkvRopeAppend } from "./qkv_rope_append.ts";
import { queryStatistics } from "./query_statistics.ts";
import { sample } from "./sample.ts";
import { valueNorms } from "./value_norms.ts";

/** The kernels of a program that `recorder` collects. */
export function recordingKernels(recorder: Recorder): Kernels {
  return {
    embed: (args) => embed(recorder, args),
    qkvRopeAppend: (args) => qkvRopeAppend(recorder, args),
    valueNorms: (args) => valueNorms(recorder, args),
    queryStatistics: (args) => queryStatistics(recorder, args),
    mergeAttend: (args) => mergeAttend(recorder, args),
    prefillAttend: (args) => prefillAttend(recorder, args),
    observe: (args) => observe(recorder, args),
    compress: (args) => compress(recorder, args),
    projectAdd: (args) => projectAdd(recorder, args),
    gateUp: (args) => gateUp(recorder, args),
    lmHead: (args) => lmHead(recorder, args),
    sample: (args) => sample(recorder, args),
  };
}

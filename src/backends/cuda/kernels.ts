/**
 * Kernels that add a call to a CUDA program instead of running: arguments become
 * the structs of `cuda/steadykv.h`.
 *
 * @module
 */
import type {
  CacheLayer,
  Compress,
  DeviceBuffer,
  DeviceMatrix,
  Kernels,
  ModelSizes,
  PrefillAttend,
  Slots,
  Step,
} from "../backend.ts";
import { CudaBuffer, CudaMatrix } from "./buffers.ts";
import { policyNumbers } from "./policy_numbers.ts";
import {
  type Layouts,
  layouts,
  packStruct,
  type StructValues,
} from "./structs.ts";
import type { KernelSymbol } from "./symbols.ts";

/** Most query heads that may share a KV head. */
const MAX_GROUP = 16;

/** Widest head. */
const MAX_HEAD_DIM = 256;

/** Adds a call with packed arguments to the program that is recorded. */
export type AddCall = (
  kernel: KernelSymbol,
  args: Uint8Array<ArrayBuffer>,
) => void;

/** The kernels of a program whose calls `add` takes. */
export function recordingKernels(add: AddCall): Kernels {
  return {
    embed: (args) =>
      add(
        "skv_embed",
        packStruct(layouts.embed_args, {
          hidden: address(args.hidden),
          seen: address(args.seen),
          embedding: matrix(args.embedding),
          step: step(args.step),
          sizes: sizes(args.sizes),
        }),
      ),
    qkvRopeAppend: (args) =>
      add(
        "skv_qkv_rope_append",
        packStruct(layouts.qkv_rope_append_args, {
          queries: address(args.queries),
          sinkQueries: address(args.sinkQueries),
          hidden: address(args.hidden),
          norm: address(args.norm),
          bias: address(args.bias),
          queryNorm: address(args.queryNorm),
          keyNorm: address(args.keyNorm),
          rope: address(args.rope),
          weight: matrix(args.weight),
          cache: cache(args.cache),
          step: step(args.step),
          sizes: headSizes(args.sizes),
        }),
      ),
    valueNorms: (args) =>
      add(
        "skv_value_norms",
        packStruct(layouts.value_norms_args, {
          weight: args.weight === undefined ? NO_MATRIX : matrix(args.weight),
          cache: cache(args.cache),
          step: step(args.step),
          sizes: headSizes(args.sizes),
        }),
      ),
    queryStatistics: (args) =>
      add(
        "skv_query_statistics",
        packStruct(layouts.query_statistics_args, {
          queries: address(args.queries),
          rope: address(args.rope),
          ahead: address(args.ahead),
          cache: cache(args.cache),
          step: step(args.step),
          sizes: headSizes(args.sizes),
          sinks: args.policy.select.sinks,
        }),
      ),
    mergeAttend: (args) =>
      add(
        "skv_merge_attend",
        packStruct(layouts.merge_attend_args, {
          output: address(args.output),
          queries: address(args.queries),
          sinkQueries: address(args.sinkQueries),
          cache: cache(args.cache),
          step: step(args.step),
          sizes: headSizes(args.sizes),
          policy: policyNumbers(args.policy, args.sizes),
        }),
      ),
    prefillAttend: (args) => add("skv_prefill_attend", chunk(args)),
    observe: (args) => add("skv_observe", chunk(args)),
    compress: (args) => add("skv_compress", chunk(args)),
    projectAdd: (args) =>
      add(
        "skv_project_add",
        packStruct(layouts.project_add_args, {
          hidden: address(args.hidden),
          input: address(args.input),
          bias: address(args.bias),
          weight: matrix(args.weight),
          step: step(args.step),
        }),
      ),
    gateUp: (args) =>
      add(
        "skv_gate_up",
        packStruct(layouts.gate_up_args, {
          output: address(args.output),
          hidden: address(args.hidden),
          norm: address(args.norm),
          bias: address(args.bias),
          weight: matrix(args.weight),
          step: step(args.step),
          sizes: sizes(args.sizes),
        }),
      ),
    lmHead: (args) =>
      add(
        "skv_lm_head",
        packStruct(layouts.lm_head_args, {
          logits: address(args.logits),
          hidden: address(args.hidden),
          norm: address(args.norm),
          weight: matrix(args.weight),
          step: step(args.step),
          sizes: sizes(args.sizes),
          lastRow: args.rows === "last" && args.step.kind === "prefill" ? 1 : 0,
        }),
      ),
    sample: (args) =>
      add(
        "skv_sample",
        packStruct(layouts.sample_args, {
          nextTokens: address(args.nextTokens),
          output: address(args.output),
          forced: address(args.forced),
          logits: address(args.logits),
          sampling: address(args.sampling),
          seen: address(args.seen),
          step: step(args.step),
          sizes: sizes(args.sizes),
          ring: args.ring,
        }),
      ),
  };
}

function address(buffer: DeviceBuffer | undefined): number {
  if (buffer === undefined) return 0;
  if (buffer instanceof CudaBuffer) return buffer.address;
  throw new TypeError(
    `Cannot record a kernel: buffer ${buffer.label} belongs to another backend`,
  );
}

function matrix(matrix: DeviceMatrix): StructValues<Layouts["matrix"]> {
  if (!(matrix instanceof CudaMatrix)) {
    throw new TypeError(
      `Cannot record a kernel: matrix ${matrix.label} belongs to another backend`,
    );
  }
  const { rows, columns, pitch } = matrix;
  return { data: matrix.address, rows, columns, pitch };
}

const NO_MATRIX = { data: 0, rows: 0, columns: 0, pitch: 0 } as const;

const STEPS = { decode: 0, prefill: 1 } as const;

function step(
  { tokens, chunk, state, kind, rows }: Step<DeviceBuffer>,
): StructValues<Layouts["step"]> {
  return {
    tokens: address(tokens),
    chunk: address(chunk),
    state: address(state),
    kind: STEPS[kind],
    rows,
  };
}

function sizes(sizes: ModelSizes): StructValues<Layouts["sizes"]> {
  return sizes;
}

/** Sizes of a model whose heads the kernels can take. */
function headSizes(model: ModelSizes): StructValues<Layouts["sizes"]> {
  const { heads, kvHeads, headDim } = model;
  const group = heads / kvHeads;
  if (headDim % 2 !== 0 || headDim > MAX_HEAD_DIM) {
    throw new RangeError(
      `Cannot record kernels for heads of width ${headDim}: expected an even number, at most ${MAX_HEAD_DIM}`,
    );
  }
  if (!Number.isInteger(group) || group > MAX_GROUP) {
    throw new RangeError(
      `Cannot record kernels for ${group} query heads per KV head: expected a whole number, at most ${MAX_GROUP}`,
    );
  }
  return sizes(model);
}

function slots(
  { keys, values, side, total }: Slots<DeviceBuffer>,
): StructValues<Layouts["slots"]> {
  return {
    keys: address(keys),
    values: address(values),
    side: address(side),
    total,
  };
}

function cache(
  layer: CacheLayer<DeviceBuffer>,
): StructValues<Layouts["cache"]> {
  return {
    slots: slots(layer.slots),
    stage: slots(layer.stage),
    table: address(layer.table),
    statistics: address(layer.statistics),
    layer: layer.layer,
    sequences: layer.sequences,
    lanes: layer.lanes,
    maxCapacity: layer.maxCapacity,
    stageRows: layer.stageRows,
  };
}

/** Arguments of the kernels that work on a chunk. */
function chunk(
  args: PrefillAttend<DeviceBuffer> | Compress<DeviceBuffer>,
): Uint8Array<ArrayBuffer> {
  return packStruct(layouts.chunk_args, {
    output: "output" in args ? address(args.output) : 0,
    logSums: address(args.logSums),
    queries: address(args.queries),
    sinkQueries: address(args.sinkQueries),
    cache: cache(args.cache),
    step: step(args.step),
    sizes: headSizes(args.sizes),
    policy: policyNumbers(args.policy, args.sizes),
  });
}

/**
 * Kernels that add a call to a CUDA program instead of running: arguments become
 * the structs of `cuda/steadykv.h`.
 *
 * @module
 */
import { floorParts } from "../../cache/adaptive_heads.ts";
import type { Policy } from "../../policies/parts.ts";
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
          policy: policy(args.policy),
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
          lastRow: flag(args.rows === "last" && args.step.kind === "prefill"),
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

function flag(value: boolean): number {
  return value ? 1 : 0;
}

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
    layer: layer.layer,
    sequences: layer.sequences,
    lanes: layer.lanes,
    maxCapacity: layer.maxCapacity,
    stageRows: layer.stageRows,
  };
}

const PROBES = { none: 0, all: 1, last: 2 } as const;
const SCORES = {
  position: 0,
  accumulated: 1,
  ema: 2,
  mean: 3,
  last: 4,
  age: 5,
  keyDistance: 6,
} as const;
const POOLS = { none: 0, mean: 1, max: 2 } as const;
const MERGES = { never: 0, drop: 1, votes: 2, rightNeighbour: 3 } as const;
const KEYS = { zip: 0, minNorm: 1, realVotes: 2, convex: 3 } as const;

/** ln 0 for kernels: far below any logit, and still a number. */
const LOG_ZERO = -1e30;

/**
 * The number of a part's kind.
 *
 * @throws {RangeError} If the kernels do not have it.
 */
function known(
  part: string,
  kind: string,
  numbers: Readonly<Record<string, number>>,
): number {
  const number = numbers[kind];
  if (number !== undefined) return number;
  throw new RangeError(
    `Cannot record CUDA kernels for a ${part} of kind "${kind}": expected one of ${
      Object.keys(numbers).join(", ")
    }`,
  );
}

function policy(
  policy: Policy,
): StructValues<Layouts["policy"]> {
  const { probe, score, values, allocate, select, merge } = policy;
  const alpha = score.kind === "ema" ? score.alpha : 0;
  const votes = merge.kind === "votes" ? merge : undefined;
  const right = merge.kind === "rightNeighbour" ? merge : undefined;
  const norm = values.kind === "norm" ? values : undefined;
  const { pool } = select;
  return {
    probe: PROBES[probe.kind],
    probeRows: probe.kind === "last" ? probe.rows : 0,
    score: known("score", score.kind, SCORES),
    logAlpha: Math.max(Math.log(alpha), LOG_ZERO),
    logRest: Math.log1p(-alpha),
    rawScale: flag(score.kind === "ema" && score.scale === "raw"),
    countVotes: flag(score.kind === "ema" && score.countVotes),
    sinks: select.sinks,
    merge: known("merge", merge.kind, MERGES),
    key: votes === undefined ? 0 : KEYS[votes.key],
    threshold: votes?.threshold ?? 0,
    mergeFirst: flag(votes?.prefill === "mergeFirst"),
    guardLow: votes?.guard[0] ?? 0,
    guardHigh: votes?.guard[1] ?? 0,
    observe: flag(
      votes !== undefined || right !== undefined ||
        (merge.kind === "drop" && score.kind !== "position" &&
          score.kind !== "keyDistance"),
    ),
    countValues: flag(norm !== undefined),
    valueEpsilon: norm?.epsilon ?? 0,
    logValueEpsilon: Math.max(Math.log(norm?.epsilon ?? 0), LOG_ZERO),
    firstStage: norm?.first ?? 0,
    pool: POOLS[pool.kind],
    poolReach: pool.kind === "none" ? 0 : (pool.width - 1) / 2,
    layerScope: flag(select.scope === "layer"),
    exactValues: flag(right?.rule === "exact"),
    ratioCap: right?.cap ?? 1,
    adaptive: flag(allocate.heads.kind === "adaptive"),
    floorParts: floorParts(policy),
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
    policy: policy(args.policy),
  });
}

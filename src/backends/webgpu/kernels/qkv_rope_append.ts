import type {
  DeviceBuffer,
  DeviceMatrix,
  QkvRopeAppend,
} from "../../backend.ts";
import type { Recorder } from "../recorder.ts";
import { cacheConstants, cacheParams, slotBindings } from "./cache.ts";
import {
  blocksOf,
  matrixConstants,
  type MatrixProduct,
  MAX_VECTORS,
  recordProduct,
  VECTOR_OUTPUTS,
} from "./matrix.ts";
import { stepBindings, stepConstants } from "./step.ts";

const KERNEL = "qkv_rope_append";

/**
 * Records `shaders/qkv_rope_append.wgsl`.
 *
 * @throws {RangeError} If the weight is split inside a head.
 */
export function qkvRopeAppend(
  recorder: Recorder,
  args: QkvRopeAppend<DeviceBuffer, DeviceMatrix>,
): void {
  const { cache, step, sizes, weight } = args;
  const { headDim, heads, kvHeads } = sizes;
  for (const block of blocksOf(weight)) {
    if (block.rows % headDim !== 0) {
      throw new RangeError(
        `Cannot record ${KERNEL} with ${weight.label} in blocks of ${block.rows} rows: expected a row group of ${headDim}`,
      );
    }
  }
  const half = headDim / 2;
  const isTiled = step.rows > MAX_VECTORS;
  const isNormed = args.queryNorm !== undefined || args.keyNorm !== undefined;
  // A head norm needs the whole head in one workgroup.
  const pairs = isTiled || isNormed ? half : Math.min(half, VECTOR_OUTPUTS / 2);
  const parts = Math.ceil(half / pairs);
  const slots = Math.ceil(2 * pairs / VECTOR_OUTPUTS) * VECTOR_OUTPUTS;
  const { first_head, stage_rows } = cacheParams(args);
  const home = step.kind === "prefill" ? cache.stage : cache.slots;
  const common = { parts, first_head, stage_rows, total: home.total };
  const product: MatrixProduct = {
    step,
    rows: step.rows,
    weight,
    normEpsilon: sizes.normEpsilon,
    slots,
    constants: {
      ...cacheConstants(args),
      IS_TILED: isTiled,
      PAIRS: pairs,
      BIAS: args.bias !== undefined,
      SINK_QUERIES: args.sinkQueries !== undefined,
      QUERY_NORM: args.queryNorm !== undefined,
      KEY_NORM: args.keyNorm !== undefined,
    },
    bindings: {
      queries: args.queries,
      sink_queries: args.sinkQueries,
      input: args.hidden,
      norm: args.norm,
      bias: args.bias,
      query_norm: args.queryNorm,
      key_norm: args.keyNorm,
      rope: args.rope,
      ...slotBindings(home),
      table: cache.table,
      scratch: isTiled
        ? recorder.scratch("qkv products", step.rows * weight.rows)
        : undefined,
    },
    params: ({ firstRow, rows }) => ({
      first_output: firstRow,
      outputs: rows,
      ...common,
    }),
    workgroups: ({ rows }) => rows / headDim * parts,
  };
  recordProduct(recorder, KERNEL, product);
  if (!isTiled) return;
  recorder.dispatch(KERNEL, {
    entry: "append",
    constants: {
      ...stepConstants(step),
      ...matrixConstants({ ...product, rows: 1 }, slots),
      ...product.constants,
    },
    params: { first_output: 0, outputs: weight.rows, ...common },
    bindings: {
      ...stepBindings(step),
      ...product.bindings,
      weight: undefined,
    },
    workgroups: [heads + 2 * kvHeads, step.rows],
  });
}

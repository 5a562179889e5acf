/**
 * The two forms of a matrix product: see `shaders/lib/matrix.wgsl`.
 *
 * @module
 */
import type { DeviceMatrix, Step } from "../../backend.ts";
import { type MatrixBlock, WebGpuMatrix } from "../buffers.ts";
import type { Constants } from "../pipelines.ts";
import type { Bindable, Recorder } from "../recorder.ts";
import { stepBindings, stepConstants } from "./step.ts";

/** Rows that the matrix-vector form takes. */
export const MAX_VECTORS = 8;

/** Outputs of a workgroup in the matrix-vector form. */
export const VECTOR_OUTPUTS = 16;

const TILE = 64;

/** A product with a matrix. */
export interface MatrixProduct {
  readonly step: Step<Bindable>;
  /** Rows of the program that are computed. */
  readonly rows: number;
  readonly weight: DeviceMatrix;
  /** Epsilon of the norm in front, if there is one. */
  readonly normEpsilon?: number;
  readonly constants?: Constants;
  readonly bindings: Readonly<Record<string, Bindable>>;
  /** Parameters of a block. */
  readonly params: (block: MatrixBlock) => Readonly<Record<string, number>>;
  /** Outputs that a workgroup of the matrix-vector form makes, 16 if left out. */
  readonly slots?: number;
  /** Workgroups of the matrix-vector form, one per 16 outputs if left out. */
  readonly workgroups?: (block: MatrixBlock) => number;
}

/** Records a product: one dispatch per block of the weight's rows. */
export function recordProduct(
  recorder: Recorder,
  kernel: string,
  product: MatrixProduct,
): void {
  const { step, rows, weight } = product;
  const isTiled = rows > MAX_VECTORS;
  for (const block of blocksOf(weight)) {
    recorder.dispatch(kernel, {
      entry: isTiled ? "tile" : "vector",
      constants: {
        ...stepConstants(step),
        ...matrixConstants(product, product.slots),
        ...product.constants,
      },
      params: product.params(block),
      bindings: {
        ...stepBindings(step),
        weight: block.gpu,
        ...product.bindings,
      },
      workgroups: isTiled
        ? [Math.ceil(block.rows / TILE), Math.ceil(rows / TILE)]
        : [
          product.workgroups?.(block) ??
            Math.ceil(block.rows / VECTOR_OUTPUTS),
        ],
    });
  }
}

/** Constants of `lib/matrix.wgsl`. */
export function matrixConstants(
  { rows, weight, normEpsilon }: MatrixProduct,
  slots: number = VECTOR_OUTPUTS,
): Constants {
  return {
    COLUMNS: weight.columns,
    ROWS: rows,
    SLOTS: slots,
    PRODUCTS: Math.min(rows, MAX_VECTORS) * slots,
    NORMED: normEpsilon !== undefined,
    EPSILON: normEpsilon ?? 0,
  };
}

/** The blocks of a matrix of this backend. */
export function blocksOf(matrix: DeviceMatrix): readonly MatrixBlock[] {
  if (matrix instanceof WebGpuMatrix) return matrix.blocks;
  throw new TypeError(
    `Cannot multiply with matrix ${matrix.label}: it belongs to another backend`,
  );
}

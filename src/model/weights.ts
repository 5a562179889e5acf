/**
 * The weights of a model on a device, and how they get there.
 *
 * Loading is in three steps: the plan is compared with the headers, every value
 * is read once and checked, and only then memory is allocated and the values
 * are uploaded. A damaged file is found before the device holds anything.
 *
 * @module
 */
import type {
  Backend,
  DeviceBuffer,
  DeviceMatrix,
} from "../backends/backend.ts";
import { type Checkpoint, PIECE_VALUES } from "./checkpoint.ts";
import type { ModelConfig } from "./config.ts";
import { elementBytes, toFloats } from "./tensor_values.ts";
import { allocateWeights, type WeightTarget } from "./weight_allocation.ts";
import { planWeights, type WeightPlan, weightsOf } from "./weight_plan.ts";
import {
  type LoadProgress,
  type PartPiece,
  WeightReader,
} from "./weight_reader.ts";

export type { LoadProgress };

/** Weights of one layer; shapes as the kernels of a backend take them. */
export interface LayerWeights {
  /** `(hidden)` f32. */
  readonly attentionNorm: DeviceBuffer;
  /** `((heads + 2 * kvHeads) * headDim, hidden)`: q, then k, then v. */
  readonly qkv: DeviceMatrix;
  /** `((heads + 2 * kvHeads) * headDim)` f32, where the model has biases. */
  readonly qkvBias?: DeviceBuffer;
  /** `(headDim)` f32, where the model norms each query head. */
  readonly queryNorm?: DeviceBuffer;
  /** `(headDim)` f32, where the model norms each key head. */
  readonly keyNorm?: DeviceBuffer;
  /** `(hidden, heads * headDim)`. */
  readonly output: DeviceMatrix;
  /** `(hidden)` f32, where the model has biases. */
  readonly outputBias?: DeviceBuffer;
  /** `(hidden)` f32. */
  readonly ffnNorm: DeviceBuffer;
  /** `(2 * ffn, hidden)`: rows gate 0, up 0, gate 1, up 1, … */
  readonly gateUp: DeviceMatrix;
  /** `(2 * ffn)` f32 in the same order, where the model has biases. */
  readonly gateUpBias?: DeviceBuffer;
  /** `(hidden, ffn)`. */
  readonly down: DeviceMatrix;
  /** `(hidden)` f32, where the model has biases. */
  readonly downBias?: DeviceBuffer;
}

/** All weights of a model. Disposing frees them. */
export interface Weights extends Disposable {
  /** `(vocabulary, hidden)`. */
  readonly embedding: DeviceMatrix;
  /** One per layer. */
  readonly layers: readonly LayerWeights[];
  /** `(hidden)` f32: the final norm. */
  readonly norm: DeviceBuffer;
  /** `(vocabulary, hidden)`: the embedding itself where the two are tied. */
  readonly head: DeviceMatrix;
  /** Bytes that the device holds for them. */
  readonly byteLength: number;
}

/** Options of {@linkcode loadWeights}. */
export interface LoadWeightsOptions {
  /** Called after each piece of a few megabytes. */
  readonly onProgress?: ((progress: LoadProgress) => void) | undefined;
  /** Stops loading within one piece and frees what was allocated. */
  readonly signal?: AbortSignal | undefined;
  /**
   * Whether all values are checked before memory is allocated, which reads the
   * files once more; true unless told otherwise. Without it a value that
   * cannot be used is still an error, but one during the upload.
   */
  readonly verify?: boolean | undefined;
}

/**
 * Loads the weights of a model to a device. The host holds a few megabytes at
 * a time, besides the longest vector or row.
 *
 * Tensors that the model does not use are an error, because leaving out a bias
 * or a scale would give wrong text; only rotary frequencies and the copy of a
 * tied head, which old checkpoints have, are passed over.
 *
 * @throws {ModelFormatError} If the checkpoint does not fit the configuration
 * or has values that cannot be used.
 */
export async function loadWeights(
  backend: Backend,
  { checkpoint, config }: { checkpoint: Checkpoint; config: ModelConfig },
  { onProgress, signal, verify = true }: LoadWeightsOptions = {},
): Promise<Weights> {
  signal?.throwIfAborted();
  const plan = planWeights(config);
  const reader = new WeightReader({
    ...{ checkpoint, config, plan, onProgress, signal },
    halfMatrices: backend.halfBytes === 2,
  });
  if (verify) {
    for (const weight of weightsOf(plan)) {
      const pieces = reader.read(weight, "check");
      // Reading a piece checks it.
      while (!(await pieces.next()).done);
    }
  }
  const { weights, targets } = allocateWeights(backend, plan);
  try {
    const values = Math.max(PIECE_VALUES, longestRow(plan));
    const scratch = new Float32Array(values);
    for (const target of targets) {
      await upload(target, { backend, reader, scratch });
    }
  } catch (error) {
    weights[Symbol.dispose]();
    throw error;
  }
  return weights;
}

/** Fills one weight. */
async function upload(
  target: WeightTarget,
  { backend, reader, scratch }: {
    backend: Backend;
    reader: WeightReader;
    scratch: Float32Array<ArrayBuffer>;
  },
): Promise<void> {
  const floats = ({ raw, type }: PartPiece): Float32Array => {
    const values = scratch.subarray(0, raw.length / elementBytes(type));
    toFloats(raw, { type, target: values });
    return values;
  };
  if ("matrix" in target) {
    for await (const piece of reader.read(target.plan, "upload")) {
      const { first, step } = piece.part;
      // The backend copies before it returns, so the scratch is free again.
      backend.writeRows(target.matrix, floats(piece), {
        firstRow: first + piece.row * step,
        rowStep: step,
      });
    }
    return;
  }
  const whole = new Float32Array(target.plan.length);
  for await (const piece of reader.read(target.plan, "upload")) {
    const { first, step } = piece.part;
    floats(piece).forEach((value, i) => {
      whole[first + (piece.row + i) * step] = value;
    });
  }
  backend.write(target.buffer, whole);
}

/** Values in the longest row of a matrix. */
function longestRow(plan: WeightPlan): number {
  let longest = 0;
  for (const weight of weightsOf(plan)) {
    if (weight.kind === "matrix") longest = Math.max(longest, weight.columns);
  }
  return longest;
}

/**
 * The tensors of a checkpoint as the weights of a plan.
 *
 * @module
 */
import { ModelFormatError } from "../errors.ts";
import type { Checkpoint, Piece, WeightTensor } from "./checkpoint.ts";
import type { ModelConfig } from "./config.ts";
import { show } from "./json.ts";
import type { WeightType } from "./tensor_values.ts";
import {
  type MatrixPlan,
  type TensorPart,
  type VectorPlan,
  type WeightPlan,
  weightsOf,
} from "./weight_plan.ts";

/** How far loading has come. */
export interface LoadProgress {
  /** `check` reads and checks all values, `upload` moves them to the device. */
  readonly stage: "check" | "upload";
  /** Tensor at hand. */
  readonly tensor: string;
  /** Bytes of the files read in this stage. */
  readonly bytes: number;
  /** Bytes that this stage reads in all. */
  readonly totalBytes: number;
}

/** Rows of a tensor, and the part of a weight that they are. */
export interface PartPiece extends Piece {
  /** Where the rows of the tensor go. */
  readonly part: TensorPart;
  /** Type of the values. */
  readonly type: WeightType;
}

/** What a {@linkcode WeightReader} reads, and how. */
export interface WeightReaderOptions {
  /** Where the tensors are. */
  readonly checkpoint: Checkpoint;
  /** What they are part of. */
  readonly plan: WeightPlan;
  /** The model, for error messages. */
  readonly config: ModelConfig;
  /** Whether matrices are stored as 16-bit floats. */
  readonly halfMatrices: boolean;
  /** Called after each piece. */
  readonly onProgress?: ((progress: LoadProgress) => void) | undefined;
  /** Stops between two pieces. */
  readonly signal?: AbortSignal | undefined;
}

/** Reads the tensors of weights, once for each stage of loading. */
export class WeightReader {
  readonly #options: WeightReaderOptions;
  readonly #tensors: ReadonlyMap<string, WeightTensor>;
  readonly #totalBytes: number;
  readonly #bytes = { check: 0, upload: 0 };

  /**
   * Constructs a new instance after comparing the plan with the headers of the
   * checkpoint.
   *
   * @throws {ModelFormatError} If a tensor is missing, different or not used.
   */
  constructor(options: WeightReaderOptions) {
    this.#options = options;
    this.#tensors = matchTensors(options);
    let totalBytes = 0;
    for (const { begin, end } of this.#tensors.values()) {
      totalBytes += end - begin;
    }
    this.#totalBytes = totalBytes;
  }

  /**
   * Reads and checks the tensors of one weight in order.
   *
   * @throws {ModelFormatError} If a value cannot be used.
   */
  async *read(
    weight: MatrixPlan | VectorPlan,
    stage: LoadProgress["stage"],
  ): AsyncGenerator<PartPiece> {
    const { checkpoint, halfMatrices, onProgress, signal } = this.#options;
    // Vectors are 32-bit floats on every device.
    const half = weight.kind === "matrix" && halfMatrices;
    for (const part of weight.parts) {
      const tensor = this.#tensors.get(part.name)!;
      const { name, type } = tensor;
      for await (const piece of checkpoint.pieces(tensor, { half, signal })) {
        yield { part, type, ...piece };
        this.#bytes[stage] += piece.raw.length;
        const [bytes, totalBytes] = [this.#bytes[stage], this.#totalBytes];
        onProgress?.({ stage, tensor: name, bytes, totalBytes });
      }
    }
  }
}

/** Finds every tensor of the plan in the checkpoint, and nothing else. */
function matchTensors(
  { plan, checkpoint, config }: WeightReaderOptions,
): Map<string, WeightTensor> {
  const tensors = new Map<string, WeightTensor>();
  for (const weight of weightsOf(plan)) {
    for (const { name, rows } of weight.parts) {
      const shape = weight.kind === "matrix" ? [rows, weight.columns] : [rows];
      tensors.set(name, checkpoint.weight(name, shape));
    }
  }
  for (const { name, file } of checkpoint.tensors.values()) {
    const harmless = name.endsWith(".rotary_emb.inv_freq") ||
      (config.tiedHead && name === "lm_head.weight");
    if (tensors.has(name) || harmless) continue;
    throw new ModelFormatError(
      file,
      `tensor ${
        show(name)
      } is not used, expected only tensors of a ${config.architecture} of ${config.layers} layers as config.json says`,
    );
  }
  return tensors;
}

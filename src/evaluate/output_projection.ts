/**
 * Norms of head outputs behind the output projection `W_O`.
 *
 * @module
 */
import {
  type Backend,
  ChunkWord,
  type DeviceBuffer,
  type ModelSizes,
  StateWord,
} from "../backends/backend.ts";
import type { Weights } from "../model/weights.ts";

/**
 * Runs the kernel `projectAdd` on one row per head, which is zero outside the
 * columns of that head. So the slice of `W_O` that belongs to a head needs no
 * copy of the weights on the host, and they are those of the device.
 */
export class OutputProjection implements Disposable {
  readonly #backend: Backend;
  readonly #weights: Weights;
  readonly #sizes: ModelSizes;
  readonly #rows: number;
  readonly #buffers: DeviceBuffer[] = [];
  readonly #hidden: DeviceBuffer;
  readonly #input: DeviceBuffer;
  readonly #chunk: DeviceBuffer;
  readonly #unused: DeviceBuffer;

  /** Allocates room for `probes` rows of every head. */
  constructor(
    backend: Backend,
    { weights, sizes, probes }: {
      readonly weights: Weights;
      readonly sizes: ModelSizes;
      readonly probes: number;
    },
  ) {
    this.#backend = backend;
    this.#weights = weights;
    this.#sizes = sizes;
    this.#rows = probes * sizes.heads;
    const allocate = (label: string, type: "f32" | "u32", length: number) => {
      const buffer = backend.allocate(label, type, length);
      this.#buffers.push(buffer);
      return buffer;
    };
    const width = sizes.heads * sizes.headDim;
    this.#hidden = allocate(
      "projected head outputs",
      "f32",
      this.#rows * sizes.hidden,
    );
    this.#input = allocate("head outputs", "f32", this.#rows * width);
    this.#chunk = allocate("chunk", "u32", ChunkWord.count);
    this.#unused = allocate("unused state", "u32", StateWord.count);
    const words = new Uint32Array(ChunkWord.count);
    words[ChunkWord.rows] = this.#rows;
    backend.write(this.#chunk, words);
  }

  /**
   * `‖x W_O‖₁` of head outputs.
   *
   * @param outputs `(probes, heads)` vectors `(headDim)`.
   * @returns `(heads)` norms, summed over the probes.
   */
  async norms(
    layer: number,
    outputs: readonly (readonly Float64Array[])[],
  ): Promise<number[]> {
    const { heads, headDim, hidden } = this.#sizes;
    const width = heads * headDim;
    const input = new Float32Array(this.#rows * width);
    outputs.forEach((byHead, probe) =>
      byHead.forEach((vector, head) => {
        input.set(vector, (probe * heads + head) * width + head * headDim);
      })
    );
    this.#backend.write(this.#input, input);
    this.#backend.write(this.#hidden, new Float32Array(this.#rows * hidden));
    const program = this.#backend.record(
      "project head outputs",
      (kernels) =>
        kernels.projectAdd({
          hidden: this.#hidden,
          input: this.#input,
          weight: this.#weights.layers[layer]!.output,
          step: {
            kind: "prefill",
            rows: this.#rows,
            tokens: this.#unused,
            chunk: this.#chunk,
            state: this.#unused,
          },
        }),
    );
    program.run();
    const { f32 } = await this.#backend.read(this.#hidden);
    program[Symbol.dispose]();
    return Array.from({ length: heads }, (_, head) => {
      let sum = 0;
      for (let row = head; row < this.#rows; row += heads) {
        for (let i = 0; i < hidden; i++) {
          sum += Math.abs(f32[row * hidden + i]!);
        }
      }
      return sum;
    });
  }

  /** Frees the buffers. */
  [Symbol.dispose](): void {
    for (const buffer of this.#buffers) buffer[Symbol.dispose]();
    this.#buffers.length = 0;
  }
}

/**
 * Random numbers by the gigabyte: one block is drawn, and what is written to a
 * device are pieces of it that begin at ever other places.
 */
import type {
  Backend,
  DeviceBuffer,
  DeviceMatrix,
} from "../../../src/backends/backend.ts";
import { CudaBuffer } from "../../../src/backends/cuda/buffers.ts";
import { CudaBackend } from "../../../src/backends/cuda/cuda_backend.ts";
import {
  WebGpuBuffer,
  WebGpuMatrix,
} from "../../../src/backends/webgpu/buffers.ts";
import type { WebGpuBackend } from "../../../src/backends/webgpu/webgpu_backend.ts";
import { randomNormals } from "../../../src/model/random_weights.ts";

/** Values of the block: 16 MiB as 32-bit floats. */
const BLOCK = 2 ** 22;

/** Values written at a time, at most. */
const PIECE = 2 ** 20;

/** Values from one beginning to the next: odd, and longer than any row. */
const STEP = 618_033;

/**
 * Fills device memory with normal numbers. CUDA draws them on the device; on
 * WebGPU the block lies on the device and is copied from there; elsewhere its
 * pieces are written.
 */
export class RandomBlock implements Disposable {
  readonly #backend: Backend;
  readonly #seed: number;
  /** Blocks by their standard deviation. */
  readonly #blocks = new Map<number, Float32Array>();
  /** The same on a WebGPU device. */
  readonly #copies = new Map<number, WebGpuBuffer>();
  #fills = 0;
  #begin = 0;

  /** Constructs a new instance; the same seed gives the same numbers. */
  constructor(backend: Backend, seed: number) {
    this.#backend = backend;
    this.#seed = seed;
  }

  /** Fills a matrix. */
  fillMatrix(matrix: DeviceMatrix, deviation: number): void {
    if (this.#backend instanceof CudaBackend) {
      const seed = this.#seed + this.#fills++;
      this.#backend.fillNormal(matrix, { deviation, seed });
      return;
    }
    const { rows, columns } = matrix;
    if (matrix instanceof WebGpuMatrix && columns % 8 === 0) {
      for (const { gpu } of matrix.blocks) this.#copy(gpu, deviation);
      return;
    }
    const pieceRows = Math.max(1, Math.floor(PIECE / columns));
    for (let firstRow = 0; firstRow < rows; firstRow += pieceRows) {
      const count = Math.min(pieceRows, rows - firstRow);
      const values = this.piece(count * columns, deviation);
      this.#backend.writeRows(matrix, values, { firstRow });
    }
  }

  /** Fills a buffer of `half` rows of `columns` elements. */
  fillHalves(
    buffer: DeviceBuffer,
    { columns, deviation }: { columns: number; deviation: number },
  ): void {
    const { length } = buffer;
    if (buffer instanceof CudaBuffer && columns % 8 === 0) {
      this.fillMatrix(asMatrix(buffer, columns), deviation);
      return;
    }
    if (buffer instanceof WebGpuBuffer) {
      this.#copy(buffer.gpu, deviation);
      return;
    }
    for (let offset = 0; offset < length; offset += PIECE) {
      const count = Math.min(PIECE, length - offset);
      this.#backend.write(buffer, this.piece(count, deviation), offset);
    }
  }

  /** Fills a WebGPU buffer from the block on the device. */
  #copy(target: GPUBuffer, deviation: number): void {
    const { device } = this.#backend as WebGpuBackend;
    let block = this.#copies.get(deviation);
    if (block === undefined) {
      const label = "random block";
      block = this.#backend.allocate(label, "half", BLOCK) as WebGpuBuffer;
      this.#backend.write(block, this.piece(BLOCK, deviation));
      this.#copies.set(deviation, block);
    }
    const encoder = device.createCommandEncoder({ label: "random numbers" });
    const pieceBytes = 2 * PIECE;
    for (let offset = 0; offset < target.size; offset += pieceBytes) {
      const bytes = Math.min(pieceBytes, target.size - offset);
      this.#begin = (this.#begin + STEP) % (BLOCK - PIECE + 1);
      // Copies begin at whole words of two halves.
      const from = Math.floor(this.#begin / 2) * 4;
      encoder.copyBufferToBuffer(block.gpu, from, target, offset, bytes);
    }
    device.queue.submit([encoder.finish()]);
  }

  /** A view of `length` numbers, which are not to be changed. */
  piece(length: number, deviation: number): Float32Array {
    let block = this.#blocks.get(deviation);
    if (block === undefined) {
      block = randomNormals(BLOCK, {
        ...{ mean: 0, deviation },
        seed: this.#seed,
      });
      this.#blocks.set(deviation, block);
    }
    this.#begin = (this.#begin + STEP) % (BLOCK - length + 1);
    return block.subarray(this.#begin, this.#begin + length);
  }

  /** Frees what lies on the device. */
  [Symbol.dispose](): void {
    for (const block of this.#copies.values()) block[Symbol.dispose]();
    this.#copies.clear();
  }
}

/** Rows of a buffer as the matrix that they are to the device. */
function asMatrix(
  { address, label, length, byteLength }: CudaBuffer,
  columns: number,
): DeviceMatrix {
  const matrix = {
    ...{ address, label, columns, byteLength, pitch: columns },
    rows: length / columns,
    [Symbol.dispose]() {},
  };
  return matrix;
}

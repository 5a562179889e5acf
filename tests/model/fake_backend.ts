/** A backend without kernels that notes what loading does with it. */
import type {
  Backend,
  DeviceBuffer,
  DeviceMatrix,
  ElementType,
  HostTensor,
  MatrixShape,
  Program,
  WriteRowsOptions,
} from "../../src/backends/backend.ts";

/** Memory whose values tests can see. */
export interface FakeBuffer extends DeviceBuffer {
  readonly values: Float32Array;
}

/** A matrix whose values tests can see. */
export interface FakeMatrix extends DeviceMatrix {
  readonly rowGroup: number;
  readonly values: Float32Array;
}

/** Notes allocations and writes; holds no values where `values` is false. */
export class FakeBackend implements Backend {
  readonly name = "cpu";
  readonly description = "a backend for tests";
  readonly halfBytes: 2 | 4;
  readonly precision = "half";
  readonly chunkRows = 1;
  readonly stepsPerRead = 1;
  /** Bytes of all live memory. */
  bytesAllocated = 0;
  /** Allocations so far, freed or not. */
  allocations = 0;
  /** Most values in one call of `writeRows`. */
  largestWrite = 0;
  /** Allocation that fails, counted from 1. */
  readonly #failAt: number;

  constructor(
    { halfBytes = 4, failAt = Infinity }: {
      halfBytes?: 2 | 4;
      failAt?: number;
    } = {},
  ) {
    this.halfBytes = halfBytes;
    this.#failAt = failAt;
  }

  allocate(label: string, type: ElementType, length: number): FakeBuffer {
    const byteLength = length * 4;
    return {
      ...{ label, type, length, byteLength },
      values: new Float32Array(length),
      [Symbol.dispose]: this.#claim(byteLength),
    };
  }

  allocateMatrix(
    label: string,
    { rows, columns, rowGroup = 1 }: MatrixShape,
  ): FakeMatrix {
    const byteLength = rows * columns * this.halfBytes;
    return {
      ...{ label, rows, columns, rowGroup, byteLength },
      values: new Float32Array(rows * columns),
      [Symbol.dispose]: this.#claim(byteLength),
    };
  }

  write(
    buffer: FakeBuffer,
    data: Float32Array | Uint32Array,
    offset = 0,
  ): void {
    buffer.values.set(data, offset);
  }

  writeRows(
    matrix: FakeMatrix,
    data: Float32Array,
    { firstRow, rowStep = 1 }: WriteRowsOptions,
  ): void {
    this.largestWrite = Math.max(this.largestWrite, data.length);
    const { columns } = matrix;
    for (let row = 0; row < data.length / columns; row++) {
      matrix.values.set(
        data.subarray(row * columns, (row + 1) * columns),
        (firstRow + row * rowStep) * columns,
      );
    }
  }

  read(): Promise<HostTensor> {
    throw new Error("Cannot read from the fake backend");
  }

  record(): Program {
    throw new Error("Cannot record on the fake backend");
  }

  async [Symbol.asyncDispose](): Promise<void> {}

  /** Counts an allocation; the function returned frees it. */
  #claim(bytes: number): () => void {
    this.allocations++;
    if (this.allocations === this.#failAt) {
      throw new RangeError("Cannot allocate: no memory is left");
    }
    this.bytesAllocated += bytes;
    return () => {
      this.bytesAllocated -= bytes;
      bytes = 0;
    };
  }
}

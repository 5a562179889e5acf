/**
 * Memory of a CUDA device: buffers and matrices.
 *
 * @module
 */
import type { DeviceBuffer, DeviceMatrix, ElementType } from "../backend.ts";

/** Allocates and frees the memory of one device. */
export interface CudaMemory {
  /** Allocates zeroed bytes; returns their address. */
  allocate(label: string, bytes: number): number;
  /** Frees what {@link CudaMemory.allocate} gave. */
  free(address: number, bytes: number): void;
}

/** Bytes of one element. */
export function elementBytes(type: ElementType): 2 | 4 {
  return type === "half" ? 2 : 4;
}

/** A buffer of elements. */
export class CudaBuffer implements DeviceBuffer {
  readonly label: string;
  readonly type: ElementType;
  readonly length: number;
  readonly byteLength: number;
  /** Where it is on the device. */
  readonly address: number;
  readonly #memory: CudaMemory;
  #live = true;

  /** Allocates `length` elements in whole words, at least 16 bytes. */
  constructor(
    memory: CudaMemory,
    { label, type, length }: {
      label: string;
      type: ElementType;
      length: number;
    },
  ) {
    this.label = label;
    this.type = type;
    this.length = length;
    this.byteLength = Math.max(
      16,
      Math.ceil(length * elementBytes(type) / 4) * 4,
    );
    this.#memory = memory;
    this.address = memory.allocate(label, this.byteLength);
  }

  [Symbol.dispose](): void {
    if (this.#live) this.#memory.free(this.address, this.byteLength);
    this.#live = false;
  }
}

/**
 * A matrix of 16-bit floats, row by row. Rows are padded with zeros to 16 bytes,
 * so that kernels read them in words of that size.
 */
export class CudaMatrix implements DeviceMatrix {
  readonly label: string;
  readonly rows: number;
  readonly columns: number;
  /** Elements from one row to the next. */
  readonly pitch: number;
  readonly byteLength: number;
  /** Where it is on the device. */
  readonly address: number;
  readonly #memory: CudaMemory;
  #live = true;

  /** Allocates a matrix. */
  constructor(
    memory: CudaMemory,
    { label, rows, columns }: { label: string; rows: number; columns: number },
  ) {
    this.label = label;
    this.rows = rows;
    this.columns = columns;
    this.pitch = Math.ceil(columns / 8) * 8;
    this.byteLength = Math.max(16, rows * this.pitch * 2);
    this.#memory = memory;
    this.address = memory.allocate(label, this.byteLength);
  }

  [Symbol.dispose](): void {
    if (this.#live) this.#memory.free(this.address, this.byteLength);
    this.#live = false;
  }
}

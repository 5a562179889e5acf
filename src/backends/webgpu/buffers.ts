/**
 * Memory of a WebGPU device: buffers, and matrices in blocks of rows.
 *
 * @module
 */
import type { DeviceBuffer, DeviceMatrix, ElementType } from "../backend.ts";

/** How memory is reported to the backend; negative when it is freed. */
export type Account = (bytes: number) => void;

/** Makes and accounts the buffers of one device. */
export interface BufferFactory {
  /** Creates a zeroed storage buffer. */
  create(label: string, bytes: number): GPUBuffer;
  /** Destroys a buffer made by {@link BufferFactory.create}. */
  destroy(buffer: GPUBuffer): void;
}

/** Elements in each 32-bit word of a buffer. */
export function elementsPerWord(type: ElementType): 1 | 2 {
  return type === "half" ? 2 : 1;
}

/** A buffer of elements; halves are packed two to a 32-bit word. */
export class WebGpuBuffer implements DeviceBuffer {
  readonly label: string;
  readonly type: ElementType;
  readonly length: number;
  readonly byteLength: number;
  /** The memory. */
  readonly gpu: GPUBuffer;
  readonly #factory: BufferFactory;
  #live = true;

  /** Allocates `length` elements, at least 16 bytes. */
  constructor(
    factory: BufferFactory,
    { label, type, length }: {
      label: string;
      type: ElementType;
      length: number;
    },
  ) {
    const words = Math.ceil(length / elementsPerWord(type));
    this.label = label;
    this.type = type;
    this.length = length;
    this.byteLength = Math.max(16, words * 4);
    this.#factory = factory;
    this.gpu = factory.create(label, this.byteLength);
  }

  [Symbol.dispose](): void {
    if (this.#live) this.#factory.destroy(this.gpu);
    this.#live = false;
  }
}

/** Consecutive rows of a matrix in one buffer. */
export interface MatrixBlock {
  readonly gpu: GPUBuffer;
  readonly firstRow: number;
  readonly rows: number;
}

/** Most rows of a block: 16 to a workgroup, 65535 workgroups in a row. */
const MAX_BLOCK_ROWS = 16 * 65535;

/**
 * A matrix of 16-bit floats, row by row. Rows are padded with zeros to 16
 * bytes, so that shaders read them as `vec4<u32>`, and are spread over several
 * buffers where one would be larger than the device allows.
 */
export class WebGpuMatrix implements DeviceMatrix {
  readonly label: string;
  readonly rows: number;
  readonly columns: number;
  /** Columns with padding, a multiple of 8. */
  readonly paddedColumns: number;
  readonly byteLength: number;
  /** The rows, in order. */
  readonly blocks: readonly MatrixBlock[];
  readonly #factory: BufferFactory;
  #live = true;

  /**
   * Allocates a matrix.
   *
   * @throws {RangeError} If `columns` is not a multiple of 4, or `rowGroup`
   * rows are too large for one buffer.
   */
  constructor(
    factory: BufferFactory,
    { label, rows, columns, rowGroup, maxBytes }: {
      label: string;
      rows: number;
      columns: number;
      rowGroup: number;
      maxBytes: number;
    },
  ) {
    if (columns % 4 !== 0) {
      throw new RangeError(
        `Cannot allocate matrix ${label} of ${columns} columns: expected a multiple of 4`,
      );
    }
    this.label = label;
    this.rows = rows;
    this.columns = columns;
    this.paddedColumns = Math.ceil(columns / 8) * 8;
    this.#factory = factory;
    const rowBytes = this.paddedColumns * 2;
    const fitting = Math.min(MAX_BLOCK_ROWS, Math.floor(maxBytes / rowBytes));
    const blockRows = Math.floor(fitting / rowGroup) * rowGroup;
    if (blockRows === 0) {
      throw new RangeError(
        `Cannot allocate matrix ${label}: ${rowGroup} rows that stay together take ${
          rowGroup * rowBytes
        } bytes, but the device allows ${maxBytes} in a buffer`,
      );
    }
    const blocks: MatrixBlock[] = [];
    try {
      for (let firstRow = 0; firstRow < rows; firstRow += blockRows) {
        const count = Math.min(blockRows, rows - firstRow);
        const gpu = factory.create(label, count * rowBytes);
        blocks.push({ gpu, firstRow, rows: count });
      }
    } catch (error) {
      for (const { gpu } of blocks) factory.destroy(gpu);
      throw error;
    }
    this.blocks = blocks;
    this.byteLength = rows * rowBytes;
  }

  /** The block that holds `row`. */
  blockOf(row: number): MatrixBlock {
    const block = this.blocks.find(({ firstRow, rows }) =>
      row >= firstRow && row < firstRow + rows
    );
    if (block === undefined) {
      throw new RangeError(
        `Cannot find row ${row} in matrix ${this.label} of ${this.rows} rows`,
      );
    }
    return block;
  }

  [Symbol.dispose](): void {
    if (this.#live) {
      for (const { gpu } of this.blocks) this.#factory.destroy(gpu);
    }
    this.#live = false;
  }
}

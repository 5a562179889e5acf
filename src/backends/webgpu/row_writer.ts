import { countRows } from "../ranges.ts";
import type { BufferFactory, WebGpuMatrix } from "./buffers.ts";
import { toHalves } from "./half.ts";

/** Bytes of converted rows that are on their way at a time. */
const PIECE_BYTES = 1 << 22;

/**
 * Writes rows of matrices. Rows that lie apart are uploaded together and put
 * in their places by copies on the device, which cost less than one write each.
 */
export class RowWriter {
  readonly #device: GPUDevice;
  readonly #factory: BufferFactory;
  readonly #pieceBytes: number;

  /** Constructs a writer that uploads at most `maxBytes` at a time. */
  constructor(
    device: GPUDevice,
    { factory, maxBytes }: { factory: BufferFactory; maxBytes: number },
  ) {
    this.#device = device;
    this.#factory = factory;
    this.#pieceBytes = Math.min(PIECE_BYTES, maxBytes);
  }

  /** Converts `data`, whole rows, and writes every `rowStep`th row. */
  write(
    matrix: WebGpuMatrix,
    data: Float32Array,
    { firstRow, rowStep }: { firstRow: number; rowStep: number },
  ): void {
    const { columns, paddedColumns, label } = matrix;
    const rows = countRows(matrix, data.length, { firstRow, rowStep });
    const rowBytes = paddedColumns * 2;
    const pieceRows = Math.max(1, Math.floor(this.#pieceBytes / rowBytes));
    const piece = new Float16Array(Math.min(rows, pieceRows) * paddedColumns);
    for (let done = 0; done < rows; done += pieceRows) {
      const count = Math.min(pieceRows, rows - done);
      for (let row = 0; row < count; row++) {
        const from = (done + row) * columns;
        const to = row * paddedColumns;
        toHalves(
          data.subarray(from, from + columns),
          piece.subarray(to, to + columns),
          label,
        );
      }
      this.#place(matrix, piece.subarray(0, count * paddedColumns), {
        firstRow: firstRow + done * rowStep,
        rowStep,
      });
    }
  }

  #place(
    matrix: WebGpuMatrix,
    piece: Float16Array<ArrayBuffer>,
    { firstRow, rowStep }: { firstRow: number; rowStep: number },
  ): void {
    const rowBytes = matrix.paddedColumns * 2;
    const rows = piece.byteLength / rowBytes;
    const upload = this.#factory.create("row upload", piece.byteLength);
    this.#device.queue.writeBuffer(upload, 0, piece);
    const encoder = this.#device.createCommandEncoder({ label: matrix.label });
    for (let row = 0; row < rows;) {
      const target = firstRow + row * rowStep;
      const block = matrix.blockOf(target);
      const left = block.firstRow + block.rows - target;
      const count = rowStep === 1 ? Math.min(left, rows - row) : 1;
      encoder.copyBufferToBuffer(
        upload,
        row * rowBytes,
        block.gpu,
        (target - block.firstRow) * rowBytes,
        count * rowBytes,
      );
      row += count;
    }
    this.#device.queue.submit([encoder.finish()]);
    this.#factory.destroy(upload);
  }
}

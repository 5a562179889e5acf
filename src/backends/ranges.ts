/**
 * Checks of what a backend is asked to read and write.
 *
 * @module
 */
import type {
  DeviceBuffer,
  DeviceMatrix,
  WriteRowsOptions,
} from "./backend.ts";

/**
 * Checks that elements are inside a buffer.
 *
 * @throws {RangeError} If not.
 */
export function checkRange(
  buffer: DeviceBuffer,
  offset: number,
  length: number,
): void {
  if (offset >= 0 && length >= 0 && offset + length <= buffer.length) return;
  throw new RangeError(
    `Cannot read elements ${offset} to ${
      offset + length
    } of ${buffer.label}: it has ${buffer.length}`,
  );
}

/**
 * Number of rows that elements fill.
 *
 * @param length Number of elements.
 * @throws {RangeError} If they are not whole rows inside the matrix.
 */
export function countRows(
  { label, columns, rows }: DeviceMatrix,
  length: number,
  { firstRow, rowStep }: Required<WriteRowsOptions>,
): number {
  const count = length / columns;
  const end = firstRow + (count - 1) * rowStep + 1;
  if (Number.isInteger(count) && firstRow >= 0 && end <= rows) return count;
  throw new RangeError(
    `Cannot write ${length} elements from row ${firstRow} of ${label}: expected whole rows of ${columns} up to row ${rows}`,
  );
}

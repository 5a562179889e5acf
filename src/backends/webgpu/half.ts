/**
 * Host side of the half type: 16-bit floats, converted piece by piece.
 *
 * @module
 */

/** Elements converted at a time: 2 MiB of 16-bit floats. */
const PIECE = 1 << 20;

/**
 * Calls `take` with `data` as 16-bit floats, in pieces of an even number of
 * elements (but for the last one) that are only valid during the call.
 *
 * @throws {RangeError} If a value has no finite 16-bit float.
 */
export function forHalves(
  data: Float32Array,
  label: string,
  take: (piece: Float16Array<ArrayBuffer>, offset: number) => void,
): void {
  const piece = new Float16Array(Math.min(PIECE, data.length));
  for (let offset = 0; offset < data.length; offset += PIECE) {
    const source = data.subarray(offset, offset + PIECE);
    const target = piece.subarray(0, source.length);
    toHalves(source, target, label);
    take(target, offset);
  }
}

/**
 * Converts `source` into the beginning of `target`.
 *
 * @throws {RangeError} If a value has no finite 16-bit float.
 */
export function toHalves(
  source: Float32Array,
  target: Float16Array,
  label: string,
): void {
  target.set(source);
  for (let i = 0; i < source.length; i++) {
    if (!Number.isFinite(target[i]!)) {
      throw new RangeError(
        `Cannot write ${
          source[i]
        } to ${label}: expected a number that a 16-bit float can hold, at most 65504`,
      );
    }
  }
}

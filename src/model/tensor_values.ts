/**
 * The three element types of weights: checking and converting raw values.
 *
 * Values are checked by their bits: without the sign, bit patterns of one
 * float type are ordered like the magnitudes they stand for, so one integer
 * maximum finds NaN, infinity and numbers that are too large.
 *
 * @module
 */

/** An element type that weights may have. */
export type WeightType = "BF16" | "F16" | "F32";

/** Properties of a weight type. */
interface Format {
  /** Bytes of one element. */
  readonly bytes: 2 | 4;
  /** Bits of the largest finite number. */
  readonly finite: number;
  /** Bits of the largest number that is at most 65504. */
  readonly half: number;
}

/** The types that weights may have. */
const formats: Readonly<Record<WeightType, Format>> = {
  BF16: { bytes: 2, finite: 0x7f7f, half: 0x477f },
  F16: { bytes: 2, finite: 0x7bff, half: 0x7bff },
  F32: { bytes: 4, finite: 0x7f7f_ffff, half: 0x477f_e000 },
};

/** Names of the types that weights may have. */
export const weightTypes: readonly string[] = Object.keys(formats);

/** Whether weights may have the type. */
export function isWeightType(type: string): type is WeightType {
  return Object.hasOwn(formats, type);
}

/** Bytes of one element of a weight type. */
export function elementBytes(type: WeightType): 2 | 4 {
  return formats[type].bytes;
}

/**
 * Index of the first value that is NaN, infinite or, where `half` is set,
 * beyond the largest 16-bit float; -1 if there is none.
 */
export function findUnusable(
  raw: Uint8Array<ArrayBuffer>,
  { type, half }: { type: WeightType; half: boolean },
): number {
  const { bytes, finite, half: halfLimit } = formats[type];
  const limit = half ? halfLimit : finite;
  // Two loops, so that each sees one kind of array.
  if (bytes === 2) {
    const words = new Uint16Array(raw.buffer, raw.byteOffset, raw.length / 2);
    for (let i = 0; i < words.length; i++) {
      if ((words[i]! & 0x7fff) > limit) return i;
    }
  } else {
    const words = new Uint32Array(raw.buffer, raw.byteOffset, raw.length / 4);
    for (let i = 0; i < words.length; i++) {
      if ((words[i]! & 0x7fff_ffff) > limit) return i;
    }
  }
  return -1;
}

/**
 * Converts raw little-endian values to 32-bit floats, exactly.
 *
 * @param target One float per value.
 */
export function toFloats(
  raw: Uint8Array<ArrayBuffer>,
  { type, target }: { type: WeightType; target: Float32Array<ArrayBuffer> },
): void {
  switch (type) {
    case "BF16": {
      // A bf16 is the upper half of an f32.
      const words = new Uint16Array(raw.buffer, raw.byteOffset, target.length);
      const bits = new Uint32Array(
        target.buffer,
        target.byteOffset,
        target.length,
      );
      for (let i = 0; i < bits.length; i++) bits[i] = words[i]! << 16;
      return;
    }
    case "F16":
      target.set(
        new Float16Array(raw.buffer, raw.byteOffset, target.length),
      );
      return;
    case "F32":
      target.set(
        new Float32Array(raw.buffer, raw.byteOffset, target.length),
      );
  }
}

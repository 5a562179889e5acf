/**
 * The safetensors format: 8 bytes of header length (little-endian), a JSON
 * header that names each tensor, then the bytes of the tensors without gaps.
 *
 * A header is believed only after every statement in it has been checked
 * against the file: nothing later has to ask again.
 *
 * @module
 */
import * as v from "valibot";
import { ModelFormatError } from "../errors.ts";
import { checkSchema, integer, parseJson, show } from "./json.ts";

/** Bytes before the header. */
export const LENGTH_BYTES = 8;

/** Largest header that the format allows. */
const MAX_HEADER_BYTES = 100_000_000;

/** Bits of one element of each type. */
const elementBits: Readonly<Record<string, number>> = {
  F4: 4,
  F6_E2M3: 6,
  F6_E3M2: 6,
  BOOL: 8,
  U8: 8,
  I8: 8,
  F8_E5M2: 8,
  F8_E4M3: 8,
  F8_E8M0: 8,
  I16: 16,
  U16: 16,
  F16: 16,
  BF16: 16,
  I32: 32,
  U32: 32,
  F32: 32,
  I64: 64,
  U64: 64,
  F64: 64,
  C64: 64,
};

/** One tensor of a file. */
export interface TensorEntry {
  /** Name of the tensor. */
  readonly name: string;
  /** Type of its elements, such as `BF16`. */
  readonly type: string;
  /** Its dimensions, slowest first. */
  readonly shape: readonly number[];
  /** First byte, counted from the start of the file. */
  readonly begin: number;
  /** The byte after the last one. */
  readonly end: number;
}

/** What a header is checked against. */
export interface HeaderSource {
  /** Name of the file for error messages. */
  readonly file: string;
  /** Bytes of the whole file. */
  readonly fileBytes: number;
}

const offset = integer(0, Number.MAX_SAFE_INTEGER);

const Tensor = v.object({
  dtype: v.string("a type name"),
  shape: v.array(
    integer(0, Number.MAX_SAFE_INTEGER),
    "a list of dimensions",
  ),
  data_offsets: v.tuple([offset, offset], "a list of two offsets"),
}, "an object with dtype, shape and data_offsets");

/**
 * Reads the length of the header from the first 8 bytes of a file.
 *
 * @throws {ModelFormatError} If the header would not fit into the file.
 */
export function headerLength(
  prefix: Uint8Array<ArrayBuffer>,
  { file, fileBytes }: HeaderSource,
): number {
  if (prefix.length < LENGTH_BYTES) {
    throw new ModelFormatError(
      file,
      `the file has ${fileBytes} bytes, expected at least ${LENGTH_BYTES}`,
    );
  }
  const view = new DataView(prefix.buffer, prefix.byteOffset, LENGTH_BYTES);
  const length = view.getBigUint64(0, true);
  const room = Math.min(fileBytes - LENGTH_BYTES, MAX_HEADER_BYTES);
  if (length > BigInt(room)) {
    throw new ModelFormatError(
      file,
      `the header has ${length} bytes, expected at most ${room} in a file of ${fileBytes} bytes`,
    );
  }
  return Number(length);
}

/**
 * Reads and checks a header: types, shapes and sizes agree, and the tensors
 * cover the rest of the file without gaps and without overlap.
 *
 * @param header The bytes after the length.
 * @returns The tensors in the order of their bytes.
 * @throws {ModelFormatError} If anything in the header is not true.
 */
export function parseHeader(
  header: Uint8Array,
  { file, fileBytes }: HeaderSource,
): TensorEntry[] {
  const dataStart = LENGTH_BYTES + header.length;
  const dataBytes = fileBytes - dataStart;
  const tensors: TensorEntry[] = [];
  for (const [name, value] of Object.entries(readObject(header, file))) {
    if (name === "__metadata__") continue;
    const { dtype, shape, data_offsets: [begin, end] } = checkSchema(
      v.object({ [name]: Tensor }),
      { [name]: value },
      file,
    )[name]!;
    const bits = Object.hasOwn(elementBits, dtype)
      ? elementBits[dtype]
      : undefined;
    if (bits === undefined) {
      throw new ModelFormatError(
        file,
        `tensor ${show(name)} has type ${show(dtype)}, expected one of ${
          Object.keys(elementBits).join(", ")
        }`,
      );
    }
    if (begin > end || end > dataBytes) {
      throw new ModelFormatError(
        file,
        `tensor ${
          show(name)
        } has offsets ${begin} to ${end}, expected offsets within the ${dataBytes} bytes of data`,
      );
    }
    // Too large a product loses its last digits, but then it cannot be equal
    // to the size of something inside a file.
    const expected = shape.reduce((product, n) => product * n, 1) * bits / 8;
    if (end - begin !== expected) {
      throw new ModelFormatError(
        file,
        `tensor ${show(name)} has ${
          end - begin
        } bytes, expected ${expected} for ${dtype} [${shape.join(", ")}]`,
      );
    }
    tensors.push({
      name,
      type: dtype,
      shape,
      begin: dataStart + begin,
      end: dataStart + end,
    });
  }
  tensors.sort((a, b) => a.begin - b.begin || a.end - b.end);
  checkCover(tensors, { file, fileBytes, dataStart });
  return tensors;
}

/** Decodes the JSON of a header. */
function readObject(header: Uint8Array, file: string): Record<string, unknown> {
  let text: string;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(header);
  } catch (cause) {
    throw new ModelFormatError(
      file,
      "the header is not text, expected UTF-8",
      { cause },
    );
  }
  const json = parseJson(text, file);
  if (typeof json !== "object" || json === null || Array.isArray(json)) {
    throw new ModelFormatError(
      file,
      `the header is ${show(json)}, expected an object`,
    );
  }
  return json as Record<string, unknown>;
}

/** Checks that tensors, ordered by their bytes, fill the data exactly. */
function checkCover(
  tensors: readonly TensorEntry[],
  { file, fileBytes, dataStart }: HeaderSource & { dataStart: number },
): void {
  let at = dataStart;
  for (const { name, begin, end } of tensors) {
    if (begin !== at) {
      const problem = begin < at ? "overlaps the one before" : "leaves a gap";
      throw new ModelFormatError(
        file,
        `tensor ${show(name)} starts at byte ${
          begin - dataStart
        } of the data and ${problem}, expected byte ${at - dataStart}`,
      );
    }
    at = end;
  }
  if (at !== fileBytes) {
    throw new ModelFormatError(
      file,
      `the file has ${fileBytes} bytes, expected ${at} as its header says`,
    );
  }
}

import { assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { ModelFormatError } from "../../src/errors.ts";
import {
  headerLength,
  LENGTH_BYTES,
  parseHeader,
  type TensorEntry,
} from "../../src/model/safetensors.ts";
import { safetensors, tinyTensors, withHeader } from "./fixtures.ts";

/** Reads the header of a file that is in memory. */
function read(bytes: Uint8Array<ArrayBuffer>): TensorEntry[] {
  const source = { file: "model.safetensors", fileBytes: bytes.length };
  const length = headerLength(bytes.subarray(0, LENGTH_BYTES), source);
  const header = bytes.subarray(LENGTH_BYTES, LENGTH_BYTES + length);
  return parseHeader(header, source);
}

/** A file of one or more tensors with the given fields. */
function file(
  header: Record<string, unknown>,
  dataBytes = 8,
): Uint8Array<ArrayBuffer> {
  return withHeader(JSON.stringify(header), new Uint8Array(dataBytes));
}

const good = { dtype: "F32", shape: [2], data_offsets: [0, 8] };

Deno.test("a header gives type, shape and place of each tensor", () => {
  const bytes = file({
    __metadata__: { format: "pt" },
    second: { dtype: "F16", shape: [1, 2], data_offsets: [8, 12] },
    first: good,
    none: { dtype: "I64", shape: [0, 5], data_offsets: [12, 12] },
    scalar: { dtype: "F4", shape: [2], data_offsets: [12, 13] },
  }, 13);
  const start = bytes.length - 13;
  assertEquals(read(bytes), [
    { name: "first", type: "F32", shape: [2], begin: start, end: start + 8 },
    {
      name: "second",
      type: "F16",
      shape: [1, 2],
      begin: start + 8,
      end: start + 12,
    },
    {
      name: "none",
      type: "I64",
      shape: [0, 5],
      begin: start + 12,
      end: start + 12,
    },
    {
      name: "scalar",
      type: "F4",
      shape: [2],
      begin: start + 12,
      end: start + 13,
    },
  ]);
  assertEquals(read(safetensors(tinyTensors())).length, tinyTensors().size);
});

/** The first eight bytes of a file. */
function prefix(length: bigint): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(64);
  new DataView(bytes.buffer).setBigUint64(0, length, true);
  return bytes;
}

const twice = JSON.stringify({ a: good }).slice(1, -1);

const badFiles: [string, Uint8Array<ArrayBuffer>, string][] = [
  ["no bytes", new Uint8Array(0), "the file has 0 bytes, expected at least 8"],
  ["7 bytes", new Uint8Array(7), "the file has 7 bytes, expected at least 8"],
  [
    "a header longer than the file",
    prefix(57n),
    "the header has 57 bytes, expected at most 56 in a file of 64 bytes",
  ],
  [
    "a header of 2^60 bytes",
    prefix(2n ** 60n),
    "the header has 1152921504606846976 bytes, expected at most 56",
  ],
  [
    "a header of 2^64 - 1 bytes",
    prefix(2n ** 64n - 1n),
    "the header has 18446744073709551615 bytes",
  ],
  ["an empty header", withHeader(""), "the JSON is damaged"],
  ["a cut header", withHeader('{"a": {"dty'), "the JSON is damaged"],
  [
    "a header that is not UTF-8",
    withHeader(new Uint8Array([0x7b, 0xff, 0x7d])),
    "the header is not text, expected UTF-8",
  ],
  ["a header without names", withHeader("[]"), "the header is an array"],
  ["a header of nothing", withHeader("null"), "the header is null"],
  [
    "one name twice",
    withHeader(`{${twice},${twice}}`, new Uint8Array(8)),
    'key "a" occurs twice',
  ],
  [
    "one field twice",
    withHeader('{"a":{"dtype":"F32","dtype":"F16"}}'),
    'key "dtype" occurs twice',
  ],
  ["a tensor that is none", file({ a: 5 }), "a is 5, expected an object"],
  [
    "no type",
    file({ a: { shape: [2], data_offsets: [0, 8] } }),
    "a.dtype is missing",
  ],
  [
    "an unknown type",
    file({ a: { ...good, dtype: "F33" } }),
    'tensor "a" has type "F33", expected one of',
  ],
  [
    "a type named like a method",
    file({ a: { ...good, dtype: "toString" } }),
    'has type "toString", expected one of',
  ],
  [
    "a shape that is none",
    file({ a: { ...good, shape: 2 } }),
    "a.shape is 2, expected a list of dimensions",
  ],
  [
    "a negative dimension",
    file({ a: { ...good, shape: [-2] } }),
    "a.shape.0 is -2, expected an integer from 0",
  ],
  [
    "half a dimension",
    file({ a: { ...good, shape: [0.5] } }),
    "a.shape.0 is 0.5, expected an integer",
  ],
  [
    "dimensions beyond all numbers",
    file({ a: { ...good, shape: new Array(40).fill(2 ** 52) } }),
    'tensor "a" has 8 bytes, expected Infinity for F32',
  ],
  [
    "another size than its shape",
    file({ a: { ...good, shape: [3] } }),
    'tensor "a" has 8 bytes, expected 12 for F32 [3]',
  ],
  [
    "another size than its type",
    file({ a: { ...good, dtype: "F16" } }),
    'tensor "a" has 8 bytes, expected 4 for F16 [2]',
  ],
  [
    "a part of a byte",
    file({ a: { dtype: "F4", shape: [15], data_offsets: [0, 8] } }),
    'tensor "a" has 8 bytes, expected 7.5 for F4 [15]',
  ],
  [
    "one offset",
    file({ a: { ...good, data_offsets: [0] } }),
    "a.data_offsets.1 is missing",
  ],
  [
    "a negative offset",
    file({ a: { ...good, data_offsets: [-8, 0] } }),
    "a.data_offsets.0 is -8, expected an integer",
  ],
  [
    "offsets in the wrong order",
    file({ a: { ...good, data_offsets: [8, 0] } }),
    'tensor "a" has offsets 8 to 0, expected offsets within the 8 bytes',
  ],
  [
    "offsets beyond the file",
    file({ a: { ...good, data_offsets: [8, 16] } }),
    'tensor "a" has offsets 8 to 16, expected offsets within the 8 bytes',
  ],
  [
    "an offset of 2^60",
    file({ a: { ...good, data_offsets: [0, 2 ** 60] } }),
    "a.data_offsets.1 is 1152921504606847000, expected an integer",
  ],
  [
    "tensors that overlap",
    file({ a: good, b: { ...good, data_offsets: [4, 12] } }, 12),
    'tensor "b" starts at byte 4 of the data and overlaps the one before, expected byte 8',
  ],
  [
    "tensors that are the same bytes",
    file({ a: good, b: good }),
    "overlaps the one before",
  ],
  [
    "a gap",
    file({ a: good, b: { ...good, data_offsets: [12, 20] } }, 20),
    'tensor "b" starts at byte 12 of the data and leaves a gap, expected byte 8',
  ],
  [
    "bytes that belong to no tensor",
    file({ a: good }, 9),
    "the file has 71 bytes, expected 70 as its header says",
  ],
  [
    "cut data",
    file({ a: good }, 7),
    "has offsets 0 to 8, expected offsets within the 7 bytes",
  ],
];

for (const [name, bytes, says] of badFiles) {
  Deno.test(`a safetensors file with ${name} is rejected`, () => {
    const error = assertThrows(() => read(bytes), ModelFormatError);
    assertStringIncludes(error.message, says);
    assertEquals(error.file, "model.safetensors");
  });
}

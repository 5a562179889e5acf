/**
 * The weights of a model folder: `model.safetensors`, or the shards that
 * `model.safetensors.index.json` names.
 *
 * Opening reads and checks the headers alone. Values are read a piece at a
 * time, so that a model of any size passes through a few megabytes.
 *
 * @module
 */
import { join } from "@std/path";
import { ModelFormatError } from "../errors.ts";
import { exists, readText, show, statFile } from "./json.ts";
import {
  headerLength,
  LENGTH_BYTES,
  parseHeader,
  type TensorEntry,
} from "./safetensors.ts";
import { parseShardIndex } from "./shard_index.ts";
import {
  elementBytes,
  findUnusable,
  isWeightType,
  type WeightType,
  weightTypes,
} from "./tensor_values.ts";

/** Values in one piece, unless a single row has more: 4 MiB as floats. */
export const PIECE_VALUES: number = 2 ** 20;

/** A tensor of a checkpoint and where it lies. */
export interface CheckpointTensor extends TensorEntry {
  /** Path of its file. */
  readonly file: string;
}

/** A tensor that has the type of a weight. */
export interface WeightTensor extends CheckpointTensor {
  /** Type of its elements. */
  readonly type: WeightType;
}

/** Consecutive rows of a tensor. */
export interface Piece {
  /** Index of the first row; of the first value where the tensor is a vector. */
  readonly row: number;
  /** The values as the file has them; overwritten by the next piece. */
  readonly raw: Uint8Array<ArrayBuffer>;
}

/** Options of {@linkcode Checkpoint.pieces}. */
export interface PieceOptions {
  /** Whether values must fit into 16-bit floats. */
  readonly half: boolean;
  /** Stops between two pieces. */
  readonly signal?: AbortSignal | undefined;
}

/** The open weight files of a model. Read one tensor at a time. */
export class Checkpoint implements Disposable {
  /** Path of the file that lists the tensors, for error messages. */
  readonly file: string;
  /** All tensors by their names. */
  readonly tensors: ReadonlyMap<string, CheckpointTensor>;
  readonly #files: ReadonlyMap<string, Deno.FsFile>;
  readonly #resources: DisposableStack;
  /** Takes every piece: a buffer for each tensor would be left to the GC. */
  #buffer = new Uint8Array(0);

  /** Constructs a new instance from what {@linkcode openCheckpoint} found. */
  constructor(
    file: string,
    { tensors, files, resources }: {
      tensors: ReadonlyMap<string, CheckpointTensor>;
      files: ReadonlyMap<string, Deno.FsFile>;
      resources: DisposableStack;
    },
  ) {
    this.file = file;
    this.tensors = tensors;
    this.#files = files;
    this.#resources = resources;
  }

  /**
   * Finds a weight and checks that it has the expected shape and a float type.
   *
   * @throws {ModelFormatError} If it is missing or different.
   */
  weight(name: string, shape: readonly number[]): WeightTensor {
    const tensor = this.tensors.get(name);
    if (tensor === undefined) {
      throw new ModelFormatError(
        this.file,
        `tensor ${show(name)} is missing, expected shape [${shape.join(", ")}]`,
      );
    }
    const { file, type } = tensor;
    if (!isWeightType(type)) {
      throw new ModelFormatError(
        file,
        `tensor ${show(name)} has type ${type}, expected one of ${
          weightTypes.join(", ")
        }`,
      );
    }
    const same = tensor.shape.length === shape.length &&
      shape.every((size, i) => size === tensor.shape[i]);
    if (!same) {
      throw new ModelFormatError(
        file,
        `tensor ${show(name)} has shape [${
          tensor.shape.join(", ")
        }], expected [${shape.join(", ")}] as config.json says`,
      );
    }
    return { ...tensor, type };
  }

  /**
   * Reads a weight piece by piece, in order, and checks its values.
   *
   * @throws {ModelFormatError} If a value is NaN, infinite or too large, or if
   * the file ends early.
   */
  async *pieces(
    tensor: WeightTensor,
    { half, signal }: PieceOptions,
  ): AsyncGenerator<Piece> {
    const file = this.#files.get(tensor.file)!;
    // A vector is a matrix of one column.
    const columns = tensor.shape.slice(1).reduce((a, b) => a * b, 1);
    const rowBytes = columns * elementBytes(tensor.type);
    const pieceRows = Math.max(1, Math.floor(PIECE_VALUES / columns));
    const bytes = tensor.end - tensor.begin;
    const pieceBytes = Math.min(pieceRows * rowBytes, bytes);
    if (this.#buffer.length < pieceBytes) {
      this.#buffer = new Uint8Array(pieceBytes);
    }
    for (let at = 0; at < bytes; at += pieceBytes) {
      signal?.throwIfAborted();
      const raw = this.#buffer.subarray(0, Math.min(pieceBytes, bytes - at));
      await file.seek(tensor.begin + at, Deno.SeekMode.Start);
      await readFull(file, { target: raw, name: tensor.file });
      const found = findUnusable(raw, { type: tensor.type, half });
      const row = at / rowBytes;
      if (found >= 0) throw unusable(tensor, row * columns + found, half);
      yield { row, raw };
    }
  }

  /** Closes the files. */
  [Symbol.dispose](): void {
    this.#resources.dispose();
  }
}

/**
 * Opens the weight files of a model folder and checks all their headers. A
 * single `model.safetensors` goes before an index, as in transformers.
 *
 * @throws {ModelFormatError} If a file is missing, damaged or contradicts
 * another one.
 */
export async function openCheckpoint(folder: string): Promise<Checkpoint> {
  const single = join(folder, "model.safetensors");
  const indexFile = join(folder, "model.safetensors.index.json");
  const sharded = !(await exists(single)) && await exists(indexFile);
  const shards = sharded
    ? parseShardIndex(await readText(indexFile), indexFile)
    : new Map<string, string>();
  const paths = sharded
    ? [...new Set(shards.values())].sort().map((name) => join(folder, name))
    : [single];

  using resources = new DisposableStack();
  const files = new Map<string, Deno.FsFile>();
  const tensors = new Map<string, CheckpointTensor>();
  for (const path of paths) {
    const { size } = await statFile(path);
    const file = resources.use(await Deno.open(path));
    files.set(path, file);
    for (const entry of await readHeader(file, { path, size })) {
      const other = tensors.get(entry.name);
      if (other !== undefined) {
        throw new ModelFormatError(
          path,
          `tensor ${
            show(entry.name)
          } is also in ${other.file}, expected it in one shard`,
        );
      }
      tensors.set(entry.name, { ...entry, file: path });
    }
  }
  for (const [name, shard] of shards) {
    const path = join(folder, shard);
    if (tensors.get(name)?.file === path) continue;
    throw new ModelFormatError(
      path,
      `tensor ${show(name)} is missing, expected it as ${indexFile} says`,
    );
  }
  const file = sharded ? indexFile : single;
  return new Checkpoint(file, { tensors, files, resources: resources.move() });
}

/** Reads and checks the header of an open file. */
async function readHeader(
  file: Deno.FsFile,
  { path, size }: { path: string; size: number },
): Promise<TensorEntry[]> {
  const source = { file: path, fileBytes: size };
  const prefix = new Uint8Array(Math.min(size, LENGTH_BYTES));
  await readFull(file, { target: prefix, name: path });
  const header = new Uint8Array(headerLength(prefix, source));
  await readFull(file, { target: header, name: path });
  return parseHeader(header, source);
}

/** Fills `target` from the position of the file. */
async function readFull(
  file: Deno.FsFile,
  { target, name }: { target: Uint8Array; name: string },
): Promise<void> {
  let filled = 0;
  while (filled < target.length) {
    const count = await file.read(target.subarray(filled));
    if (count === null) {
      throw new ModelFormatError(
        name,
        `the file ends early, expected ${target.length - filled} more bytes`,
      );
    }
    filled += count;
  }
}

/** The error for a value that no backend can compute with. */
function unusable(
  { file, name, shape }: WeightTensor,
  at: number,
  half: boolean,
): ModelFormatError {
  const index: number[] = [];
  for (const size of shape.toReversed()) {
    index.unshift(at % size);
    at = Math.floor(at / size);
  }
  const limit = half ? " of at most 65504 (16-bit floats)" : "";
  return new ModelFormatError(
    file,
    `tensor ${show(name)} has a value at [${
      index.join(", ")
    }] that cannot be used, expected finite numbers${limit}`,
  );
}

/**
 * Steps of scenes: which rows are live, and where.
 *
 * @module
 */
import {
  ChunkWord,
  type DeviceBuffer,
  StateWord,
  type Step,
} from "../../src/backends/backend.ts";
import type { Stage, TensorSpec } from "./scene.ts";

/** A row of a step. */
export interface SceneRow {
  readonly row: number;
  readonly sequence: number;
  readonly position: number;
}

/** A step as a scene has it. */
export interface SceneStep {
  readonly kind: "decode" | "prefill";
  readonly rows: number;
  /** Rows that are live, with their sequence and position. */
  readonly live: readonly SceneRow[];
  /** The same and the guests after them. */
  readonly forwarded: readonly SceneRow[];
  readonly tensors: Readonly<Record<string, TensorSpec>>;
  /** The step in the buffers of a backend. */
  at(stage: Stage): Step<DeviceBuffer>;
}

/** A decode step: one row per sequence. */
export function decodeStep(
  positions: readonly number[],
  { finished = [], ids }: {
    finished?: readonly number[];
    ids?: readonly number[];
  } = {},
): SceneStep {
  const rows = positions.length;
  const state = new Uint32Array(rows * StateWord.count);
  positions.forEach((position, row) => {
    state[row * StateWord.count + StateWord.position] = position;
    state[row * StateWord.count + StateWord.finished] = finished.includes(row)
      ? 1
      : 0;
  });
  return makeStep({
    kind: "decode",
    rows,
    live: positions.map((position, row) => ({ row, sequence: row, position }))
      .filter(({ row }) => !finished.includes(row)),
    ids: ids ?? positions.map(() => 0),
    state,
    chunk: new Uint32Array(ChunkWord.count),
  });
}

/** A prefill step of `live` rows, and guests, in a program of `rows`. */
export function prefillStep(
  {
    rows,
    guests = 0,
    live = rows - guests,
    position = 0,
    sequence = 0,
    sequences = 1,
    ids,
  }: {
    rows: number;
    guests?: number;
    live?: number;
    position?: number;
    sequence?: number;
    sequences?: number;
    ids?: readonly number[];
  },
): SceneStep {
  const chunk = new Uint32Array(ChunkWord.count);
  chunk[ChunkWord.sequence] = sequence;
  chunk[ChunkWord.rows] = live;
  chunk[ChunkWord.position] = position;
  chunk[ChunkWord.guests] = guests;
  const forwarded = Array.from(
    { length: live + guests },
    (_, row) => ({ row, sequence, position: position + row }),
  );
  return makeStep({
    kind: "prefill",
    rows,
    live: forwarded.slice(0, live),
    forwarded,
    ids: ids ?? Array.from({ length: rows }, () => 0),
    state: new Uint32Array(sequences * StateWord.count),
    chunk,
  });
}

function makeStep(
  { kind, rows, live, forwarded = live, ids, state, chunk }: {
    kind: "decode" | "prefill";
    rows: number;
    live: readonly SceneRow[];
    forwarded?: readonly SceneRow[];
    ids: readonly number[];
    state: Uint32Array;
    chunk: Uint32Array;
  },
): SceneStep {
  return {
    kind,
    rows,
    live,
    forwarded,
    tensors: {
      tokens: { type: "u32", data: Uint32Array.from(ids) },
      state: { type: "u32", data: state },
      chunk: { type: "u32", data: chunk },
    },
    at: (stage) => ({
      kind,
      rows,
      tokens: stage.buffer("tokens"),
      state: stage.buffer("state"),
      chunk: stage.buffer("chunk"),
    }),
  };
}

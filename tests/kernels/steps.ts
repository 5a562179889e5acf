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

/** A step as a scene has it. */
export interface SceneStep {
  readonly kind: "decode" | "prefill";
  readonly rows: number;
  /** Rows that are live, with their sequence and position. */
  readonly live: readonly {
    readonly row: number;
    readonly sequence: number;
    readonly position: number;
  }[];
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

/** A prefill step of `live` rows in a program of `rows`. */
export function prefillStep(
  { rows, live = rows, position = 0, sequence = 0, sequences = 1, ids }: {
    rows: number;
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
  return makeStep({
    kind: "prefill",
    rows,
    live: Array.from(
      { length: live },
      (_, row) => ({ row, sequence, position: position + row }),
    ),
    ids: ids ?? Array.from({ length: rows }, () => 0),
    state: new Uint32Array(sequences * StateWord.count),
    chunk,
  });
}

function makeStep(
  { kind, rows, live, ids, state, chunk }: {
    kind: "decode" | "prefill";
    rows: number;
    live: SceneStep["live"];
    ids: readonly number[];
    state: Uint32Array;
    chunk: Uint32Array;
  },
): SceneStep {
  return {
    kind,
    rows,
    live,
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

/**
 * A cache that is full at once: reading as many tokens takes a CPU minutes, and
 * a GPU too long to do it for each of many measurements.
 */
import {
  type Backend,
  type DeviceBuffer,
  FREE_BIAS,
  HeadWord,
  SlotField,
  type Slots,
} from "../../src/backends/backend.ts";
import type { HeadBudget } from "../../src/cache/budget.ts";
import { initialTable } from "../../src/cache/layout.ts";
import type { SlotCache } from "../../src/cache/slot_cache.ts";

/** Options of {@link fillCache}. */
export interface FillOptions {
  /** Sequences of the cache (default 1). */
  readonly sequences?: number;
  /** Live slots of each head (default: its budget). */
  readonly live?: number;
  /** Writes the keys and values of a layer (default: they stay as they are). */
  readonly fill?: (buffer: DeviceBuffer) => void;
  /** Random numbers around 0 for the scores of slots (default: no score). */
  readonly scores?: (length: number) => Float32Array;
}

/** Fills every head of every sequence with tokens of its own. */
export function fillCache(
  backend: Backend,
  { budgets, layers }: SlotCache,
  { sequences = 1, live, fill, scores }: FillOptions = {},
): void {
  const liveOf = ({ slots }: HeadBudget) => live ?? slots;
  const table = initialTable(budgets, sequences);
  const counts = budgets.flatMap((heads) =>
    Array.from({ length: sequences }, () => heads.map(liveOf)).flat()
  );
  counts.forEach((count, head) => {
    for (const word of [HeadWord.live, HeadWord.next, HeadWord.high]) {
      table[head * HeadWord.count + word] = count;
    }
  });
  const known = new Map<string, SideFields>();
  layers.forEach(({ slots, lanes }, l) => {
    const { side, total } = slots;
    const heads = budgets[l]!.map((head) => ({ ...head, live: liveOf(head) }));
    const key = JSON.stringify(heads);
    // Layers are alike more often than not.
    const fields = known.get(key) ?? sideFields(heads, { sequences, total });
    known.set(key, fields);
    backend.write(side, fields.positions, SlotField.position * total);
    backend.write(side, fields.tokens, SlotField.tokens * total);
    for (let lane = 0; lane < lanes; lane++) {
      backend.write(side, fields.bias, (SlotField.bias + lane) * total);
    }
    if (scores !== undefined) writeScores(slots, { backend, scores });
    fill?.(slots.keys);
    fill?.(slots.values);
  });
  backend.write(layers[0]!.table, table);
}

/** Fields of all slots of a layer. */
interface SideFields {
  readonly positions: Uint32Array;
  readonly tokens: Uint32Array;
  readonly bias: Float32Array;
}

/** What tokens leave beside their keys: live slots, then free ones. */
function sideFields(
  heads: readonly (HeadBudget & { readonly live: number })[],
  { sequences, total }: { sequences: number; total: number },
): SideFields {
  const positions = new Uint32Array(total);
  const tokens = new Uint32Array(total);
  const bias = new Float32Array(total).fill(FREE_BIAS);
  let offset = 0;
  for (let sequence = 0; sequence < sequences; sequence++) {
    for (const { live, capacity } of heads) {
      const end = offset + live;
      tokens.fill(1, offset, end);
      bias.fill(0, offset, end);
      for (let i = offset; i < end; i++) positions[i] = i - offset;
      offset += capacity;
    }
  }
  return { positions, tokens, bias };
}

/** Rows that have observed each slot, as if the text had been read. */
const OBSERVATIONS = 64;

/** Scores that differ from slot to slot. */
function writeScores(
  { side, total }: Slots<DeviceBuffer>,
  { backend, scores }: {
    backend: Backend;
    scores: (length: number) => Float32Array;
  },
): void {
  const piece = 2 ** 18;
  const counts = new Uint32Array(piece).fill(OBSERVATIONS);
  for (let offset = 0; offset < total; offset += piece) {
    const count = Math.min(piece, total - offset);
    const at = (field: number) => field * total + offset;
    const normals = scores(count);
    backend.write(side, normals, at(SlotField.ema));
    backend.write(side, normals.map(Math.abs), at(SlotField.accumulated));
    backend.write(side, normals.map(Math.abs), at(SlotField.valueNorm));
    backend.write(side, counts.subarray(0, count), at(SlotField.observations));
  }
}

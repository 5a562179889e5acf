/**
 * How the reference functions see a step, a matrix and the heads of a cache.
 *
 * @module
 */
import {
  type CacheLayer,
  ChunkWord,
  HeadWord,
  type HostTensor,
  SlotField,
  type Slots,
  StateWord,
  type Step,
} from "../backends/backend.ts";

/** A weight matrix on the host, `(rows, columns)` row by row. */
export interface HostMatrix {
  /** Number of outputs. */
  readonly rows: number;
  /** Number of inputs. */
  readonly columns: number;
  /** The elements. */
  readonly f32: Float32Array;
}

/** Makes a tensor of `length` zeros. */
export function hostTensor(length: number): HostTensor {
  const f32 = new Float32Array(length);
  return { f32, u32: new Uint32Array(f32.buffer) };
}

/** A live row of a step. */
export interface LiveRow {
  /** Index of the row in the program. */
  readonly row: number;
  /** Sequence that the row belongs to. */
  readonly sequence: number;
  /** Position of the row's token in the text. */
  readonly position: number;
}

/** The live rows of a step, in order; guests are not among them. */
export function liveRows(step: Step<HostTensor>): LiveRow[] {
  const rows: LiveRow[] = [];
  if (step.kind === "prefill") {
    const chunk = step.chunk.u32;
    const sequence = chunk[ChunkWord.sequence]!;
    for (let row = 0; row < chunk[ChunkWord.rows]!; row++) {
      rows.push({ row, sequence, position: chunk[ChunkWord.position]! + row });
    }
    return rows;
  }
  for (let row = 0; row < step.rows; row++) {
    const state = row * StateWord.count;
    if (step.state.u32[state + StateWord.finished] !== 0) continue;
    const position = step.state.u32[state + StateWord.position]!;
    rows.push({ row, sequence: row, position });
  }
  return rows;
}

/** The live rows of a step and, in a prefill step, the guests after them. */
export function forwardRows(step: Step<HostTensor>): LiveRow[] {
  const rows = liveRows(step);
  const last = rows.at(-1);
  if (step.kind === "decode" || last === undefined) return rows;
  const { row, sequence, position } = last;
  const guests = step.chunk.u32[ChunkWord.guests]!;
  for (let i = 1; i <= guests; i++) {
    rows.push({ row: row + i, sequence, position: position + i });
  }
  return rows;
}

/** One slot: its index in the cache or in the stage. */
export interface Slot {
  /** The slots it belongs to. */
  readonly home: Slots<HostTensor>;
  /** Its index there. */
  readonly index: number;
}

/** Words of the head table that are floats, and all others. */
type FloatWord = "divergence" | "threshold" | "spread";
type CountWord = Exclude<keyof typeof HeadWord, "count" | FloatWord>;

/** The part of one layer's cache that belongs to one sequence and KV head. */
export class HeadView {
  readonly #table: Uint32Array;
  readonly #row: number;
  readonly #cache: CacheLayer<HostTensor>;
  readonly #kvHead: number;

  /** Constructs a view of `kvHead` of `sequence`. */
  constructor(
    cache: CacheLayer<HostTensor>,
    { sequence, kvHead, kvHeads }: {
      sequence: number;
      kvHead: number;
      kvHeads: number;
    },
  ) {
    this.#cache = cache;
    this.#kvHead = kvHead;
    this.#table = cache.table.u32;
    this.#row = ((cache.layer * cache.sequences + sequence) * kvHeads +
      kvHead) * HeadWord.count;
  }

  /** Reads a word of the head table. */
  get(word: CountWord): number {
    return this.#table[this.#row + HeadWord[word]]!;
  }

  /** Writes a word of the head table. */
  set(word: CountWord, value: number): void {
    this.#table[this.#row + HeadWord[word]] = value;
  }

  /** Reads a float of the head table. */
  getFloat(word: FloatWord): number {
    return this.#cache.table.f32[this.#row + HeadWord[word]]!;
  }

  /** Writes a float of the head table. */
  setFloat(word: FloatWord, value: number): void {
    this.#cache.table.f32[this.#row + HeadWord[word]] = value;
  }

  /** Adds to the head's sum of merge divergences. */
  addDivergence(value: number): void {
    this.setFloat("divergence", this.getFloat("divergence") + value);
  }

  /** Slot `index` of the head, counted from its offset. */
  slot(index: number): Slot {
    return { home: this.#cache.slots, index: this.get("offset") + index };
  }

  /** Staged row `row` of the chunk. */
  staged(row: number): Slot {
    const index = this.#kvHead * this.#cache.stageRows + row;
    return { home: this.#cache.stage, index };
  }

  /** The live slots, in the order of their index. */
  liveSlots(): Slot[] {
    const slots: Slot[] = [];
    for (let i = 0; i < this.get("high"); i++) {
      const slot = this.slot(i);
      if (tokensOf(slot) > 0) slots.push(slot);
    }
    return slots;
  }

  /** Index of the first free slot, or the capacity if there is none. */
  firstFree(): number {
    const capacity = this.get("capacity");
    for (let i = 0; i < capacity; i++) {
      if (tokensOf(this.slot(i)) === 0) return i;
    }
    return capacity;
  }
}

/** Reads a float field of a slot. */
export function getFloat(slot: Slot, field: number): number {
  return slot.home.side.f32[field * slot.home.total + slot.index]!;
}

/** Writes a float field of a slot. */
export function setFloat(slot: Slot, field: number, value: number): void {
  slot.home.side.f32[field * slot.home.total + slot.index] = value;
}

/** Reads an integer field of a slot. */
export function getWord(slot: Slot, field: number): number {
  return slot.home.side.u32[field * slot.home.total + slot.index]!;
}

/** Writes an integer field of a slot. */
export function setWord(slot: Slot, field: number, value: number): void {
  slot.home.side.u32[field * slot.home.total + slot.index] = value;
}

/** Tokens that a slot stands for. */
export function tokensOf(slot: Slot): number {
  return getWord(slot, SlotField.tokens);
}

/** Position in the text of a slot. */
export function positionOf(slot: Slot): number {
  return getWord(slot, SlotField.position);
}

/** Vote bias of a slot for query head `g` of its group. */
export function voteBias(slot: Slot, g: number, lanes: number): number {
  return getFloat(slot, SlotField.bias + (lanes === 1 ? 0 : g));
}

/** The key of a slot, `(headDim)`, not a copy. */
export function keyOf(slot: Slot, headDim: number): Float32Array {
  return slot.home.keys.f32.subarray(
    slot.index * headDim,
    (slot.index + 1) * headDim,
  );
}

/** The value of a slot, `(headDim)`, not a copy. */
export function valueOf(slot: Slot, headDim: number): Float32Array {
  return slot.home.values.f32.subarray(
    slot.index * headDim,
    (slot.index + 1) * headDim,
  );
}

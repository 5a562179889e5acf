/**
 * What the next call of a decode step finds, by what the one before it left.
 *
 * @module
 */
import {
  HeadWord,
  LOG_ZERO,
  SlotField,
  StateWord,
} from "../../src/backends/backend.ts";
import { voteLanes } from "../../src/cache/layout.ts";
import {
  decodeTensors,
  type DecodeTurn,
  type Tensors,
} from "./decode_cases.ts";
import { garbage, roundToHalf } from "./random.ts";

/** What a call left, with copies of the tensors that the next one changes. */
function copied({ tensors, expected }: DecodeTurn): {
  tensors: Record<string, Tensors[string]>;
  side: Float32Array;
  sideWords: Uint32Array;
} {
  const next: Record<string, Tensors[string]> = { ...tensors };
  for (const name of ["keys", "values"]) {
    // The reference keeps what it merges in more bits.
    next[name] = { type: "half", data: roundToHalf(expected[name]!.f32) };
  }
  next.side = { type: "f32", data: expected.side!.f32.slice() };
  next.table = { type: "u32", data: expected.table!.u32.slice() };
  next.state = { type: "u32", data: tensors.state!.data.slice() };
  next.output = { type: "f32", data: garbage(expected.output!.f32.length) };
  const side = next.side!.data as Float32Array;
  return { tensors: next, side, sideWords: new Uint32Array(side.buffer) };
}

/**
 * The next step of the same texts: rows that are live go on by one token.
 * `pauses` are rows that take part in every second step.
 */
export function follow(
  turn: DecodeTurn,
  pauses: readonly number[] = [],
): Tensors {
  const { options: { sizes, policy, heads }, random } = turn;
  const lanes = voteLanes(policy, sizes);
  const { tensors, side, sideWords } = copied(turn);
  const total = tensors.keys!.data.length / sizes.headDim;
  const table = tensors.table!.data;
  const state = tensors.state!.data;
  const keys = tensors.keys!.data as Float32Array;
  const values = tensors.values!.data as Float32Array;
  heads.forEach((_, row) => {
    const words = row * StateWord.count;
    const position = words + StateWord.position;
    const finished = words + StateWord.finished;
    if (state[finished] === 0) state[position]!++;
    if (pauses.includes(row)) state[finished] = 1 - state[finished]!;
    if (state[finished] !== 0) return;
    for (let kvHead = 0; kvHead < sizes.kvHeads; kvHead++) {
      const head = (heads.length + row) * sizes.kvHeads + kvHead;
      const word = (which: number) => table[head * HeadWord.count + which]!;
      if (word(HeadWord.next) >= word(HeadWord.capacity)) continue;
      const slot = word(HeadWord.offset) + word(HeadWord.next);
      keys.set(random.halves(sizes.headDim), slot * sizes.headDim);
      values.set(random.halves(sizes.headDim), slot * sizes.headDim);
      side[SlotField.ema * total + slot] = LOG_ZERO;
      side[SlotField.accumulated * total + slot] = 0;
      sideWords[SlotField.observations * total + slot] = 0;
      sideWords[SlotField.position * total + slot] = state[position]!;
      sideWords[SlotField.tokens * total + slot] = 1;
      side[SlotField.valueNorm * total + slot] = 5 * random.uniform();
      for (let lane = 0; lane < lanes; lane++) {
        side[(SlotField.bias + lane) * total + slot] = 0;
      }
    }
  });
  return tensors;
}

/**
 * The same step again, but that the slots which went the last time count for
 * more: the ones next in line go.
 */
export function spare({ tensors, expected, options }: DecodeTurn): Tensors {
  const words = new Uint32Array(tensors.side!.data.buffer);
  const total = tensors.keys!.data.length / options.sizes.headDim;
  const victims = Array.from({ length: total }, (_, slot) => slot)
    .filter((slot) => {
      const tokens = SlotField.tokens * total + slot;
      return words[tokens] !== 0 && expected.side!.u32[tokens] === 0;
    });
  return raise(tensors, victims, total);
}

/** Adds to the scores of some slots. */
function raise(
  tensors: Tensors,
  slots: readonly number[],
  total: number,
): Tensors {
  const side = (tensors.side!.data as Float32Array).slice();
  for (const slot of slots) {
    side[SlotField.ema * total + slot]! += 8;
    side[SlotField.accumulated * total + slot]! += 8;
  }
  return { ...tensors, side: { type: "f32", data: side } };
}

/**
 * The same, and as many of the next in line as calls were made already count
 * for more as well; for scores that are sums of attention.
 */
export function skip(turn: DecodeTurn): Tensors {
  const { index, expected, options, tensors } = turn;
  const { kvHeads, headDim } = options.sizes;
  const total = tensors.keys!.data.length / headDim;
  const { f32, u32 } = expected.side!;
  const table = expected.table!.u32;
  const skipped = options.heads.flatMap((_, row) => {
    const position = row * StateWord.count + StateWord.position;
    const newest = tensors.state!.data[position]! + 1;
    return Array.from({ length: kvHeads }, (_, kvHead) => {
      const head = (options.heads.length + row) * kvHeads + kvHead;
      const word = (which: number) => table[head * HeadWord.count + which]!;
      return Array.from(
        { length: word(HeadWord.high) },
        (_, i) => word(HeadWord.offset) + i,
      ).filter((slot) => {
        const position = u32[SlotField.position * total + slot]!;
        return u32[SlotField.tokens * total + slot] !== 0 &&
          position >= options.policy.select.sinks &&
          position + word(HeadWord.recent) <= newest;
      }).sort((a, b) =>
        f32[SlotField.accumulated * total + a]! -
        f32[SlotField.accumulated * total + b]!
      ).slice(0, index);
    }).flat();
  });
  return raise(spare(turn), skipped, total);
}

/**
 * A step of other texts in the same memory, whose heads of each sequence have
 * changed places: slots that went next may not be there at all.
 */
export function turnToOthers({ options, random }: DecodeTurn): Tensors {
  const heads = options.heads.map((all) => all.toReversed());
  return decodeTensors({ ...options, heads }, random);
}

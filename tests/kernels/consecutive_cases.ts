/**
 * Cases of `merge_attend` that make several calls of one program: what a
 * backend keeps from one step to the next must never change a result.
 *
 * @module
 */
import {
  HeadWord,
  LOG_ZERO,
  type ModelSizes,
  SlotField,
  StateWord,
} from "../../src/backends/backend.ts";
import { voteLanes } from "../../src/cache/layout.ts";
import type { SceneHead } from "./cache_scene.ts";
import {
  d2o,
  decodeCase,
  decodeTensors,
  type DecodeTurn,
  gqa,
  merged,
  type Tensors,
  variedHeads,
} from "./decode_cases.ts";
import type { KernelCase } from "./kernel_case.ts";
import { modelSizes } from "./matrix_cases.ts";
import { testPolicy, votes } from "./policies.ts";
import { garbage, roundToHalf } from "./random.ts";

type Next = (turn: DecodeTurn) => Tensors | undefined;

/** Calls `next` up to the last of `calls`. */
function times(calls: number, next: Next): Next {
  return (turn) => turn.index + 1 < calls ? next(turn) : undefined;
}

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
function follow(turn: DecodeTurn, pauses: readonly number[] = []): Tensors {
  const { options: { sizes, policy, heads }, random } = turn;
  const lanes = voteLanes(policy, sizes);
  const { tensors, side, sideWords } = copied(turn);
  const total = side.length / (SlotField.bias + lanes);
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
function spare({ tensors, expected, options }: DecodeTurn): Tensors {
  const side = (tensors.side!.data as Float32Array).slice();
  const words = new Uint32Array(side.buffer);
  const total = tensors.keys!.data.length / options.sizes.headDim;
  for (let slot = 0; slot < total; slot++) {
    const tokens = SlotField.tokens * total + slot;
    if (words[tokens] === 0 || expected.side!.u32[tokens] !== 0) continue;
    side[SlotField.ema * total + slot]! += 8;
    side[SlotField.accumulated * total + slot]! += 8;
  }
  return { ...tensors, side: { type: "f32", data: side } };
}

/**
 * A step of other texts in the same memory, whose heads of each sequence have
 * changed places: slots that went next may not be there at all.
 */
function turnToOthers({ options, random }: DecodeTurn): Tensors {
  const heads = options.heads.map((all) => all.toReversed());
  return decodeTensors({ ...options, heads }, random);
}

/** Slots enough for several blocks and several tiles of each warp. */
const longHeads: readonly SceneHead[] = [
  { capacity: 331, budget: 320, recent: 20, live: 320, holes: 9 },
  { capacity: 291, budget: 270, recent: 20, live: 270, holes: 0 },
];

const short: readonly SceneHead[] = [
  { capacity: 23, budget: 20, recent: 3, live: 20, holes: 1 },
  { capacity: 40, budget: 12, recent: 3, live: 12, holes: 4 },
];

/** Sizes of two KV heads with `group` query heads each. */
function groupsOf(group: number, headDim: number): ModelSizes {
  return modelSizes({ heads: 2 * group, kvHeads: 2, headDim });
}

/** All cases. */
export const consecutiveCases: readonly KernelCase[] = [
  ...([[1, 64], [4, 16], [5, 32], [7, 40], [8, 16], [9, 32]] as const).map((
    [group, headDim],
  ) =>
    decodeCase({
      name: `step after step with groups of ${group}`,
      policy: testPolicy({ merge: votes({ threshold: -1 }) }),
      sizes: groupsOf(group, headDim),
      heads: [variedHeads],
      positions: [90],
      clusters: 3,
      expect: merged(2),
      next: times(5, follow),
    })
  ),
  ...([[1, 128], [4, 128], [7, 80]] as const).map(([group, headDim]) =>
    decodeCase({
      name: `evicts what was next in line, groups of ${group}`,
      policy: testPolicy({ merge: votes({ threshold: -1 }) }),
      sizes: groupsOf(group, headDim),
      heads: [longHeads],
      positions: [900],
      clusters: 30,
      expect: merged(2),
      next: times(3, spare),
    })
  ),
  ...([false, true] as const).map((votesPerQueryHead) =>
    decodeCase({
      name: `merges with minNorm what was next in line${
        votesPerQueryHead ? ", votes per head" : ""
      }`,
      policy: testPolicy({
        merge: votes({ key: "minNorm", votesPerQueryHead, threshold: -1 }),
        sinkPositions: "cache",
      }),
      sizes: gqa,
      heads: [variedHeads],
      positions: [90],
      clusters: 3,
      expect: merged(2),
      next: times(3, spare),
    })
  ),
  decodeCase({
    name: "finds the first of equal keys for what was next in line",
    policy: testPolicy({}),
    sizes: gqa,
    heads: [variedHeads],
    positions: [90],
    clusters: 4,
    hasTwins: true,
    expect: merged(2),
    next: times(4, spare),
  }),
  decodeCase({
    name: "of D2O, step after step",
    policy: d2o,
    sizes: gqa,
    heads: [variedHeads],
    positions: [90],
    clusters: 3,
    threshold: 0.01,
    next: times(5, follow),
  }),
  decodeCase({
    name: "of D2O at a threshold that follows what was next in line",
    policy: d2o,
    sizes: groupsOf(4, 32),
    heads: [longHeads.map((head) => ({ ...head, live: 130, budget: 130 }))],
    positions: [900],
    clusters: 30,
    next: times(3, spare),
  }),
  decodeCase({
    name: "of heads that share their scores, step after step",
    policy: testPolicy({
      scope: "layer",
      merge: votes({ prefill: "evictFirst", threshold: -1 }),
    }),
    sizes: gqa,
    heads: [[variedHeads[1]!, variedHeads[1]!]],
    positions: [90],
    clusters: 3,
    expect: merged(2),
    next: times(4, follow),
  }),
  decodeCase({
    name: "of scores that count values, step after step",
    policy: testPolicy({
      values: {
        kind: "norm",
        of: "projected",
        first: 0.5,
        power: 1,
        epsilon: 1e-4,
      },
      merge: votes({ threshold: -1 }),
    }),
    sizes: gqa,
    heads: [variedHeads],
    positions: [90],
    clusters: 3,
    expect: merged(2),
    next: times(4, follow),
  }),
  decodeCase({
    name: "turns to other texts with other slots",
    policy: testPolicy({ merge: votes({ threshold: -1 }) }),
    sizes: gqa,
    heads: [variedHeads, [variedHeads[1]!, variedHeads[0]!]],
    positions: [90, 130],
    clusters: 3,
    expect: merged(4),
    next: times(3, turnToOthers),
  }),
  decodeCase({
    name: "of 4 sequences of different lengths, two of which pause",
    policy: testPolicy({ merge: votes({ threshold: -1 }) }),
    sizes: gqa,
    heads: [
      variedHeads,
      short,
      [{ ...variedHeads[0]!, live: 25, budget: 27 }, variedHeads[1]!],
      [short[1]!, { ...variedHeads[1]!, live: 0 }],
    ],
    positions: [90, 45, 77, 200],
    finished: [1],
    clusters: 3,
    next: times(6, (turn) => follow(turn, [1, 2])),
  }),
];

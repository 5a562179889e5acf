/**
 * Cases of `merge_attend` that make several calls of one program: what a
 * backend keeps from one step to the next must never change a result.
 *
 * @module
 */
import type { ModelSizes } from "../../src/backends/backend.ts";
import type { SceneHead } from "./cache_scene.ts";
import {
  d2o,
  decodeCase,
  type DecodeTurn,
  gqa,
  merged,
  type Tensors,
  variedHeads,
} from "./decode_cases.ts";
import type { KernelCase } from "./kernel_case.ts";
import { modelSizes } from "./matrix_cases.ts";
import { follow, skip, spare, turnToOthers } from "./next_steps.ts";
import { pairs, testPolicy, votes } from "./policies.ts";

type Next = (turn: DecodeTurn) => Tensors | undefined;

/** Calls `next` up to the last of `calls`. */
function times(calls: number, next: Next): Next {
  return (turn) => turn.index + 1 < calls ? next(turn) : undefined;
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
  ...([1, 5, 6, 7] as const).map((group) =>
    decodeCase({
      name: `evicts what was further back in line, groups of ${group}`,
      policy: testPolicy({
        score: { kind: "accumulated" },
        merge: votes({ threshold: -1 }),
      }),
      sizes: groupsOf(group, 16),
      heads: [variedHeads],
      positions: [90],
      clusters: 3,
      expect: merged(2),
      next: times(6, skip),
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
  ...(["sum", "product"] as const).map((distance) =>
    decodeCase({
      name:
        `of partners that are remembered, step after step, by a ${distance}`,
      policy: testPolicy({ merge: pairs({ distance, search: "incremental" }) }),
      sizes: groupsOf(2, 64),
      heads: [variedHeads],
      positions: [90],
      expect: merged(2),
      next: times(6, follow),
    })
  ),
  ...([0, 0.9] as const).map((known) =>
    decodeCase({
      name: `of partners that are searched for now and then, ${known} at first`,
      policy: testPolicy({
        merge: pairs({ distance: "product", search: "incremental" }),
      }),
      sizes: groupsOf(2, 32),
      heads: [longHeads],
      positions: [900],
      known,
      expect: merged(2),
      next: times(12, follow),
    })
  ),
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

/**
 * Caches for scenes: slots with random content, holes between them, and the
 * staged rows of a chunk.
 *
 * @module
 */
import {
  type CacheLayer,
  type DeviceBuffer,
  FREE_BIAS,
  HeadWord,
  LOG_ZERO,
  type ModelSizes,
  PartnerField,
  partnerField,
  queryStatisticsLayout,
  SlotField,
} from "../../src/backends/backend.ts";
import { Random, roundToHalf } from "./random.ts";
import type { Stage, TensorSpec } from "./scene.ts";

/** One head of a cache before the call. */
export interface SceneHead {
  readonly capacity: number;
  readonly budget: number;
  readonly recent: number;
  /** Live slots before the call; the newest token of a decode step excluded. */
  readonly live: number;
  /** Free slots between them. */
  readonly holes: number;
}

/** What a cache is made from. */
export interface CacheOptions {
  readonly sizes: ModelSizes;
  readonly lanes: number;
  /** Slots that remember a partner, among those that may go. */
  readonly partners?: {
    readonly sinks: number;
    /** Share of them that know one. */
    readonly known: number;
  };
  /** {@link HeadWord.spread} of all heads, 0 if left out. */
  readonly spread?: number;
  readonly stageRows: number;
  /** `(sequences, kvHeads)`. */
  readonly heads: readonly (readonly SceneHead[])[];
  /** Tokens before the step, per sequence. */
  readonly positions: readonly number[];
  /** Directions that keys cluster around; 0 for keys without clusters. */
  readonly clusters: number;
  /** Whether the keys of a cluster are equal. */
  readonly hasTwins?: boolean;
  /** Whether the heads of a sequence hold the same tokens in the same slots. */
  readonly lockstep?: boolean;
  /** Whether the step's own token stands in the `next` slot of each head. */
  readonly hasNewest: boolean;
  /** {@link HeadWord.threshold} of all heads, 0 if left out. */
  readonly threshold?: number;
  /** Whether the cache knows what queries are expected. */
  readonly hasStatistics?: boolean;
  /** Whether a head may grow to what all heads of its sequence have. */
  readonly isAdaptive?: boolean;
  readonly random: Random;
}

/** A cache as a scene has it: layer 1 of 2. */
export interface SceneCache {
  readonly tensors: Readonly<Record<string, TensorSpec>>;
  /** Slots of the layer, over sequences and KV heads. */
  readonly slots: number;
  /** Slots of the stage. */
  readonly stageSlots: number;
  at(stage: Stage): CacheLayer<DeviceBuffer>;
}

/** Element of keys in slots that are not live. */
export const GARBAGE_KEY = 336;

/** How far keys lie from the direction of their cluster, relative. */
const SPREAD = 0.4;

/** Makes a cache. Slots that are not live hold garbage. */
export function makeCache(options: CacheOptions): SceneCache {
  const { sizes, lanes, stageRows, heads, positions, random } = options;
  const { headDim, kvHeads } = sizes;
  const fields = SlotField.bias + lanes +
    (options.partners ? PartnerField.count : 0);
  const total = heads.flat().reduce((sum, { capacity }) => sum + capacity, 0);
  const stageTotal = stageRows * kvHeads;
  const keyOf = keySource(options);
  const layer = 1;
  // A stream of their own: few cases look at them.
  const norms = new Random(7);

  const keys = new Float32Array(total * headDim).fill(GARBAGE_KEY);
  const values = new Float32Array(total * headDim).fill(-GARBAGE_KEY);
  const side = new Float32Array(total * fields);
  const sideWords = new Uint32Array(side.buffer);
  side.fill(FREE_BIAS, SlotField.bias * total, partnerField(lanes) * total);
  const table = new Uint32Array(2 * heads.length * kvHeads * HeadWord.count);
  const tableFloats = new Float32Array(table.buffer);
  const lockstep: { order: number[]; texts: number[] }[] = [];
  let offset = 0;
  heads.forEach((sequenceHeads, sequence) => {
    sequenceHeads.forEach((head, kvHead) => {
      const used = head.live + head.holes;
      const first = lockstep[sequence];
      const order = first?.order ?? random.permutation(used);
      const free = order.slice(0, head.holes).sort((a, b) => a - b);
      const taken = order.slice(head.holes);
      const tokensBefore = positions[sequence]!;
      const texts = first?.texts ??
        choosePositions(head.live, tokensBefore, random);
      if (options.lockstep) lockstep[sequence] = { order, texts };
      const next = free[0] ?? used;
      const fill = (index: number, position: number, isNew: boolean) => {
        const slot = offset + index;
        keys.set(keyOf(sequence * kvHeads + kvHead), slot * headDim);
        values.set(random.halves(headDim), slot * headDim);
        const tokens = isNew ? 1 : 1 + random.below(4);
        const put = (field: number, value: number) =>
          side[field * total + slot] = value;
        put(SlotField.ema, isNew ? LOG_ZERO : 2 * random.normal() - 3);
        put(SlotField.accumulated, isNew ? 0 : 2 * random.uniform());
        const observations = isNew ? 0 : 1 + random.below(20);
        sideWords[SlotField.observations * total + slot] = observations;
        sideWords[SlotField.position * total + slot] = position;
        sideWords[SlotField.tokens * total + slot] = tokens;
        put(SlotField.valueNorm, 5 * norms.uniform());
        for (let lane = 0; lane < lanes; lane++) {
          const bias = Math.log(tokens) * (lanes === 1 ? 1 : random.uniform());
          put(SlotField.bias + lane, bias);
        }
      };
      texts.forEach((position, i) => fill(taken[i]!, position, false));
      if (options.hasNewest && next < head.capacity) {
        fill(next, tokensBefore, true);
      }
      if (options.partners !== undefined) {
        // The newest token of the step before, and what it kept.
        const { sinks, known } = options.partners;
        const old = texts.flatMap((position, i) =>
          position >= sinks && position + head.recent < tokensBefore
            ? [taken[i]!]
            : []
        );
        for (const index of old) {
          const other = old[random.below(old.length)]!;
          if (random.uniform() >= known || other === index) continue;
          const at = partnerField(lanes) * total + offset + index;
          sideWords[at + PartnerField.slot * total] = 1 + other;
          side[at + PartnerField.distance * total] = 8 * random.uniform();
        }
      }
      const at = ((layer * heads.length + sequence) * kvHeads + kvHead) *
        HeadWord.count;
      tableFloats[at + HeadWord.threshold] = options.threshold ?? 0;
      tableFloats[at + HeadWord.spread] = options.spread ?? 0;
      table[at + HeadWord.offset] = offset;
      table[at + HeadWord.capacity] = head.capacity;
      table[at + HeadWord.budget] = head.budget;
      table[at + HeadWord.recent] = head.recent;
      table[at + HeadWord.live] = head.live;
      table[at + HeadWord.next] = next;
      table[at + HeadWord.high] = used;
      table[at + HeadWord.merged] = 3;
      table[at + HeadWord.dropped] = 5;
      table[at + HeadWord.droppedTokens] = 7;
      offset += head.capacity;
    });
  });

  const stageSide = new Float32Array(stageTotal * fields);
  const stageWords = new Uint32Array(stageSide.buffer);
  for (let slot = 0; slot < stageTotal; slot++) {
    stageSide[SlotField.ema * stageTotal + slot] = LOG_ZERO;
    stageWords[SlotField.position * stageTotal + slot] = positions.at(-1)! +
      slot % stageRows;
    stageWords[SlotField.tokens * stageTotal + slot] = 1;
    stageSide[SlotField.valueNorm * stageTotal + slot] = 5 * norms.uniform();
  }
  const stageKeys = new Float32Array(stageTotal * headDim);
  for (let slot = 0; slot < stageTotal; slot++) {
    const head = (heads.length - 1) * kvHeads + Math.floor(slot / stageRows);
    stageKeys.set(keyOf(head), slot * headDim);
  }
  const maxCapacity = Math.max(
    ...options.isAdaptive
      ? heads.map((all) => all.reduce((sum, { capacity }) => sum + capacity, 0))
      : heads.flat().map(({ capacity }) => capacity),
  );
  return {
    slots: total,
    stageSlots: stageTotal,
    tensors: {
      keys: { type: "half", data: keys },
      values: { type: "half", data: values },
      side: { type: "f32", data: side },
      stageKeys: { type: "half", data: stageKeys },
      stageValues: { type: "half", data: random.halves(stageTotal * headDim) },
      stageSide: { type: "f32", data: stageSide },
      table: { type: "u32", data: table },
      ...(options.hasStatistics && {
        statistics: { type: "f32", data: makeStatistics(options) },
      }),
    },
    at: (stage) => ({
      layer,
      sequences: heads.length,
      lanes,
      maxCapacity,
      slots: {
        keys: stage.buffer("keys"),
        values: stage.buffer("values"),
        side: stage.buffer("side"),
        total,
      },
      stage: {
        keys: stage.buffer("stageKeys"),
        values: stage.buffer("stageValues"),
        side: stage.buffer("stageSide"),
        total: stageTotal,
      },
      stageRows,
      table: stage.buffer("table"),
      ...(options.hasStatistics && { statistics: stage.buffer("statistics") }),
    }),
  };
}

/** Statistics of 17 queries of each head, and of none in the first sequence. */
function makeStatistics({ sizes, heads }: CacheOptions): Float32Array {
  // A stream of their own: few cases look at them.
  const random = new Random(11);
  const layout = queryStatisticsLayout(sizes.headDim);
  const data = new Float32Array(heads.length * sizes.heads * layout.length);
  for (let at = 0; at < data.length; at += layout.length) {
    const isNew = heads.length > 1 && at < sizes.heads * layout.length;
    for (let i = 0; i < layout.count; i++) {
      const isSquare = i >= layout.scatter && i < layout.future ||
        i >= layout.variance;
      if (isNew && i < layout.future) continue;
      data[at + i] = isSquare ? 2 * random.uniform() : random.normal();
    }
    data[at + layout.count] = isNew ? 0 : 17;
  }
  return data;
}

/** Positions below `end`, all different, the first and the newest among them. */
function choosePositions(count: number, end: number, random: Random): number[] {
  const sure = new Set<number>();
  for (let i = 0; i < Math.min(4, count, end); i++) sure.add(i);
  for (let i = end - 1; sure.size < Math.min(count, 8) && i >= 0; i--) {
    sure.add(i);
  }
  const rest = random.permutation(end).filter((p) => !sure.has(p));
  const chosen = [...sure, ...rest].slice(0, count);
  return random.permutation(chosen.length).map((i) => chosen[i]!);
}

/** Keys of a head, near one of its directions, all halves. */
function keySource(
  { sizes: { headDim }, clusters, hasTwins, random }: CacheOptions,
): (head: number) => Float32Array {
  const centres = new Map<number, Float32Array[]>();
  return (head) => {
    if (clusters === 0) return random.halves(headDim);
    const known = centres.get(head) ??
      Array.from({ length: clusters }, () => random.floats(headDim));
    centres.set(head, known);
    const centre = known[random.below(clusters)]!;
    const spread = hasTwins ? 0 : SPREAD * (0.3 + random.uniform());
    return roundToHalf(centre.map((x) => x + spread * random.normal()));
  };
}

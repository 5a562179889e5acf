/**
 * Reading the slots of a cache back from any device.
 *
 * @module
 */
import {
  type Backend,
  type CacheLayer,
  type DeviceBuffer,
  HeadWord,
  type ModelSizes,
  SlotField,
} from "../backends/backend.ts";
import type { SlotCache } from "../cache/slot_cache.ts";

/** One live slot. */
export interface LiveSlot {
  /** Position in the text of the token that gave the slot its place. */
  readonly position: number;
  /** Tokens that it stands for. */
  readonly tokens: number;
  /** Sum of the attention weights that it received, where they are kept. */
  readonly attention: number;
  /** `(lanes)` ln of its votes. */
  readonly bias: readonly number[];
  /** `(headDim)`, rotated. */
  readonly key: Float32Array;
  /** `(headDim)`. */
  readonly value: Float32Array;
}

/** The counters of one head since its cache was emptied. */
export interface HeadCounters {
  /** Live slots. */
  readonly live: number;
  /** Slots that may be live. */
  readonly budget: number;
  /** Slots merged into another one. */
  readonly merged: number;
  /** Slots dropped. */
  readonly dropped: number;
  /** Tokens that the dropped slots stood for. */
  readonly droppedTokens: number;
  /** ZIP merges whose scale was unsafe. */
  readonly guarded: number;
  /** Sum of KL(merge weights ‖ vote shares) over merges, in nats. */
  readonly divergence: number;
}

/** One head of the cache. */
export interface CacheHead {
  /** Its counters. */
  readonly counters: HeadCounters;
  /** Its live slots, by position. */
  readonly slots: readonly LiveSlot[];
}

/** What {@linkcode readHeads} needs to know of a model. */
export interface CacheOwner {
  /** Where the cache is. */
  readonly backend: Backend;
  /** Sizes of the model. */
  readonly config: { readonly sizes: ModelSizes };
}

/** Reads the heads of each sequence, `(sequences, layers, kvHeads)`. */
export async function readHeads(
  cache: SlotCache,
  owner: CacheOwner,
): Promise<CacheHead[][][]> {
  const layers = await Promise.all(
    cache.layers.map((layer) => readLayer(layer, owner)),
  );
  const { sequences } = cache.layers[0]!;
  return Array.from(
    { length: sequences },
    (_, sequence) => layers.map((heads) => heads[sequence]!),
  );
}

/** Reads the heads of a layer, `(sequences, kvHeads)`. */
async function readLayer(
  layer: CacheLayer<DeviceBuffer>,
  { backend, config: { sizes } }: CacheOwner,
): Promise<CacheHead[][]> {
  const { kvHeads, headDim } = sizes;
  const { slots, lanes, sequences } = layer;
  const [table, side, keys, values] = await Promise.all(
    [layer.table, slots.side, slots.keys, slots.values].map((buffer) =>
      backend.read(buffer)
    ),
  );
  const readHead = (row: number): CacheHead => {
    const word = (name: Exclude<keyof typeof HeadWord, "count">) =>
      table!.u32[row * HeadWord.count + HeadWord[name]]!;
    const live: LiveSlot[] = [];
    for (let i = 0; i < word("capacity"); i++) {
      const index = word("offset") + i;
      const field = (f: number) => f * slots.total + index;
      const tokens = side!.u32[field(SlotField.tokens)]!;
      if (tokens === 0) continue;
      const vector = (data: Float32Array) =>
        data.subarray(index * headDim, (index + 1) * headDim);
      live.push({
        position: side!.u32[field(SlotField.position)]!,
        tokens,
        attention: side!.f32[field(SlotField.accumulated)]!,
        bias: Array.from(
          { length: lanes },
          (_, lane) => side!.f32[field(SlotField.bias + lane)]!,
        ),
        key: vector(keys!.f32),
        value: vector(values!.f32),
      });
    }
    return {
      counters: {
        live: word("live"),
        budget: word("budget"),
        merged: word("merged"),
        dropped: word("dropped"),
        droppedTokens: word("droppedTokens"),
        guarded: word("guarded"),
        divergence: table!.f32[row * HeadWord.count + HeadWord.divergence]!,
      },
      slots: live.sort((a, b) => a.position - b.position),
    };
  };
  return Array.from({ length: sequences }, (_, sequence) =>
    Array.from(
      { length: kvHeads },
      (_, kvHead) =>
        readHead((layer.layer * sequences + sequence) * kvHeads + kvHead),
    ));
}

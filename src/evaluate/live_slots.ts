/**
 * Reading the slots of a cache back from any device.
 *
 * @module
 */
import {
  type Backend,
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

/** Reads the heads of the first sequence, `(layers, kvHeads)`. */
export async function readHeads(
  cache: SlotCache,
  { backend, config: { sizes } }: CacheOwner,
): Promise<CacheHead[][]> {
  const { kvHeads, headDim } = sizes;
  return await Promise.all(cache.layers.map(async (layer) => {
    const { slots, lanes, sequences } = layer;
    const [table, side, keys, values] = await Promise.all(
      [layer.table, slots.side, slots.keys, slots.values].map((buffer) =>
        backend.read(buffer)
      ),
    );
    return Array.from({ length: kvHeads }, (_, kvHead) => {
      const row = (layer.layer * sequences * kvHeads + kvHead) * HeadWord.count;
      const word = (name: Exclude<keyof typeof HeadWord, "count">) =>
        table!.u32[row + HeadWord[name]]!;
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
          divergence: table!.f32[row + HeadWord.divergence]!,
        },
        slots: live.sort((a, b) => a.position - b.position),
      };
    });
  }));
}

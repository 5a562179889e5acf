/** Which measurements a run makes, in which order. */
import { measureAttend } from "./attend.ts";
import type { Ceilings } from "./bounds.ts";
import { measureDecode } from "./decode.ts";
import { measureFlat } from "./flat.ts";
import { measureLargest } from "./largest.ts";
import { measureMerging } from "./merging.ts";
import { measurePrefill } from "./prefill.ts";
import type { Result } from "./results.ts";
import {
  cacheName,
  type CacheSpec,
  keepsAll,
  type Repeats,
  type Setup,
} from "./setup.ts";

/** What can be measured. */
export const sectionNames = [
  "decode",
  "merging",
  "attend",
  "prefill",
  "flat",
  "largest",
] as const;

/** Name of a part of a run. */
export type SectionName = typeof sectionNames[number];

/** What a run is asked for. */
export interface PlanOptions extends Repeats {
  readonly sections: readonly SectionName[];
  readonly caches: readonly CacheSpec[];
  /** Sequences in one step. */
  readonly batches: readonly number[];
  /** Tokens of a prompt read at a time. */
  readonly chunks: readonly number[];
  /** Tokens of the prompt. */
  readonly prompt: number;
  /** Tokens generated to see whether steps stay as fast. */
  readonly tokens: number;
  /** Bytes for caches, where the largest batch is looked for. */
  readonly memory?: number | undefined;
  readonly ceilings: Ceilings;
}

/** One measurement. */
export interface Cell {
  readonly section: SectionName;
  /** What it measures, for messages. */
  readonly what: string;
  /** Makes it. */
  run(setup: Setup): Promise<readonly Result[]>;
}

/** The measurements of each shape. */
export function planCells(options: PlanOptions): Cell[] {
  return options.sections.flatMap((section) =>
    cellsOf[section](options).map((cell) => ({ section, ...cell }))
  );
}

type Cells = (options: PlanOptions) => Omit<Cell, "section">[];

const cellsOf: Record<SectionName, Cells> = {
  decode: ({ caches, batches, ...options }) =>
    pairs(batches, caches).map(([batch, cache]) => ({
      what: `${cacheName(cache)}, batch ${batch}`,
      run: async (setup) => [
        await measureDecode(setup, { cache, batch, ...options }),
      ],
    })),
  merging: ({ caches, batches, ...options }) =>
    pairs(batches, compressing(caches)).map(([batch, cache]) => ({
      what: `${cacheName(cache)}, batch ${batch}`,
      run: (setup) => measureMerging(setup, { cache, batch, ...options }),
    })),
  attend: ({ caches, batches, ...options }) =>
    pairs(batches, caches).map(([batch, cache]) => ({
      what: `${cacheName(cache)}, batch ${batch}`,
      run: async (setup) => [
        await measureAttend(setup, { cache, batch, ...options }),
      ],
    })),
  prefill: ({ caches, chunks, prompt: tokens, rounds, ceilings }) =>
    pairs(
      chunks,
      caches.filter((cache) => !keepsAll(cache) || cache.slots >= tokens),
    ).map(([chunk, cache]) => ({
      what: `${tokens} tokens in chunks of ${chunk} into ${cacheName(cache)}`,
      run: async (setup) => [
        await measurePrefill(setup, {
          ...{ cache, tokens, chunk, rounds, ceilings },
        }),
      ],
    })),
  flat: ({ caches, batches, ...options }) =>
    pairs(batches.slice(0, 1), compressing(caches)).map(([batch, cache]) => ({
      what: `${options.tokens} tokens, ${cacheName(cache)}, batch ${batch}`,
      run: async (setup) => [
        await measureFlat(setup, { cache, batch, ...options }),
      ],
    })),
  largest: ({ caches, ...options }) =>
    caches.map((cache) => ({
      what: cacheName(cache),
      run: async (
        setup,
      ) => [await measureLargest(setup, { cache, ...options })],
    })),
};

function compressing(caches: readonly CacheSpec[]): CacheSpec[] {
  return caches.filter((cache) => !keepsAll(cache));
}

function pairs<A, B>(first: readonly A[], second: readonly B[]): [A, B][] {
  return first.flatMap((a) => second.map((b): [A, B] => [a, b]));
}

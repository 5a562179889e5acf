/** Decode steps: shapes, batches and caches. */
import { decodeWork } from "./bounds.ts";
import type { Ceilings } from "./bounds.ts";
import { timeInTurn } from "./clock.ts";
import { Decoder } from "./decoder.ts";
import { type Result, resultOf } from "./results.ts";
import {
  cacheName,
  type CacheSpec,
  type Repeats,
  type Setup,
} from "./setup.ts";

/** Options of {@link measureDecode}. */
export interface DecodeOptions extends Repeats {
  readonly cache: CacheSpec;
  readonly batch: number;
  readonly ceilings: Ceilings;
}

/** Times decode steps of full caches. */
export async function measureDecode(
  setup: Setup,
  { cache, batch, ceilings, ...repeats }: DecodeOptions,
): Promise<Result> {
  using decoder = new Decoder(setup, { cache, batch, ...repeats });
  return await timeDecoder(setup, decoder, {
    ...{ section: "decode", cache, batch, ceilings },
    ...repeats,
  });
}

/** Times a decoder and says what it did. */
export async function timeDecoder(
  setup: Setup,
  decoder: Decoder,
  { section, cache, batch, ceilings, steps, rounds }: DecodeOptions & {
    section: string;
  },
): Promise<Result> {
  const [times] = await timeInTurn([decoder], rounds);
  await decoder.check();
  const { slots } = cache;
  return resultOf(
    { section, shape: setup.shape, cache: cacheName(cache), batch, slots },
    times!,
    {
      ...{ units: steps, tokens: batch, ceilings },
      work: decodeWork(setup, { slots, batch }),
      deviceBytes: setup.backend.bytesAllocated,
      more: await did(decoder),
    },
  );
}

/** What the cache has done, so that nobody has to believe it. */
export async function did(
  { engine }: Decoder,
): Promise<Record<string, number>> {
  const { bytes, liveSlots, merges, drops } = await engine.cache.stats();
  return { cacheBytes: bytes, liveSlots, merges, drops };
}

/** What merging costs: the same slots with a merge per step and without. */
import { type Ceilings, decodeWork } from "./bounds.ts";
import { timeInTurn } from "./clock.ts";
import { did } from "./decode.ts";
import { Decoder } from "./decoder.ts";
import { type Result, resultOf } from "./results.ts";
import {
  cacheName,
  type CacheSpec,
  type Repeats,
  type Setup,
} from "./setup.ts";

/**
 * Times three decoders in turn: one that merges at every step; one with the
 * same policy and slots whose budget is not reached; and a full cache with as
 * many slots, which keeps no scores either.
 */
export async function measureMerging(
  setup: Setup,
  { cache, batch, ceilings, ...repeats }: Repeats & {
    cache: CacheSpec;
    batch: number;
    ceilings: Ceilings;
  },
): Promise<Result[]> {
  using memory = new DisposableStack();
  const full = { policy: "full", slots: cache.slots };
  const cells = [
    { name: cacheName(cache), cache, room: false },
    { name: `${cacheName(cache)}, room`, cache, room: true },
    { name: cacheName(full), cache: full, room: false },
  ].map(({ name, cache, room }) => ({
    name,
    decoder: memory.use(new Decoder(setup, { cache, batch, room, ...repeats })),
  }));
  const decoders = cells.map(({ decoder }) => decoder);
  const times = await timeInTurn(decoders, repeats.rounds);
  const { slots } = cache;
  return await Promise.all(cells.map(async ({ name, decoder }, i) => {
    await decoder.check();
    return resultOf(
      {
        ...{ section: "merging", shape: setup.shape, cache: name },
        ...{ batch, slots },
      },
      times[i]!,
      {
        ...{ units: repeats.steps, tokens: batch, ceilings },
        work: decodeWork(setup, { slots, batch }),
        more: await did(decoder),
      },
    );
  }));
}

/** Whether a step takes as long after many tokens as after a few. */
import { decodeWork } from "./bounds.ts";
import type { Ceilings } from "./bounds.ts";
import { median } from "./clock.ts";
import { did } from "./decode.ts";
import { Decoder } from "./decoder.ts";
import { memoryInUse } from "./memory_in_use.ts";
import { type Result, resultOf } from "./results.ts";
import { cacheName, type CacheSpec, type Setup } from "./setup.ts";

/** Points of the curve. */
const POINTS = 50;

/** Options of {@link measureFlat}. */
export interface FlatOptions {
  readonly cache: CacheSpec;
  readonly batch: number;
  /** Tokens that each sequence generates. */
  readonly tokens: number;
  readonly ceilings: Ceilings;
}

/**
 * Generates many tokens as a generator does, with one batch of steps always
 * enqueued behind the one that is read, and notes the time of each fiftieth of
 * them and the memory before and after.
 */
export async function measureFlat(
  setup: Setup,
  { cache, batch, tokens, ceilings }: FlatOptions,
): Promise<Result> {
  const { backend, shape } = setup;
  const steps = backend.stepsPerRead;
  using decoder = new Decoder(setup, { cache, batch, steps, rounds: 1 });
  const { engine } = decoder;
  let read = 1;
  /** Reads as the loop of a generator does; returns seconds. */
  const generate = async (count: number): Promise<number> => {
    const begin = performance.now();
    let before: Promise<unknown> = Promise.resolve();
    for (let done = 0; done < count; done += steps) {
      engine.decode(steps);
      const pending = engine.readOutputs(read, steps);
      read += steps;
      await before;
      before = pending;
    }
    await before;
    return performance.now() - begin;
  };
  const perPoint = Math.ceil(tokens / POINTS / steps) * steps;
  await generate(perPoint);
  const before = await memoryInUse(backend);
  const total: number[] = [];
  for (let point = 0; point < POINTS; point++) {
    total.push(await generate(perPoint));
  }
  await decoder.check();
  const after = await memoryInUse(backend);
  const ms = total.map((t) => t / perPoint);
  const { slots } = cache;
  return resultOf(
    { section: "flat", shape, cache: cacheName(cache), batch, slots },
    { total, host: [0] },
    {
      ...{ units: perPoint, tokens: batch, ceilings },
      work: decodeWork(setup, { slots, batch }),
      deviceBytes: backend.bytesAllocated,
      more: {
        tokens: perPoint * POINTS,
        firstTenthMs: median(ms.slice(0, POINTS / 10)),
        lastTenthMs: median(ms.slice(-POINTS / 10)),
        ...{ before, after },
        ...await did(decoder),
      },
    },
  );
}

import { assertEquals } from "@std/assert";
import { eachBackend } from "../backends/each_backend.ts";
import {
  CHUNK,
  decoding,
  decodingWithoutMerges,
  prefilling,
  STEPS,
  type Subject,
} from "./subjects.ts";

/** Enough for one chunk, so that the test is quick. */
const SLOTS = 256;

/** Merges of each of two runs, and live slots after them. */
async function counts(
  { engine, restore, run }: Subject,
): Promise<number[]> {
  const merges = [];
  let live = 0;
  for (let i = 0; i < 2; i++) {
    restore?.();
    const before = (await engine.cache.stats()).merges;
    await run();
    const stats = await engine.cache.stats();
    merges.push(stats.merges - before);
    live = stats.liveSlots;
  }
  engine[Symbol.dispose]();
  return [...merges, live];
}

eachBackend("benchmarks measure what their names say", async (backend) => {
  // The model has one layer with one KV head.
  assertEquals(
    await counts(await decoding(backend, SLOTS)),
    [STEPS, STEPS, SLOTS],
  );
  assertEquals(
    await counts(await decodingWithoutMerges(backend, SLOTS)),
    [0, 0, SLOTS + STEPS],
  );
  assertEquals(
    await counts(await prefilling(backend, SLOTS)),
    [CHUNK, CHUNK, SLOTS],
  );
});

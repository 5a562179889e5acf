import { assertEquals } from "@std/assert";
import { eachBackend } from "../backends/each_backend.ts";
import {
  CHUNK,
  decoding,
  decodingEvenHeads,
  decodingRaggedHeads,
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

eachBackend("ragged heads hold what even heads do", async (backend) => {
  const [even, ragged] = [
    await decodingEvenHeads(backend, SLOTS),
    await decodingRaggedHeads(backend, SLOTS),
  ];
  const drops = async ({ engine, run }: Subject) => {
    const before = await engine.cache.stats();
    await run();
    const after = await engine.cache.stats();
    assertEquals(after.liveSlots, SLOTS);
    return [after.bytes, after.drops - before.drops];
  };
  assertEquals(await drops(even), await drops(ragged));
  const slotsOf = ({ engine }: Subject) =>
    engine.cache.budgets.map((heads) => heads.map(({ slots }) => slots));
  for (const heads of slotsOf(even)) {
    assertEquals(heads, [SLOTS, SLOTS, SLOTS, SLOTS]);
  }
  for (const heads of slotsOf(ragged)) {
    assertEquals(heads, [2 * SLOTS, SLOTS, SLOTS / 2, SLOTS / 2]);
  }
  even.engine[Symbol.dispose]();
  ragged.engine[Symbol.dispose]();
});

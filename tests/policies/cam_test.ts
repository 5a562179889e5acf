/**
 * What CaM states, on every backend.
 */
import { assert, assertAlmostEquals, assertEquals } from "@std/assert";
import { cam } from "../../src/policies/cam.ts";
import { drawUniform } from "../../src/reference/next_values.ts";
import { eachBackend } from "../backends/each_backend.ts";
import {
  freshSlot,
  LayerHarness,
  layerSizes,
  randomNumbers,
  type TestSlot,
} from "./layer_harness.ts";

const sizes = layerSizes({ headDim: 8 });

function slotsOf(attention: readonly number[]): TestSlot[] {
  const random = randomNumbers(11);
  return attention.map((accumulated, position) => ({
    ...freshSlot(random, { headDim: 8, lanes: 1, position }),
    accumulated,
  }));
}

/** Takes rows down to `budget` slots, and sorts what is left. */
async function compress(
  backend: Parameters<Parameters<typeof eachBackend>[1]>[0],
  rows: readonly TestSlot[],
  { budget, ...options }: { budget: number } & Parameters<typeof cam>[0],
): Promise<{ kept: TestSlot[]; dropped: number; merged: number }> {
  using layer = new LayerHarness(backend, {
    sizes,
    // Without rows of its own, so that the test sets the attention.
    policy: { ...cam({ ...options, budget }), probe: { kind: "none" } },
    capacity: budget + 1,
    stageRows: rows.length,
  });
  layer.writeSlots([[]], { budget, recent: 1, live: 0 });
  layer.writeStage([rows]);
  await layer.readChunk(new Float32Array(rows.length * 8), {
    position: 0,
    rows: rows.length,
  });
  const [slots] = await layer.readSlots();
  const [dropped] = await layer.readTable("droppedTokens");
  const [merged] = await layer.readTable("merged");
  return {
    kept: slots!.sort((a, b) => a.position - b.position),
    dropped: dropped!,
    merged: merged!,
  };
}

eachBackend(
  "a value goes to the next slots by the attention it had",
  async (backend) => {
    const rows = slotsOf([1, 0.2, 0.3, 0.5, 0.7]);
    const { kept } = await compress(backend, rows, {
      budget: 4,
      sinks: 1,
      count: 2,
      rule: "expected",
    });
    assertEquals(kept.map(({ position }) => position), [0, 2, 3, 4]);
    assertEquals(kept.map(({ tokens }) => tokens), [1, 2, 1, 1]);
    // 0.2 over the mean of 0.3 and 0.5, halved.
    for (const [i, share] of [0, 0.25, 0.25, 0].entries()) {
      const own = rows[kept[i]!.position]!;
      assertEquals(kept[i]!.key, own.key);
      kept[i]!.value.forEach((x, e) => {
        const expected = own.value[e]! + share * rows[1]!.value[e]!;
        assertAlmostEquals(x, expected, 2 ** -10 * 4);
      });
    }
  },
);

eachBackend("values pass on what was passed to them", async (backend) => {
  // Every slot has had more attention than those after it.
  const rows = slotsOf([9, 8, 7, 6, 5, 4]);
  const { kept, merged, dropped } = await compress(backend, rows, {
    budget: 2,
    sinks: 0,
    count: 1,
  });
  assertEquals(kept.map(({ position }) => position), [4, 5]);
  assertEquals([merged, dropped], [4, 0]);
  assertEquals(kept.map(({ tokens }) => tokens), [5, 1]);
  kept[0]!.value.forEach((x, e) => {
    const sum = rows.slice(0, 5).reduce((s, { value }) => s + value[e]!, 0);
    // Four sums of up to five values of up to 4, rounded to halves.
    assertAlmostEquals(x, sum, 4 * 20 * 2 ** -11);
  });
});

eachBackend("draws are those of the seed and the place", async (backend) => {
  const attention = Array.from({ length: 60 }, (_, i) => 1 + i);
  const rows = slotsOf(attention);
  for (const seed of [0, 1, 0xffff_ffff]) {
    const { kept, merged, dropped } = await compress(backend, rows, {
      budget: 10,
      sinks: 0,
      count: 4,
      seed,
    });
    const passed = rows.slice(0, 50).filter(({ position }) => {
      // The mean of the next four is 2.5 above.
      const chance = (1 + position) / (3.5 + position);
      return drawUniform(seed, { layer: 0, kvHead: 0, position }) < chance;
    });
    assertEquals(merged, passed.length);
    assert(merged < 50);
    const tokens = kept.reduce((sum, slot) => sum + slot.tokens, 0);
    assertEquals(tokens + dropped, 60);
  }
});

Deno.test("drawUniform() is uniform over places and differs by seed", () => {
  for (const seed of [0, 1, 2, 12345]) {
    const draws = Array.from({ length: 4096 }, (_, i) =>
      drawUniform(seed, {
        layer: i >> 10,
        kvHead: (i >> 8) & 3,
        position: i & 255,
      }));
    const mean = draws.reduce((sum, x) => sum + x, 0) / 4096;
    // Five standard deviations, √(1/12) / 64 each.
    assertAlmostEquals(mean, 0.5, 5 * Math.sqrt(1 / 12) / 64);
    const low = draws.filter((x) => x < 0.1).length;
    assertAlmostEquals(low, 409.6, 5 * Math.sqrt(4096 * 0.09));
    assert(draws.every((x) => x >= 0 && x < 1));
    const other = drawUniform(seed + 1, { layer: 0, kvHead: 0, position: 0 });
    assert(draws[0] !== other);
  }
});

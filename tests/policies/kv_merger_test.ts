/**
 * What KVMerger states, on every backend.
 */
import { assertAlmostEquals, assertEquals } from "@std/assert";
import { kvMerger } from "../../src/policies/kv_merger.ts";
import { eachBackend } from "../backends/each_backend.ts";
import {
  freshSlot,
  LayerHarness,
  layerSizes,
  randomNumbers,
  type TestSlot,
} from "./layer_harness.ts";

const sizes = layerSizes({ headDim: 4 });

/** Keys below are halves of at most 4; means of them are rounded to halves. */
const UNIT = 4 * 2 ** -11;

/** A slot with a key in a plane. */
function slotAt(
  position: number,
  [x, y]: readonly [number, number],
  { value, accumulated }: { value: number; accumulated: number },
): TestSlot {
  return {
    ...freshSlot(randomNumbers(position), { headDim: 4, lanes: 1, position }),
    key: Float32Array.of(x, y, 0, 0),
    value: new Float32Array(4).fill(value),
    accumulated,
    observations: position + 1,
  };
}

/** Reads a chunk of one token, to which all slots matter alike. */
async function readToken(
  layer: LayerHarness,
  { slots, budget }: { slots: readonly TestSlot[]; budget: number },
): Promise<TestSlot[]> {
  const position = slots.length;
  const newest = slotAt(position, [0, -1], { value: 0, accumulated: 0 });
  layer.writeSlots([slots], { budget, recent: 1, live: position });
  layer.writeStage([[{ ...newest, observations: 0 }]]);
  await layer.readChunk(new Float32Array(4), { position, rows: 1 });
  const [after] = await layer.readSlots();
  return after!.sort((a, b) => a.position - b.position);
}

eachBackend(
  "KVMerger merges a segment around the slot with the most attention",
  async (backend) => {
    using layer = new LayerHarness(backend, {
      sizes,
      policy: kvMerger({ budget: 4, sinks: 1, heavy: 0 }),
      capacity: 7,
    });
    // Slots 1 to 3 point the same way: two links with a cosine of 1.
    const slots = [
      slotAt(0, [2, 0], { value: 9, accumulated: 1 }),
      slotAt(1, [1, 0], { value: 1, accumulated: 2 }),
      slotAt(2, [2, 0], { value: 2, accumulated: 3 }),
      slotAt(3, [4, 0], { value: 8, accumulated: 1 }),
      slotAt(4, [0, 3], { value: 5, accumulated: 7 }),
    ];
    const after = await readToken(layer, { slots, budget: 4 });
    assertEquals(after.map(({ position }) => position), [0, 2, 4, 5]);
    assertEquals(await layer.readTable("merged"), [2]);
    assertEquals(await layer.readTable("dropped"), [0]);
    // Distances from the pivot are 1, 0, 2: their mean is 1.
    const [left, right] = [Math.exp(-1), Math.exp(-4)];
    const total = left + 1 + right;
    const merged = after[1]!;
    assertEquals(merged.tokens, 3);
    assertEquals(merged.bias, [0]);
    assertAlmostEquals(
      merged.key[0]!,
      (left * 1 + 2 + right * 4) / total,
      UNIT,
    );
    merged.value.forEach((x) =>
      assertAlmostEquals(x, (left * 1 + 2 + right * 8) / total, UNIT)
    );
    // The newest token attends to all six alike, itself included.
    assertAlmostEquals(merged.accumulated, 6 + 3 / 6, 1e-5);
    assertEquals(merged.observations, 5);
    assertEquals(Array.from(after[2]!.key), [0, 3, 0, 0]);
  },
);

eachBackend(
  "KVMerger links no heavy hitter, and drops what links do not save",
  async (backend) => {
    using layer = new LayerHarness(backend, {
      sizes,
      policy: kvMerger({ budget: 4, sinks: 0, heavy: 0.5 }),
      capacity: 8,
    });
    // All keys are the same. Of five slots three go: the one with the most
    // attention, a half of two, is alone. It parts the others into two pairs.
    const slots = [3, 2, 9, 4, 0.5].map((accumulated, position) =>
      slotAt(position, [1, 1], { value: position, accumulated })
    );
    const after = await readToken(layer, { slots, budget: 3 });
    // Two pairs merge, and of what is left the one with the lowest sum goes.
    assertEquals(
      after.map(({ position, tokens }) => [position, tokens]),
      [[0, 2], [2, 1], [5, 1]],
    );
    assertEquals(await layer.readTable("merged"), [2]);
    assertEquals(await layer.readTable("dropped"), [1]);
    assertEquals(await layer.readTable("droppedTokens"), [2]);
    // Where all keys are the same, weights are equal.
    assertEquals(Array.from(after[0]!.value), [0.5, 0.5, 0.5, 0.5]);
    assertEquals(Array.from(after[0]!.key), [1, 1, 0, 0]);
  },
);

eachBackend(
  "KVMerger closes the closest link in a decode step",
  async (backend) => {
    using layer = new LayerHarness(backend, {
      sizes,
      policy: kvMerger({ budget: 4, sinks: 0, heavy: 0 }),
      capacity: 5,
    });
    const slots = [
      slotAt(0, [1, 0], { value: 1, accumulated: 1 }),
      slotAt(1, [0, 2], { value: 2, accumulated: 1 }),
      slotAt(2, [1, 4], { value: 4, accumulated: 2 }),
      slotAt(3, [2, 0], { value: 8, accumulated: 1 }),
    ];
    layer.writeSlots([slots], { budget: 4, recent: 1, live: 4 });
    await layer.append(slotAt(4, [1, 0], { value: 0, accumulated: 0 }));
    await layer.mergeAttend(new Float32Array(4), 4);
    const [after] = await layer.readSlots();
    const merged = after!.find(({ position }) => position === 2)!;
    assertEquals(
      after!.map(({ position }) => position).sort(),
      [0, 2, 3, 4],
    );
    assertEquals(merged.tokens, 2);
    // The distance is twice the mean of it and the pivot's 0.
    const share = Math.exp(-4) / (1 + Math.exp(-4));
    assertAlmostEquals(merged.key[1]!, share * 2 + (1 - share) * 4, UNIT);
    merged.value.forEach((x) =>
      assertAlmostEquals(x, share * 2 + (1 - share) * 4, UNIT)
    );
  },
);

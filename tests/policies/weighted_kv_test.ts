/**
 * What WeightedKV states, on every backend.
 */
import { assert, assertAlmostEquals, assertEquals } from "@std/assert";
import type { Policy } from "../../src/policies/parts.ts";
import { weightedKV } from "../../src/policies/weighted_kv.ts";
import { eachBackend } from "../backends/each_backend.ts";
import {
  exactAttention,
  freshSlot,
  halfBound,
  LayerHarness,
  layerSizes,
  normalVector,
  randomNumbers,
  type TestSlot,
} from "./layer_harness.ts";

/** Slots whose mean attention weights are `means`. */
function slotsOf(
  random: () => number,
  means: readonly number[],
  headDim: number,
): TestSlot[] {
  return means.map((mean, position) => ({
    ...freshSlot(random, { headDim, lanes: 1, position }),
    accumulated: mean * 8,
    observations: 8,
  }));
}

/** The policy without the rows of a chunk, so that a test sets the scores. */
function unobserved(policy: Policy): Policy {
  return { ...policy, probe: { kind: "none" } };
}

/** Algorithm 1 of the paper, one slot after the other. */
function oneByOne(
  slots: readonly TestSlot[],
  { budget, recent }: { budget: number; recent: number },
): { position: number; tokens: number; value: Float64Array }[] {
  const left = slots.map(({ position, tokens, value, ...slot }) => ({
    position,
    tokens,
    value: Float64Array.from(value),
    mean: slot.accumulated / slot.observations,
  }));
  while (left.length > budget) {
    const allowed = left.slice(0, left.length - recent);
    const lowest = Math.min(...allowed.map(({ mean }) => mean));
    const j = allowed.findIndex(({ mean }) => mean === lowest);
    const [goes, stays] = [left[j]!, left[j + 1]!];
    const sum = goes.mean + stays.mean;
    for (let i = 0; i < goes.value.length; i++) {
      stays.value[i] =
        (goes.mean * goes.value[i]! + stays.mean * stays.value[i]!) / sum;
    }
    stays.tokens += goes.tokens;
    left.splice(j, 1);
  }
  return left;
}

/** Reads a chunk of `rows` whose scores are set. */
async function compress(
  layer: LayerHarness,
  rows: readonly TestSlot[],
): Promise<TestSlot[]> {
  layer.writeStage([rows]);
  const length = rows.length * rows[0]!.key.length;
  await layer.readChunk(new Float32Array(length), {
    position: rows[0]!.position,
    rows: rows.length,
  });
  const [slots] = await layer.readSlots();
  return slots!.sort((a, b) => a.position - b.position);
}

eachBackend(
  "averages 0.1 and 0.5 make v₂/6 + 5 v₃/6 of two values (figure 3)",
  async (backend) => {
    const random = randomNumbers(3);
    const policy = unobserved(weightedKV({ budget: 3, sinks: 0, recent: 0 }));
    using layer = new LayerHarness(backend, {
      sizes: layerSizes({ heads: 1, headDim: 8 }),
      policy,
      capacity: 4,
      stageRows: 4,
    });
    const rows = slotsOf(random, [0.7, 0.1, 0.5, 0.6], 8);
    layer.writeSlots([[]], { budget: 3, recent: 1, live: 0 });
    const kept = await compress(layer, rows);
    assertEquals(kept.map(({ position }) => position), [0, 2, 3]);
    assertEquals(kept.map(({ tokens }) => tokens), [1, 2, 1]);
    for (const [slot, row] of [[0, 0], [2, 3]] as const) {
      assertEquals(kept[slot]!.value, rows[row]!.value);
    }
    const merged = kept[1]!;
    assertEquals(merged.key, rows[2]!.key);
    assertEquals(merged.bias, [0]);
    assertEquals(merged.accumulated, rows[2]!.accumulated);
    assertEquals(merged.observations, rows[2]!.observations);
    merged.value.forEach((x, i) => {
      const expected = rows[1]!.value[i]! / 6 + 5 * rows[2]!.value[i]! / 6;
      // Weights round to 2^-24, the value to the type it is stored in.
      const unit = backend.halfBytes === 4 ? 2 ** -22 : 2 ** -10;
      assertAlmostEquals(x, expected, unit * 4);
    });
  },
);

eachBackend(
  "a chunk ends as if its slots had gone one by one",
  async (backend) => {
    for (let seed = 1; seed <= 20; seed++) {
      const random = randomNumbers(seed);
      const count = 24 + seed;
      // Equal averages, rising and falling runs, and random ones.
      const means = Array.from({ length: count }, (_, i) =>
        [
          0.25,
          0.01 * (i + 1),
          1 - 0.01 * i,
          0.05 + random(),
        ][seed % 4]!);
      const [budget, recent] = [4 + seed % 9, 1 + seed % 3];
      const policy = unobserved(weightedKV({ budget, sinks: 0 }));
      using layer = new LayerHarness(backend, {
        sizes: layerSizes({ heads: 1, headDim: 12 }),
        policy,
        capacity: budget + 1,
        stageRows: count,
      });
      const rows = slotsOf(random, means, 12);
      layer.writeSlots([[]], { budget, recent, live: 0 });
      const kept = await compress(layer, rows);
      const f32 = Math.fround;
      const expected = oneByOne(
        rows.map((row) => ({ ...row, accumulated: f32(row.accumulated) })),
        { budget, recent },
      );
      assertEquals(
        kept.map(({ position, tokens }) => [position, tokens]),
        expected.map(({ position, tokens }) => [position, tokens]),
      );
      // A weight is a product of up to 40 shares of 2^-22; values are below 5.
      const bound = (backend.halfBytes === 4 ? 2 ** -24 : 2 ** -11) * 5 +
        40 * 2 ** -22 * 5;
      kept.forEach((slot, s) =>
        slot.value.forEach((x, i) =>
          assertAlmostEquals(x, expected[s]!.value[i]!, bound, `seed ${seed}`)
        )
      );
    }
  },
);

/** A head over its budget by one, and the queries of the step. */
function decodeScene(seed: number, heads: number) {
  const random = randomNumbers(seed);
  const means = Array.from({ length: 12 }, () => 0.1 + random());
  means[5] = 0.01;
  const slots = slotsOf(random, means, 32);
  slots[11] = { ...slots[11]!, accumulated: 0, observations: 0 };
  return { slots, queries: normalVector(random, heads * 32, 1.5) };
}

async function decode(
  backend: Parameters<Parameters<typeof eachBackend>[1]>[0],
  { heads, policy, slots, queries }: {
    heads: number;
    policy: Policy;
    slots: readonly TestSlot[];
    queries: Float32Array;
  },
): Promise<{ output: Float32Array; after: TestSlot[] }> {
  using layer = new LayerHarness(backend, {
    sizes: layerSizes({ heads: heads, headDim: 32 }),
    policy,
    capacity: 12,
  });
  layer.writeSlots([slots], { budget: 11, recent: 3, live: 11 });
  const output = await layer.mergeAttend(queries, 11);
  const [after] = await layer.readSlots();
  return { output, after: after! };
}

eachBackend(
  "the exact rule leaves the output unchanged, for a group its sum",
  async (backend) => {
    for (const heads of [1, 4]) {
      for (let seed = 1; seed <= 15; seed++) {
        const scene = decodeScene(seed, heads);
        const policy = weightedKV({
          budget: 11,
          rule: "exact",
          // No ratio of weights is near it.
          cap: 1e6,
        });
        const { after } = await decode(backend, { ...scene, heads, policy });
        assertEquals(after.map(({ position }) => position).includes(5), false);
        const change = new Float64Array(32);
        let [size, halves] = [0, 0];
        for (let g = 0; g < heads; g++) {
          const query = scene.queries.subarray(g * 32, (g + 1) * 32);
          const before = exactAttention(query, scene.slots);
          const then = exactAttention(query, after);
          // Each head's change counts with the mass that is left of it.
          const left = 1 - before.weights[5]!;
          for (let i = 0; i < 32; i++) {
            change[i]! += left * (then.output[i]! - before.output[i]!);
          }
          size += Math.hypot(...before.output);
          halves += halfBound(query, after) * Math.hypot(...before.output);
        }
        const error = Math.hypot(...change);
        // In f32, sums of 12 weights and 32 elements with units of 2^-23, times
        // a ratio of weights that is below 20 for these logits. In f16 also
        // what storing the values costs.
        const ratio = Math.max(
          1,
          ...Array.from({ length: heads }, (_, g) => {
            const query = scene.queries.subarray(g * 32, (g + 1) * 32);
            const { weights } = exactAttention(query, scene.slots);
            return weights[5]! / weights[6]!;
          }),
        );
        const bound = 44 * 2 ** -23 * ratio * Math.max(size, 1) * 8 +
          (backend.halfBytes === 2 ? halves * ratio : 0);
        assert(error < bound, `seed ${seed}: ${error} exceeds ${bound}`);
      }
    }
  },
);

eachBackend(
  "the convex rule keeps the neighbour's key and score, and values in between",
  async (backend) => {
    for (let seed = 1; seed <= 10; seed++) {
      const scene = decodeScene(seed, 2);
      const policy = weightedKV({ budget: 11 });
      const { after } = await decode(backend, { ...scene, heads: 2, policy });
      const [goes, stays] = [scene.slots[5]!, scene.slots[6]!];
      const merged = after.find(({ position }) => position === 6)!;
      assertEquals(merged.key, stays.key);
      assertEquals(merged.bias, stays.bias);
      assertEquals(merged.tokens, 2);
      assertEquals(merged.observations, 9);
      merged.value.forEach((x, i) => {
        const [a, b] = [goes.value[i]!, stays.value[i]!];
        const slack = 2 ** -10 * Math.max(Math.abs(a), Math.abs(b)) + 1e-6;
        assert(x >= Math.min(a, b) - slack && x <= Math.max(a, b) + slack);
      });
    }
  },
);

eachBackend("the cap bounds how far a value moves", async (backend) => {
  const scene = decodeScene(1, 1);
  // The query points at the victim: its weight is far above its neighbour's.
  const queries = scene.slots[5]!.key.map((x) => x * 1.5);
  const cap = 0.5;
  const policy = weightedKV({ budget: 11, rule: "exact", cap });
  const slots = scene.slots.with(5, { ...scene.slots[5]!, accumulated: -8 });
  const { output, after } = await decode(backend, {
    heads: 1,
    policy,
    slots,
    queries,
  });
  const [goes, stays] = [slots[5]!, slots[6]!];
  const merged = after.find(({ position }) => position === 6)!;
  merged.value.forEach((x, i) => {
    const expected = stays.value[i]! + cap * (goes.value[i]! - output[i]!);
    assertAlmostEquals(x, expected, 2 ** -10 * (Math.abs(expected) + 1));
  });
});

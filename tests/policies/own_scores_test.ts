/**
 * Which slots KeyDiff, CORM and AhaKV let go, on every backend.
 */
import { assertAlmostEquals, assertEquals } from "@std/assert";
import { ahaKV } from "../../src/policies/aha_kv.ts";
import { corm } from "../../src/policies/corm.ts";
import { keyDiff } from "../../src/policies/key_diff.ts";
import { eachBackend } from "../backends/each_backend.ts";
import {
  exactAttention,
  freshSlot,
  LayerHarness,
  layerSizes,
  normalVector,
  randomNumbers,
} from "./layer_harness.ts";

const sizes = layerSizes({ heads: 2, headDim: 16 });

eachBackend(
  "KeyDiff drops the keys nearest to the mean direction",
  async (backend) => {
    for (let seed = 1; seed <= 8; seed++) {
      const random = randomNumbers(seed);
      const rows = Array.from(
        { length: 20 },
        (_, position) => freshSlot(random, { headDim: 16, lanes: 1, position }),
      );
      // Lengths do not count, only directions.
      rows.forEach((row, i) => row.key = row.key.map((x) => x * 2 ** (i % 4)));
      const norms = rows.map(({ key }) => Math.hypot(...key));
      const mean = rows[0]!.key.map((_, i) =>
        rows.reduce((sum, { key }, r) => sum + key[i]! / norms[r]!, 0)
      );
      const order = rows.slice(0, 18).map(({ key, position }, r) => ({
        position,
        along: key.reduce((sum, x, i) => sum + x * mean[i]!, 0) / norms[r]!,
      })).sort((a, b) => b.along - a.along);
      const gone = new Set(order.slice(0, 8).map(({ position }) => position));
      using layer = new LayerHarness(backend, {
        sizes,
        policy: keyDiff({ budget: 12 }),
        capacity: 13,
        stageRows: 20,
      });
      layer.writeSlots([[]], { budget: 12, recent: 2, live: 0 });
      layer.writeStage([rows]);
      await layer.readChunk(normalVector(random, 20 * 2 * 16), {
        position: 0,
        rows: 20,
      });
      const [slots] = await layer.readSlots();
      assertEquals(
        slots!.map(({ position }) => position).sort((a, b) => a - b),
        rows.map(({ position }) => position).filter((p) => !gone.has(p)),
        `seed ${seed}`,
      );
    }
  },
);

eachBackend(
  "CORM drops what has not mattered for the longest time",
  async (backend) => {
    for (let seed = 1; seed <= 8; seed++) {
      const random = randomNumbers(seed);
      const slots = Array.from({ length: 10 }, (_, position) => ({
        ...freshSlot(random, { headDim: 16, lanes: 1, position }),
        accumulated: 20 + (position * 7) % 10,
      }));
      using layer = new LayerHarness(backend, {
        sizes,
        policy: corm({ budget: 9 }),
        capacity: 10,
      });
      layer.writeSlots([slots], { budget: 9, recent: 2, live: 9 });
      const queries = normalVector(random, 2 * 16, 1.5);
      // 40 tokens have been seen, of which 10 are left.
      await layer.mergeAttend(queries, 39);
      const weights = [0, 1].map((head) =>
        exactAttention(queries.subarray(head * 16, (head + 1) * 16), slots)
          .weights
      );
      const ages = slots.map(({ accumulated }, i) =>
        (weights[0]![i]! + weights[1]![i]!) / 2 >= 1 / 40 ? 40 : accumulated
      );
      // Position 39 is the newest, so all ten may go.
      const victim = ages.indexOf(Math.min(...ages));
      const [after] = await layer.readSlots();
      assertEquals(
        after!.map(({ position }) => position),
        slots.map(({ position }) => position).filter((p) => p !== victim),
      );
      for (const { position, accumulated } of after!) {
        assertAlmostEquals(accumulated, ages[position]!);
      }
    }
  },
);

eachBackend(
  "AhaKV scores by attention at the scale √(2 ln(t/b)), squared values count",
  async (backend) => {
    for (const [seed, position] of [[1, 49], [2, 399], [3, 9]] as const) {
      const random = randomNumbers(seed);
      const slots = Array.from({ length: 10 }, (_, position) => ({
        ...freshSlot(random, { headDim: 16, lanes: 1, position }),
        observations: 0,
        valueNorm: 0.5 + random(),
      }));
      using layer = new LayerHarness(backend, {
        sizes,
        policy: ahaKV({ budget: 9, window: 2 }),
        capacity: 10,
      });
      layer.writeSlots([slots], { budget: 9, recent: 2, live: 9 });
      const queries = normalVector(random, 2 * 16, 1.5);
      await layer.mergeAttend(queries, position);
      const gain = Math.sqrt(2 * Math.log((position + 1) / 9));
      const means = slots.map(() => 0);
      for (const head of [0, 1]) {
        const query = queries.slice(head * 16, (head + 1) * 16);
        const { weights } = exactAttention(query.map((x) => gain * x), slots);
        weights.forEach((weight, i) => means[i]! += weight / 2);
      }
      const ranks = slots.filter(({ position: p }) => p + 2 <= position)
        .map(({ valueNorm }, i) => means[i]! * valueNorm ** 2);
      const victim = ranks.indexOf(Math.min(...ranks));
      const [after] = await layer.readSlots();
      assertEquals(
        after!.map(({ position }) => position),
        slots.map(({ position }) => position).filter((p) => p !== victim),
      );
      for (const { position, accumulated } of after!) {
        assertAlmostEquals(accumulated, means[position]!, 1e-5);
      }
    }
  },
);

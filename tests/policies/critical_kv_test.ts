/**
 * What CriticalKV states, on every backend.
 */
import { assert, assertAlmostEquals, assertEquals } from "@std/assert";
import { criticalKV } from "../../src/policies/critical_kv.ts";
import { h2o } from "../../src/policies/h2o.ts";
import type { Policy } from "../../src/policies/parts.ts";
import { snapKV } from "../../src/policies/snap_kv.ts";
import { weightedKV } from "../../src/policies/weighted_kv.ts";
import { eachBackend } from "../backends/each_backend.ts";
import {
  exactAttention,
  freshSlot,
  LayerHarness,
  layerSizes,
  normalVector,
  randomNumbers,
  type TestSlot,
} from "./layer_harness.ts";

const HIDDEN = 48;
const HEAD_DIM = 16;

/** `v · W_O[h]` for `W_O` as `(hidden, heads * headDim)`. */
function project(
  value: ArrayLike<number>,
  weight: Float32Array,
  { head = 0, heads = 1 }: { head?: number; heads?: number } = {},
): number[] {
  return Array.from({ length: HIDDEN }, (_, row) => {
    const at = (row * heads + head) * HEAD_DIM;
    let sum = 0;
    for (let i = 0; i < HEAD_DIM; i++) sum += value[i]! * weight[at + i]!;
    return sum;
  });
}

function norm1(vector: readonly number[]): number {
  return vector.reduce((sum, x) => sum + Math.abs(x), 0);
}

/** A policy whose scores a test sets: no row of a chunk is observed. */
function withScores(policy: Policy): Policy {
  return {
    ...policy,
    probe: { kind: "none" },
    select: { ...policy.select, sinks: 0, pool: { kind: "none" } },
  };
}

/** Compresses a chunk of `rows`; returns the positions that stay. */
async function positionsKept(
  backend: Parameters<Parameters<typeof eachBackend>[1]>[0],
  rows: readonly TestSlot[],
  { policy, budget, recent = 0 }: {
    policy: Policy;
    budget: number;
    recent?: number;
  },
): Promise<number[]> {
  using layer = new LayerHarness(backend, {
    sizes: layerSizes({ heads: 1, headDim: HEAD_DIM, hidden: HIDDEN }),
    policy,
    capacity: budget + 1,
    stageRows: rows.length,
  });
  layer.writeSlots([[]], { budget, recent, live: 0 });
  layer.writeStage([rows]);
  await layer.readChunk(new Float32Array(rows.length * HEAD_DIM), {
    position: 0,
    rows: rows.length,
  });
  const [slots] = await layer.readSlots();
  return slots!.map(({ position }) => position).sort((a, b) => a - b);
}

eachBackend("norms are those of projected values", async (backend) => {
  const random = randomNumbers(1);
  const heads = 3;
  const policy = criticalKV({ base: h2o({ budget: 8 }) });
  using layer = new LayerHarness(backend, {
    sizes: layerSizes({ heads: heads, headDim: HEAD_DIM, hidden: HIDDEN }),
    policy,
    capacity: 9,
  });
  const slots = Array.from(
    { length: 8 },
    (_, position) =>
      freshSlot(random, { headDim: HEAD_DIM, lanes: 1, position }),
  );
  // The token that was appended: slot 7 is the next.
  layer.writeSlots([slots], { budget: 8, recent: 2, live: 7 });
  const data = normalVector(random, HIDDEN * heads * HEAD_DIM, 0.3);
  using weight = backend.allocateMatrix("output projection", {
    rows: HIDDEN,
    columns: heads * HEAD_DIM,
  });
  backend.writeRows(weight, data, { firstRow: 0 });
  const step = layer.decodeStep(7);
  using program = backend.record("norms", (kernels) => {
    const args = {
      cache: layer.cache,
      step,
      sizes: layerSizes({ heads: heads, headDim: HEAD_DIM, hidden: HIDDEN }),
    };
    kernels.valueNorms({ ...args, weight });
  });
  program.run();
  const [after] = await layer.readSlots();
  const expected = [0, 1, 2].reduce(
    (sum, head) =>
      sum + norm1(project(slots[7]!.value, data, { head, heads })) / heads,
    0,
  );
  assertAlmostEquals(after![7]!.valueNorm!, expected, 1e-5 * expected);
  assertEquals(after!.slice(0, 7).map((slot) => slot.valueNorm), [
    ...[0, 0, 0, 0, 0, 0, 0],
  ]);
});

eachBackend(
  "half of the budget goes by scores, the rest by scores times norms",
  async (backend) => {
    const random = randomNumbers(2);
    const scores = [0.30, 0.25, 0.12, 0.11, 0.10, 0.07, 0.05];
    const norms = [0.1, 0.2, 1, 2, 0.5, 3, 6];
    const rows = scores.map((score, position) => ({
      ...freshSlot(random, { headDim: HEAD_DIM, lanes: 1, position }),
      accumulated: score,
      valueNorm: norms[position]!,
    }));
    // Products:  0.03  0.05  0.12  0.22  0.05  0.21  0.3
    const kept = (first: number, budget = 4) =>
      positionsKept(backend, rows, {
        policy: withScores(
          criticalKV({ base: h2o({ budget }), first, epsilon: 0 }),
        ),
        budget,
      });
    assertEquals(await kept(1), [0, 1, 2, 3]);
    assertEquals(await kept(0.5), [0, 1, 3, 6]);
    assertEquals(await kept(0), [2, 3, 5, 6]);
    // Half of 3 is 1, rounded down.
    assertEquals(await kept(0.5, 3), [0, 3, 6]);
  },
);

eachBackend(
  "an evicted slot moves the output by A/(1 − A) (o − v)",
  async (backend) => {
    for (let seed = 1; seed <= 10; seed++) {
      const random = randomNumbers(seed);
      const slots = Array.from({ length: 12 }, (_, position) => ({
        ...freshSlot(random, { headDim: HEAD_DIM, lanes: 1, position }),
        accumulated: random(),
        valueNorm: 1 + random(),
      }));
      const policy = criticalKV({ base: h2o({ budget: 11 }) });
      using layer = new LayerHarness(backend, {
        sizes: layerSizes({ heads: 1, headDim: HEAD_DIM, hidden: HIDDEN }),
        policy,
        capacity: 12,
      });
      layer.writeSlots([slots], { budget: 11, recent: 3, live: 11 });
      const query = normalVector(random, HEAD_DIM, 1.5);
      const output = await layer.mergeAttend(query, 11);
      const [after] = await layer.readSlots();
      const left = new Set(after!.map(({ position }) => position));
      const before = exactAttention(query, slots);
      const then = exactAttention(query, after!);
      // The rank as the step leaves it: its own row is in the scores.
      const ranked = slots.slice(0, 9).map((slot, i) => ({
        i,
        score: slot.accumulated + before.weights[i]!,
      })).sort((a, b) => a.score - b.score);
      // 9 may go, 8 fit: 4 stay by their scores.
      const rank = ({ i, score }: { i: number; score: number }) =>
        (score + 1e-4) * slots[i]!.valueNorm;
      const victim = ranked.slice(0, 5).sort((a, b) => rank(a) - rank(b))[0]!.i;
      assertEquals(left.has(victim), false, `seed ${seed}`);
      assertEquals(left.size, 11);
      const weight = before.weights[victim]!;
      then.output.forEach((x, i) => {
        const o = before.output[i]!;
        assertAlmostEquals(output[i]!, o, 1e-5);
        const moved = weight / (1 - weight) * (o - slots[victim]!.value[i]!);
        assertAlmostEquals(x - o, moved, 1e-12);
      });
    }
  },
);

eachBackend(
  "selections keep within the bound of theorem 3.3 and are its best",
  async (backend) => {
    for (let seed = 1; seed <= 12; seed++) {
      const random = randomNumbers(100 + seed);
      const query = normalVector(random, HEAD_DIM, 2.5);
      const weight = normalVector(random, HIDDEN * HEAD_DIM, 0.3);
      const slots: TestSlot[] = Array.from(
        { length: 40 },
        (_, position) =>
          freshSlot(random, { headDim: HEAD_DIM, lanes: 1, position }),
      );
      const { weights, output } = exactAttention(query, slots);
      slots.forEach((slot, i) => {
        slot.accumulated = weights[i]!;
        slot.valueNorm = norm1(project(slot.value, weight));
      });
      const budget = 20;
      const kept = new Set(
        await positionsKept(backend, slots, {
          policy: withScores(
            criticalKV({ base: h2o({ budget }), epsilon: 0 }),
          ),
          budget,
        }),
      );
      assertEquals(kept.size, budget);
      const all = slots.map((_, i) => i);
      const sumOf = (
        set: Iterable<number>,
        of: (i: number) => number,
      ) => [...set].reduce((sum, i) => sum + of(i), 0);
      const counted = (i: number) => weights[i]! * slots[i]!.valueNorm!;
      const sigma = sumOf(kept, (i) => weights[i]!);
      assert(sigma > 0.5);
      const theta = (set: Iterable<number>, sigma: number) =>
        sumOf(all, counted) - (2 - 1 / sigma) * sumOf(set, counted);
      const rest = exactAttention(query, slots.filter((_, i) => kept.has(i)));
      const loss = norm1(
        project(output.map((x, i) => x - rest.output[i]!), weight),
      );
      assert(loss <= theta(kept, sigma) + 1e-9, `seed ${seed}`);
      // Of all selections with the same first stage, none has a lower bound.
      const first = all.toSorted((a, b) => weights[b]! - weights[a]!)
        .slice(0, budget / 2);
      const least = sumOf(first, (i) => weights[i]!);
      assert(least > 0.5 && first.every((i) => kept.has(i)));
      for (let k = 0; k < 50; k++) {
        const others = all.filter((i) => !first.includes(i))
          .map((i) => ({ i, key: random() }))
          .sort((a, b) => a.key - b.key).slice(0, budget / 2)
          .map(({ i }) => i);
        assert(
          theta([...first, ...others], least) >= theta(kept, least) - 1e-6,
        );
      }
    }
  },
);

/** Bound and change of the output when only the slots `kept` stay. */
function lossOf(
  slots: readonly TestSlot[],
  kept: ReadonlySet<number>,
  { query, weight }: { query: Float32Array; weight: Float32Array },
): { theta: number; loss: number } {
  const { weights, output } = exactAttention(query, slots);
  const stays = slots.filter((_, i) => kept.has(i));
  const then = exactAttention(query, stays);
  let [all, sum, sigma] = [0, 0, 0];
  slots.forEach(({ value }, i) => {
    const counted = weights[i]! * norm1(project(value, weight));
    all += counted;
    if (!kept.has(i)) return;
    sum += counted;
    sigma += weights[i]!;
  });
  return {
    theta: all - (2 - 1 / sigma) * sum,
    loss: norm1(project(output.map((x, i) => x - then.output[i]!), weight)),
  };
}

// What goes changes the output by its own value where the output is small
// beside the values, and by its distance from the output where it is not.
eachBackend(
  "beside a sink without a value norms lower the perturbation, else they do not",
  async (backend) => {
    const [rounds, budget] = [16, 20];
    const wins = { sink: 0, plain: 0 };
    for (let seed = 1; seed <= rounds; seed++) {
      for (const kind of ["sink", "plain"] as const) {
        const random = randomNumbers(300 + seed);
        const query = normalVector(random, HEAD_DIM, 1);
        const weight = normalVector(random, HIDDEN * HEAD_DIM, 0.3);
        const slots: TestSlot[] = Array.from({ length: 60 }, (_, position) => {
          const slot = freshSlot(random, {
            headDim: HEAD_DIM,
            lanes: 1,
            position,
          });
          // Norms that are spread over about a factor of ten.
          const scale = 10 ** (random() - 0.5);
          return { ...slot, value: slot.value.map((x) => scale * x) };
        });
        if (kind === "sink") {
          const length = query.reduce((sum, x) => sum + x * x, 0);
          // A logit of 8, where the others are near 0.
          const gain = 8 * Math.sqrt(HEAD_DIM) / length;
          slots[0] = {
            ...slots[0]!,
            key: query.map((x) => gain * x),
            value: new Float32Array(HEAD_DIM),
          };
        }
        const { weights } = exactAttention(query, slots);
        slots.forEach((slot, i) => {
          slot.accumulated = weights[i]!;
          slot.valueNorm = norm1(project(slot.value, weight));
        });
        const losses: { theta: number; loss: number }[] = [];
        for (
          const policy of [
            h2o({ budget }),
            criticalKV({ base: h2o({ budget }), epsilon: 0 }),
          ]
        ) {
          const kept = new Set(
            await positionsKept(backend, slots, {
              policy: withScores(policy),
              budget,
            }),
          );
          losses.push(lossOf(slots, kept, { query, weight }));
        }
        const [byScore, byNorm] = losses;
        if (kind === "sink") {
          assert(weights[0]! > 0.9, `seed ${seed}`);
          assert(byNorm!.theta < byScore!.theta, `seed ${seed}`);
        }
        if (byNorm!.loss < byScore!.loss) wins[kind]++;
      }
    }
    // A fair coin wins 13 of 16 or more in 1 % of cases.
    assert(wins.sink >= 13, `${wins.sink} of ${rounds} with a sink`);
    assert(wins.plain < rounds / 2, `${wins.plain} of ${rounds} without one`);
  },
);

eachBackend(
  "a merged slot has the mean of its members' norms",
  async (backend) => {
    const random = randomNumbers(5);
    const norms = [4, 1, 2, 8];
    const means = [0.7, 0.1, 0.5, 0.6];
    const rows = means.map((mean, position) => ({
      ...freshSlot(random, { headDim: HEAD_DIM, lanes: 1, position }),
      accumulated: mean,
      valueNorm: norms[position]!,
    }));
    const policy = withScores(
      criticalKV({ base: weightedKV({ budget: 3, recent: 0 }) }),
    );
    using layer = new LayerHarness(backend, {
      sizes: layerSizes({ heads: 1, headDim: HEAD_DIM, hidden: HIDDEN }),
      policy,
      capacity: 4,
      stageRows: 4,
    });
    layer.writeSlots([[]], { budget: 3, recent: 1, live: 0 });
    layer.writeStage([rows]);
    await layer.readChunk(new Float32Array(4 * HEAD_DIM), {
      position: 0,
      rows: 4,
    });
    const [slots] = await layer.readSlots();
    const merged = slots!.find(({ position }) => position === 2)!;
    // The weights of the values: 0.1 and 0.5 of 0.6.
    assertAlmostEquals(merged.valueNorm!, 1 / 6 + 5 * 2 / 6, 1e-6);
  },
);

Deno.test("criticalKV() changes nothing of its base but values and name", () => {
  const base = weightedKV({ budget: 64 });
  const { values, name, ...rest } = criticalKV({ base });
  const { values: _, name: __, ...expected } = base;
  assertEquals(rest, expected);
  assertEquals(name, "critical-weightedkv");
  assertEquals(values, {
    kind: "norm",
    of: "projected",
    first: 0.5,
    power: 1,
    epsilon: 1e-4,
  });
  assertEquals(
    { ...criticalKV({ budget: 64, window: 8 }), values, name },
    { ...snapKV({ budget: 64, window: 8 }), values, name },
  );
});

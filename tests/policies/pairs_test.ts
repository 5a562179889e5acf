/**
 * What merging the cheapest pair states, on every backend.
 */
import { assert, assertEquals } from "@std/assert";
import { partnerField, SlotField } from "../../src/backends/backend.ts";
import { steady, type SteadyOptions } from "../../src/policies/steady.ts";
import type { Policy } from "../../src/policies/parts.ts";
import { eachBackend } from "../backends/each_backend.ts";
import {
  exactAttention,
  freshSlot,
  LayerHarness,
  layerSizes,
  mergeTolerance,
  normalVector,
  randomNumbers,
  relativeError,
  type TestSlot,
} from "./layer_harness.ts";

const HEAD_DIM = 16;
const BUDGET = 11;

const sizes = layerSizes({ headDim: HEAD_DIM });

/** The policy whose scores are those of the current step alone. */
function instant(options: Partial<SteadyOptions>): Policy {
  return steady({
    budget: BUDGET,
    alpha: 0,
    sinks: 2,
    search: "exhaustive",
    distance: "sum",
    ...options,
  });
}

/** A head over its budget by one, and the query of the step. */
function scene(seed: number): { slots: TestSlot[]; query: Float32Array } {
  const random = randomNumbers(seed);
  const slots = Array.from({ length: BUDGET + 1 }, (_, position) => {
    const isNewest = position === BUDGET;
    const tokens = isNewest ? 1 : 1 + Math.floor(random() * 4);
    return {
      ...freshSlot(random, { headDim: HEAD_DIM, lanes: 1, position }),
      tokens,
      bias: [Math.log(tokens)],
      observations: isNewest ? 0 : 1,
    };
  });
  return { slots, query: normalVector(random, HEAD_DIM) };
}

/** A slot: what it weighs, and its scaled key and value. */
interface Point {
  readonly w: number;
  readonly x: Float64Array;
}

/** What a set of weighted points adds to the distance from their mean. */
function scatter(points: readonly Point[]): number {
  const total = points.reduce((sum, { w }) => sum + w, 0);
  const mean = new Float64Array(points[0]!.x.length);
  for (const { w, x } of points) {
    x.forEach((e, i) => mean[i]! += w * e / total);
  }
  return points.reduce(
    (sum, { w, x }) =>
      sum + w * x.reduce((s, e, i) => s + (e - mean[i]!) ** 2, 0),
    0,
  );
}

/** What slots weigh and where they lie, so that Ward's cost is the scatter. */
function pointsOf(
  slots: readonly TestSlot[],
  { query, options }: {
    query: Float32Array;
    options: Partial<SteadyOptions>;
  },
): Point[] {
  const { weights } = exactAttention(query, slots);
  const spread = scatter(
    slots.map(({ value }) => ({ w: 1, x: Float64Array.from(value) })),
  ) / slots.length;
  const keys = Math.sqrt((options.keyWeight ?? 0.25) / Math.sqrt(HEAD_DIM));
  const values = Math.sqrt((options.valueWeight ?? 1) / spread);
  return slots.map(({ key, value }, i) => ({
    w: weights[i]!,
    x: Float64Array.from([
      ...Array.from(key, (x) => keys * x),
      ...Array.from(value, (x) => values * x),
    ]),
  }));
}

/** What it costs to merge two points. */
function costOf(
  [a, b]: readonly [Point, Point],
  { distance = "sum" }: Partial<SteadyOptions>,
): number {
  if (distance === "sum") return scatter([a, b]);
  const part = (from: number, to: number) =>
    a.x.subarray(from, to)
      .reduce((sum, e, i) => sum + (e - b.x[from + i]!) ** 2, 0);
  return a.w * b.w / (a.w + b.w) * part(0, HEAD_DIM) *
    (1 + part(HEAD_DIM, 2 * HEAD_DIM));
}

/** The pair of points from `first` to `end` whose merge costs least. */
function cheapest(
  points: readonly Point[],
  { first, end, options }: {
    first: number;
    end: number;
    options: Partial<SteadyOptions>;
  },
): { cost: number; pair: [number, number] } {
  let best = { cost: Infinity, pair: [-1, -1] as [number, number] };
  for (let a = first; a < end; a++) {
    for (let b = a + 1; b < end; b++) {
      const cost = costOf([points[a]!, points[b]!], options);
      if (cost < best.cost) best = { cost, pair: [a, b] };
    }
  }
  return best;
}

for (
  const options of [
    {},
    { keyWeight: 0 },
    { valueWeight: 0 },
    { key: "realVotes" },
    { distance: "product" },
    { distance: "product", valueWeight: 4 },
  ] as const
) {
  eachBackend(
    `the pair that costs least merges: ${JSON.stringify(options)}`,
    async (backend) => {
      const recent = 3;
      for (let seed = 1; seed <= 20; seed++) {
        const { slots, query } = scene(seed);
        using layer = new LayerHarness(backend, {
          sizes,
          policy: instant(options),
          capacity: BUDGET + 1,
        });
        layer.writeSlots([slots], { budget: BUDGET, recent, live: BUDGET });
        await layer.mergeAttend(query, BUDGET);
        const [after] = await layer.readSlots();
        const points = pointsOf(slots, { query, options });
        const { pair: [a, b] } = cheapest(points, {
          first: 2,
          end: slots.length - recent,
          options,
        });
        const left = after!.map(({ position }) => position);
        const gone = slots.filter(({ position }) => !left.includes(position));
        assertEquals(gone.length, 1);
        const stays = [a, b].find((i) => i !== gone[0]!.position)!;
        assert([a, b].includes(gone[0]!.position), `seed ${seed}`);
        const merged = after!.find(({ position }) => position === stays)!;
        assertEquals(merged.tokens, slots[a]!.tokens + slots[b]!.tokens);
        // Of the two, the one with fewer votes times score goes.
        const { weights } = exactAttention(query, slots);
        assert(weights[gone[0]!.position]! < weights[stays]!);
        if ("key" in options) {
          const expected = exactAttention(query, slots).output;
          const { output } = exactAttention(query, after!);
          const bound = mergeTolerance(backend, query, slots);
          assert(relativeError(output, expected) < bound);
        } else {
          const votes = Math.log(merged.tokens);
          assert(Math.abs(merged.bias[0]! - votes) < 1e-5);
        }
      }
    },
  );
}

for (
  const options of [
    { search: "incremental", valueWeight: 0 },
    { search: "incremental", distance: "product" },
  ] as const
) {
  eachBackend(
    `remembered partners are the nearest, and the pair costs at most twice: ${
      JSON.stringify(options)
    }`,
    async (backend) => {
      const random = randomNumbers(7);
      const recent = 3;
      using layer = new LayerHarness(backend, {
        sizes,
        policy: instant(options),
        capacity: BUDGET + 1,
      });
      const { slots } = scene(7);
      layer.writeSlots([slots.slice(0, -1)], {
        budget: BUDGET,
        recent,
        live: BUDGET,
      });
      let dearer = 0;
      for (let position = BUDGET; position < BUDGET + 40; position++) {
        await layer.append({
          ...freshSlot(random, { headDim: HEAD_DIM, lanes: 1, position }),
          observations: 0,
        });
        const query = normalVector(random, HEAD_DIM);
        const before = await readSorted(layer);
        await layer.mergeAttend(query, position);
        const after = await readSorted(layer);
        const points = pointsOf(before, { query, options });
        const range = { first: 2, end: before.length - recent, options };
        // Of equal weight, points are as far apart as they scatter.
        const flat = points.map(({ x }) => ({ w: 1, x }));
        let best = { cost: Infinity, pair: [-1, -1] };
        for (let i = range.first; i < range.end; i++) {
          let near = { distance: Infinity, other: -1 };
          for (let other = range.first; other < range.end; other++) {
            const distance = costOf([flat[i]!, flat[other]!], options);
            if (other !== i && distance < near.distance) {
              near = { distance, other };
            }
          }
          const cost = costOf([points[i]!, points[near.other]!], options);
          if (cost < best.cost) best = { cost, pair: [i, near.other] };
        }
        const left = after.map(({ position }) => position);
        const gone = before.findIndex(({ position }) =>
          !left.includes(position)
        );
        assert(best.pair.includes(gone), `position ${position}`);
        const stays = best.pair.find((i) => i !== gone)!;
        const merged = after.find((slot) =>
          slot.position === before[stays]!.position
        )!;
        assertEquals(
          merged.tokens,
          before[gone]!.tokens + before[stays]!.tokens,
        );
        const exhaustive = cheapest(points, range).cost;
        assert(best.cost <= 2 * exhaustive);
        if (best.cost > exhaustive) dearer++;
      }
      assert(dearer > 0, "both searches choose the same");
    },
  );
}

eachBackend(
  "slots keep a partner when the one that is close to everybody merges",
  async (backend) => {
    const [sinks, recent] = [2, 3];
    const { slots } = scene(1);
    // Twins have a direction of their own and are 12 apart, and all are less
    // than that from the first slot that may go.
    slots.slice(sinks, -recent).forEach((slot, i) => {
      for (const vector of [slot.key, slot.value]) {
        vector.fill(0);
        if (i === 0) continue;
        const twins = Math.floor((i - 1) / 2);
        vector[2 * twins] = 10;
        vector[2 * twins + 1] = i % 2 === 0 ? 6 : -6;
      }
    });
    using layer = new LayerHarness(backend, {
      sizes,
      policy: instant({ search: "incremental", distance: "product" }),
      capacity: BUDGET + 1,
    });
    layer.writeSlots([slots], { budget: BUDGET, recent, live: BUDGET });
    await layer.mergeAttend(new Float32Array(HEAD_DIM), BUDGET);
    const { side, total } = layer.cache.slots;
    const { u32 } = await backend.read(side);
    const word = (field: number, slot: number) => u32[field * total + slot]!;
    const alone = slots.flatMap((_, slot) =>
      slot >= sinks && slot < slots.length - recent &&
        word(SlotField.tokens, slot) !== 0 &&
        word(partnerField(layer.lanes), slot) === 0
        ? [slot]
        : []
    );
    // What was merged, and the twin of what went.
    assertEquals(alone.length, 2);
  },
);

/** The slots in the order of their positions. */
async function readSorted(layer: LayerHarness): Promise<TestSlot[]> {
  const [slots] = await layer.readSlots();
  return slots!.sort((a, b) => a.position - b.position);
}

eachBackend("a chunk loses no token while pairs are left", async (backend) => {
  for (const rounds of [0, 1, 8]) {
    const random = randomNumbers(5 + rounds);
    const rows = Array.from(
      { length: 40 },
      (_, position) => ({
        ...freshSlot(random, { headDim: HEAD_DIM, lanes: 1, position }),
        observations: 0,
      }),
    );
    using layer = new LayerHarness(backend, {
      sizes,
      policy: instant({ rounds }),
      capacity: BUDGET + 1,
      stageRows: rows.length,
    });
    layer.writeSlots([[]], { budget: BUDGET, recent: 3, live: 0 });
    layer.writeStage([rows]);
    await layer.readChunk(normalVector(random, 40 * HEAD_DIM), {
      position: 0,
      rows: rows.length,
    });
    const [after] = await layer.readSlots();
    const positions = after!.map(({ position }) => position);
    assertEquals(after!.length, BUDGET);
    assertEquals(after!.reduce((sum, { tokens }) => sum + tokens, 0), 40);
    for (const kept of [0, 1, 37, 38, 39]) assert(positions.includes(kept));
  }
});

/**
 * What slots remember of their partners, on every backend.
 */
import { assert, assertAlmostEquals, assertEquals } from "@std/assert";
import {
  type Backend,
  PartnerField,
  partnerField,
  SlotField,
} from "../../src/backends/backend.ts";
import { searchPeriod } from "../../src/reference/partners.ts";
import { eachBackend } from "../backends/each_backend.ts";
import {
  freshSlot,
  LayerHarness,
  normalVector,
  randomNumbers,
  type TestSlot,
} from "./layer_harness.ts";
import {
  BUDGET,
  cheapest,
  costOf,
  distanceOf,
  HEAD_DIM,
  instant,
  pointsOf,
  scene,
  sizes,
  spreadOf,
} from "./pair_scene.ts";

const [SINKS, RECENT] = [2, 3];

/** The position of a slot's partner, and how far away it is. */
interface Known {
  readonly partner: number;
  readonly distance: number;
}

/** What slots remember, by their position. */
type Memory = Map<number, Known>;

/** The slots in the order of their positions, and what they remember. */
async function look(
  backend: Backend,
  layer: LayerHarness,
): Promise<{ slots: TestSlot[]; memory: Memory }> {
  const [slots] = await layer.readSlots();
  const { side, total } = layer.cache.slots;
  const { u32, f32 } = await backend.read(side);
  const position = (i: number) => u32[SlotField.position * total + i]!;
  const field = partnerField(layer.lanes);
  const memory: Memory = new Map();
  for (let i = 0; i < total; i++) {
    const word = u32[(field + PartnerField.slot) * total + i]!;
    if (word === 0) continue;
    assert(u32[SlotField.tokens * total + i]! > 0, "a free slot knows none");
    memory.set(position(i), {
      partner: position(word - 1),
      distance: f32[(field + PartnerField.distance) * total + i]!,
    });
  }
  slots!.sort((a, b) => a.position - b.position);
  return { slots: slots!, memory };
}

for (
  const options of [
    { search: "incremental", valueWeight: 0 },
    { search: "incremental", distance: "product" },
  ] as const
) {
  eachBackend(
    `of pairs of nearest slots one merges that costs at most twice: ${
      JSON.stringify(options)
    }`,
    async (backend) => {
      let dearer = 0;
      for (let seed = 1; seed <= 20; seed++) {
        const { slots, query } = scene(seed);
        using layer = new LayerHarness(backend, {
          sizes,
          policy: instant(options),
          capacity: BUDGET + 1,
        });
        layer.writeSlots([slots], {
          budget: BUDGET,
          recent: RECENT,
          live: BUDGET,
        });
        await layer.mergeAttend(query, BUDGET);
        const after = await look(backend, layer);
        const points = pointsOf(slots, { query, options });
        const range = { first: SINKS, end: slots.length - RECENT, options };
        const old = points.slice(range.first, range.end);
        const [best] = old.map((slot) => {
          const [near] = old.filter((other) => other !== slot).sort((a, b) =>
            distanceOf([slot, a], options) - distanceOf([slot, b], options)
          );
          return { ends: [slot, near!], cost: costOf([slot, near!], options) };
        }).sort((a, b) => a.cost - b.cost);
        const left = after.slots.map(({ position }) => position);
        const gone = slots.findIndex(({ position }) =>
          !left.includes(position)
        );
        assert(best!.ends.includes(points[gone]!), `seed ${seed}`);
        const stays = points.indexOf(
          best!.ends.find((end) => end !== points[gone])!,
        );
        const merged = after.slots.find(({ position }) => position === stays)!;
        assertEquals(merged.tokens, slots[gone]!.tokens + slots[stays]!.tokens);
        const exhaustive = cheapest(points, range).cost;
        assert(best!.cost <= 2 * exhaustive);
        if (best!.cost > exhaustive) dearer++;
      }
      assert(dearer > 0, "both searches choose the same");
    },
  );
}

/** What slots remember after a search, some of them knowing something. */
function searched(
  old: readonly number[],
  known: Memory,
  distance: (a: number, b: number) => number,
): Memory {
  const alone = old.filter((slot) => !known.has(slot));
  const nearest = (slot: number): Known => {
    const own = known.get(slot);
    const found = (own === undefined ? old : alone)
      .filter((other) => other !== slot)
      .map((other) => ({ partner: other, distance: distance(slot, other) }));
    if (own !== undefined && known.has(own.partner)) found.push(own);
    return found.sort((a, b) => a.distance - b.distance)[0]!;
  };
  return new Map(old.map((slot) => [slot, nearest(slot)]));
}

eachBackend(
  "slots keep a partner until it goes, and find another one in searches alone",
  async (backend) => {
    const options = { search: "incremental", distance: "product" } as const;
    const budget = 3 * 64 + 10;
    assertEquals(searchPeriod(budget), 3);
    const random = randomNumbers(7);
    const fresh = (position: number) =>
      freshSlot(random, { headDim: HEAD_DIM, lanes: 1, position });
    using layer = new LayerHarness(backend, {
      sizes,
      policy: instant(options),
      capacity: budget + 1,
    });
    layer.writeSlots(
      [Array.from({ length: budget }, (_, position) => fresh(position))],
      { budget, recent: RECENT, live: budget },
    );
    let spread = 0;
    let waiting = 0;
    for (let position = budget; position < budget + 24; position++) {
      await layer.append({ ...fresh(position), observations: 0 });
      const query = normalVector(random, HEAD_DIM);
      const { slots, memory } = await look(backend, layer);
      await layer.mergeAttend(query, position);
      const after = await look(backend, layer);

      if (spread === 0) spread = spreadOf(slots);
      const [measured] = await layer.readTable("spread");
      assertAlmostEquals(measured! / spread, 1, 1e-5);
      const points = new Map(
        pointsOf(slots, { query, options, spread })
          .map((point, i) => [slots[i]!.position, point]),
      );
      const pointAt = (at: number) => points.get(at)!;
      const old = slots.slice(SINKS, -RECENT).map((slot) => slot.position);
      const isDue = position % 3 === 0 || memory.size === 0;
      const known = isDue
        ? searched(
          old,
          memory,
          (a, b) => distanceOf([pointAt(a), pointAt(b)], options),
        )
        : memory;
      if (!isDue) waiting += old.length - memory.size;

      const [best] = [...known].map(([slot, { partner, distance }]) => {
        const [a, b] = [pointAt(slot).w, pointAt(partner).w];
        return { ends: [slot, partner], cost: a * b / (a + b) * distance };
      }).sort((a, b) => a.cost - b.cost);
      const left = after.slots.map((slot) => slot.position);
      const gone = best!.ends.filter((end) => !left.includes(end));
      assertEquals(gone.length, 1, `position ${position}`);
      assertEquals(left.length, budget);
      const expected = [...known].filter(([slot, { partner }]) =>
        !best!.ends.includes(slot) && partner !== gone[0]
      );
      assertEquals(
        [...after.memory].map(([slot, { partner }]) => [slot, partner]).sort(),
        expected.map(([slot, { partner }]) => [slot, partner]).sort(),
      );
      for (const [slot, { distance }] of expected) {
        const remembered = after.memory.get(slot)!.distance;
        assertAlmostEquals(remembered / distance, 1, 1e-4);
      }
    }
    assert(waiting > 0, "nobody waits for a search");
  },
);

eachBackend(
  "slots keep a partner that is close to everybody when it merges",
  async (backend) => {
    const { slots } = scene(1);
    // Twins have a direction of their own and are 12 apart, and all are less
    // than that from the first slot that may go, which is heavy and stays.
    const [hub, ...others] = slots.slice(SINKS, -RECENT);
    hub!.tokens = 100;
    hub!.bias = [Math.log(100)];
    for (const vector of [hub!.key, hub!.value]) vector.fill(0);
    others.forEach((slot, i) => {
      const twins = Math.floor(i / 2);
      for (const vector of [slot.key, slot.value]) {
        vector.fill(0);
        vector[2 * twins] = 10;
        vector[2 * twins + 1] = i % 2 === 0 ? 6 : -6;
      }
    });
    using layer = new LayerHarness(backend, {
      sizes,
      policy: instant({ search: "incremental", distance: "product" }),
      capacity: BUDGET + 1,
    });
    layer.writeSlots([slots], {
      budget: BUDGET,
      recent: RECENT,
      live: BUDGET,
    });
    await layer.mergeAttend(new Float32Array(HEAD_DIM), BUDGET);
    const { slots: after, memory } = await look(backend, layer);
    const left = after.slice(SINKS, -RECENT).map(({ position }) => position);
    assertEquals(left.length, others.length);
    assertEquals(left[0], hub!.position);
    assertEquals([...memory.keys()].sort(), left.slice(1).sort());
    for (const { partner } of memory.values()) {
      assertEquals(partner, hub!.position);
    }
  },
);

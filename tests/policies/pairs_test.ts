/**
 * What merging the cheapest pair states, on every backend.
 */
import { assert, assertEquals } from "@std/assert";
import { eachBackend } from "../backends/each_backend.ts";
import {
  exactAttention,
  freshSlot,
  LayerHarness,
  mergeTolerance,
  normalVector,
  randomNumbers,
  relativeError,
} from "./layer_harness.ts";
import {
  BUDGET,
  cheapest,
  HEAD_DIM,
  instant,
  pointsOf,
  scene,
  sizes,
} from "./pair_scene.ts";

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

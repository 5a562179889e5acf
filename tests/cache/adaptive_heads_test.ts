import { assert, assertEquals } from "@std/assert";
import type { Backend } from "../../src/backends/backend.ts";
import { HeadWord } from "../../src/backends/backend.ts";
import { Engine } from "../../src/generate/engine.ts";
import { randomWeights } from "../../src/model/random_weights.ts";
import { h2o } from "../../src/policies/h2o.ts";
import type { HeadAllocation, Policy } from "../../src/policies/parts.ts";
import { eachBackend } from "../backends/each_backend.ts";
import { tinyConfig } from "../generate/tiny_model.ts";

const BUDGET = 20;

function policyOf(heads: HeadAllocation): Policy {
  return h2o({
    budget: BUDGET,
    sinks: 2,
    recent: 0.2,
    allocate: { heads },
    schedule: { kind: "streaming", chunk: 64 },
  });
}

const adaptive: HeadAllocation = { kind: "adaptive", floor: 0.1 };

function openEngine(backend: Backend, heads: HeadAllocation): Engine {
  return new Engine({
    backend,
    config: tinyConfig,
    weights: randomWeights(backend, tinyConfig, 3),
    policy: policyOf(heads),
    sequences: 2,
  });
}

/** Ids of a chunk; another `step` is another text. */
function ids(count: number, step = 7): number[] {
  return Array.from({ length: count }, (_, i) => (i * step + i % 3) % 64);
}

/** `(layers, sequences, kvHeads)` rows of the head table. */
async function readTable(engine: Engine, backend: Backend) {
  const { u32 } = await backend.read(engine.cache.layers[0]!.table);
  return Array.from({ length: u32.length / HeadWord.count }, (_, head) => {
    const row = u32.subarray(head * HeadWord.count);
    return {
      offset: row[HeadWord.offset]!,
      capacity: row[HeadWord.capacity]!,
      budget: row[HeadWord.budget]!,
      recent: row[HeadWord.recent]!,
      live: row[HeadWord.live]!,
    };
  });
}

eachBackend(
  "adaptive heads share the slots that even heads have",
  async (backend) => {
    using even = openEngine(backend, { kind: "uniform" });
    using engine = openEngine(backend, adaptive);
    // Not kvHeads times the largest head.
    assertEquals(engine.cache.bytes, even.cache.bytes);
    engine.prefill(ids(60), { then: "nothing" });
    engine.prefill(ids(50, 11), { then: "nothing", sequence: 1 });
    const { bytes, budgetSlots, liveSlots } = await engine.cache.stats();
    assertEquals(
      [bytes, budgetSlots, liveSlots],
      [even.cache.bytes, BUDGET, BUDGET],
    );
    const table = await readTable(engine, backend);
    assert(table.some(({ budget }) => budget !== BUDGET));
    assert(table.some((head, i) => head.budget !== table[(i + 2) % 4]!.budget));
    engine.cache.layers.forEach(({ slots, maxCapacity }, layer) => {
      let next = 0;
      for (const head of table.slice(layer * 4, layer * 4 + 4)) {
        assertEquals(head.offset, next);
        assertEquals(head.capacity, head.budget + 1);
        assertEquals(head.live, head.budget);
        assert(head.budget > 2 + head.recent);
        assert(head.capacity <= maxCapacity);
        next += head.capacity;
      }
      assertEquals(next, slots.total);
    });
  },
);

eachBackend(
  "adaptive heads keep their budgets until the cache is emptied",
  async (backend) => {
    using engine = openEngine(backend, adaptive);
    const budgets = async () =>
      (await readTable(engine, backend)).map(({ budget }) => budget);
    const empty = await budgets();
    assertEquals(new Set(empty), new Set([BUDGET]));
    engine.prefill(ids(60), { then: "nothing" });
    const first = await budgets();
    engine.prefill(ids(60, 13), { then: "nothing" });
    assertEquals(await budgets(), first);
    engine.reset();
    assertEquals(await budgets(), empty);
    // What fits is no reason to choose.
    engine.prefill(ids(BUDGET), { then: "nothing" });
    assertEquals(await budgets(), empty);
    engine.prefill(ids(60), { then: "nothing" });
    assertEquals(await budgets(), empty);
    engine.reset();
    engine.prefill(ids(60), { then: "nothing" });
    assertEquals(await budgets(), first);
  },
);

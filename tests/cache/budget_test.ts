import { assert, assertEquals, assertThrows } from "@std/assert";
import { type BudgetOptions, resolveBudget } from "../../src/cache/budget.ts";
import { cacheBytes, initialTable } from "../../src/cache/layout.ts";
import { SlotCache } from "../../src/cache/slot_cache.ts";
import { HeadWord } from "../../src/backends/backend.ts";
import { fullCache } from "../../src/policies/full_cache.ts";
import { h2o } from "../../src/policies/h2o.ts";
import { keepKV } from "../../src/policies/keep_kv.ts";
import { pyramidKV } from "../../src/policies/pyramid_kv.ts";
import { eachBackend } from "../backends/each_backend.ts";

const options: BudgetOptions = {
  sizes: {
    hidden: 64,
    heads: 4,
    kvHeads: 2,
    headDim: 16,
    ffn: 64,
    vocabulary: 32,
    normEpsilon: 1e-5,
  },
  layers: 5,
  contextLength: 1000,
  sequences: 1,
  stageRows: 32,
  halfBytes: 2,
};

Deno.test("resolveBudget() gives every head a uniform budget and one slot more", () => {
  const budgets = resolveBudget(h2o({ budget: 100 }), options);
  assertEquals(budgets.length, 5);
  for (const layer of budgets) {
    assertEquals(layer, [
      { slots: 100, recent: 50, capacity: 101 },
      { slots: 100, recent: 50, capacity: 101 },
    ]);
  }
});

Deno.test("resolveBudget() spreads a cosine pyramid over the same total", () => {
  for (const budget of [64, 101, 333]) {
    const budgets = resolveBudget(keepKV({ budget }), options);
    const slots = budgets.map((layer) => layer[0]!.slots);
    assertEquals(slots.reduce((a, b) => a + b), budget * 5);
    for (let i = 1; i < 5; i++) assert(slots[i]! <= slots[i - 1]!);
    // 0.2 + 0.8 · (0.8 + 0.2 · (cos(π j / L) + 1) / 2) for the first and last.
    const first = 1;
    const last = 0.2 +
      0.8 * (0.8 + 0.1 * (Math.cos(Math.PI * 4 / 5) + 1));
    const ratio = slots[4]! / slots[0]!;
    assert(Math.abs(ratio - last / first) < 2 / slots[0]!, `${ratio}`);
    assertEquals(new Set(budgets.map((layer) => layer[0]!.recent)).size, 1);
  }
});

Deno.test("resolveBudget() spreads a linear pyramid over the same total", () => {
  for (const [budget, beta] of [[96, 20], [97, 4], [200, 1]] as const) {
    const budgets = resolveBudget(
      pyramidKV({ budget, beta, window: 16 }),
      options,
    );
    const slots = budgets.map((layer) => layer[0]!.slots);
    assertEquals(slots.reduce((a, b) => a + b), budget * 5);
    const base = budget - 16;
    slots.forEach((count, layer) => {
      const [first, last] = [2 * base - base / beta, base / beta];
      const expected = 16 + first - layer * (first - last) / 4;
      assert(Math.abs(count - expected) < 1, `layer ${layer}: ${count}`);
    });
    assertEquals(new Set(budgets.map((layer) => layer[0]!.recent)).size, 1);
  }
  const shares = resolveBudget(
    {
      ...h2o({ budget: 100, recent: 0.2 }),
      allocate: {
        layers: { kind: "linear", beta: 4 },
        heads: { kind: "uniform" },
      },
    },
    options,
  );
  // 20 recent slots, and 140 to 20 others.
  assertEquals(shares.map((layer) => layer[0]!.slots), [160, 130, 100, 70, 40]);
  assertEquals(shares[4]![0]!.recent, 20);
  const single = resolveBudget(pyramidKV({ budget: 64 }), {
    ...options,
    layers: 1,
  });
  assertEquals(single[0]![0]!.slots, 64);
});

Deno.test("resolveBudget() takes ratios of the context or of a given length", () => {
  const slots = (budget: { ratio: number; of?: number }) =>
    resolveBudget(h2o({ budget }), options)[0]![0]!.slots;
  assertEquals(slots({ ratio: 0.1 }), 100);
  assertEquals(slots({ ratio: 0.1, of: 4000 }), 400);
});

Deno.test("resolveBudget() fills a number of bytes and does not exceed it", () => {
  for (const policy of [h2o, fullCache]) {
    for (const bytes of [50_000, 123_456, 10_000_000]) {
      const made = policy({ budget: { bytes } });
      const budgets = resolveBudget(made, options);
      const used = cacheBytes(budgets, made, options);
      assert(used <= bytes, `${used}`);
      const { slots } = budgets[0]![0]!;
      const more = policy({ budget: slots + 1 });
      assert(cacheBytes(resolveBudget(more, options), more, options) > bytes);
    }
  }
});

Deno.test("resolveBudget() explains a budget that cannot be", () => {
  const budget = (budget: number | { ratio: number } | { bytes: number }) =>
    resolveBudget(keepKV({ budget }), options);
  assertThrows(() => budget(5), RangeError, "at least 6 slots");
  assertThrows(() => budget(0), RangeError, "budget 0");
  assertThrows(() => budget(1.5), RangeError, "whole number");
  assertThrows(() => budget(NaN), RangeError, "budget NaN");
  assertThrows(() => budget({ ratio: 0 }), RangeError, "budget.ratio 0");
  assertThrows(() => budget({ ratio: 1.2 }), RangeError, "at most 1");
  assertThrows(() => budget({ bytes: 10 }), RangeError, "10 bytes");
});

Deno.test("initialTable() gives heads of all sequences slots of their own", () => {
  const budgets = resolveBudget(keepKV({ budget: 64 }), options);
  const table = initialTable(budgets, 3);
  for (let layer = 0; layer < 5; layer++) {
    let next = 0;
    for (let head = 0; head < 6; head++) {
      const at = (layer * 6 + head) * HeadWord.count;
      assertEquals(table[at + HeadWord.offset], next);
      next += table[at + HeadWord.capacity]!;
    }
  }
});

eachBackend(
  "SlotCache reports the bytes that the device holds",
  async (backend) => {
    const policy = keepKV({ budget: 64, votesPerQueryHead: true });
    {
      // The first read of the table allocates staging memory, which is kept.
      using warmUp = new SlotCache(backend, policy, options);
      await warmUp.stats();
    }
    const before = backend.bytesAllocated;
    {
      using cache = new SlotCache(backend, policy, options);
      assertEquals(cache.bytes, backend.bytesAllocated - before);
      const { bytes, budgetSlots, liveSlots } = await cache.stats();
      assertEquals(bytes, cache.bytes);
      assertEquals(
        bytes,
        cacheBytes(cache.budgets, policy, {
          ...options,
          halfBytes: backend.halfBytes,
        }),
      );
      assertEquals([budgetSlots, liveSlots], [64, 0]);
    }
    assertEquals(backend.bytesAllocated, before);
  },
);

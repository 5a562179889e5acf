import { assert, assertEquals, assertThrows } from "@std/assert";
import { type BudgetOptions, resolveBudget } from "../../src/cache/budget.ts";
import { cacheBytes, initialTable } from "../../src/cache/layout.ts";
import { shareSlots } from "../../src/cache/share_slots.ts";
import { HeadWord } from "../../src/backends/backend.ts";
import { fullCache } from "../../src/policies/full_cache.ts";
import { h2o } from "../../src/policies/h2o.ts";
import type { Allocate, Budget, Policy } from "../../src/policies/parts.ts";
import { validatePolicy } from "../../src/policies/validate_policy.ts";

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
  layers: 3,
  contextLength: 1000,
  sequences: 1,
  stageRows: 32,
  halfBytes: 2,
};

const perLayer: Partial<Allocate> = {
  layers: { kind: "shares", shares: [5, 3, 2] },
};
const perHead: Partial<Allocate> = {
  heads: { kind: "shares", shares: [[1, 3], [1, 1], [9, 1]] },
};

function slotsOf(budget: Budget, allocate: Partial<Allocate>): number[][] {
  const policy = h2o({ budget, allocate, recent: 0.1 });
  return resolveBudget(policy, options).map((layer) =>
    layer.map(({ slots }) => slots)
  );
}

Deno.test("shareSlots() divides in proportion and adds up", () => {
  const divide = (total: number, shares: number[], minimum = 0) =>
    shareSlots(total, { shares, minimum });
  assertEquals(divide(10, [1, 3, 1]), [2, 6, 2]);
  assertEquals(divide(10, [1, 1, 1]), [4, 3, 3]);
  // 0.1 and 0.9 of 100 are below the least; the rest is shared 1 : 3.
  assertEquals(divide(100, [0.1, 0.9, 25, 75], 10), [10, 10, 20, 60]);
  // Raising the first to 10 leaves 10.4 · 30 / 39 < 10 for the second.
  assertEquals(divide(40, [1, 10.4, 28.6], 10), [10, 10, 20]);
  assertEquals(divide(6, [1e-300, 1, 1e300], 2), [2, 2, 2]);
});

Deno.test("resolveBudget() spreads layers and heads by shares of the same total", () => {
  assertEquals(slotsOf(100, perLayer), [[150, 150], [90, 90], [60, 60]]);
  assertEquals(slotsOf(100, perHead), [[50, 150], [100, 100], [180, 20]]);
  assertEquals(
    slotsOf(100, { ...perLayer, ...perHead }),
    [[75, 225], [90, 90], [108, 12]],
  );
});

Deno.test("resolveBudget() leaves every head room beside what is protected", () => {
  const policy = h2o({
    budget: 40,
    sinks: 4,
    recent: 0.5,
    allocate: { heads: { kind: "shares", shares: [[1, 99], [1, 1], [2, 1]] } },
  });
  assertEquals(
    resolveBudget(policy, options).map((layer) =>
      layer.map(({ slots }) => slots)
    ),
    [[25, 55], [40, 40], [53, 27]],
  );
});

Deno.test("resolveBudget() shares out a cache that never evicts", () => {
  const policy = {
    ...fullCache({ budget: 10 }),
    allocate: {
      layers: { kind: "uniform" },
      heads: { kind: "shares", shares: [[1, 3], [1, 1], [1, 99]] },
    },
  } satisfies Policy;
  const capacities = resolveBudget(policy, options).map((layer) =>
    layer.map(({ capacity }) => capacity)
  );
  assertEquals(capacities, [[5, 15], [10, 10], [1, 19]]);
});

Deno.test("shares fill a number of bytes like a uniform budget", () => {
  for (const bytes of [60_000, 1_234_567]) {
    const uniform = h2o({ budget: { bytes } });
    const ragged = h2o({
      budget: { bytes },
      allocate: { ...perLayer, ...perHead },
    });
    const used = cacheBytes(resolveBudget(ragged, options), ragged, options);
    assertEquals(
      used,
      cacheBytes(resolveBudget(uniform, options), uniform, options),
    );
    assert(used <= bytes);
  }
});

Deno.test("initialTable() gives ragged heads slots of their own", () => {
  const budgets = resolveBudget(
    h2o({ budget: 64, allocate: { ...perLayer, ...perHead } }),
    options,
  );
  const table = initialTable(budgets, 2);
  for (let layer = 0; layer < 3; layer++) {
    let next = 0;
    for (let head = 0; head < 4; head++) {
      const at = (layer * 4 + head) * HeadWord.count;
      assertEquals(table[at + HeadWord.offset], next);
      next += table[at + HeadWord.capacity]!;
    }
  }
});

Deno.test("shares that do not suit the model are refused", () => {
  assertThrows(
    () => slotsOf(100, { layers: { kind: "shares", shares: [1, 2] } }),
    RangeError,
    "has 2: expected 3",
  );
  assertThrows(
    () => slotsOf(100, { heads: { kind: "shares", shares: [[1, 2], [1]] } }),
    RangeError,
    "layer 1 over its heads: allocate.heads.shares has 1 for it: expected 2",
  );
  const check = (allocate: Partial<Allocate>) =>
    validatePolicy(h2o({ budget: 9, allocate }));
  assertThrows(
    () => check({ layers: { kind: "shares", shares: [1, 0] } }),
    RangeError,
    "allocate.layers.shares[1] is 0",
  );
  assertThrows(
    () => check({ heads: { kind: "shares", shares: [[1], [NaN]] } }),
    RangeError,
    "allocate.heads.shares[1][0] is NaN",
  );
  assertThrows(
    () => check({ heads: { kind: "adaptive", floor: 2 } }),
    RangeError,
    "allocate.heads.floor is 2",
  );
  assertThrows(
    () =>
      validatePolicy({
        ...fullCache(),
        allocate: {
          layers: { kind: "uniform" },
          heads: { kind: "adaptive", floor: 0.2 },
        },
      }),
    TypeError,
    'allocate.heads "adaptive"',
  );
});

import { assert, assertEquals, assertThrows } from "@std/assert";
import type { ModelSizes } from "../../src/backends/backend.ts";
import { type BudgetOptions, resolveBudget } from "../../src/cache/budget.ts";
import { cacheBytes } from "../../src/cache/layout.ts";
import {
  checkHeadLosses,
  type HeadLosses,
} from "../../src/policies/allocations/head_losses.ts";
import { lossSlots } from "../../src/policies/allocations/loss_slots.ts";
import { h2o } from "../../src/policies/h2o.ts";
import type { Budget } from "../../src/policies/parts.ts";
import { steady } from "../../src/policies/steady.ts";
import { validatePolicy } from "../../src/policies/validate_policy.ts";

/** Losses `a · slots^−power` of each `[a, power]`, one layer of heads. */
function powerLaws(
  laws: readonly (readonly [number, number])[],
  budgets = [16, 64, 256],
): HeadLosses {
  const loss = laws.map(([a, power]) =>
    budgets.map((slots) => a * slots ** -power)
  );
  return { budgets, tokens: 512, loss: [loss] };
}

Deno.test("lossSlots() equalises what a slot is worth", () => {
  // Of a/x + b/y with x + y fixed, the least is where x : y = √a : √b.
  for (const [a, b, expected] of [[1, 1, 60], [4, 1, 80], [9, 4, 72]]) {
    const losses = powerLaws([[a!, 1], [b!, 1]]);
    assertEquals(lossSlots(losses, { budget: 60, minimum: 2 }), [
      [expected, 120 - expected!],
    ]);
  }
  // The lines go on below and above what was measured.
  for (const budget of [6, 600]) {
    const losses = powerLaws([[25, 1], [1, 1]]);
    const [[x, y]] = lossSlots(losses, { budget, minimum: 1 }) as [number[]];
    assertEquals([x, y], [budget * 5 / 3, budget / 3]);
  }
});

Deno.test("lossSlots() gives whole slots that add up, none below the minimum", () => {
  const losses: HeadLosses = {
    budgets: [8, 32],
    tokens: 64,
    loss: [[[1, 0.5], [1e-5, 1e-6]], [[0, -1e-12], [1e-3, 2e-3]]],
  };
  for (const budget of [9, 10, 33, 101]) {
    const slots = lossSlots(losses, { budget, minimum: 9 }).flat();
    assertEquals(slots.reduce((a, b) => a + b), 4 * budget);
    assert(slots.every((n) => Number.isSafeInteger(n) && n >= 9), `${slots}`);
    assertEquals(Math.max(...slots), slots[0]!);
  }
  assertThrows(
    () => lossSlots(losses, { budget: 8, minimum: 9 }),
    RangeError,
    "Cannot spread 8 slots per head: expected at least the minimum of 9",
  );
});

Deno.test("lossSlots() looks past a budget at which a curve is flat", () => {
  // The first head gains nothing until 48 slots, then nearly everything.
  const losses: HeadLosses = {
    budgets: [16, 40, 48],
    tokens: 512,
    loss: [[[1, 1, 1e-3], [0.02, 0.01, 0.009]]],
  };
  const [[first]] = lossSlots(losses, { budget: 32, minimum: 16 }) as [
    [number],
  ];
  assert(first >= 47, `${first}`);
});

Deno.test("lossSlots() spreads evenly where no slot helps", () => {
  const losses: HeadLosses = {
    budgets: [16],
    tokens: 512,
    loss: [[[1], [2]], [[0], [3]]],
  };
  assertEquals(lossSlots(losses, { budget: 50, minimum: 1 }), [
    [50, 50],
    [50, 50],
  ]);
});

const sizes: ModelSizes = {
  hidden: 64,
  heads: 4,
  kvHeads: 2,
  headDim: 16,
  ffn: 64,
  vocabulary: 32,
  normEpsilon: 1e-5,
};
const options: BudgetOptions = {
  sizes,
  layers: 2,
  contextLength: 1000,
  sequences: 1,
  stageRows: 32,
  halfBytes: 2,
};
const measured: HeadLosses = {
  budgets: [16, 64, 256],
  tokens: 512,
  loss: [[[1, 0.1, 0.01], [0.1, 0.01, 0.001]], [[0.4, 0.05, 0.006], [
    1e-4,
    1e-5,
    1e-6,
  ]]],
};

Deno.test("every form of budget is spread by losses", () => {
  const mean = (budget: Budget) => {
    const policy = steady({ budget, losses: measured });
    validatePolicy(policy);
    const heads = resolveBudget(policy, options);
    heads.flat().forEach(({ slots, recent, capacity }) => {
      assert(slots >= 4 + recent + 1);
      assertEquals(capacity, slots + 1);
    });
    const slots = heads.flat().map(({ slots }) => slots);
    assertEquals(Math.max(...slots), slots[0]);
    assertEquals(Math.min(...slots), slots[3]);
    return slots.reduce((a, b) => a + b) / 4;
  };
  assertEquals(mean(100), 100);
  assertEquals(mean({ ratio: 0.1 }), 100);
  const bytes = 60_000;
  const even = resolveBudget(steady({ budget: { bytes } }), options);
  assertEquals(mean({ bytes }), even[0]![0]!.slots);
  const policy = steady({ budget: { bytes }, losses: measured });
  assert(cacheBytes(resolveBudget(policy, options), policy, options) <= bytes);
});

Deno.test("steady() keeps 16 recent tokens, or a third of a small budget", () => {
  const recent = (budget: number) =>
    resolveBudget(steady({ budget }), options)[0]![0]!.recent;
  assertEquals([12, 24, 48, 1000].map(recent), [4, 8, 16, 16]);
});

Deno.test("other methods take losses too", () => {
  const heads = { kind: "losses", losses: measured } as const;
  const policy = h2o({ budget: 64, allocate: { heads } });
  validatePolicy(policy);
  const slots = resolveBudget(policy, options).flat();
  assertEquals(slots.reduce((sum, { slots }) => sum + slots, 0), 4 * 64);
});

Deno.test("losses that do not suit are refused", () => {
  const policy = steady({ budget: 64, losses: measured });
  assertThrows(
    () => resolveBudget(policy, { ...options, layers: 3 }),
    RangeError,
    "over 3 layers of 2 heads: allocate.heads.losses has 2 layers of 2",
  );
  assertThrows(
    () =>
      validatePolicy({
        ...policy,
        allocate: {
          ...policy.allocate,
          layers: { kind: "cosine", floor: 0.5 },
        },
      }),
    TypeError,
    'allocate.heads "losses" spreads the budget over all layers',
  );
  assertThrows(
    () =>
      validatePolicy(
        steady({ budget: 64, losses: { ...measured, tokens: 256 } }),
      ),
    TypeError,
    'losses of policy "steady": tokens is 256: expected a whole number above 256',
  );
});

Deno.test("checkHeadLosses() names the field at fault", () => {
  assertEquals(checkHeadLosses(measured, "x.json"), measured);
  const cases: [unknown, string][] = [
    [null, "budgets is missing"],
    [{ ...measured, budgets: [] }, "budgets is []: expected at least one"],
    [
      { ...measured, budgets: [4, 4] },
      "budgets[1] is 4: expected a whole number of at least 5",
    ],
    [{ ...measured, budgets: ["4"] }, 'budgets[0] is "4"'],
    [{ ...measured, tokens: 1.5 }, "tokens is 1.5"],
    [{ ...measured, loss: [] }, 'loss is "0 entries"'],
    [{ ...measured, loss: 3 }, "loss is 3: expected a list"],
    [
      { ...measured, loss: [measured.loss[0], [[1, 1, 1]]] },
      'loss[1] is "1 entries": expected a list of 2 entries',
    ],
    [
      { ...measured, loss: [[[1, 1, 1], [1, 1]]] },
      'loss[0][1] is "2 entries": expected a list of 3 entries',
    ],
    [
      { ...measured, loss: [[[1, 1, null]]] },
      "loss[0][0][2] is null: expected a number of nats",
    ],
  ];
  for (const [losses, message] of cases) {
    assertThrows(
      () => checkHeadLosses(losses, "x.json"),
      TypeError,
      `Cannot use the losses of x.json: ${message}`,
    );
  }
});

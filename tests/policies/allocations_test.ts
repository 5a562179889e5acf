import {
  assert,
  assertAlmostEquals,
  assertEquals,
  assertThrows,
} from "@std/assert";
import { shareForMass } from "../../src/policies/allocations/attention_profile.ts";
import { prefixAllocation } from "../../src/policies/allocations/prefix_allocation.ts";
import { varianceAllocation } from "../../src/policies/allocations/variance_allocation.ts";
import type { Allocate } from "../../src/policies/parts.ts";
import { prefixKV } from "../../src/policies/prefix_kv.ts";
import { validatePolicy } from "../../src/policies/validate_policy.ts";

const heavy = [0.5, 0.6, 0.7, 0.8, 1];
const even = [0.2, 0.4, 0.6, 0.8, 1];

function layerShares({ layers }: Allocate): readonly number[] {
  assert(layers.kind === "shares");
  return layers.shares;
}

function assertNear(actual: readonly number[], expected: readonly number[]) {
  assertEquals(actual.length, expected.length);
  actual.forEach((value, i) => assertAlmostEquals(value, expected[i]!, 1e-12));
}

Deno.test("shareForMass() inverts a curve", () => {
  assertNear(
    [0.25, 0.5, 0.55, 0.9, 1].map((mass) => shareForMass(heavy, mass)),
    [0.1, 0.2, 0.3, 0.9, 1],
  );
  assertEquals(shareForMass([0.5, 1, 1, 1], 1), 0.5);
});

Deno.test("PrefixKV's layers retain the same mass", () => {
  // Half of the mass takes 0.2 and 0.5 of the tokens: 0.35 on average.
  const mass = [[heavy], [even]];
  assertNear(layerShares(prefixAllocation({ mass }, { ratio: 0.35 })), [
    0.2,
    0.5,
  ]);
  assertNear(layerShares(prefixAllocation({ mass }, { ratio: 1 })), [1, 1]);
});

Deno.test("PrefixKV's layer has the mean mass of its heads", () => {
  const mass = [[heavy, even], [even, even]];
  // The first layer retains 0.35 with 0.2, and 0.5 with 0.4 of its tokens.
  assertNear(layerShares(prefixAllocation({ mass }, { ratio: 0.45 })), [
    0.4,
    0.5,
  ]);
});

Deno.test("PrefixKV over heads gives each head what the mass takes", () => {
  const allocate = prefixAllocation({ mass: [[heavy, even], [even, even]] }, {
    ratio: 0.425,
    over: "heads",
  });
  assert(allocate.heads.kind === "shares");
  assertNear(allocate.heads.shares.flat(), [0.2, 0.5, 0.5, 0.5]);
  assertNear(layerShares(allocate), [0.7, 1]);
});

Deno.test("D2O gives layers with spread-out attention more", () => {
  const shares = layerShares(
    varianceAllocation({ variance: [2, 4, 6] }, { ratio: 0.2 }),
  );
  // exp(0), exp(-1/2) and exp(-1), scaled to a mean of 0.2.
  const weights = [1, Math.exp(-0.5), Math.exp(-1)];
  const sum = weights.reduce((a, b) => a + b);
  assertNear(shares, weights.map((w) => 0.6 * w / sum));
  assertNear(
    layerShares(varianceAllocation({ variance: [0, 1] }, { ratio: 0.9 })),
    [1, 1.8 / (Math.E + 1)],
  );
});

Deno.test("allocations refuse a ratio that is none", () => {
  for (const ratio of [0, 1.5, NaN]) {
    assertThrows(
      () => prefixAllocation({ mass: [[even]] }, { ratio }),
      RangeError,
      `ratio ${ratio}`,
    );
    assertThrows(
      () => varianceAllocation({ variance: [1] }, { ratio }),
      RangeError,
      `ratio ${ratio}`,
    );
  }
});

Deno.test("prefixKV() takes an allocation", () => {
  const allocate = prefixAllocation({ mass: [[heavy], [even]] }, {
    ratio: 0.1,
    over: "heads",
  });
  const policy = prefixKV({ budget: 64, allocate });
  validatePolicy(policy);
  assertEquals(policy.allocate, allocate);
});

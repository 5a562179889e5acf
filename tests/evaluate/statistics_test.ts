import {
  assert,
  assertAlmostEquals,
  assertEquals,
  assertThrows,
} from "@std/assert";
import { hashText, Random } from "../../src/evaluate/random.ts";
import {
  estimateDifference,
  estimateMean,
  estimateShare,
  mean,
  quantile,
  signTest,
} from "../../src/evaluate/statistics.ts";

Deno.test("mean and quantile of a few numbers", () => {
  assertEquals(mean([1, 2, 6]), 3);
  assertEquals(quantile([1, 2, 3, 4], 0), 1);
  assertEquals(quantile([1, 2, 3, 4], 1), 4);
  // A quarter of the way from the first to the last of 4 is at index 0.75.
  assertEquals(quantile([1, 2, 3, 5], 0.25), 1.75);
  assertEquals(quantile([7], 0.3), 7);
});

Deno.test("the sign test has the binomial's tails", () => {
  // 2 · (C(5,0)) / 2^5, and 2 · (1 + 8) / 2^8.
  assertAlmostEquals(signTest(0, 5), 2 / 32, 1e-12);
  assertAlmostEquals(signTest(7, 1), 18 / 256, 1e-12);
  assertAlmostEquals(signTest(1, 7), 18 / 256, 1e-12);
  assertEquals(signTest(0, 0), 1);
  assertEquals(signTest(4, 4), 1);
  // 2^-1999 is no number in f64, but its logarithm is.
  assertEquals(signTest(0, 2000), 0);
  assertAlmostEquals(signTest(1000, 1000), 1, 1e-9);
});

Deno.test("the bootstrap interval of a mean covers it and is repeatable", () => {
  const values = Array.from({ length: 40 }, (_, i) => i % 10);
  const estimate = estimateMean(values);
  assertEquals(estimate.mean, 4.5);
  assertEquals(estimate.count, 40);
  assertEquals(estimateMean(values), estimate);
  assert(estimateMean(values, { seed: 2 }).low !== estimate.low);
  // Standard error of the mean: √(8.25 / 40) = 0.454, times 1.96. The ends of
  // the interval are quantiles of 2000 draws, uncertain by a few percent.
  assertAlmostEquals(estimate.high - estimate.low, 2 * 1.96 * 0.454, 0.2);
  assertAlmostEquals((estimate.high + estimate.low) / 2, 4.5, 0.1);
});

Deno.test("one value has no spread", () => {
  assertEquals(estimateMean([3]), { mean: 3, low: 3, high: 3, count: 1 });
});

Deno.test("differences of pairs do not see what pairs have in common", () => {
  const base = Array.from({ length: 12 }, (_, i) => 100 * i);
  const better = base.map((value, i) => value - (i === 0 ? -1 : 2));
  const { mean, below, above, p, low, high } = estimateDifference(
    better,
    base,
  );
  assertAlmostEquals(mean, (1 - 22) / 12, 1e-12);
  assertEquals([below, above], [11, 1]);
  // 2 · (1 + 12) / 2^12.
  assertAlmostEquals(p, 26 / 4096, 1e-12);
  assert(low >= -2 && high <= 1);
  assertThrows(
    () => estimateDifference([1], [1, 2]),
    RangeError,
    "Cannot pair",
  );
});

Deno.test("a share has Wilson's interval", () => {
  // Wilson's score interval of 8 of 10 at 95 %: published as 0.490 to 0.943.
  const some = estimateShare(8, 10);
  assertAlmostEquals(some.low, 0.49, 5e-4);
  assertAlmostEquals(some.high, 0.943, 5e-4);
  // Of all n: from n / (n + z²).
  const all = estimateShare(10, 10);
  assertAlmostEquals(all.low, 10 / (10 + 1.959964 ** 2), 1e-6);
  assertAlmostEquals(all.high, 1, 1e-12);
  assertAlmostEquals(estimateShare(0, 4).low, 0, 1e-12);
});

Deno.test("nothing cannot be estimated", () => {
  assertThrows(() => estimateMean([]), RangeError, "no values");
  assertThrows(() => estimateShare(0, 0), RangeError, "no trials");
});

Deno.test("random numbers follow from seed and label", () => {
  const draw = (seed: number, label?: string) => {
    const random = new Random(seed, label);
    return Array.from({ length: 5 }, () => random.next());
  };
  assertEquals(draw(1, "a"), draw(1, "a"));
  assert(draw(1, "a")[0] !== draw(2, "a")[0]);
  assert(draw(1, "a")[0] !== draw(1, "b")[0]);
  assert(hashText("ab") !== hashText("ba"));
});

Deno.test("random numbers are even", () => {
  const random = new Random(5);
  const counts = new Array(10).fill(0);
  for (let i = 0; i < 10_000; i++) counts[random.below(10)]++;
  // Standard deviation √(10000 · 0.1 · 0.9) = 30; five of them.
  for (const count of counts) assertAlmostEquals(count, 1000, 150);
  const items = [1, 2, 3, 4, 5];
  const sample = random.sample(items, 3);
  assertEquals(new Set(sample).size, 3);
  assertEquals(random.sample(items, 9).toSorted(), items);
});

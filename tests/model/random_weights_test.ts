import {
  assert,
  assertAlmostEquals,
  assertEquals,
  assertNotEquals,
  assertThrows,
} from "@std/assert";
import { parseModelConfig } from "../../src/model/config.ts";
import { randomWeights } from "../../src/model/random_weights.ts";
import {
  FakeBackend,
  type FakeBuffer,
  type FakeMatrix,
} from "./fake_backend.ts";
import { tinyConfig } from "./fixtures.ts";

const config = parseModelConfig(
  JSON.stringify(tinyConfig({
    vocab_size: 40_000,
    hidden_size: 64,
    attention_bias: true,
  })),
  "config.json",
);

function values(weight: unknown): Float32Array {
  return (weight as FakeBuffer | FakeMatrix).values;
}

Deno.test("a seed decides all values, on every backend", () => {
  using first = randomWeights(new FakeBackend(), config, 5);
  using second = randomWeights(new FakeBackend({ halfBytes: 2 }), config, 5);
  using other = randomWeights(new FakeBackend(), config, 6);
  assertEquals(values(first.embedding), values(second.embedding));
  assertEquals(
    values(first.layers[1]!.qkvBias),
    values(second.layers[1]!.qkvBias),
  );
  assertNotEquals(values(first.norm), values(other.norm));
  assertNotEquals(
    values(first.layers[0]!.down),
    values(first.layers[1]!.down),
  );
});

Deno.test("values are 16-bit floats of the promised spread", () => {
  using weights = randomWeights(new FakeBackend(), config, 1);
  const sample = values(weights.embedding);
  assert(sample.every((x) => Math.f16round(x) === x));
  // 2.6 million draws: the mean of a standard normal strays by 0.0006, its
  // variance by 0.0009; the bounds are five times that and the approximation.
  const scaled = sample.map((x) => x * 8);
  const mean = scaled.reduce((a, b) => a + b) / sample.length;
  const square = scaled.reduce((a, b) => a + b * b) / sample.length;
  assertAlmostEquals(mean, 0, 0.004);
  assertAlmostEquals(square, 1, 0.01);
  const within = scaled.filter((x) => Math.abs(x) < 1).length / sample.length;
  assertAlmostEquals(within, 0.6827, 0.004);
  assert(values(weights.norm).every((x) => x > 0.5 && x < 1.5));
  assert(values(weights.layers[0]!.qkvBias).every((x) => Math.abs(x) < 0.5));
});

Deno.test("a device that is full keeps nothing", () => {
  const backend = new FakeBackend({ failAt: 4 });
  assertThrows(() => randomWeights(backend, config, 1), RangeError);
  assertEquals(backend.bytesAllocated, 0);
});

import {
  assert,
  assertAlmostEquals,
  assertEquals,
  assertLessOrEqual,
  assertNotEquals,
} from "@std/assert";
import {
  inverseFrequencies,
  MAX_POSITION,
  meanRotation,
  ropeLength,
  ropeTable,
} from "../../src/model/rope.ts";
import { parseRope, type RopeConfig } from "../../src/model/rope_config.ts";

function rope(
  rope_parameters: Record<string, unknown>,
  contextLength = 131_072,
): RopeConfig {
  return parseRope({ rope_parameters }, { file: "config.json", contextLength });
}

/** Frequencies in 64 bits, straight from the definition. */
function frequency(theta: number, i: number, headDim: number): number {
  return theta ** (-2 * i / headDim);
}

/**
 * Compares with 64-bit numbers. `roundings` counts f32 roundings on the way,
 * each of at most half a unit in the last place.
 */
function assertClose(
  actual: Float32Array,
  expected: readonly number[],
  roundings: number,
): void {
  assertEquals(actual.length, expected.length);
  actual.forEach((value, i) => {
    assertLessOrEqual(
      Math.abs(value / expected[i]! - 1),
      roundings * 2 ** -24,
      `frequency ${i}`,
    );
  });
}

Deno.test("default frequencies are powers of theta", () => {
  const { inverse, scale } = inverseFrequencies(
    rope({ rope_theta: 10_000 }),
    64,
  );
  // Exponent, power, reciprocal; the exponent's error grows by ln(theta).
  assertClose(
    inverse,
    Array.from({ length: 32 }, (_, i) => frequency(10_000, i, 64)),
    2 + Math.log(10_000),
  );
  assertEquals(inverse[0], 1);
  assertEquals(scale, 1);
});

Deno.test("linear scaling divides by the factor", () => {
  const { inverse } = inverseFrequencies(
    rope({ rope_type: "linear", factor: 4 }),
    64,
  );
  const { inverse: plain } = inverseFrequencies(rope({}), 64);
  // Division by a power of two is exact.
  assertEquals(inverse, plain.map((f) => f / 4));
});

Deno.test("dynamic scaling sets in beyond the context", () => {
  const config = rope({ rope_type: "dynamic", factor: 2 }, 2048);
  const plain = inverseFrequencies(rope({}), 64).inverse;
  for (const length of [0, 1, 2048]) {
    assertEquals(inverseFrequencies(config, 64, length).inverse, plain);
    assertEquals(ropeLength(config, length), 2048);
  }
  const { inverse } = inverseFrequencies(config, 64, 5000);
  const theta = 10_000 * (2 * 5000 / 2048 - 1) ** (64 / 62);
  // Five more roundings make theta, and theta's error reaches the frequency
  // with an exponent of at most 1.
  assertClose(
    inverse,
    Array.from({ length: 32 }, (_, i) => frequency(theta, i, 64)),
    8 + Math.log(theta),
  );
  assertEquals(ropeLength(config, 5000), 5000);
  assertEquals(ropeLength(rope({}), 5000), ropeLength(rope({}), 1));
});

Deno.test("llama3 scaling keeps short waves and slows long ones", () => {
  const [theta, factor, low, high, context] = [500_000, 8, 1, 4, 8192];
  const { inverse, scale } = inverseFrequencies(
    rope({
      rope_type: "llama3",
      rope_theta: theta,
      factor,
      low_freq_factor: low,
      high_freq_factor: high,
      original_max_position_embeddings: context,
    }),
    128,
  );
  const kinds = new Set<string>();
  const expected = Array.from({ length: 64 }, (_, i) => {
    const f = frequency(theta, i, 128);
    // Turns within the original context.
    const turns = context * f / (2 * Math.PI);
    const kind = turns > high ? "kept" : turns < low ? "slowed" : "between";
    kinds.add(kind);
    if (kind === "kept") return f;
    if (kind === "slowed") return f / factor;
    const smooth = (turns - low) / (high - low);
    return f / factor * (1 - smooth) + f * smooth;
  });
  assertEquals([...kinds], ["kept", "between", "slowed"]);
  // The mix has 12 roundings after the frequency's own; a difference of two
  // nearby numbers makes an error of `turns` at most high / (high - low)
  // times larger, and smooth weighs (factor - 1) against at least 1.
  assertClose(inverse, expected, 12 + Math.log(theta) * factor * 2);
  assertEquals(scale, 1);
});

Deno.test("yarn ramps between kept and slowed dimensions", () => {
  const [theta, factor, context, headDim] = [1e6, 4, 32_768, 128];
  const base = {
    rope_type: "yarn",
    rope_theta: theta,
    factor,
    original_max_position_embeddings: context,
  };
  for (const truncate of [true, false]) {
    const { inverse } = inverseFrequencies(
      rope({ ...base, truncate }),
      headDim,
    );
    // The dimension with `turns` turns: context · theta^(-2d/headDim) = 2π turns.
    const dimension = (turns: number): number =>
      headDim / 2 * Math.log(context / (2 * Math.PI * turns)) / Math.log(theta);
    const round = truncate
      ? [Math.floor(dimension(32)), Math.ceil(dimension(1))]
      : [dimension(32), dimension(1)];
    const [first, last] = round as [number, number];
    const expected = Array.from({ length: headDim / 2 }, (_, i) => {
      const slow = Math.min(Math.max((i - first) / (last - first), 0), 1);
      const f = frequency(theta, i, headDim);
      return f * (1 - slow) + f / factor * slow;
    });
    assertClose(inverse, expected, 12 + Math.log(theta) * factor);
    assertEquals(inverse[0], 1);
  }
});

Deno.test("yarn scales cosine and sine as asked", () => {
  const scale = (fields: Record<string, unknown>): number =>
    inverseFrequencies(
      rope({ rope_type: "yarn", factor: 40, ...fields }, 4096),
      64,
    ).scale;
  assertAlmostEquals(scale({}), 0.1 * Math.log(40) + 1, 1e-12);
  assertEquals(scale({ attention_factor: 0.7 }), 0.7);
  assertEquals(scale({ mscale: 1, mscale_all_dim: 1 }), 1);
  assertAlmostEquals(
    scale({ mscale: 0.707, mscale_all_dim: 0.5 }),
    (0.0707 * Math.log(40) + 1) / (0.05 * Math.log(40) + 1),
    1e-12,
  );
  // Without a factor, the two context lengths give it.
  assertAlmostEquals(
    scale({ factor: null, original_max_position_embeddings: 1024 }),
    0.1 * Math.log(4) + 1,
    1e-12,
  );
  assertEquals(scale({ factor: 0.5 }), 1);
});

Deno.test("yarn without a ramp does not divide by zero", () => {
  const { inverse } = inverseFrequencies(
    rope({ rope_type: "yarn", factor: 2 }, 1),
    64,
  );
  assert(inverse.every((f) => Number.isFinite(f) && f > 0));
});

/** Cosine and sine of a position as a kernel makes them, in 64 bits. */
function turn(
  table: Float32Array,
  { position, pair, pairs }: { position: number; pair: number; pairs: number },
): [number, number] {
  let [cos, sin] = [1, 0];
  for (let level = 0; level < 3; level++) {
    const row = (position >>> (8 * level)) & 255;
    const at = ((level * 256 + row) * pairs + pair) * 2;
    const [c, s] = [table[at]!, table[at + 1]!];
    [cos, sin] = [cos * c - sin * s, cos * s + sin * c];
  }
  return [cos, sin];
}

Deno.test("three rows of the table make every position", () => {
  const { inverse } = inverseFrequencies(rope({ rope_theta: 500_000 }), 64);
  const pairs = inverse.length;
  for (const scale of [1, 1.25]) {
    const table = ropeTable(inverse, scale);
    assertEquals(table.length, 3 * 256 * pairs * 2);
    for (
      const position of [
        ...[0, 1, 255, 256, 257, 4095, 65_535, 65_536, 65_537],
        ...[131_071, 1_234_567, MAX_POSITION - 1],
      ]
    ) {
      inverse.forEach((frequency, pair) => {
        const [cos, sin] = turn(table, { position, pair, pairs });
        const angle = position * frequency;
        // Each of three factors is wrong by at most √2 · 2^-25 times its size,
        // and the products are exact enough here to add no more than 2^-50.
        const bound = scale * (3 * Math.SQRT2 * 2 ** -25 + 2 ** -45);
        const error = Math.hypot(
          cos - scale * Math.cos(angle),
          sin - scale * Math.sin(angle),
        );
        assertLessOrEqual(error, bound, `position ${position}, pair ${pair}`);
      });
    }
  }
});

Deno.test("position 0 turns nothing, and frequencies make a difference", () => {
  const { inverse } = inverseFrequencies(rope({}), 8);
  const table = ropeTable(inverse, 1);
  for (let level = 0; level < 3; level++) {
    const row = table.subarray(level * 256 * 8, level * 256 * 8 + 8);
    assertEquals([...row], [1, 0, 1, 0, 1, 0, 1, 0]);
  }
  assertNotEquals(turn(table, { position: 1, pair: 0, pairs: 4 }), [1, 0]);
});

Deno.test("meanRotation() is the mean of the rotations ahead", () => {
  const inverse = Float32Array.of(1, 0.3, 1e-4, 0);
  for (const horizon of [1, 7, 512]) {
    const mean = meanRotation(inverse, horizon);
    inverse.forEach((frequency, i) => {
      let [cos, sin] = [0, 0];
      for (let j = 1; j <= horizon; j++) {
        cos += Math.cos(j * frequency) / horizon;
        sin += Math.sin(j * frequency) / horizon;
      }
      assertAlmostEquals(mean[2 * i]!, cos, 2 ** -23);
      assertAlmostEquals(mean[2 * i + 1]!, sin, 2 ** -23);
    });
  }
});

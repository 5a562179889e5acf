import {
  assert,
  assertAlmostEquals,
  assertEquals,
  assertNotEquals,
  assertThrows,
} from "@std/assert";
import { SlotField } from "../../src/backends/backend.ts";
import { readHeads } from "../../src/evaluate/live_slots.ts";
import { Engine } from "../../src/generate/engine.ts";
import { scoreTokens } from "../../src/generate/score_tokens.ts";
import { randomWeights } from "../../src/model/random_weights.ts";
import { citrus } from "../../src/policies/citrus.ts";
import { fullCache } from "../../src/policies/full_cache.ts";
import type { Policy } from "../../src/policies/parts.ts";
import { validatePolicy } from "../../src/policies/validate_policy.ts";
import { eachBackend } from "../backends/each_backend.ts";
import { tinyConfig } from "../generate/tiny_model.ts";

const config = tinyConfig;
const ids = Array.from({ length: 90 }, (_, i) => (i * i + 3 * i) % 64);
const prompt = ids.slice(0, 60);
const instruction = [5, 40, 7, 22, 61];
const schedule = { kind: "streaming", chunk: 16 } as const;

eachBackend(
  "an instruction leaves no trace below the budget",
  async (backend) => {
    using weights = randomWeights(backend, config, 2);
    const score = async (policy: Policy) => {
      using engine = new Engine({ backend, config, weights, policy });
      const texts = [{ prompt, continuation: ids.slice(60) }];
      return await scoreTokens(engine, texts, { stepsPerRead: 4 });
    };
    const [scored] = await score(
      citrus({ budget: 96, instruction, schedule }),
    );
    const [expected] = await score({ ...fullCache({ budget: 96 }), schedule });
    assertEquals(scored!.length, expected!.length);
    // A chunk with the instruction has more rows, and a product of more rows may
    // take another way: activations are kept to 2^-22 of themselves, through a
    // dozen products one after the other, for scores below 8.
    const bound = 12 * 8 * 2 ** -22;
    scored!.forEach((x, i) => assertAlmostEquals(x, expected![i]!, bound));
  },
);

eachBackend(
  "slots are scored by what the instruction reads",
  async (backend) => {
    using weights = randomWeights(backend, config, 2);
    /** `(layers)` side fields after a text that is read at once. */
    const read = async (policy: Policy, text: readonly number[]) => {
      using engine = new Engine({ backend, config, weights, policy });
      engine.prefill(text, { then: "nothing" });
      const heads = await readHeads(engine.cache, { backend, config });
      return await Promise.all(engine.cache.layers.map(async ({ slots }, l) => {
        const { f32, u32 } = await backend.read(slots.side);
        // Nothing was evicted: slot `i` of a head holds token `i`.
        const first = heads[0]![l]![0]!.slots.length;
        assertEquals(first, text.length);
        const field = <A extends Float32Array | Uint32Array>(
          side: A,
          f: number,
        ) => side.slice(f * slots.total, f * slots.total + prompt.length);
        return {
          accumulated: field(f32, SlotField.accumulated),
          observations: field(u32, SlotField.observations),
        };
      }));
    };
    const policy = citrus({
      budget: 96,
      instruction,
      schedule: { kind: "whole", longest: 70 },
    });
    // The same rows as the end of the text itself.
    const asText: Policy = {
      ...policy,
      probe: { kind: "last", rows: instruction.length },
    };
    const guided = await read(policy, prompt);
    const expected = await read(asText, [...prompt, ...instruction]);
    for (const [l, { accumulated, observations }] of guided.entries()) {
      assertEquals(observations, expected[l]!.observations);
      assert(observations.every((n) => n === instruction.length));
      accumulated.forEach((sum, i) => {
        const other = expected[l]!.accumulated[i]!;
        // 5 weights below 1 in f32, and exp of logits that are summed elsewhere.
        assert(Math.abs(sum - other) < 2 ** -18, `${l} ${i}: ${sum} ${other}`);
      });
    }
  },
);

eachBackend("the instruction decides what stays", async (backend) => {
  using weights = randomWeights(backend, config, 2);
  const keep = async (tokens: readonly number[]) => {
    const policy = citrus({ budget: 16, instruction: tokens, schedule });
    using engine = new Engine({ backend, config, weights, policy });
    const { bytes } = engine.cache;
    for (const piece of engine.pieces(prompt)) {
      engine.prefill(piece, { then: "nothing" });
    }
    assertEquals(engine.position(), prompt.length);
    const [heads] = await readHeads(engine.cache, { backend, config });
    assertEquals(engine.cache.bytes, bytes);
    return heads!.flat().map(({ slots }) => {
      assertEquals(slots.length, 16);
      const positions = slots.map(({ position }) => position);
      // A quarter of the budget is recent; guests are not among them.
      assertEquals(positions.slice(-4), [56, 57, 58, 59]);
      return positions;
    });
  };
  assertEquals(await keep(instruction), await keep(instruction));
  assertNotEquals(await keep(instruction), await keep([1, 2, 3, 50, 51]));
});

Deno.test("an instruction has ids", () => {
  const check = (tokens: readonly number[]) =>
    validatePolicy(citrus({ budget: 16, instruction: tokens }));
  assertThrows(() => check([]), RangeError, "probe.tokens.length is 0");
  assertThrows(() => check([1, -1]), RangeError, "probe.tokens[1] is -1");
});

/**
 * Slot indices and positions are different things.
 */
import { assert, assertEquals } from "@std/assert";
import { SlotField, type Slots } from "../../src/backends/backend.ts";
import type { Backend, DeviceBuffer } from "../../src/backends/backend.ts";
import { Engine } from "../../src/generate/engine.ts";
import { resolveSampling } from "../../src/generate/sampling.ts";
import { randomWeights } from "../../src/model/random_weights.ts";
import { fullCache } from "../../src/policies/full_cache.ts";
import { h2o } from "../../src/policies/h2o.ts";
import { keepKV } from "../../src/policies/keep_kv.ts";
import { streamingLlm } from "../../src/policies/streaming_llm.ts";
import type { Policy } from "../../src/policies/parts.ts";
import { eachBackend } from "../backends/each_backend.ts";
import { tinyConfig } from "../generate/tiny_model.ts";

// In a model of one layer a key depends on its token and its position alone.
const config = { ...tinyConfig, layers: 1 };
const { headDim, vocabulary } = config.sizes;

/** Keys of the first head by position, once prompt and answer are read. */
async function keysByPosition(
  backend: Backend,
  policy: Policy,
): Promise<{ keys: Map<number, Float32Array>; ids: number[] }> {
  using weights = randomWeights(backend, config, 4);
  using engine = new Engine({ backend, config, weights, policy });
  const sampling = resolveSampling({ temperature: 0 }, {
    defaults: {},
    stopIds: [],
    vocabulary,
  });
  engine.start(sampling, 41);
  const prompt = Array.from({ length: 100 }, (_, i) => i * 7 % vocabulary);
  engine.prefill(prompt.slice(0, 60), { then: "nothing" });
  engine.prefill(prompt.slice(60), { then: "sample" });
  engine.decode(40);
  const ids = (await engine.readOutputs(0, 41)).map(({ id }) => id);
  const { slots } = engine.cache.layers[0]!;
  return { keys: await readKeys(backend, slots, engine.cache.capacity), ids };
}

async function readKeys(
  backend: Backend,
  slots: Slots<DeviceBuffer>,
  capacity: number,
): Promise<Map<number, Float32Array>> {
  const keys = (await backend.read(slots.keys)).f32;
  const side = (await backend.read(slots.side)).u32;
  const byPosition = new Map<number, Float32Array>();
  for (let slot = 0; slot < capacity; slot++) {
    if (side[SlotField.tokens * slots.total + slot] === 0) continue;
    const position = side[SlotField.position * slots.total + slot]!;
    assert(!byPosition.has(position), `two slots have position ${position}`);
    byPosition.set(position, keys.slice(slot * headDim, (slot + 1) * headDim));
  }
  return byPosition;
}

eachBackend(
  "evicting in the middle moves no key to another position",
  async (backend) => {
    const full = await keysByPosition(backend, fullCache({ budget: 256 }));
    assertEquals(full.keys.size, 140);
    const policies = [
      h2o({ budget: 24, recent: 0.25 }),
      keepKV({ budget: 24, threshold: 1 }),
      streamingLlm({ budget: 24 }),
    ];
    for (const policy of policies) {
      const { keys, ids } = await keysByPosition(backend, policy);
      assertEquals(keys.size, 24, policy.name);
      // The newest token is there, at its position in the text.
      assert(keys.has(139), policy.name);
      // The cache decides which ids come out, so only the prompt's keys and those
      // of the answer up to the first different id can be compared.
      const same = ids.findIndex((id, i) => id !== full.ids[i]);
      for (const [position, key] of keys) {
        if (position >= 100 + (same < 0 ? 41 : same)) continue;
        assertEquals(
          key,
          full.keys.get(position),
          `${policy.name} ${position}`,
        );
      }
    }
  },
);

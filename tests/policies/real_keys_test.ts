/**
 * The single-step theorem on the keys, values and queries of a real model.
 */
import { assert, assertEquals } from "@std/assert";
import type { DeviceBuffer } from "../../src/backends/backend.ts";
import { CpuBackend } from "../../src/backends/cpu/cpu_backend.ts";
import { Engine } from "../../src/generate/engine.ts";
import { openModelFolder } from "../../src/model/model_folder.ts";
import { loadWeights } from "../../src/model/weights.ts";
import { fullCache } from "../../src/policies/full_cache.ts";
import { eachBackend } from "../backends/each_backend.ts";
import {
  exactAttention,
  instantKeepKV,
  LayerHarness,
  mergeTolerance,
  relativeError,
  type TestSlot,
} from "./layer_harness.ts";

const MODEL = new URL("../../examples/models/docs-7m/", import.meta.url);
const TEXT =
  `The CREATE TABLE statement makes a new table. Each column has a name and a
type, and may have a constraint. A table that exists already is an error, unless
IF NOT EXISTS is given. The SELECT statement reads rows from one or more tables.`;

/** What one query head of one layer sees at the end of the text. */
interface RealHead {
  readonly name: string;
  readonly query: Float32Array;
  readonly slots: readonly TestSlot[];
}

/** Keeps hold of the buffer of queries that an engine allocates. */
class SpyBackend extends CpuBackend {
  queries: DeviceBuffer | undefined;

  override allocate(
    ...args: Parameters<CpuBackend["allocate"]>
  ): DeviceBuffer {
    const buffer = super.allocate(...args);
    if (args[0] === "queries") this.queries = buffer;
    return buffer;
  }
}

/** Heads of the last layer of a model that is cut after `layers` layers. */
async function realHeads(layers: number): Promise<RealHead[]> {
  await using backend = new SpyBackend();
  using model = await openModelFolder(MODEL);
  using weights = await loadWeights(backend, model, { verify: false });
  const { heads, kvHeads, headDim } = model.config.sizes;
  using engine = new Engine({
    backend,
    config: { ...model.config, layers },
    weights,
    policy: fullCache({ budget: 256 }),
  });
  const ids = model.tokenizer.encode(TEXT);
  engine.prefill(ids, { then: "nothing" });
  const queries = (await backend.read(backend.queries!)).f32;
  const cache = engine.cache.layers.at(-1)!;
  const keys = (await backend.read(cache.slots.keys)).f32;
  const values = (await backend.read(cache.slots.values)).f32;
  const half = (data: Float32Array, at: number) =>
    new Float32Array(new Float16Array(data.subarray(at, at + headDim)));
  return Array.from({ length: heads }, (_, head) => {
    const offset = Math.floor(head / (heads / kvHeads)) * 256;
    const row = (ids.length - 1) * heads + head;
    return {
      name: `layer ${layers - 1}, head ${head}`,
      query: half(queries, row * headDim),
      slots: ids.map((_, position) => ({
        key: half(keys, (offset + position) * headDim),
        value: half(values, (offset + position) * headDim),
        position,
        tokens: 1,
        bias: [0],
        ema: 0,
        accumulated: 0,
        observations: 1,
      })),
    };
  });
}

const real = [
  ...await realHeads(1),
  ...await realHeads(4),
  ...await realHeads(8),
];

for (const key of ["zip", "minNorm", "realVotes"] as const) {
  eachBackend(
    `a merge of real keys leaves the output unchanged: ${key}`,
    async (backend) => {
      for (const { name, query, slots } of real) {
        const sizes = {
          heads: 1,
          kvHeads: 1,
          headDim: query.length,
          hidden: 64,
          ffn: 64,
          vocabulary: 32,
          normEpsilon: 1e-5,
        };
        const policy = instantKeepKV({ key, sinks: 4 });
        const capacity = slots.length;
        using layer = new LayerHarness(backend, { sizes, policy, capacity });
        const live = capacity - 1;
        layer.writeSlots([slots], { budget: live, recent: 20, live });
        await layer.mergeAttend(query, live);
        const [merged] = await layer.readSlots();
        assertEquals(merged!.length, live);
        assertEquals(await layer.readTable("merged"), [1]);
        const error = relativeError(
          exactAttention(query, merged!).output,
          exactAttention(query, slots).output,
        );
        const bound = mergeTolerance(backend, query, merged!);
        assert(error < bound, `${name}: ${error} exceeds ${bound}`);
      }
    },
  );
}

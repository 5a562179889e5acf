/**
 * ExpectedAttention against its formula with whole matrices, on every backend.
 */
import { assertEquals, assertNotEquals } from "@std/assert";
import type {
  Backend,
  DeviceBuffer,
  Kernels,
} from "../../src/backends/backend.ts";
import { CpuBackend } from "../../src/backends/cpu/cpu_backend.ts";
import { SlotCache } from "../../src/cache/slot_cache.ts";
import { Engine } from "../../src/generate/engine.ts";
import { resolveSampling } from "../../src/generate/sampling.ts";
import { randomWeights } from "../../src/model/random_weights.ts";
import {
  inverseFrequencies,
  meanRotation,
  ropeTable,
} from "../../src/model/rope.ts";
import { expectedAttention } from "../../src/policies/expected_attention.ts";
import { keyDiff } from "../../src/policies/key_diff.ts";
import { eachBackend } from "../backends/each_backend.ts";
import { tinyConfig } from "../generate/tiny_model.ts";
import {
  freshSlot,
  LayerHarness,
  layerSizes,
  normalVector,
  randomNumbers,
  type TestSlot,
} from "./layer_harness.ts";

const headDim = 16;
const pairs = headDim / 2;
const sizes = layerSizes({ heads: 2, headDim });
const HORIZON = 40;
/** What the table scales rotations with, as YaRN's does. */
const SCALE = 1.1;
const { inverse } = inverseFrequencies(
  { type: "default", theta: 100 },
  headDim,
);

/** Rows of the chunk, and tokens of the text. */
const ROWS = 20;
const TOKENS = 2 * headDim;

type Matrix = number[][];

/** The rotation by a number of positions as a matrix. */
function rotationMatrix(position: number): Matrix {
  const matrix = zeros();
  inverse.forEach((frequency, i) => {
    const [cos, sin] = [
      SCALE * Math.cos(position * frequency),
      SCALE * Math.sin(position * frequency),
    ];
    matrix[i]![i] = matrix[i + pairs]![i + pairs] = cos;
    matrix[i]![i + pairs] = -sin;
    matrix[i + pairs]![i] = sin;
  });
  return matrix;
}

function zeros(): Matrix {
  return Array.from({ length: headDim }, () => Array(headDim).fill(0));
}

function multiply(matrix: Matrix, vector: ArrayLike<number>): number[] {
  return matrix.map((row) =>
    row.reduce((sum, x, i) => sum + x * vector[i]!, 0)
  );
}

/**
 * Queries `μ ± σᵢ eᵢ`: their covariance is diagonal, and the same for both ends
 * of a RoPE pair, so nothing of it is lost.
 */
function textQueries(random: () => number): number[][] {
  const mean = normalVector(random, headDim);
  const deviations = Array.from({ length: pairs }, () => 1 + 5 * random());
  return Array.from({ length: TOKENS }, (_, t) => {
    const query = [...mean];
    const i = t % headDim;
    query[i]! += (t < headDim ? 1 : -1) * deviations[i % pairs]!;
    return query;
  });
}

/** The paper's score of each slot, times the norm of its value. */
function paperRanks(
  texts: readonly number[][][],
  slots: readonly TestSlot[],
  newest: number,
): number[] {
  const turn = zeros();
  for (let j = 1; j <= HORIZON; j++) {
    rotationMatrix(newest + j).forEach((row, a) =>
      row.forEach((x, b) => turn[a]![b]! += x / HORIZON)
    );
  }
  const ranks = slots.map(() => 0);
  for (const text of texts) {
    const seen = text.slice(0, newest + 1);
    const mean = Array.from(
      { length: headDim },
      (_, i) => seen.reduce((sum, q) => sum + q[i]!, 0) / seen.length,
    );
    const future = multiply(turn, mean);
    const weights = slots.map(({ key }) => {
      const logit = future.reduce((sum, x, i) => sum + x * key[i]!, 0);
      // kᵀ R̄ Σ R̄ᵀ k: the variance of q · R̄ᵀ k.
      const turned = zeros().map((_, i) =>
        turn.reduce((sum, row, a) => sum + row[i]! * key[a]!, 0)
      );
      const variance = seen.reduce((sum, q) => {
        const product = turned.reduce(
          (dot, x, i) => dot + x * (q[i]! - mean[i]!),
          0,
        );
        return sum + product ** 2 / seen.length;
      }, 0);
      return Math.exp(
        logit / Math.sqrt(headDim) + variance / (2 * headDim),
      );
    });
    const total = weights.reduce((a, b) => a + b);
    weights.forEach((weight, s) => ranks[s]! += weight / total);
  }
  return ranks.map((rank, s) => rank * slots[s]!.valueNorm!);
}

/** A layer whose queries are counted, of a chunk and then token by token. */
function countQueries(
  backend: Backend,
  layer: LayerHarness,
  texts: readonly number[][][],
): void {
  const rope = layer.allocate("rope", "f32", 3 * 256 * headDim);
  const ahead = layer.allocate("ahead", "f32", headDim);
  backend.write(rope, ropeTable(inverse, SCALE));
  backend.write(ahead, meanRotation(inverse, HORIZON));
  const rotated = (position: number) =>
    texts.flatMap((text) =>
      multiply(rotationMatrix(position), text[position]!)
    );
  const run = (
    positions: readonly number[],
    step: Parameters<Kernels["queryStatistics"]>[0]["step"],
  ) => {
    const data = Float32Array.from(positions.flatMap(rotated));
    const queries = layer.allocate("queries", "f32", data.length);
    backend.write(queries, data);
    const { cache } = layer;
    using program = backend.record(
      "query statistics",
      (kernels) =>
        kernels.queryStatistics({
          queries,
          rope,
          ahead,
          cache,
          step,
          sizes,
          policy,
        }),
    );
    program.run();
  };
  const positions = Array.from({ length: TOKENS }, (_, position) => position);
  run(positions.slice(0, ROWS), layer.prefillStep(0, ROWS));
  for (const position of positions.slice(ROWS)) {
    run([position], layer.decodeStep(position));
  }
}

const policy = expectedAttention({ budget: 9, horizon: HORIZON, sinks: 0 });

eachBackend(
  "ExpectedAttention drops what its formula says",
  async (backend) => {
    const newest = TOKENS - 1;
    for (let seed = 1; seed <= 3; seed++) {
      const random = randomNumbers(seed);
      const texts = [textQueries(random), textQueries(random)];
      const slots = (count: number) =>
        Array.from({ length: count }, (_, i) => {
          const slot = freshSlot(random, {
            headDim,
            lanes: 1,
            position: newest - i,
          });
          return { ...slot, valueNorm: Math.hypot(...slot.value) };
        });
      const goes = (held: readonly TestSlot[], count: number) => {
        const old = held.filter(({ position }) => position < newest);
        const ranks = paperRanks(texts, held, newest);
        const rankOf = (slot: TestSlot) => ranks[held.indexOf(slot)]!;
        const order = old.sort((a, b) => rankOf(a) - rankOf(b));
        return new Set(order.slice(0, count).map(({ position }) => position));
      };
      const open = (capacity: number) =>
        new LayerHarness(backend, { sizes, policy, capacity, stageRows: ROWS });
      const left = async (layer: LayerHarness) => {
        const [after] = await layer.readSlots();
        return after!.map(({ position }) => position).sort((a, b) => a - b);
      };
      const staying = (held: readonly TestSlot[], count: number) => {
        const gone = goes(held, count);
        return held.map(({ position }) => position)
          .filter((position) => !gone.has(position)).sort((a, b) => a - b);
      };

      {
        using layer = open(10);
        const held = slots(10);
        layer.writeSlots([held], { budget: 9, recent: 1, live: 9 });
        countQueries(backend, layer, texts);
        await layer.mergeAttend(normalVector(random, 2 * headDim), newest);
        assertEquals(await left(layer), staying(held, 1), `seed ${seed}`);
      }
      {
        using layer = open(10);
        const rows = slots(ROWS).reverse();
        layer.writeSlots([[]], { budget: 9, recent: 1, live: 0 });
        layer.writeStage([rows]);
        countQueries(backend, layer, texts);
        await layer.readChunk(
          normalVector(random, ROWS * 2 * headDim),
          { position: newest + 1 - ROWS, rows: ROWS },
        );
        assertEquals(await left(layer), staying(rows, ROWS - 9), `${seed}`);
      }
    }
  },
);

/** Ids that a tiny model generates. */
async function generate(engine: Engine): Promise<number[]> {
  const { vocabulary } = tinyConfig.sizes;
  engine.start(
    resolveSampling({ temperature: 0 }, {
      defaults: {},
      stopIds: [],
      vocabulary,
    }),
    21,
  );
  const prompt = Array.from({ length: 60 }, (_, i) => i * 7 % vocabulary);
  engine.prefill(prompt, { then: "sample" });
  engine.decode(20);
  return (await engine.readOutputs(0, 21)).map(({ id }) => id);
}

async function readStatistics(
  backend: Backend,
  engine: Engine,
): Promise<Float32Array> {
  const { statistics } = engine.cache.layers[1]!;
  return (await backend.read(statistics as DeviceBuffer)).f32;
}

eachBackend(
  "ExpectedAttention forgets the queries of a text with the text",
  async (backend) => {
    const policy = expectedAttention({ budget: 24 });
    using weights = randomWeights(backend, tinyConfig, 4);
    using engine = new Engine({
      backend,
      config: tinyConfig,
      weights,
      policy,
    });
    const ids = await generate(engine);
    const statistics = await readStatistics(backend, engine);
    // Of 60 read and 20 generated tokens, those that are no sinks.
    assertEquals(statistics.at(-1), 76);
    engine.reset();
    assertNotEquals(await readStatistics(backend, engine), statistics);
    assertEquals(await generate(engine), ids);
    assertEquals(await readStatistics(backend, engine), statistics);
  },
);

Deno.test("a cache counts the bytes of query statistics", async () => {
  await using backend = new CpuBackend();
  const options = {
    ...tinyConfig,
    sequences: 3,
    stageRows: 8,
  };
  using expects = new SlotCache(
    backend,
    expectedAttention({ budget: 24 }),
    options,
  );
  using plain = new SlotCache(backend, keyDiff({ budget: 24 }), options);
  const { sizes: { heads, headDim }, layers } = tinyConfig;
  assertEquals(
    expects.bytes - plain.bytes,
    layers * 3 * heads * (3 * headDim + 1) * 4,
  );
  const bytes = expects.bytes;
  using fitting = new SlotCache(
    backend,
    expectedAttention({ budget: { bytes } }),
    options,
  );
  assertEquals(fitting.bytes, bytes);
});

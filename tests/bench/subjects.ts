/**
 * What the benchmarks measure: engines with random weights and a full cache,
 * and one thing that each of them does again and again.
 */
import type { Backend } from "../../src/backends/backend.ts";
import { Engine } from "../../src/generate/engine.ts";
import type { ModelConfig } from "../../src/model/config.ts";
import { randomWeights } from "../../src/model/random_weights.ts";
import { h2o } from "../../src/policies/h2o.ts";
import { keepKV } from "../../src/policies/keep_kv.ts";
import type { HeadAllocation, Policy } from "../../src/policies/parts.ts";
import { fillCache } from "./fill_cache.ts";

/** Something to measure. */
export interface Subject {
  readonly engine: Engine;
  /** Undoes what the run before did; not part of the measurement. */
  readonly restore?: () => void;
  /** Does it once, and waits until the device is done. */
  readonly run: () => Promise<void>;
}

/** Tokens of a prompt that are read at a time. */
export const CHUNK = 256;

/**
 * Tokens decoded at a time: waiting costs the same however many there are, so
 * one at a time would measure the wait.
 */
export const STEPS = 8;

/** A layer small enough for a CPU, whose attention shows beside the products. */
const config: ModelConfig = {
  architecture: "LlamaForCausalLM",
  sizes: {
    hidden: 128,
    heads: 2,
    kvHeads: 1,
    headDim: 32,
    ffn: 256,
    vocabulary: 512,
    normEpsilon: 1e-5,
  },
  layers: 1,
  contextLength: 8192,
  tiedHead: true,
  attentionBias: "none",
  mlpBias: false,
  qkNorm: false,
  rope: { type: "default", theta: 10_000 },
  eosIds: [],
};

/** Ids of a chunk of a prompt, the same each time. */
const chunkIds = Array.from(
  { length: CHUNK },
  (_, i) => i * 31 % config.sizes.vocabulary,
);

/** KeepKV for one layer, in which any two slots may be merged. */
function policyOf(budget: number): Policy {
  return keepKV({
    budget,
    threshold: -1,
    allocate: { layers: { kind: "uniform" } },
  });
}

/** Decodes with `slots` slots, one of which is merged at each step. */
export async function decoding(
  backend: Backend,
  slots: number,
): Promise<Subject> {
  const policy = policyOf(slots);
  const engine = await fullEngine(backend, { policy, tokens: slots });
  return { engine, run: () => decode(engine) };
}

/** Decodes with `slots` slots and room for as many as are decoded at a time. */
export async function decodingWithoutMerges(
  backend: Backend,
  slots: number,
): Promise<Subject> {
  const engine = await fullEngine(backend, {
    policy: policyOf(slots + STEPS),
    tokens: slots,
  });
  const { table, slots: { side } } = engine.cache.layers[0]!;
  const [heads, fields] = await Promise.all([
    backend.read(table),
    backend.read(side),
  ]);
  return {
    engine,
    restore() {
      backend.write(table, heads.u32);
      backend.write(side, fields.u32);
    },
    run: () => decode(engine),
  };
}

/**
 * Layers of the model whose heads differ. One layer alone says little about a
 * step: on CUDA the policy's work on a layer, which takes as long as that on its
 * largest head, goes on beside the layers that follow, and only that of the
 * last one is waited for; and a backend that takes long to answer, as WebGPU
 * does, hides a single layer behind the wait. Real models have more layers.
 */
const RAGGED_LAYERS = 8;

/** Slots of four heads as shares: the first has twice their mean. */
const RAGGED: HeadAllocation = {
  kind: "shares",
  shares: Array.from({ length: RAGGED_LAYERS }, () => [4, 2, 1, 1]),
};

/** Layers of the same size with four KV heads, so that they can differ. */
const fourHeads: ModelConfig = {
  ...config,
  sizes: { ...config.sizes, heads: 8, kvHeads: 4 },
  layers: RAGGED_LAYERS,
};

/** Decodes with four heads of `slots` slots, one of which goes at each step. */
export function decodingEvenHeads(
  backend: Backend,
  slots: number,
): Promise<Subject> {
  return decodingHeads(backend, slots, { kind: "uniform" });
}

/** The same with as many slots in all, half of them in the first head. */
export function decodingRaggedHeads(
  backend: Backend,
  slots: number,
): Promise<Subject> {
  return decodingHeads(backend, slots, RAGGED);
}

async function decodingHeads(
  backend: Backend,
  slots: number,
  heads: HeadAllocation,
): Promise<Subject> {
  const engine = openEngine(
    backend,
    h2o({ budget: slots, allocate: { heads }, recent: 0.1 }),
    fourHeads,
  );
  const largest = Math.max(
    ...engine.cache.budgets.flat().map(({ slots }) => slots),
  );
  fillCache(backend, engine.cache);
  engine.setPosition(largest);
  // One token, since decoding goes on from a sampled one.
  engine.prefill(chunkIds.slice(0, 1), { then: "sample" });
  await engine.readOutputs(0, 1);
  return { engine, run: () => decode(engine) };
}

/** Reads a chunk of a prompt into `slots` slots, which merges as many. */
export async function prefilling(
  backend: Backend,
  slots: number,
): Promise<Subject> {
  const policy = policyOf(slots);
  const engine = await fullEngine(backend, { policy, tokens: slots });
  return {
    engine,
    async run() {
      engine.prefill(chunkIds, { then: "nothing" });
      await engine.cache.stats();
    },
  };
}

/** An engine that has read `tokens` tokens and sampled what follows. */
async function fullEngine(
  backend: Backend,
  { policy, tokens }: { policy: Policy; tokens: number },
): Promise<Engine> {
  const engine = openEngine(backend, policy, config);
  for (let read = 0; read < tokens; read += CHUNK) {
    engine.prefill(chunkIds, { then: "sample" });
  }
  await engine.readOutputs(0, 1);
  return engine;
}

/** An empty engine that decodes without end. */
function openEngine(
  backend: Backend,
  policy: Policy,
  model: ModelConfig,
): Engine {
  const weights = randomWeights(backend, model, 1);
  const engine = new Engine({ backend, config: model, weights, policy });
  const neverEnds = 2 ** 32 - 1;
  engine.start({
    ...{ temperature: 0, topK: 0, topP: 1, minP: 0, repetitionPenalty: 1 },
    ...{ seed: 0, stopIds: [] },
  }, neverEnds);
  return engine;
}

async function decode(engine: Engine): Promise<void> {
  engine.decode(STEPS);
  await engine.readOutputs(0, STEPS);
}

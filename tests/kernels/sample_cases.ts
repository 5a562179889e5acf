/**
 * Cases of `sample`.
 *
 * @module
 */
import { assertEquals } from "@std/assert";
import {
  NOT_FORCED,
  OutputWord,
  SamplingWord,
  StateWord,
} from "../../src/backends/backend.ts";
import type { Draw, KernelCase } from "./kernel_case.ts";
import { modelSizes } from "./matrix_cases.ts";
import { garbageWords, Random } from "./random.ts";
import type { Scene } from "./scene.ts";
import { decodeStep, prefillStep, type SceneStep } from "./steps.ts";
import { assertWithin, expError, sumError } from "./tolerance.ts";

/** Sampling options of one sequence; those left out change nothing. */
interface SequenceOptions {
  readonly temperature?: number;
  readonly topK?: number;
  readonly topP?: number;
  readonly minP?: number;
  readonly repetitionPenalty?: number;
  readonly stopIds?: readonly number[];
  readonly forced?: number;
  readonly produced?: number;
  readonly limit?: number;
}

interface SampleOptions {
  readonly name: string;
  readonly vocabulary: number;
  readonly step: SceneStep;
  readonly sequences: readonly SequenceOptions[];
  /** Makes the logits of a sequence; normally distributed if left out. */
  readonly logits?: (random: Random) => Float32Array;
}

const RING = 4;

function sampleCase(options: SampleOptions): KernelCase {
  return {
    name: `sample ${options.name}`,
    draw: (seed) => drawSample(options, new Random(seed)),
  };
}

function drawSample(options: SampleOptions, random: Random): Draw {
  const { vocabulary, step, sequences } = options;
  const sizes = modelSizes({ vocabulary });
  const count = sequences.length;
  const state = (step.tensors.state!.data as Uint32Array).slice();
  const sampling = new Uint32Array(count * SamplingWord.count);
  const floats = new Float32Array(sampling.buffer);
  const forced = new Uint32Array(count * RING).fill(NOT_FORCED);
  sequences.forEach((sequence, i) => {
    const at = i * SamplingWord.count;
    floats[at + SamplingWord.temperature] = sequence.temperature ?? 1;
    sampling[at + SamplingWord.topK] = sequence.topK ?? 0;
    floats[at + SamplingWord.topP] = sequence.topP ?? 1;
    floats[at + SamplingWord.minP] = sequence.minP ?? 0;
    floats[at + SamplingWord.repetitionPenalty] = sequence.repetitionPenalty ??
      1;
    const stopIds = sequence.stopIds ?? [];
    sampling[at + SamplingWord.stopCount] = stopIds.length;
    sampling.set(stopIds, at + SamplingWord.stopIds);
    const word = i * StateWord.count;
    const produced = sequence.produced ?? random.below(1000);
    state[word + StateWord.produced] = produced;
    state[word + StateWord.limit] = sequence.limit ?? 2000;
    state[word + StateWord.seedLow] = random.below(2 ** 32);
    state[word + StateWord.seedHigh] = random.below(2 ** 32);
    if (sequence.forced !== undefined) {
      forced[i * RING + produced % RING] = sequence.forced;
    }
  });
  const rows = step.kind === "decode" ? step.rows : 1;
  const logits = new Float32Array(rows * vocabulary);
  for (let row = 0; row < rows; row++) {
    logits.set(
      options.logits?.(random) ?? random.floats(vocabulary, 3),
      row * vocabulary,
    );
  }
  const words = Math.ceil(vocabulary / 32);
  const scene: Scene = {
    tensors: {
      ...step.tensors,
      state: { type: "u32", data: state },
      sampling: { type: "u32", data: sampling },
      forced: { type: "u32", data: forced },
      logits: { type: "f32", data: logits },
      seen: {
        type: "u32",
        data: Uint32Array.from(
          { length: count * words },
          () => random.below(2 ** 32),
        ),
      },
      nextTokens: { type: "u32", data: garbageWords(count) },
      output: {
        type: "u32",
        data: garbageWords(count * RING * OutputWord.count),
      },
    },
    record: (kernels, stage) =>
      kernels.sample({
        nextTokens: stage.buffer("nextTokens"),
        output: stage.buffer("output"),
        forced: stage.buffer("forced"),
        ring: RING,
        logits: stage.buffer("logits"),
        sampling: stage.buffer("sampling"),
        seen: stage.buffer("seen"),
        step: step.at(stage),
        sizes,
      }),
  };
  // ln of a sum of exp: WGSL's exp and log, and the sum.
  const logprob = expError(40) + sumError(vocabulary, 1) + 2 ** -20 * 16;
  return {
    scene,
    check(actual, expected) {
      assertEquals(actual.nextTokens!.u32, expected.nextTokens!.u32);
      assertEquals(actual.state!.u32, expected.state!.u32);
      for (let i = 0; i < count * RING; i++) {
        const at = i * OutputWord.count;
        const id = at + OutputWord.id;
        assertEquals(actual.output!.u32[id], expected.output!.u32[id]);
        const written = expected.output!.u32[id] !== 0xdead;
        const value = at + OutputWord.logprob;
        assertWithin(
          [actual.output!.f32[value]!],
          [expected.output!.f32[value]!],
          { what: "logprob", bound: written ? logprob : 0 },
        );
      }
    },
  };
}

/** Many sequences with the same options, so that there are many draws. */
function many(
  name: string,
  options: SequenceOptions,
  { vocabulary = 777, logits }: {
    vocabulary?: number;
    logits?: (random: Random) => Float32Array;
  } = {},
): KernelCase {
  const count = 24;
  return sampleCase({
    name,
    vocabulary,
    step: decodeStep(Array.from({ length: count }, (_, i) => i)),
    sequences: Array.from({ length: count }, () => options),
    ...(logits && { logits }),
  });
}

/** Logits on a coarse grid: many ties. */
function tiedLogits(random: Random): Float32Array {
  return random.floats(777, 2).map((x) => Math.round(x * 2) / 2);
}

/** All cases. */
export const sampleCases: readonly KernelCase[] = [
  many("draws from all ids", {}),
  many("takes the most likely id", { temperature: 0 }),
  many("takes the lowest of the most likely ids", { temperature: 0 }, {
    logits: tiedLogits,
  }),
  many("draws at a low temperature", { temperature: 0.3 }),
  many("keeps the top 5", { topK: 5, temperature: 2 }),
  many("keeps the top 5 with their ties", { topK: 5, temperature: 2 }, {
    logits: tiedLogits,
  }),
  many("keeps the top 1", { topK: 1 }),
  many("keeps more than there are", { topK: 1000 }),
  many("keeps a share of 0.7", { topP: 0.7, temperature: 1.5 }),
  many("keeps a share of 0.02 with its ties", { topP: 0.02 }, {
    logits: tiedLogits,
  }),
  many("keeps those above a share of the largest", { minP: 0.05 }),
  many("filters in every way", {
    temperature: 1.3,
    topK: 40,
    topP: 0.9,
    minP: 0.01,
    repetitionPenalty: 1.3,
  }),
  many("penalizes repetition", { temperature: 0, repetitionPenalty: 1.5 }),
  many("draws from a large vocabulary", { topP: 0.95 }, { vocabulary: 70_001 }),
  // Few rows are worth several blocks each, on any device.
  ...[{ topP: 0.95 }, { temperature: 0 }, { topK: 40 }].map((options) =>
    sampleCase({
      name: `takes one id of a large vocabulary, ${JSON.stringify(options)}`,
      vocabulary: 20_001,
      step: decodeStep([3]),
      sequences: [options],
    })
  ),
  many("draws from fewer ids than threads", { topK: 3 }, { vocabulary: 9 }),
  sampleCase({
    name: "stops, goes on, is forced, and skips the finished",
    vocabulary: 50,
    step: decodeStep([3, 4, 5, 6, 7], { finished: [2] }),
    sequences: [
      { temperature: 0, stopIds: Array.from({ length: 24 }, (_, i) => i) },
      { produced: 9, limit: 10 },
      {},
      { forced: 17 },
      { forced: 49, stopIds: [1, 49] },
    ],
  }),
  sampleCase({
    name: "after a chunk",
    vocabulary: 100,
    step: prefillStep({
      rows: 9,
      live: 4,
      position: 30,
      sequence: 1,
      sequences: 3,
    }),
    sequences: [{}, { temperature: 0.8, repetitionPenalty: 1.2 }, {}],
  }),
  sampleCase({
    name: "after an empty chunk",
    vocabulary: 100,
    step: prefillStep({ rows: 9, live: 0, sequence: 1, sequences: 3 }),
    sequences: [{}, {}, {}],
  }),
];

import {
  type HostTensor,
  NOT_FORCED,
  OutputWord,
  type Sample,
  SamplingWord,
  StateWord,
} from "../backends/backend.ts";
import { logSumExp } from "./arithmetic.ts";
import { liveRows } from "./host.ts";

/**
 * Reference of `sample`: repetition penalty, temperature, top-k, top-p, min-p,
 * in the order of Hugging Face's processors, and one draw; or the most likely
 * id where the temperature is 0. Ids that tie at a threshold are kept
 * together; ties at the maximum go to the lowest id. An id that is forced is
 * taken instead. Writes the id to the output ring and moves the sequence on.
 */
export function sample(args: Sample<HostTensor>): void {
  const { nextTokens, output, ring, logits, step, sizes } = args;
  const { vocabulary } = sizes;
  const live = liveRows(step);
  for (
    const { row, sequence, position } of step.kind === "prefill"
      ? live.slice(-1)
      : live
  ) {
    const at = step.kind === "prefill" ? 0 : row * vocabulary;
    const raw = logits.f32.subarray(at, at + vocabulary);
    const options = readOptions(args, sequence);
    const state = sequence * StateWord.count;
    const produced = step.state.u32[state + StateWord.produced]!;
    const uniform = randomUniform(
      step.state.u32[state + StateWord.seedLow]!,
      step.state.u32[state + StateWord.seedHigh]!,
      produced,
    );
    const forced = args.forced.u32[sequence * ring + produced % ring]!;
    const id = forced === NOT_FORCED
      ? choose(penalize(raw, args, sequence), { ...options, uniform })
      : forced;

    nextTokens.u32[sequence] = id;
    const entry = (sequence * ring + produced % ring) * OutputWord.count;
    output.u32[entry + OutputWord.id] = id;
    output.f32[entry + OutputWord.logprob] = raw[id]! - logSumExp([...raw]);
    step.state.u32[state + StateWord.position] = position + 1;
    step.state.u32[state + StateWord.produced] = produced + 1;
    const limit = step.state.u32[state + StateWord.limit]!;
    if (options.stopIds.includes(id) || produced + 1 >= limit) {
      step.state.u32[state + StateWord.finished] = 1;
    }
  }
}

interface Options {
  readonly temperature: number;
  readonly topK: number;
  readonly topP: number;
  readonly minP: number;
  readonly stopIds: readonly number[];
}

function readOptions(
  { sampling }: Sample<HostTensor>,
  sequence: number,
): Options {
  const at = sequence * SamplingWord.count;
  const stop = at + SamplingWord.stopIds;
  const stopCount = sampling.u32[at + SamplingWord.stopCount]!;
  return {
    temperature: sampling.f32[at + SamplingWord.temperature]!,
    topK: sampling.u32[at + SamplingWord.topK]!,
    topP: sampling.f32[at + SamplingWord.topP]!,
    minP: sampling.f32[at + SamplingWord.minP]!,
    stopIds: [...sampling.u32.subarray(stop, stop + stopCount)],
  };
}

/** Divides positive and multiplies negative logits of ids seen before. */
function penalize(
  raw: Float32Array,
  { sampling, seen, sizes }: Sample<HostTensor>,
  sequence: number,
): Float32Array {
  const penalty = sampling
    .f32[sequence * SamplingWord.count + SamplingWord.repetitionPenalty]!;
  const words = Math.ceil(sizes.vocabulary / 32);
  return raw.map((logit, id) => {
    const word = seen.u32[sequence * words + (id >>> 5)]!;
    if (((word >>> (id & 31)) & 1) === 0) return logit;
    return logit > 0 ? logit / penalty : logit * penalty;
  });
}

function choose(
  logits: Float32Array,
  { temperature, topK, topP, minP, uniform }: Options & { uniform: number },
): number {
  const best = logits.reduce((top, l, i) => l > logits[top]! ? i : top, 0);
  if (temperature === 0) return best;
  const max = logits[best]!;
  const scaled = logits.map((l) => (l - max) / temperature);
  const sorted = scaled.toSorted().reverse();

  let threshold = -Infinity;
  if (topK > 0 && topK < sorted.length) threshold = sorted[topK - 1]!;
  if (topP < 1) {
    const kept = sorted.filter((l) => l >= threshold);
    const total = kept.reduce((sum, l) => sum + Math.exp(l), 0);
    let mass = 0;
    for (const logit of kept) {
      threshold = logit;
      mass += Math.exp(logit);
      if (mass >= topP * total) break;
    }
  }
  if (minP > 0) threshold = Math.max(threshold, Math.fround(Math.log(minP)));

  let total = 0;
  for (const l of scaled) if (l >= threshold) total += Math.exp(l);
  let left = uniform * total;
  let chosen = best;
  for (let id = 0; id < scaled.length; id++) {
    if (scaled[id]! < threshold) continue;
    chosen = id;
    left -= Math.exp(scaled[id]!);
    if (left < 0) break;
  }
  return chosen;
}

/**
 * A number in `[0, 1)` with 24 random bits that depends on the seed and the
 * counter alone, by the PCG output permutation (O'Neill, 2014).
 */
export function randomUniform(
  seedLow: number,
  seedHigh: number,
  counter: number,
): number {
  const bits = permute(counter + permute(seedLow + permute(seedHigh)));
  return (bits >>> 8) / 2 ** 24;
}

function permute(value: number): number {
  const state = (Math.imul(value, 747796405) + 2891336453) >>> 0;
  const word =
    Math.imul((state >>> ((state >>> 28) + 4)) ^ state, 277803737) >>> 0;
  return ((word >>> 22) ^ word) >>> 0;
}

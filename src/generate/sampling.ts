/**
 * Sampling options: defaults, checks, and what the device gets.
 *
 * @module
 */
import { SamplingWord } from "../backends/backend.ts";
import type { GenerationConfig } from "../model/generation_config.ts";

/**
 * How the next id is drawn. Defaults are those of the model's
 * `generation_config.json` and, where it says nothing, the ones given here.
 */
export interface SamplingOptions {
  /** Divides the logits; 0 takes the most likely id (default 0). */
  readonly temperature?: number;
  /** Keeps the `topK` most likely ids; 0 keeps all (default 0). */
  readonly topK?: number;
  /** Keeps the fewest ids whose probabilities reach `topP` (default 1). */
  readonly topP?: number;
  /** Keeps ids at least `minP` times as likely as the first (default 0). */
  readonly minP?: number;
  /** Makes ids seen before less likely; 1 changes nothing (default 1). */
  readonly repetitionPenalty?: number;
  /**
   * Seed of the random numbers, a whole number from 0 to 2^53 - 1 (default:
   * another one each time). The same seed gives the same ids on one backend.
   */
  readonly seed?: number;
}

/** Sampling options with everything filled in. */
export interface ResolvedSampling extends Required<SamplingOptions> {
  /** Ids that end the text. */
  readonly stopIds: readonly number[];
}

/** Stop ids that a sequence may have. */
export const MAX_STOP_IDS: number = SamplingWord.count - SamplingWord.stopIds;

/**
 * Fills in defaults and checks every number.
 *
 * @throws {RangeError} If an option is out of range, naming it.
 */
export function resolveSampling(
  options: SamplingOptions,
  { defaults, stopIds, vocabulary }: {
    defaults: GenerationConfig;
    stopIds: readonly number[];
    vocabulary: number;
  },
): ResolvedSampling {
  const temperature = defaults.doSample ? defaults.temperature ?? 1 : 0;
  const resolved = {
    temperature: options.temperature ?? temperature,
    topK: options.topK ?? defaults.topK ?? 0,
    topP: options.topP ?? defaults.topP ?? 1,
    minP: options.minP ?? defaults.minP ?? 0,
    repetitionPenalty: options.repetitionPenalty ??
      defaults.repetitionPenalty ?? 1,
    seed: options.seed ?? randomSeed(),
    stopIds: [...new Set(stopIds)],
  };
  const { topK, topP, minP, repetitionPenalty, seed } = resolved;
  check("temperature", resolved.temperature, "a number from 0 to 100", {
    ok: resolved.temperature >= 0 && resolved.temperature <= 100,
  });
  check("topK", topK, "a whole number of at least 0", {
    ok: Number.isSafeInteger(topK) && topK >= 0,
  });
  check("topP", topP, "a number above 0 and at most 1", {
    ok: topP > 0 && topP <= 1,
  });
  check("minP", minP, "a number from 0 to 1", { ok: minP >= 0 && minP <= 1 });
  check("repetitionPenalty", repetitionPenalty, "a number above 0", {
    ok: repetitionPenalty > 0 && repetitionPenalty < Infinity,
  });
  check("seed", seed, "a whole number from 0 to 2^53 - 1", {
    ok: Number.isSafeInteger(seed) && seed >= 0,
  });
  for (const id of resolved.stopIds) {
    check("stopIds", id, `ids from 0 to ${vocabulary - 1}`, {
      ok: Number.isSafeInteger(id) && id >= 0 && id < vocabulary,
    });
  }
  check(
    "number of stopIds",
    resolved.stopIds.length,
    `at most ${MAX_STOP_IDS}`,
    {
      ok: resolved.stopIds.length <= MAX_STOP_IDS,
    },
  );
  return { ...resolved, topK: Math.min(topK, vocabulary) };
}

function check(
  name: string,
  value: number,
  expected: string,
  { ok }: { ok: boolean },
): void {
  if (ok) return;
  throw new RangeError(`Cannot use ${name} ${value}: expected ${expected}`);
}

function randomSeed(): number {
  const [low, high] = crypto.getRandomValues(new Uint32Array(2));
  return high! % 2 ** 21 * 2 ** 32 + low!;
}

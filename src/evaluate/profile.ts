/**
 * Measures how concentrated the attention of a model is, for budgets that are
 * set before a text is read.
 *
 * @module
 */
import type { AttentionProfile } from "../policies/allocations/attention_profile.ts";
import { definePolicy } from "../policies/define_policy.ts";
import { readHeads } from "./live_slots.ts";
import { type EvaluationModel, openEngine } from "./model.ts";
import { withSetting } from "./settings.ts";

/** Options of {@linkcode measureProfile}. */
export interface ProfileOptions {
  /** Last rows of each text whose attention is measured (default 64). */
  readonly rows?: number;
  /** Points of a curve (default 256). */
  readonly points?: number;
}

/**
 * Measures where the last rows of some texts look, as a mean over the texts.
 *
 * Each text is read in one piece with room for all of its tokens. A token's
 * mass is the sum of the attention weights that it has in the last rows,
 * averaged over the query heads of a group. A few texts of the length that
 * matters are enough.
 *
 * @param texts Ids of each text.
 * @throws {RangeError} If there is no text, or an empty one.
 */
export async function measureProfile(
  model: EvaluationModel,
  texts: readonly (readonly number[])[],
  { rows = 64, points = 256 }: ProfileOptions = {},
): Promise<AttentionProfile> {
  if (texts.length === 0 || texts.some(({ length }) => length === 0)) {
    throw new RangeError(
      `Cannot measure a profile on ${texts.length} texts: expected at least one, none of them empty`,
    );
  }
  const { layers, sizes: { kvHeads } } = model.config;
  const mass = Array.from(
    { length: layers },
    () =>
      Array.from(
        { length: kvHeads },
        () => Array.from({ length: points }, () => 0),
      ),
  );
  const variance = Array.from({ length: layers }, () => 0);
  for (const text of texts) {
    const heads = await readAttention(model, text, rows);
    heads.forEach((layer, l) =>
      layer.forEach((weights, h) => {
        retainedMass(weights, points).forEach((value, i) => {
          mass[l]![h]![i]! += value / texts.length;
        });
        variance[l]! += relativeVariance(weights) / (kvHeads * texts.length);
      })
    );
  }
  return { mass, variance };
}

/** `(layers, kvHeads, tokens)` attention that the tokens of a text receive. */
async function readAttention(
  model: EvaluationModel,
  text: readonly number[],
  rows: number,
): Promise<number[][][]> {
  const policy = definePolicy({
    name: "profile",
    budget: text.length,
    probe: { kind: "last", rows },
    score: { kind: "accumulated" },
    select: { sinks: 0, recent: { slots: 0 } },
    merge: { kind: "drop" },
  });
  using engine = await openEngine(
    model,
    withSetting(policy, "whole", { promptLength: text.length, chunk: 1 }),
  );
  engine.prefill(text, { then: "nothing" });
  const [heads] = await readHeads(engine.cache, model);
  return heads!.map((layer) =>
    layer.map(({ slots }) => slots.map(({ attention }) => attention))
  );
}

/** Share of the sum in the heaviest `(i + 1) / points` of all weights. */
function retainedMass(weights: readonly number[], points: number): number[] {
  const sums = [0];
  for (const weight of weights.toSorted((a, b) => b - a)) {
    sums.push(sums.at(-1)! + weight);
  }
  return Array.from({ length: points }, (_, i) => {
    const at = (i + 1) / points * weights.length;
    const whole = Math.min(Math.floor(at), weights.length - 1);
    const part = (at - whole) * (sums[whole + 1]! - sums[whole]!);
    return (sums[whole]! + part) / sums.at(-1)!;
  });
}

/** Variance over the square of the mean. */
function relativeVariance(weights: readonly number[]): number {
  const mean = weights.reduce((a, b) => a + b) / weights.length;
  const squares = weights.reduce((sum, w) => sum + (w - mean) ** 2, 0);
  return squares / weights.length / mean ** 2;
}

/**
 * The kinds that each part of a policy has, for policies that come from JSON.
 *
 * @module
 */
import type {
  HeadAllocation,
  LayerAllocation,
  Merge,
  Policy,
  Pool,
  Precision,
  Probe,
  Schedule,
  Score,
  Values,
} from "./parts.ts";

/** The compiler demands all kinds of a part, and no others. */
type KindsOf<Part extends { readonly kind: string }> = Readonly<
  Record<Part["kind"], true>
>;

const probe: KindsOf<Probe> = {
  none: true,
  all: true,
  last: true,
  instruction: true,
};
const score: KindsOf<Score> = {
  position: true,
  accumulated: true,
  mean: true,
  last: true,
  age: true,
  keyDistance: true,
  expected: true,
  stepGain: true,
  ema: true,
};
const values: KindsOf<Values> = { ignored: true, norm: true };
const pool: KindsOf<Pool> = { none: true, mean: true, max: true };
const layers: KindsOf<LayerAllocation> = {
  uniform: true,
  cosine: true,
  linear: true,
  shares: true,
};
const heads: KindsOf<HeadAllocation> = {
  uniform: true,
  adaptive: true,
  shares: true,
  losses: true,
};
const merge: KindsOf<Merge> = {
  drop: true,
  never: true,
  votes: true,
  pair: true,
  cosine: true,
  rightNeighbour: true,
  nextValues: true,
  segments: true,
};
const precision: KindsOf<Precision> = { half: true, bfloat16: true };
const schedule: KindsOf<Schedule> = { streaming: true, whole: true };

/**
 * Checks that the parts of a policy are of kinds that there are. Types say so
 * in code; a policy from JSON has none.
 *
 * @throws {TypeError} Naming the part, what was found and what there is.
 */
export function checkKinds(policy: Policy): void {
  const check = (
    field: string,
    part: { readonly kind: string } | undefined,
    kinds: Readonly<Record<string, true>>,
  ) => {
    if (part !== undefined && Object.hasOwn(kinds, part.kind)) return;
    throw new TypeError(
      `Cannot use policy "${policy.name}": ${field}.kind is ${
        JSON.stringify(part?.kind) ?? "missing"
      }: expected one of ${Object.keys(kinds).join(", ")}`,
    );
  };
  check("probe", policy.probe, probe);
  check("score", policy.score, score);
  check("values", policy.values, values);
  check("select.pool", policy.select.pool, pool);
  check("allocate.layers", policy.allocate.layers, layers);
  check("allocate.heads", policy.allocate.heads, heads);
  check("merge", policy.merge, merge);
  check("precision", policy.precision, precision);
  check("schedule", policy.schedule, schedule);
}

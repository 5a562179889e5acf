import type { Backend } from "../../src/backends/backend.ts";
import { assertStable, type Jitter } from "./jitter.ts";
import { type Outcome, play, playAll, type Scene } from "./scene.ts";
import { HALF, type StoredType } from "./tolerance.ts";

/** One call of one kernel, and what every backend must make of it. */
export interface KernelCase {
  /** Kernel and sizes. */
  readonly name: string;
  /** Draws the inputs of a seed. */
  draw(seed: number): Draw;
  /** Throws if the reference's outcome is not what the case is there for. */
  expect?(scene: Scene, expected: Outcome): void;
}

/** The inputs of one seed. */
export interface Draw {
  readonly scene: Scene;
  /** By how much rounding may move what choices hang on, if there are any. */
  jitter?(precision: Precision): Jitter;
  /** Compares a backend with the reference. */
  check(actual: Outcome, expected: Outcome, precision: Precision): void;
  /** What the same call is given next, if it is made once more. */
  next?(expected: Outcome): Draw | undefined;
}

/** How precise a backend is. */
export interface Precision {
  /**
   * Most rows of a step whose products have 32-bit precision. With more,
   * activations are rounded to halves, and queries and the weights of attention
   * to what keys and values are stored as.
   */
  readonly exactRows: number;
  /** What keys and values are stored as. */
  readonly stored: StoredType;
  /**
   * Relative error of queries and of the weights of attention, as factors of
   * the products of up to `exactRows` rows, beyond that of 32-bit floats.
   */
  readonly factors: number;
}

/** The precision of a backend that computes in 32-bit floats all through. */
export const PLAIN: Precision = {
  exactRows: Infinity,
  stored: HALF,
  factors: 0,
};

/** Relative error of those factors in a step of so many rows. */
export function factorError(
  { exactRows, stored, factors }: Precision,
  rows: number,
): number {
  return rows > exactRows ? stored.unit : factors;
}

/** What {@link tryCase} compares. */
export interface TryCaseOptions {
  readonly backend: Backend;
  readonly reference: Backend;
  /** By default {@link PLAIN}. */
  readonly precision?: Precision | undefined;
}

/** Seeds that are tried for inputs whose choices rounding cannot turn. */
const SEEDS = 40;

/** Plays a case on the reference and on `backend`, and compares. */
export async function tryCase(
  kernelCase: KernelCase,
  { backend, reference, precision = PLAIN }: TryCaseOptions,
): Promise<void> {
  for (let seed = 1;; seed++) {
    let turns: Turn[];
    try {
      turns = await playReference(kernelCase.draw(seed), {
        reference,
        precision,
      });
    } catch (error) {
      if (seed === SEEDS) throw error;
      continue;
    }
    for (const { draw, expected } of turns) {
      kernelCase.expect?.(draw.scene, expected);
    }
    const actual = await playAll(backend, turns.map(({ draw }) => draw.scene));
    turns.forEach(({ draw, expected }, i) =>
      draw.check(actual[i]!, expected, precision)
    );
    return;
  }
}

/**
 * Rounds what a scene's caches hold to what a backend stores, in place: so does
 * everybody who looks at it start with the same numbers.
 */
function storeAs({ round }: StoredType, { tensors }: Scene): void {
  for (const { type, data } of Object.values(tensors)) {
    if (type === "half") data.set(round(data as Float32Array));
  }
}

/** A call, and what the reference makes of it. */
interface Turn {
  readonly draw: Draw;
  readonly expected: Outcome;
}

/** Plays all calls; throws if rounding could turn the choices of one. */
async function playReference(
  first: Draw,
  { reference, precision }: { reference: Backend; precision: Precision },
): Promise<Turn[]> {
  const turns: Turn[] = [];
  for (let draw: Draw | undefined = first; draw !== undefined;) {
    const { scene }: Draw = draw;
    storeAs(precision.stored, scene);
    const expected = await play(reference, scene);
    const jitter = draw.jitter?.(precision);
    if (jitter !== undefined) {
      await assertStable(scene, { expected, jitter, reference });
    }
    turns.push({ draw, expected });
    draw = draw.next?.(expected);
  }
  return turns;
}

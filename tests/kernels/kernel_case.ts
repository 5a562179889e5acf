import type { Backend } from "../../src/backends/backend.ts";
import { assertStable, type Jitter } from "./jitter.ts";
import { type Outcome, play, playAll, type Scene } from "./scene.ts";

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
   * Most rows of a step whose products have 32-bit precision. With more, a
   * factor that is no half already is rounded to one: activations, queries,
   * and the weights of attention.
   */
  readonly exactRows: number;
}

/** What {@link tryCase} compares. */
export interface TryCaseOptions {
  readonly backend: Backend;
  readonly reference: Backend;
  /** See {@link Precision}; any number of rows unless given. */
  readonly exactRows?: number | undefined;
}

/** Seeds that are tried for inputs whose choices rounding cannot turn. */
const SEEDS = 40;

/** Plays a case on the reference and on `backend`, and compares. */
export async function tryCase(
  kernelCase: KernelCase,
  { backend, reference, exactRows = Infinity }: TryCaseOptions,
): Promise<void> {
  for (let seed = 1;; seed++) {
    let turns: Turn[];
    try {
      turns = await playReference(kernelCase.draw(seed), {
        reference,
        exactRows,
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
      draw.check(actual[i]!, expected, { exactRows })
    );
    return;
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
  { reference, exactRows }: Precision & { reference: Backend },
): Promise<Turn[]> {
  const turns: Turn[] = [];
  for (let draw: Draw | undefined = first; draw !== undefined;) {
    const { scene }: Draw = draw;
    const expected = await play(reference, scene);
    const jitter = draw.jitter?.({ exactRows });
    if (jitter !== undefined) {
      await assertStable(scene, { expected, jitter, reference });
    }
    turns.push({ draw, expected });
    draw = draw.next?.(expected);
  }
  return turns;
}

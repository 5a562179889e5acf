import type { Backend } from "../../src/backends/backend.ts";
import { assertStable, type Jitter } from "./jitter.ts";
import { type Outcome, play, type Scene } from "./scene.ts";

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
    const { scene, jitter: jitterOf, check } = kernelCase.draw(seed);
    const expected = await play(reference, scene);
    const jitter = jitterOf?.({ exactRows });
    if (jitter !== undefined) {
      try {
        await assertStable(scene, { expected, jitter, reference });
      } catch (error) {
        if (seed === SEEDS) throw error;
        continue;
      }
    }
    kernelCase.expect?.(scene, expected);
    check(await play(backend, scene), expected, { exactRows });
    return;
  }
}

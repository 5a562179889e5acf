/**
 * Weights of the right shapes without a file: for tests and for measurements
 * of models that are not at hand.
 *
 * @module
 */
import type { Backend } from "../backends/backend.ts";
import type { ModelConfig } from "./config.ts";
import { allocateWeights } from "./weight_allocation.ts";
import { planWeights } from "./weight_plan.ts";
import type { Weights } from "./weights.ts";

/** Different values that are drawn from, a power of two. */
const DRAWS = 4096;

/** Values written in one call. */
const PIECE_VALUES = 2 ** 20;

/** The golden ratio of 2^32, the step of a Weyl sequence. */
const STEP = 0x9e37_79b9;

/**
 * Allocates random weights: matrices are normal with variance `1 / columns`, so
 * that activations keep their size, norms are normal around 1 and biases around
 * 0 with deviation 0.1.
 *
 * The same seed gives the same numbers on every backend, because all of them
 * are 16-bit floats; `half` matrices hold them exactly.
 */
export function randomWeights(
  backend: Backend,
  config: ModelConfig,
  seed: number,
): Weights {
  const { weights, targets } = allocateWeights(backend, planWeights(config));
  const next = randomWords(seed);
  try {
    for (const target of targets) {
      if ("buffer" in target) {
        const { length, role } = target.plan;
        const values = new Float32Array(length);
        fill(values, { draws: normals(role === "norm" ? 1 : 0, 0.1), next });
        backend.write(target.buffer, values);
        continue;
      }
      const { rows, columns } = target.plan;
      const draws = normals(0, 1 / Math.sqrt(columns));
      const pieceRows = Math.max(1, Math.floor(PIECE_VALUES / columns));
      for (let firstRow = 0; firstRow < rows; firstRow += pieceRows) {
        const count = Math.min(pieceRows, rows - firstRow);
        const values = new Float32Array(count * columns);
        fill(values, { draws, next });
        backend.writeRows(target.matrix, values, { firstRow });
      }
    }
  } catch (error) {
    weights[Symbol.dispose]();
    throw error;
  }
  return weights;
}

/** Normal numbers that 16-bit floats hold exactly, drawn like the weights. */
export function randomNormals(
  length: number,
  { mean, deviation, seed }: { mean: number; deviation: number; seed: number },
): Float32Array {
  const values = new Float32Array(length);
  fill(values, { draws: normals(mean, deviation), next: randomWords(seed) });
  return values;
}

/** Fills `target` with draws. */
function fill(
  target: Float32Array,
  { draws, next }: { draws: Float32Array; next: () => number },
): void {
  for (let i = 0; i < target.length; i++) {
    target[i] = draws[next() & (DRAWS - 1)]!;
  }
}

/** A function that returns hashed 32-bit words of a counter. */
function randomWords(seed: number): () => number {
  let state = seed | 0;
  return () => {
    state = (state + STEP) | 0;
    // The finalizer of MurmurHash3: every bit of the counter reaches every bit.
    let word = state;
    word = Math.imul(word ^ (word >>> 16), 0x85eb_ca6b);
    word = Math.imul(word ^ (word >>> 13), 0xc2b2_ae35);
    return word ^ (word >>> 16);
  };
}

/** Normal values, one for each of {@linkcode DRAWS} equal shares, as f16. */
function normals(mean: number, deviation: number): Float32Array {
  return Float32Array.from(
    { length: DRAWS },
    (_, i) =>
      Math.f16round(mean + deviation * standardNormal((i + 0.5) / DRAWS)),
  );
}

/**
 * The value that a standard normal variable stays below with probability `p`:
 * bisection of the logistic approximation `1 / (1 + exp(-1.5976 x - 0.07056
 * x³))` (Page 1977), whose error of 2e-4 does not matter here.
 */
function standardNormal(p: number): number {
  let [low, high] = [-8, 8];
  for (let i = 0; i < 30; i++) {
    const x = (low + high) / 2;
    const below = 1 / (1 + Math.exp(-1.5976 * x - 0.070_56 * x ** 3));
    if (below < p) low = x;
    else high = x;
  }
  return (low + high) / 2;
}

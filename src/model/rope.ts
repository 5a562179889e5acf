/**
 * Rotary position embeddings: frequencies and the table that kernels read.
 *
 * Frequencies are rounded to 32 bits after every operation, as transformers
 * computes them on torch's f32 tensors: a model was trained with these numbers
 * and at position 100,000 a difference in the last bit is a different angle.
 *
 * The pair `(i, i + headDim / 2)` of a head is turned by `position ·
 * frequency[i]` (the "rotate half" convention of Hugging Face checkpoints).
 *
 * @module
 */
import type { RopeConfig } from "./rope_config.ts";

/** How fast each pair of a head turns. */
export interface Frequencies {
  /** `(headDim / 2)`: radians per position. */
  readonly inverse: Float32Array;
  /** What cosine and sine are multiplied with; 1 except in YaRN. */
  readonly scale: number;
}

/** Positions of one level of the table. */
const LEVEL = 256;
const LEVELS = 3;

/** Positions that {@linkcode ropeTable} covers: 2^24. */
export const MAX_POSITION: number = LEVEL ** LEVELS;

/**
 * The length of text that the frequencies depend on when `length` tokens have
 * been seen. Only `dynamic` scaling depends on it, beyond the context of the
 * model; a caller rewrites its table whenever this number changes.
 */
export function ropeLength(rope: RopeConfig, length: number): number {
  return rope.type === "dynamic" ? Math.max(length, rope.contextLength) : 0;
}

/**
 * Frequencies of a model, for a text of `length` tokens (see
 * {@linkcode ropeLength}).
 */
export function inverseFrequencies(
  rope: RopeConfig,
  headDim: number,
  length: number = 0,
): Frequencies {
  switch (rope.type) {
    case "default":
      return { inverse: powers(rope.theta, headDim), scale: 1 };
    case "linear":
      return {
        inverse: powers(rope.theta, headDim).map((f) => f / rope.factor),
        scale: 1,
      };
    case "dynamic":
      return { inverse: dynamic(rope, headDim, length), scale: 1 };
    case "llama3":
      return { inverse: llama3(rope, headDim), scale: 1 };
    case "yarn":
      return { inverse: yarn(rope, headDim), scale: rope.attentionFactor };
  }
}

/**
 * The table `(3, 256, headDim / 2, 2)` of cosine and sine that kernels rotate
 * with. Position `p = a + 256 b + 65536 c` turns by the product of three
 * complex numbers: row `a` of level 0, `b` of level 1 and `c` of level 2. So a
 * kernel needs no trigonometry, 3 rows instead of `p` are stored, and each
 * factor is right to the last bit: the angle is computed in 64 bits.
 *
 * `scale` is part of level 0 alone, so that it counts once.
 */
export function ropeTable(inverse: Float32Array, scale: number): Float32Array {
  const pairs = inverse.length;
  const table = new Float32Array(LEVELS * LEVEL * pairs * 2);
  let at = 0;
  for (let level = 0; level < LEVELS; level++) {
    const amplitude = level === 0 ? scale : 1;
    for (let row = 0; row < LEVEL; row++) {
      const position = row * LEVEL ** level;
      for (const frequency of inverse) {
        const angle = position * frequency;
        table[at++] = amplitude * Math.cos(angle);
        table[at++] = amplitude * Math.sin(angle);
      }
    }
  }
  return table;
}

/**
 * The mean of the rotations by `1 .. horizon` positions as `(headDim / 2, 2)`
 * real and imaginary parts: `(1/h) Σ exp(i j f) = exp(i f (h + 1) / 2) ·
 * sin(h f / 2) / (h sin(f / 2))` for the frequency `f` of a pair. Without the
 * table's `scale`.
 */
export function meanRotation(
  inverse: Float32Array,
  horizon: number,
): Float32Array {
  return Float32Array.from(
    [...inverse].flatMap((frequency) => {
      const half = frequency / 2;
      const spread = horizon * Math.sin(half);
      const length = spread === 0 ? 1 : Math.sin(horizon * half) / spread;
      const angle = half * (horizon + 1);
      return [length * Math.cos(angle), length * Math.sin(angle)];
    }),
  );
}

/** `theta^(-2i / headDim)`, every step in f32. */
function powers(theta: number, headDim: number): Float32Array {
  return wavelengths(theta, headDim).map((power) => 1 / power);
}

/** `theta^(2i / headDim)`: positions per radian. */
function wavelengths(theta: number, headDim: number): Float32Array {
  const base = Math.fround(theta);
  return Float32Array.from(
    { length: headDim / 2 },
    (_, i) => base ** Math.fround(2 * i / headDim),
  );
}

/** "NTK-aware" scaling: theta grows so that the longest wave fits `length`. */
function dynamic(
  rope: RopeConfig & { type: "dynamic" },
  headDim: number,
  length: number,
): Float32Array {
  const { factor, contextLength } = rope;
  if (length <= contextLength) return powers(rope.theta, headDim);
  const f = Math.fround;
  const share = f(f(factor * length) / contextLength);
  const stretch = f(f(share - (factor - 1)) ** (headDim / (headDim - 2)));
  return powers(f(rope.theta * stretch), headDim);
}

/**
 * Llama 3.1: waves longer than the original context by `1 / lowFrequencyFactor`
 * are slowed by `factor`, those shorter than `1 / highFrequencyFactor` of it
 * are kept, those between are interpolated.
 */
function llama3(
  rope: RopeConfig & { type: "llama3" },
  headDim: number,
): Float32Array {
  const { factor, lowFrequencyFactor: low, highFrequencyFactor: high } = rope;
  const context = rope.originalContextLength;
  const f = Math.fround;
  return powers(rope.theta, headDim).map((frequency) => {
    const wavelength = f(f(1 / frequency) * f(2 * Math.PI));
    if (wavelength < f(context / high)) return frequency;
    if (wavelength > f(context / low)) return frequency / factor;
    const turns = f(f(1 / wavelength) * context);
    const smooth = f(f(turns - low) / f(high - low));
    const slowed = f(f(f(1 - smooth) * frequency) / factor);
    return slowed + f(smooth * frequency);
  });
}

/**
 * YaRN (arXiv 2309.00071, section 3.2): pairs that turn more than `betaFast`
 * times within the original context are kept, those that turn less than
 * `betaSlow` times are slowed by `factor`, with a linear ramp between.
 */
function yarn(
  rope: RopeConfig & { type: "yarn" },
  headDim: number,
): Float32Array {
  // The pair that turns `turns` times within the original context.
  const pairOf = (turns: number): number =>
    headDim * Math.log(rope.originalContextLength / (turns * 2 * Math.PI)) /
    (2 * Math.log(rope.theta));
  let first = pairOf(rope.betaFast);
  let last = pairOf(rope.betaSlow);
  if (rope.truncate) {
    first = Math.floor(first);
    last = Math.ceil(last);
  }
  first = Math.max(first, 0);
  last = Math.min(last, headDim - 1);
  // A ramp without width would divide by zero.
  if (first === last) last += 0.001;

  const f = Math.fround;
  return wavelengths(rope.theta, headDim).map((wavelength, i) => {
    const ramp = f(f(i - f(first)) / f(last - first));
    const keep = f(1 - Math.min(Math.max(ramp, 0), 1));
    const slowed = f(1 / f(f(rope.factor) * wavelength));
    const kept = f(1 / wavelength);
    return f(slowed * f(1 - keep)) + f(kept * keep);
  });
}

/**
 * Inputs of kernel tests: the same seed gives the same numbers.
 *
 * @module
 */

/** A stream of random numbers. */
export class Random {
  #state: number;

  /** Starts the stream of `seed`. */
  constructor(seed: number) {
    this.#state = seed >>> 0;
  }

  /** A number in `[0, 1)`, by the mulberry32 mixing function. */
  uniform(): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let x = this.#state;
    x = Math.imul(x ^ (x >>> 15), x | 1);
    x ^= x + Math.imul(x ^ (x >>> 7), x | 61);
    return ((x ^ (x >>> 14)) >>> 0) / 2 ** 32;
  }

  /** A whole number below `end`. */
  below(end: number): number {
    return Math.floor(this.uniform() * end);
  }

  /** A normally distributed number. */
  normal(): number {
    const radius = Math.sqrt(-2 * Math.log(1 - this.uniform()));
    return radius * Math.cos(2 * Math.PI * this.uniform());
  }

  /** `length` normally distributed floats of a standard deviation. */
  floats(length: number, deviation = 1): Float32Array {
    return Float32Array.from({ length }, () => deviation * this.normal());
  }

  /** The same, rounded so that a half holds them exactly. */
  halves(length: number, deviation = 1): Float32Array {
    return roundToHalf(this.floats(length, deviation));
  }

  /** The numbers `0 .. length` in random order. */
  permutation(length: number): number[] {
    const order = Array.from({ length }, (_, i) => i);
    for (let i = length - 1; i > 0; i--) {
      const j = this.below(i + 1);
      [order[i], order[j]] = [order[j]!, order[i]!];
    }
    return order;
  }
}

/** Rounds to the nearest 16-bit floats. */
export function roundToHalf(values: Float32Array): Float32Array {
  return new Float32Array(new Float16Array(values));
}

/** Rounds to the nearest bfloat16, ties to even. */
export function roundToBfloat16(values: Float32Array): Float32Array {
  const words = new Uint32Array(values.slice().buffer);
  return new Float32Array(
    words.map((bits) => (bits + 0x7fff + (bits >>> 16 & 1) & 0xffff0000) >>> 0)
      .buffer,
  );
}

/** Floats that no kernel would write, to show what was left unwritten. */
export function garbage(length: number): Float32Array {
  return new Float32Array(length).fill(-12345);
}

/** Words that no kernel would write. */
export function garbageWords(length: number): Uint32Array {
  return new Uint32Array(length).fill(0xdead);
}

/**
 * Random numbers that are the same on every machine.
 *
 * @module
 */

/** Step of the counter: the golden ratio of 2^32, an odd number. */
const STEP = 0x9e37_79b9;

/**
 * A 32-bit hash of a text: FNV-1a over its UTF-16 units. For seeds and for
 * halving a set, not for anything that someone might attack.
 */
export function hashText(text: string): number {
  let hash = 0x811c_9dc5;
  for (let i = 0; i < text.length; i++) {
    hash = Math.imul(hash ^ text.charCodeAt(i), 0x0100_0193);
  }
  return mix(hash);
}

/** Spreads every bit of a word over all bits: the finalizer of MurmurHash3. */
function mix(word: number): number {
  word = Math.imul(word ^ (word >>> 16), 0x85eb_ca6b);
  word = Math.imul(word ^ (word >>> 13), 0xc2b2_ae35);
  return (word ^ (word >>> 16)) >>> 0;
}

/** A stream of random numbers: hashed values of a counter. */
export class Random {
  #state: number;

  /**
   * Constructs the stream of a seed. Streams with other labels are
   * independent of it.
   */
  constructor(seed: number, label = "") {
    this.#state = hashText(`${seed} ${label}`);
  }

  /** A number from 0 to 1, without 1. */
  next(): number {
    this.#state = (this.#state + STEP) | 0;
    return mix(this.#state) / 2 ** 32;
  }

  /** A whole number from 0 to `end`, without `end`. */
  below(end: number): number {
    return Math.floor(this.next() * end);
  }

  /** `count` different items, in random order. */
  sample<T>(items: readonly T[], count: number): T[] {
    const rest = [...items];
    for (let i = 0; i < count && i < rest.length; i++) {
      const j = i + this.below(rest.length - i);
      [rest[i], rest[j]] = [rest[j]!, rest[i]!];
    }
    return rest.slice(0, count);
  }
}

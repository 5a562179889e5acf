/** An engine whose cache is full, and that decodes without end. */
import { Engine } from "../../../src/generate/engine.ts";
import { fillCache } from "../fill_cache.ts";
import type { Timed } from "./clock.ts";
import { RandomBlock } from "./random_block.ts";
import {
  type CacheSpec,
  keepsAll,
  policyOf,
  type Repeats,
  type Setup,
} from "./setup.ts";

/** Prompt tokens read at a time; a decoder reads one per sequence. */
const CHUNK = 16;

/** What a decoder does. */
export interface DecoderOptions extends Repeats {
  readonly cache: CacheSpec;
  /** Sequences that are decoded together. */
  readonly batch: number;
  /**
   * Whether there is room for all tokens of all rounds, so that nothing is
   * merged. The heads begin below the slots of the cache and end above them,
   * and have them in the middle. A cache that never merges has it anyway.
   */
  readonly room?: boolean;
}

/** Decodes with as many slots as a cache names. */
export class Decoder implements Timed, Disposable {
  /** What runs the model. */
  readonly engine: Engine;
  readonly #steps: number;
  readonly #batch: number;

  /**
   * Allocates and fills the cache, and begins each sequence.
   *
   * @throws {RangeError} If the device has not enough memory.
   */
  constructor(
    { backend, config, weights }: Setup,
    { cache, batch, steps, rounds, room = false }: DecoderOptions,
  ) {
    const grows = room || keepsAll(cache);
    // The token that begins a sequence and the round that warms up count too.
    const grown = grows ? steps * (rounds + 1) + 1 : 0;
    const below = Math.min(Math.floor(grown / 2), cache.slots - 1);
    const policy = policyOf(cache, { room: grown - below, chunk: CHUNK });
    this.#steps = steps;
    this.#batch = batch;
    this.engine = new Engine({
      ...{ backend, config, weights, policy },
      sequences: batch,
    });
    try {
      using block = new RandomBlock(backend, 2);
      const { headDim } = config.sizes;
      fillCache(backend, this.engine.cache, {
        sequences: batch,
        live: cache.slots - below,
        fill: (halves) =>
          block.fillHalves(halves, { columns: headDim, deviation: 1 }),
        scores: (length) => block.piece(length, 1),
      });
      for (let sequence = 0; sequence < batch; sequence++) {
        this.engine.start(GREEDY, NEVER, sequence);
        this.engine.setPosition(cache.slots, sequence);
        this.engine.prefill([sequence % config.sizes.vocabulary], {
          sequence,
          then: "sample",
        });
      }
    } catch (error) {
      this.engine[Symbol.dispose]();
      throw error;
    }
  }

  enqueue(): void {
    this.engine.decode(this.#steps);
  }

  async done(): Promise<void> {
    await this.engine.done();
  }

  /**
   * Checks that what was timed was a computation.
   *
   * @throws {Error} If the ids were not drawn from probabilities.
   */
  async check(): Promise<void> {
    for (const sequence of [0, this.#batch - 1]) {
      const [first] = await this.engine.readOutputs(0, 1, sequence);
      if (Number.isFinite(first!.logprob)) continue;
      throw new Error(
        `Cannot trust the times: the log-probability of an id is ${
          first!.logprob
        }`,
      );
    }
  }

  [Symbol.dispose](): void {
    this.engine[Symbol.dispose]();
  }
}

/** Takes the most likely id. */
export const GREEDY = {
  ...{ temperature: 0, topK: 0, topP: 1, minP: 0, repetitionPenalty: 1 },
  ...{ seed: 0, stopIds: [] },
};

/** More ids than are ever sampled. */
export const NEVER: number = 2 ** 32 - 1;

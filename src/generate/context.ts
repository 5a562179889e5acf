/**
 * What text the cache stands for.
 *
 * The device runs a few steps ahead of the consumer. If the consumer leaves
 * early, the cache holds tokens that nobody saw, and merged slots cannot be
 * taken apart again: such a context is stale and is read anew when needed.
 *
 * @module
 */
import type { Engine } from "./engine.ts";

/** Keeps track of the ids that were fed to an engine. */
export class Context {
  readonly #engine: Engine;
  /** Ids of the text, in order; 4 bytes a token on the host. */
  #ids: number[] = [];
  /** How many of them are in the cache. */
  #fed = 0;
  #stale = false;

  /** Constructs the empty context of `engine`. */
  constructor(engine: Engine) {
    this.#engine = engine;
  }

  /** Tokens of the text. */
  get length(): number {
    return this.#ids.length;
  }

  /** Empties the cache. */
  reset(): void {
    this.#engine.reset();
    this.#ids = [];
    this.#fed = 0;
    this.#stale = false;
  }

  /**
   * Makes `ids` the text, reusing the cache if they continue it.
   *
   * @returns The ids that have to be fed, at least one.
   */
  continueAs(ids: readonly number[]): readonly number[] {
    const reusable = !this.#stale && this.#fed < ids.length &&
      this.#ids.slice(0, this.#fed).every((id, i) => id === ids[i]);
    if (!reusable) this.reset();
    this.#ids = [...ids];
    return ids.slice(this.#fed);
  }

  /** Makes the text and `ids` after it the text; see {@link continueAs}. */
  append(ids: readonly number[]): readonly number[] {
    return this.continueAs([...this.#ids, ...ids]);
  }

  /** Marks the cache as ahead of the text while a generation runs. */
  begin(): void {
    this.#stale = true;
  }

  /** Adds a generated id. */
  push(id: number): void {
    this.#ids.push(id);
  }

  /**
   * Marks the cache as in step with the text, because the generation ended by
   * itself.
   */
  end(): void {
    this.#fed = this.#engine.position();
    this.#stale = false;
  }
}

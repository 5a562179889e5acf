/** The most sequences that fit, and their tokens per second. */
import type { Ceilings } from "./bounds.ts";
import { timeDecoder } from "./decode.ts";
import { Decoder } from "./decoder.ts";
import { gpuMemory } from "./memory_in_use.ts";
import type { Result } from "./results.ts";
import type { CacheSpec, Repeats, Setup } from "./setup.ts";

/** Tries before giving up: each takes a smaller batch. */
const TRIES = 6;

/** Options of {@link measureLargest}. */
export interface LargestOptions extends Repeats {
  readonly cache: CacheSpec;
  /** Bytes that may be allocated beside the weights (default: what is free). */
  readonly memory?: number | undefined;
  readonly ceilings: Ceilings;
}

/**
 * Predicts the largest batch from the memory that decoders of two and of four
 * sequences take, tries it, and takes a smaller one while there is no room. One
 * sequence says less: products of a single row need no memory of their own.
 *
 * @throws {RangeError} If nothing says how much memory there is, or not even
 * one sequence fits.
 */
export async function measureLargest(
  setup: Setup,
  { cache, memory, ...rest }: LargestOptions,
): Promise<Result> {
  const free = memory ?? (await gpuMemory())?.free;
  if (free === undefined) {
    throw new RangeError(
      "Cannot look for the largest batch: expected --memory, since nvidia-smi does not say what is free",
    );
  }
  const [two, four] = [2, 4].map((batch) => {
    using decoder = new Decoder(setup, { cache, batch, ...rest });
    void decoder;
    return setup.backend.bytesAllocated - setup.weights.byteLength;
  }) as [number, number];
  let batch = Math.max(1, Math.floor(2 + 2 * (free - two) / (four - two)));
  for (let attempt = 0; attempt < TRIES && batch > 0; attempt++) {
    let decoder: Decoder;
    try {
      decoder = new Decoder(setup, { cache, batch, ...rest });
    } catch (error) {
      if (!(error instanceof RangeError)) throw error;
      batch = Math.floor(batch * 0.98) - (batch < 50 ? 1 : 0);
      continue;
    }
    using _decoder = decoder;
    return await timeDecoder(setup, decoder, {
      ...{ section: "largest", cache, batch },
      ...rest,
    });
  }
  throw new RangeError(
    `Cannot find a batch that fits in ${free} bytes: tried ${TRIES} from the one predicted`,
  );
}

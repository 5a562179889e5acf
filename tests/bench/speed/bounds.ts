/** What physics allows: bytes over bandwidth, or operations over their rate. */
import type { ModelConfig } from "../../../src/model/config.ts";
import { type CacheSpec, keepsAll, type Setup } from "./setup.ts";
import { matrixElements } from "./shapes.ts";

/** What a device can do at most, where it is known. */
export interface Ceilings {
  /** Bytes a second that it reads from its memory. */
  readonly stream?: number | undefined;
  /** Operations a second of its matrix units, two for each product. */
  readonly matrix?: number | undefined;
}

/** What some work has to move and to compute. */
export interface Work {
  /** Bytes of weights, keys and values that have to be read. */
  readonly bytes: number;
  /** Operations, two for each product. */
  readonly operations: number;
}

/** Bytes of weights that a decode step reads: of the embedding only rows. */
export function streamedBytes({ weights }: Setup): number {
  const { embedding, head, byteLength } = weights;
  return byteLength - (embedding === head ? 0 : embedding.byteLength);
}

/** Bytes of keys and values in `slots` slots of every head of a sequence. */
export function cacheBytes(
  { config: { sizes, layers }, backend }: Setup,
  slots: number,
): number {
  const { kvHeads, headDim } = sizes;
  return layers * 2 * kvHeads * headDim * backend.halfBytes * slots;
}

/** Operations of attention of `rows` rows over `slots` slots, in all layers. */
function attentionOperations(
  { sizes: { heads, headDim }, layers }: ModelConfig,
  { rows, slots }: { rows: number; slots: number },
): number {
  return 4 * layers * heads * headDim * rows * slots;
}

/** What one decode step of `batch` sequences takes. */
export function decodeWork(
  setup: Setup,
  { slots, batch }: { slots: number; batch: number },
): Work {
  const { layers, head } = matrixElements(setup.config);
  return {
    bytes: streamedBytes(setup) + batch * cacheBytes(setup, slots),
    operations: 2 * batch * (layers + head) +
      attentionOperations(setup.config, { rows: batch, slots }),
  };
}

/** What reading a prompt chunk by chunk takes. */
export function prefillWork(
  setup: Setup,
  { cache, tokens, chunk }: { cache: CacheSpec; tokens: number; chunk: number },
): Work {
  const { layers, head } = matrixElements(setup.config);
  const weights = streamedBytes(setup);
  let bytes = 0;
  let operations = 2 * (layers * tokens + head);
  for (let done = 0; done < tokens; done += chunk) {
    const rows = Math.min(chunk, tokens - done);
    const held = keepsAll(cache) ? done : Math.min(done, cache.slots);
    bytes += weights + cacheBytes(setup, held);
    operations += attentionOperations(setup.config, {
      rows,
      slots: held + (rows + 1) / 2,
    });
  }
  return { bytes, operations };
}

/** The least milliseconds for some work; undefined if no ceiling is known. */
export function boundOf(
  { bytes, operations }: Work,
  { stream, matrix }: Ceilings,
): number | undefined {
  const bounds = [
    ...stream === undefined ? [] : [bytes / stream * 1000],
    ...matrix === undefined ? [] : [operations / matrix * 1000],
  ];
  return bounds.length === 0 ? undefined : Math.max(...bounds);
}

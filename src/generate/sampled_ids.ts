/**
 * The ids that the device has sampled, as the host reads them.
 *
 * @module
 */
import { type HostTensor, OutputWord } from "../backends/backend.ts";
import { OUTPUT_RING } from "./working_buffers.ts";

/** One sampled token. */
export interface SampledId {
  readonly id: number;
  /** Natural-log probability before temperature and filters. */
  readonly logprob: number;
}

/**
 * Takes ids of one text out of output rings.
 *
 * @param rings `(sequences, OUTPUT_RING, OutputWord.count)`.
 */
export function sampledIds(
  { u32, f32 }: HostTensor,
  { first, count, sequence }: {
    /** Ids that were sampled before. */
    first: number;
    count: number;
    sequence: number;
  },
): SampledId[] {
  return Array.from({ length: count }, (_, i) => {
    const at = (sequence * OUTPUT_RING + (first + i) % OUTPUT_RING) *
      OutputWord.count;
    return {
      id: u32[at + OutputWord.id]!,
      logprob: f32[at + OutputWord.logprob]!,
    };
  });
}

import type { Embed, HostTensor } from "../backends/backend.ts";
import { type HostMatrix, liveRows } from "./host.ts";

/**
 * Reference of `embed`: copies the embedding row of each live token to the
 * residual stream and sets its bit among the ids the sequence has seen.
 */
export function embed(
  { hidden, seen, embedding, step, sizes }: Embed<HostTensor, HostMatrix>,
): void {
  const width = sizes.hidden;
  const words = Math.ceil(sizes.vocabulary / 32);
  for (const { row, sequence } of liveRows(step)) {
    const id = step.tokens.u32[row]!;
    hidden.f32.set(
      embedding.f32.subarray(id * width, (id + 1) * width),
      row * width,
    );
    seen.u32[sequence * words + (id >>> 5)]! |= 1 << (id & 31);
  }
}

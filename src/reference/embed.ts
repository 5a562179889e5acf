import type { Embed, HostTensor } from "../backends/backend.ts";
import { forwardRows, type HostMatrix, liveRows } from "./host.ts";

/**
 * Reference of `embed`: copies the embedding row of each token to the
 * residual stream and sets the bits of live ones among the ids that the
 * sequence has seen.
 */
export function embed(
  { hidden, seen, embedding, step, sizes }: Embed<HostTensor, HostMatrix>,
): void {
  const width = sizes.hidden;
  const words = Math.ceil(sizes.vocabulary / 32);
  const live = liveRows(step).length;
  for (const [i, { row, sequence }] of forwardRows(step).entries()) {
    const id = step.tokens.u32[row]!;
    hidden.f32.set(
      embedding.f32.subarray(id * width, (id + 1) * width),
      row * width,
    );
    // Guests are no part of the text.
    if (i >= live) continue;
    seen.u32[sequence * words + (id >>> 5)]! |= 1 << (id & 31);
  }
}

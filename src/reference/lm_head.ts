import type { HostTensor, LmHead } from "../backends/backend.ts";
import { rmsNorm } from "./arithmetic.ts";
import { type HostMatrix, liveRows } from "./host.ts";
import { forEachProduct } from "./products.ts";

/** Reference of `lm_head`: final RMS norm and the logits of every id. */
export function lmHead(
  { logits, hidden, norm, weight, rows, step, sizes }: LmHead<
    HostTensor,
    HostMatrix
  >,
): void {
  const live = liveRows(step);
  const last = rows === "last" && step.kind === "prefill";
  forEachProduct(last ? live.slice(-1) : live, {
    weight,
    input: ({ row }) =>
      rmsNorm(
        hidden.f32.subarray(row * sizes.hidden, (row + 1) * sizes.hidden),
        norm.f32,
        sizes.normEpsilon,
      ),
    use({ row }, product) {
      logits.f32.set(product, last ? 0 : row * sizes.vocabulary);
    },
  });
}

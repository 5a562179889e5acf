import type { HostTensor, LmHead } from "../backends/backend.ts";
import { dot, rmsNorm } from "./arithmetic.ts";
import { type HostMatrix, liveRows } from "./host.ts";

/** Reference of `lm_head`: final RMS norm and the logits of every id. */
export function lmHead(
  { logits, hidden, norm, weight, rows, step, sizes }: LmHead<
    HostTensor,
    HostMatrix
  >,
): void {
  const live = liveRows(step);
  const last = rows === "last" && step.kind === "prefill";
  for (const { row } of last ? live.slice(-1) : live) {
    const input = rmsNorm(
      hidden.f32.subarray(row * sizes.hidden, (row + 1) * sizes.hidden),
      norm.f32,
      sizes.normEpsilon,
    );
    const base = last ? 0 : row * sizes.vocabulary;
    for (let id = 0; id < sizes.vocabulary; id++) {
      logits.f32[base + id] = dot(input, weight.f32, id * sizes.hidden);
    }
  }
}

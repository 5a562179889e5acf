import type { GateUp, HostTensor } from "../backends/backend.ts";
import { dot, rmsNorm } from "./arithmetic.ts";
import { type HostMatrix, liveRows } from "./host.ts";

/** Reference of `gate_up`: RMS norm, then `silu(gate) * up`. */
export function gateUp(
  { output, hidden, norm, weight, bias, step, sizes }: GateUp<
    HostTensor,
    HostMatrix
  >,
): void {
  const width = sizes.hidden;
  for (const { row } of liveRows(step)) {
    const input = rmsNorm(
      hidden.f32.subarray(row * width, (row + 1) * width),
      norm.f32,
      sizes.normEpsilon,
    );
    const product = (i: number) =>
      dot(input, weight.f32, i * width) + (bias?.f32[i] ?? 0);
    for (let i = 0; i < sizes.ffn; i++) {
      const gate = product(2 * i);
      const up = product(2 * i + 1);
      output.f32[row * sizes.ffn + i] = gate / (1 + Math.exp(-gate)) * up;
    }
  }
}

import type { GateUp, HostTensor } from "../backends/backend.ts";
import { rmsNorm } from "./arithmetic.ts";
import { forwardRows, type HostMatrix } from "./host.ts";
import { forEachProduct } from "./products.ts";

/** Reference of `gate_up`: RMS norm, then `silu(gate) * up`. */
export function gateUp(
  { output, hidden, norm, weight, bias, step, sizes }: GateUp<
    HostTensor,
    HostMatrix
  >,
): void {
  const width = sizes.hidden;
  forEachProduct(forwardRows(step), {
    weight,
    input: ({ row }) =>
      rmsNorm(
        hidden.f32.subarray(row * width, (row + 1) * width),
        norm.f32,
        sizes.normEpsilon,
      ),
    use({ row }, product) {
      for (let i = 0; i < sizes.ffn; i++) {
        const gate = product[2 * i]! + (bias?.f32[2 * i] ?? 0);
        const up = product[2 * i + 1]! + (bias?.f32[2 * i + 1] ?? 0);
        output.f32[row * sizes.ffn + i] = gate / (1 + Math.exp(-gate)) * up;
      }
    },
  });
}

import type { HostTensor, ProjectAdd } from "../backends/backend.ts";
import { dot } from "./arithmetic.ts";
import { type HostMatrix, liveRows } from "./host.ts";

/** Reference of `project_add`: `hidden += input · weightᵀ + bias`. */
export function projectAdd(
  { hidden, input, weight, bias, step }: ProjectAdd<HostTensor, HostMatrix>,
): void {
  const { rows, columns } = weight;
  for (const { row } of liveRows(step)) {
    const vector = input.f32.subarray(row * columns, (row + 1) * columns);
    for (let i = 0; i < rows; i++) {
      hidden.f32[row * rows + i]! += dot(vector, weight.f32, i * columns) +
        (bias?.f32[i] ?? 0);
    }
  }
}

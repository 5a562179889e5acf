import type { HostTensor, ProjectAdd } from "../backends/backend.ts";
import { forwardRows, type HostMatrix } from "./host.ts";
import { forEachProduct } from "./products.ts";

/** Reference of `project_add`: `hidden += input · weightᵀ + bias`. */
export function projectAdd(
  { hidden, input, weight, bias, step }: ProjectAdd<HostTensor, HostMatrix>,
): void {
  const { rows, columns } = weight;
  forEachProduct(forwardRows(step), {
    weight,
    input: ({ row }) => input.f32.subarray(row * columns, (row + 1) * columns),
    use({ row }, product) {
      for (let i = 0; i < rows; i++) {
        hidden.f32[row * rows + i]! += product[i]! + (bias?.f32[i] ?? 0);
      }
    },
  });
}

import { assertEquals } from "@std/assert";
import { forEachProduct } from "../../src/reference/products.ts";

/** Values whose products and sums are exact. */
function fill(length: number, step: number): Float32Array {
  return Float32Array.from({ length }, (_, i) => (i * step) % 17 - 8);
}

Deno.test("a row's product does not depend on the rows beside it", () => {
  // Outputs that are no multiple of what is computed at a time.
  for (const outputs of [1, 2, 3, 7]) {
    const columns = 5;
    const weight = { rows: outputs, columns, f32: fill(outputs * columns, 7) };
    const inputs = Array.from({ length: 11 }, (_, i) => fill(columns, i + 3));
    const expected = inputs.map((x) =>
      Array.from(
        { length: outputs },
        (_, o) =>
          x.reduce((s, v, i) => s + v * weight.f32[o * columns + i]!, 0),
      )
    );
    for (let count = 0; count <= inputs.length; count++) {
      const found: number[][] = [];
      forEachProduct(
        Array.from({ length: count }, (_, row) => ({
          row,
          sequence: 0,
          position: row,
        })),
        {
          weight,
          input: ({ row }) => inputs[row]!,
          use: (_, product) => found.push([...product]),
        },
      );
      assertEquals(found, expected.slice(0, count));
    }
  }
});

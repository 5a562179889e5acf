/**
 * Products of many rows with one weight matrix.
 *
 * @module
 */
import type { HostMatrix, LiveRow } from "./host.ts";

/** Rows that share one pass over the weights. */
const BLOCK = 4;

/** How {@link forEachProduct} gets the rows, and what it does with products. */
export interface ProductOptions {
  /** `(rows, columns)`. */
  readonly weight: HostMatrix;
  /** The input of a row, `(columns)`. */
  readonly input: (row: LiveRow) => Float32Array;
  /**
   * Told the product of each row, `(weight.rows)`, in order. The array is used
   * again for later rows.
   */
  readonly use: (row: LiveRow, product: Float64Array) => void;
}

/**
 * Computes `weight · input` for each row, in f64.
 *
 * Four rows share one pass over the weights, and a row alone takes four
 * outputs at a time, because one sum alone waits for its own additions. Each
 * sum is taken in the order of the columns all the same, so a row's product
 * does not depend on the rows beside it.
 */
export function forEachProduct(
  rows: readonly LiveRow[],
  { weight, input, use }: ProductOptions,
): void {
  const products = Array.from(
    { length: Math.min(BLOCK, rows.length) },
    () => new Float64Array(weight.rows),
  );
  for (let at = 0; at < rows.length; at += BLOCK) {
    const block = rows.slice(at, at + BLOCK);
    // 64-bit copies of the same values: they need no conversion in the loop.
    const inputs = block.map((row) => Float64Array.from(input(row)));
    if (block.length === BLOCK) multiplyFour(weight, inputs, products);
    else inputs.forEach((one, i) => multiplyOne(weight, one, products[i]!));
    block.forEach((row, i) => use(row, products[i]!));
  }
}

type Four = [Float64Array, Float64Array, Float64Array, Float64Array];

function multiplyFour(
  { f32, rows, columns }: HostMatrix,
  inputs: readonly Float64Array[],
  products: readonly Float64Array[],
): void {
  const [x0, x1, x2, x3] = inputs as Four;
  const [y0, y1, y2, y3] = products as Four;
  // The last output is computed twice where their number is odd.
  for (let output = 0; output < rows; output += 2) {
    const next = Math.min(output + 1, rows - 1);
    let a0 = 0;
    let a1 = 0;
    let a2 = 0;
    let a3 = 0;
    let b0 = 0;
    let b1 = 0;
    let b2 = 0;
    let b3 = 0;
    for (let i = 0; i < columns; i++) {
      const a = f32[output * columns + i]!;
      const b = f32[next * columns + i]!;
      const p = x0[i]!;
      const q = x1[i]!;
      const r = x2[i]!;
      const s = x3[i]!;
      a0 += p * a;
      a1 += q * a;
      a2 += r * a;
      a3 += s * a;
      b0 += p * b;
      b1 += q * b;
      b2 += r * b;
      b3 += s * b;
    }
    y0[output] = a0;
    y1[output] = a1;
    y2[output] = a2;
    y3[output] = a3;
    y0[next] = b0;
    y1[next] = b1;
    y2[next] = b2;
    y3[next] = b3;
  }
}

function multiplyOne(
  { f32, rows, columns }: HostMatrix,
  input: Float64Array,
  product: Float64Array,
): void {
  for (let output = 0; output < rows; output += BLOCK) {
    // Outputs beyond the last one are the last one again.
    const a = output;
    const b = Math.min(a + 1, rows - 1);
    const c = Math.min(a + 2, rows - 1);
    const d = Math.min(a + 3, rows - 1);
    let sumA = 0;
    let sumB = 0;
    let sumC = 0;
    let sumD = 0;
    for (let i = 0; i < columns; i++) {
      const x = input[i]!;
      sumA += x * f32[a * columns + i]!;
      sumB += x * f32[b * columns + i]!;
      sumC += x * f32[c * columns + i]!;
      sumD += x * f32[d * columns + i]!;
    }
    product[a] = sumA;
    product[b] = sumB;
    product[c] = sumC;
    product[d] = sumD;
  }
}

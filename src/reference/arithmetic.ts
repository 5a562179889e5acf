/**
 * Small sums that several kernels share.
 *
 * @module
 */

/**
 * Dot product of all of `a` with the elements of `b` from `offset`. Four sums
 * run side by side, because one alone waits for its own additions.
 */
export function dot(a: Float32Array, b: Float32Array, offset = 0): number {
  const whole = a.length - a.length % 4;
  let [s0, s1, s2, s3] = [0, 0, 0, 0];
  for (let i = 0, j = offset; i < whole; i += 4, j += 4) {
    s0 += a[i]! * b[j]!;
    s1 += a[i + 1]! * b[j + 1]!;
    s2 += a[i + 2]! * b[j + 2]!;
    s3 += a[i + 3]! * b[j + 3]!;
  }
  for (let i = whole; i < a.length; i++) s0 += a[i]! * b[offset + i]!;
  return (s0 + s1) + (s2 + s3);
}

/** `ln Σ exp(xᵢ)` without overflow. */
export function logSumExp(values: readonly number[]): number {
  const max = Math.max(...values);
  let sum = 0;
  for (const value of values) sum += Math.exp(value - max);
  return max + Math.log(sum);
}

/** Cosine of the angle between two vectors; 0 where one of them is zero. */
export function cosine(a: Float32Array, b: Float32Array): number {
  const norms = Math.sqrt(dot(a, a) * dot(b, b));
  return norms === 0 ? 0 : dot(a, b) / norms;
}

/** `‖a − b‖²`. */
export function squaredDistance(a: Float32Array, b: Float32Array): number {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += (a[i]! - b[i]!) ** 2;
  return sum;
}

/** `x / √(mean(x²) + epsilon) · weight`: RMS norm of one row. */
export function rmsNorm(
  row: Float32Array,
  weight: Float32Array,
  epsilon: number,
): Float32Array {
  const scale = 1 / Math.sqrt(dot(row, row) / row.length + epsilon);
  return row.map((x, i) => x * scale * weight[i]!);
}

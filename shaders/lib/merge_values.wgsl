// Merging the value of a slot into its right neighbour: see
// `src/reference/merge_values.ts` for the source and the formulas.

// Share of the first of two mean attention weights; a half if both are 0.
fn share_of(a: f32, b: f32) -> f32 {
  let sum = a + b;
  return select(a / sum, 0.5, sum == 0.0);
}

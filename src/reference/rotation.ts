/**
 * The rotation of RoPE pair `pair` at `position` as `[cosine, sine]`.
 *
 * @param table `(3, 256, pairs, 2)`: rows of cosine and sine for the three
 * base-256 digits of a position; the product of the three complex numbers is
 * the rotation.
 */
export function rotation(
  table: Float32Array,
  { position, pair, pairs }: { position: number; pair: number; pairs: number },
): [cos: number, sin: number] {
  let [cos, sin] = [1, 0];
  for (let level = 0; level < 3; level++) {
    const digit = (position >>> (8 * level)) & 255;
    const at = ((level * 256 + digit) * pairs + pair) * 2;
    const [c, s] = [table[at]!, table[at + 1]!];
    [cos, sin] = [cos * c - sin * s, sin * c + cos * s];
  }
  return [cos, sin];
}

import {
  type HostTensor,
  LOG_ZERO,
  type ModelSizes,
  type QkvRopeAppend,
  SlotField,
} from "../backends/backend.ts";
import { rmsNorm } from "./arithmetic.ts";
import {
  forwardRows,
  HeadView,
  type HostMatrix,
  keyOf,
  type LiveRow,
  setFloat,
  setWord,
  type Slot,
  valueOf,
} from "./host.ts";
import { forEachProduct } from "./products.ts";
import { rotation } from "./rotation.ts";

/**
 * Reference of `qkv_rope_append`: RMS norm, the q|k|v product with its bias,
 * per-head norms, RoPE, and one new slot per KV head that holds the token: the
 * head's next free slot in a decode step, a staged row in a prefill step.
 */
export function qkvRopeAppend(
  args: QkvRopeAppend<HostTensor, HostMatrix>,
): void {
  const { hidden, norm, step, sizes } = args;
  forEachProduct(forwardRows(step), {
    weight: args.weight,
    input: ({ row }) =>
      rmsNorm(
        hidden.f32.subarray(row * sizes.hidden, (row + 1) * sizes.hidden),
        norm.f32,
        sizes.normEpsilon,
      ),
    use: (row, product) => appendRow(args, row, product),
  });
}

/** Splits the product of a row into its heads, and stores them rotated. */
function appendRow(
  args: QkvRopeAppend<HostTensor, HostMatrix>,
  { row, sequence, position }: LiveRow,
  product: Float64Array,
): void {
  const { queries, sinkQueries, bias, rope, cache, step, sizes } = args;
  const { heads, kvHeads, headDim } = sizes;
  if (bias !== undefined) {
    product.forEach((x, i) => product[i] = x + bias.f32[i]!);
  }
  const sums = Float32Array.from(product);
  const head = (i: number) => sums.subarray(i * headDim, ++i * headDim);
  for (let h = 0; h < heads; h++) {
    const query = normed(head(h), args.queryNorm, sizes);
    const at = (row * heads + h) * headDim;
    queries.f32.set(rotate(query, position, rope.f32), at);
    if (sinkQueries === undefined) continue;
    // The place in the cache that the token takes is the number of tokens
    // before it there, staged ones included.
    const kvHead = Math.floor(h / (heads / kvHeads));
    const live = new HeadView(cache, { sequence, kvHead, kvHeads }).get(
      "live",
    );
    const place = step.kind === "decode" ? live : live + row;
    sinkQueries.f32.set(rotate(query, place, rope.f32), at);
  }
  for (let kvHead = 0; kvHead < kvHeads; kvHead++) {
    const view = new HeadView(cache, { sequence, kvHead, kvHeads });
    const next = view.get("next");
    if (step.kind === "decode" && next >= view.get("capacity")) continue;
    const slot = step.kind === "decode" ? view.slot(next) : view.staged(row);
    const key = normed(head(heads + kvHead), args.keyNorm, sizes);
    keyOf(slot, headDim).set(rotate(key, position, rope.f32));
    valueOf(slot, headDim).set(head(heads + kvHeads + kvHead));
    initialise(slot, position, cache.lanes);
  }
}

function normed(
  row: Float32Array,
  weight: HostTensor | undefined,
  { normEpsilon }: ModelSizes,
): Float32Array {
  return weight === undefined ? row : rmsNorm(row, weight.f32, normEpsilon);
}

function initialise(slot: Slot, position: number, lanes: number): void {
  setFloat(slot, SlotField.ema, LOG_ZERO);
  setFloat(slot, SlotField.accumulated, 0);
  setWord(slot, SlotField.observations, 0);
  setWord(slot, SlotField.position, position);
  setWord(slot, SlotField.tokens, 1);
  setFloat(slot, SlotField.valueNorm, 0);
  for (let lane = 0; lane < lanes; lane++) {
    setFloat(slot, SlotField.bias + lane, 0);
  }
}

/**
 * Rotates the pairs `(i, i + headDim / 2)` of a head by `position` times their
 * frequency: RoPE (Su et al., 2021) in the half-split order of Llama.
 *
 * @param table `(3, 256, headDim / 2, 2)`: see {@link rotation}.
 */
export function rotate(
  head: Float32Array,
  position: number,
  table: Float32Array,
): Float32Array {
  const half = head.length / 2;
  const rotated = new Float32Array(head.length);
  for (let i = 0; i < half; i++) {
    const [cos, sin] = rotation(table, { position, pair: i, pairs: half });
    const [a, b] = [head[i]!, head[i + half]!];
    rotated[i] = a * cos - b * sin;
    rotated[i + half] = b * cos + a * sin;
  }
  return rotated;
}

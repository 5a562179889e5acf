import {
  type HostTensor,
  type QueryStatistics,
  queryStatisticsLayout,
} from "../backends/backend.ts";
import { type LiveRow, liveRows } from "./host.ts";
import { rotation } from "./rotation.ts";

/**
 * Reference of `query_statistics`: for each query head, the mean of its
 * unrotated queries and, per RoPE pair, the mean of their squared distances
 * from it, over the text so far; then what queries are expected after the last
 * row, whose rotation is `R` and that of the positions ahead `R̄` on average:
 *
 * `μ̄ = R̄ R μ` and, per pair, the variance `|R̄ R|² · E‖q − μ‖² / 2`.
 *
 * Queries arrive rotated. Dividing by their rotation undoes it at any
 * position and for any table, also one that was written anew since. Sinks do
 * not count: the queries of the first tokens are outliers (the authors' code
 * leaves them out, too).
 */
export function queryStatistics(args: QueryStatistics<HostTensor>): void {
  const rows = liveRows(args.step);
  rows.forEach((row, i) => {
    const isLast = rows[i + 1]?.sequence !== row.sequence;
    for (let head = 0; head < args.sizes.heads; head++) {
      if (row.position >= args.policy.select.sinks) count(args, row, head);
      if (isLast) expect(args, row, head);
    }
  });
}

/** The statistics of one query head, not a copy. */
function statisticsOf(
  { cache, sizes: { heads, headDim } }: QueryStatistics<HostTensor>,
  { sequence }: LiveRow,
  head: number,
): Float32Array {
  const { length } = queryStatisticsLayout(headDim);
  const at = (sequence * heads + head) * length;
  return cache.statistics!.f32.subarray(at, at + length);
}

/** Adds the query of one row. */
function count(
  args: QueryStatistics<HostTensor>,
  row: LiveRow,
  head: number,
): void {
  const { queries, rope, sizes: { heads, headDim } } = args;
  const own = statisticsOf(args, row, head);
  const layout = queryStatisticsLayout(headDim);
  const total = ++own[layout.count]!;
  const pairs = headDim / 2;
  for (let pair = 0; pair < pairs; pair++) {
    const { position } = row;
    const [cos, sin] = rotation(rope.f32, { position, pair, pairs });
    const squares = cos * cos + sin * sin;
    const at = (row.row * heads + head) * headDim + pair;
    const [a, b] = [queries.f32[at]!, queries.f32[at + pairs]!];
    const mean = layout.mean + pair;
    const dx = (a * cos + b * sin) / squares - own[mean]!;
    const dy = (b * cos - a * sin) / squares - own[mean + pairs]!;
    own[mean]! += dx / total;
    own[mean + pairs]! += dy / total;
    const scatter = layout.scatter + pair;
    const distance = (1 - 1 / total) * (dx * dx + dy * dy);
    own[scatter]! += (distance - own[scatter]!) / total;
  }
}

/** Works out what is expected after a row. */
function expect(
  args: QueryStatistics<HostTensor>,
  row: LiveRow,
  head: number,
): void {
  const { rope, ahead, sizes: { headDim } } = args;
  const own = statisticsOf(args, row, head);
  const layout = queryStatisticsLayout(headDim);
  const pairs = headDim / 2;
  for (let pair = 0; pair < pairs; pair++) {
    const { position } = row;
    const [c, s] = rotation(rope.f32, { position, pair, pairs });
    const [x, y] = [ahead.f32[2 * pair]!, ahead.f32[2 * pair + 1]!];
    const [cos, sin] = [c * x - s * y, s * x + c * y];
    const mean = layout.mean + pair;
    const future = layout.future + pair;
    const [a, b] = [own[mean]!, own[mean + pairs]!];
    own[future] = a * cos - b * sin;
    own[future + pairs] = b * cos + a * sin;
    own[layout.variance + pair] = (cos * cos + sin * sin) *
      own[layout.scatter + pair]! / 2;
  }
}

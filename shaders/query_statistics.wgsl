// For each query head, the mean of its unrotated queries and, per RoPE pair,
// the mean of their squared distances from it, over the text so far; then the
// mean and the variance of the queries that are expected after the last row,
// rotated like keys.
//
// Reads the queries of the step once, 4 bytes per element, and 28 bytes per
// pair and query head of statistics. A workgroup has a query head: its threads
// share the pairs, and the rows of a chunk, whose statistics they join in the
// end. Letting `qkv_rope_append` count its queries before it turns them would
// save undoing the rotation, but its workgroups own rows, not heads.

@group(0) @binding(0) var<storage, read_write> statistics: array<f32>;
// (rows, heads, headDim)
@group(0) @binding(1) var<storage, read> queries: array<f32>;
// (3, 256, headDim / 2): cosine and sine
@group(0) @binding(2) var<storage, read> rope: array<vec2<f32>>;
// (headDim / 2): mean of the rotations by the next positions
@group(0) @binding(3) var<storage, read> ahead: array<vec2<f32>>;
@group(0) @binding(4) var<storage, read> step_words: array<u32>;

override HEADS: u32 = 1u;
override HEAD_DIM: u32 = 4u;
// First tokens of the text, whose queries do not count.
override SINKS: u32 = 0u;

const THREADS = 256u;

// How many queries there were, their mean, and how far they scatter.
struct Moments {
  count: f32,
  scatter: f32,
  mean: vec2<f32>,
}

var<workgroup> part_moments: array<Moments, THREADS>;

// The moments of both together. Differences from the mean are summed up, not
// squares, since queries may scatter little about a mean far from 0.
fn join_moments(a: Moments, b: Moments) -> Moments {
  if (b.count == 0.0) {
    return a;
  }
  let count = a.count + b.count;
  let share = b.count / count;
  let change = b.mean - a.mean;
  let between = (1.0 - share) * dot(change, change);
  return Moments(
    count,
    a.scatter + share * (b.scatter - a.scatter + between),
    a.mean + share * change,
  );
}

@compute @workgroup_size(THREADS)
fn count_queries(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let head = group.x;
  let first = group.y;
  if (!is_live(first)) {
    return;
  }
  let half = HEAD_DIM / 2u;
  var rows = 1u;
  if (PREFILL) {
    rows = step_words[CHUNK_ROWS];
  }
  let own = statistics_at(sequence_of(first), head);
  let counted = statistics[own + count_at()];
  // A thread has a pair and every `parts`th row.
  let parts = THREADS / half;
  let pair = thread % half;
  var moments = Moments(0.0, 0.0, vec2<f32>());
  if (thread / half < parts) {
    for (var row = first + thread / half; row < first + rows; row += parts) {
      let position = position_of_row(row);
      if (position < SINKS) {
        continue;
      }
      let at = (row * HEADS + head) * HEAD_DIM + pair;
      let query = vec2(queries[at], queries[at + half]);
      let angle = angle_at(pair, position);
      // The table may scale what it turns.
      let back = vec2(angle.x, -angle.y) / dot(angle, angle);
      moments = join_moments(moments, Moments(1.0, 0.0, turn(query, back)));
    }
  }
  part_moments[thread] = moments;
  // Everybody has read the count before one writes it.
  storageBarrier();
  workgroupBarrier();
  if (thread >= half) {
    return;
  }
  moments = Moments(
    counted,
    statistics[own + scatter_at() + pair],
    vec2(statistics[own + pair], statistics[own + half + pair]),
  );
  for (var part = 0u; part < parts; part++) {
    moments = join_moments(moments, part_moments[part * half + pair]);
  }
  statistics[own + pair] = moments.mean.x;
  statistics[own + half + pair] = moments.mean.y;
  statistics[own + scatter_at() + pair] = moments.scatter;
  if (pair == 0u) {
    statistics[own + count_at()] = moments.count;
  }
  let angle =
    turn(angle_at(pair, position_of_row(first + rows - 1u)), ahead[pair]);
  let future = turn(moments.mean, angle);
  statistics[own + future_at() + pair] = future.x;
  statistics[own + future_at() + half + pair] = future.y;
  statistics[own + variance_at() + pair] =
    dot(angle, angle) * moments.scatter / 2.0;
}

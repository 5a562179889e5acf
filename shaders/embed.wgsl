// Looks up the embedding row of each live token and marks the id as seen.
//
// Moves 2 bytes in and 4 bytes out per element. One workgroup per row; a matrix
// in several blocks takes one dispatch per block, and each row is done by the
// dispatch that has its id. The alternative, a host upload of the rows, would
// wait for the ids that `sample` leaves on the device.

struct Params {
  first_id: u32,
  block_rows: u32,
  seen_words: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
// (rows, hidden)
@group(0) @binding(1) var<storage, read_write> hidden: array<f32>;
// (sequences, ceil(vocabulary / 32))
@group(0) @binding(2) var<storage, read_write> seen: array<atomic<u32>>;
// (block rows, hidden) halves
@group(0) @binding(3) var<storage, read> embedding: array<u32>;
// (rows)
@group(0) @binding(4) var<storage, read> tokens: array<u32>;
@group(0) @binding(5) var<storage, read> step_words: array<u32>;

override HIDDEN: u32;
// Words in a row of the embedding, padding included.
override PITCH: u32;

@compute @workgroup_size(64)
fn embed(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let row = group.x;
  if (!is_forwarded(row)) {
    return;
  }
  let id = tokens[row];
  if (id < params.first_id || id - params.first_id >= params.block_rows) {
    return;
  }
  for (var i = thread; i < HIDDEN / 2u; i += 64u) {
    let pair = unpack_halves(embedding[(id - params.first_id) * PITCH + i]);
    hidden[row * HIDDEN + 2u * i] = pair.x;
    hidden[row * HIDDEN + 2u * i + 1u] = pair.y;
  }
  if (thread == 0u && is_live(row)) {
    let word = sequence_of(row) * params.seen_words + id / 32u;
    atomicOr(&seen[word], 1u << (id % 32u));
  }
}

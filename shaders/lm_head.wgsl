// Final RMS norm and the logits of every id.
//
// Streams the output embedding once, 2 bytes per element. The sampler reads
// the logits from memory: a sampler fused in here would have to agree on a
// threshold across all workgroups, which WGSL cannot do in one dispatch.

struct Params {
  // First id of the weight block, and ids in it.
  first_output: u32,
  outputs: u32,
  // Ids in all.
  pitch: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
// (rows, vocabulary), or (1, vocabulary) where LAST
@group(0) @binding(1) var<storage, read_write> logits: array<f32>;
// (rows, hidden)
@group(0) @binding(2) var<storage, read> input: array<vec4<f32>>;
// (hidden)
@group(0) @binding(3) var<storage, read> norm: array<vec4<f32>>;
// (outputs, hidden) halves
@group(0) @binding(4) var<storage, read> weight: array<vec4<u32>>;
@group(0) @binding(5) var<storage, read> step_words: array<u32>;

// Whether the only row is the last one of a chunk.
override LAST: bool = false;

var<private> first_slot: u32;

fn weight_row(slot: u32) -> u32 {
  return min(first_slot + slot, params.outputs - 1u);
}

fn input_row(row: u32) -> u32 {
  if (LAST) {
    return max(step_words[CHUNK_ROWS], 1u) - 1u;
  }
  return row;
}

fn is_needed(row: u32) -> bool {
  return is_live(input_row(row));
}

fn store(row: u32, slot: u32, product: f32) {
  let i = first_slot + slot;
  if (row < ROWS && is_needed(row) && i < params.outputs) {
    logits[row * params.pitch + params.first_output + i] = product;
  }
}

@compute @workgroup_size(VECTOR_THREADS)
fn vector(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  if (!is_any_needed()) {
    return;
  }
  first_slot = group.x * VECTOR_OUTPUTS;
  multiply_vectors(thread, 0u);
  for (var i = thread; i < ROWS * VECTOR_OUTPUTS; i += VECTOR_THREADS) {
    store(i / VECTOR_OUTPUTS, i % VECTOR_OUTPUTS, products[i]);
  }
}

@compute @workgroup_size(TILE_THREADS)
fn tile(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let first_row = group.y * TILE_ROWS;
  if (PREFILL && !is_live(first_row)) {
    return;
  }
  first_slot = group.x * TILE_OUTPUTS;
  let sums = multiply_tiles(thread, first_row);
  for (var j = 0u; j < 4u; j++) {
    for (var i = 0u; i < 4u; i++) {
      store(
        first_row + thread / 16u + 16u * j,
        thread % 16u * 4u + i,
        sums[j][i],
      );
    }
  }
}

// RMS norm, then silu(gate) * up.
//
// Streams the weight once, 2 bytes per element. Gate and up rows alternate in
// the weight, so the two halves of an output come from neighbouring rows and
// meet in one workgroup. Two products and a separate activation would write
// and read twice the width of the layer more.

struct Params {
  // First output of the weight block, and rows of the block: two per output.
  first_output: u32,
  block_rows: u32,
  // Outputs of the whole matrix.
  pitch: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
// (rows, ffn)
@group(0) @binding(1) var<storage, read_write> output: array<f32>;
// (rows, hidden)
@group(0) @binding(2) var<storage, read> input: array<vec4<f32>>;
// (hidden)
@group(0) @binding(3) var<storage, read> norm: array<vec4<f32>>;
// (block rows, hidden) halves: gate 0, up 0, gate 1, …
@group(0) @binding(4) var<storage, read> weight: array<vec4<u32>>;
// (2 ffn)
@group(0) @binding(5) var<storage, read> bias: array<f32>;
@group(0) @binding(6) var<storage, read> step_words: array<u32>;

override BIAS: bool = false;

var<private> first_slot: u32;

fn weight_row(slot: u32) -> u32 {
  return min(first_slot + slot, params.block_rows - 1u);
}

fn input_row(row: u32) -> u32 {
  return row;
}

fn is_needed(row: u32) -> bool {
  return is_forwarded(row);
}

// `slot` is that of the gate; the one after it is that of `up`.
fn activate(row: u32, slot: u32, pair: vec2<f32>) {
  let i = first_slot + slot;
  if (row >= ROWS || !is_forwarded(row) || i >= params.block_rows) {
    return;
  }
  let at = params.first_output + i / 2u;
  var gate = pair.x;
  var up = pair.y;
  if (BIAS) {
    gate += bias[2u * at];
    up += bias[2u * at + 1u];
  }
  output[row * params.pitch + at] = silu(gate) * up;
}

// Clamped because exp of a large number is infinite, which WGSL does not have.
fn silu(x: f32) -> f32 {
  return x / (1.0 + exp(min(-x, 80.0)));
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
  let pairs = VECTOR_OUTPUTS / 2u;
  for (var i = thread; i < ROWS * pairs; i += VECTOR_THREADS) {
    let slot = i % pairs * 2u;
    let at = i / pairs * VECTOR_OUTPUTS + slot;
    activate(i / pairs, slot, vec2(products[at], products[at + 1u]));
  }
}

@compute @workgroup_size(TILE_THREADS)
fn tile(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let first_row = group.y * TILE_ROWS;
  if (PREFILL && !is_forwarded(first_row)) {
    return;
  }
  first_slot = group.x * TILE_OUTPUTS;
  let sums = multiply_tiles(thread, first_row);
  for (var j = 0u; j < 4u; j++) {
    let row = first_row + thread / 16u + 16u * j;
    let slot = thread % 16u * 4u;
    activate(row, slot, sums[j].xy);
    activate(row, slot + 2u, sums[j].zw);
  }
}

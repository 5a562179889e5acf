// hidden += input · weightᵀ + bias.
//
// Streams the weight once: 2 bytes per element, and 4 bytes per element of
// input and output, which stay in the caches. A workgroup owns 16 outputs for
// all rows (`vector`) or a tile of 64 rows and 64 outputs (`tile`). Splitting
// the columns over workgroups as well would fill a large GPU better for narrow
// outputs, but needs a second pass or atomics on floats, which WGSL lacks.

struct Params {
  // First output of the weight block, and outputs in it.
  first_output: u32,
  outputs: u32,
  // Outputs of the whole matrix.
  pitch: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
// (rows, hidden)
@group(0) @binding(1) var<storage, read_write> hidden: array<f32>;
// (rows, columns)
@group(0) @binding(2) var<storage, read> input: array<vec4<f32>>;
// Unused: the input has no norm.
@group(0) @binding(3) var<storage, read> norm: array<vec4<f32>>;
// (outputs, columns) halves
@group(0) @binding(4) var<storage, read> weight: array<vec4<u32>>;
// (hidden)
@group(0) @binding(5) var<storage, read> bias: array<f32>;
@group(0) @binding(6) var<storage, read> step_words: array<u32>;

override BIAS: bool = false;

var<private> first_slot: u32;

fn weight_row(slot: u32) -> u32 {
  return min(first_slot + slot, params.outputs - 1u);
}

fn input_row(row: u32) -> u32 {
  return row;
}

fn is_needed(row: u32) -> bool {
  return is_forwarded(row);
}

fn add(row: u32, slot: u32, product: f32) {
  let i = first_slot + slot;
  if (row >= ROWS || !is_forwarded(row) || i >= params.outputs) {
    return;
  }
  let output = params.first_output + i;
  var sum = product;
  if (BIAS) {
    sum += bias[output];
  }
  hidden[row * params.pitch + output] += sum;
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
    add(i / VECTOR_OUTPUTS, i % VECTOR_OUTPUTS, products[i]);
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
    for (var i = 0u; i < 4u; i++) {
      add(
        first_row + thread / 16u + 16u * j,
        thread % 16u * 4u + i,
        sums[j][i],
      );
    }
  }
}

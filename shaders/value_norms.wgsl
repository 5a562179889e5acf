// The norm of each value that `qkv_rope_append` has just written: the mean over
// the query heads of the group of ‖v · W_O[h]‖₁, W_O[h] being the head's columns
// of the output projection; or ‖v‖₂.
//
// Streams the projection once per tile of 32 rows, 2 bytes per element, so once
// in a decode step. `project` has a workgroup per 64 outputs, query head and
// tile; it takes the projection through workgroup memory, 64 columns at a time,
// and leaves a sum of absolute products. `collect` adds them up in a fixed
// order, since WGSL has no atomics on floats. The Gram matrix W Wᵀ of each head
// would need headDim² products instead of headDim · hidden, but gives the L2
// norm, and has to be made and stored for each layer.

struct Params {
  // Outputs in the weight block.
  outputs: u32,
  // Words in a row of the weight.
  pitch: u32,
  // Workgroups over the outputs before this block, and of all blocks.
  first_part: u32,
  parts: u32,
  first_head: u32,
  // Slots in `values`, and those of a KV head in a prefill step.
  total: u32,
  stage_rows: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
// (outputs, heads * headDim) halves
@group(0) @binding(1) var<storage, read> weight: array<u32>;
// (total, headDim) halves
@group(0) @binding(2) var<storage, read> values: array<u32>;
// (SlotField.bias + lanes, total)
@group(0) @binding(3) var<storage, read_write> side: array<u32>;
@group(0) @binding(4) var<storage, read> table: array<u32>;
@group(0) @binding(5) var<storage, read> step_words: array<u32>;
// (rows, heads, parts)
@group(0) @binding(6) var<storage, read_write> partials: array<f32>;

override HEADS: u32 = 1u;
override GROUP: u32 = 1u;
override HEAD_DIM: u32 = 4u;
override ROWS: u32 = 1u;
// Whether norms are those of projected values.
override PROJECTED: bool = true;

const FIELD_VALUE_NORM = 5u;
const THREADS = 256u;
const TILE_OUTPUTS = 64u;
const TILE_ROWS = 32u;
// Words, each of two columns.
const TILE_WORDS = 32u;
// Rows are padded by one word, so that they start in other banks.
const PITCH = TILE_WORDS + 1u;
// Rows of a thread: every fourth of the tile.
const STRANDS = THREADS / TILE_OUTPUTS;
const OWN_ROWS = TILE_ROWS / STRANDS;
const COLLECT_THREADS = 64u;

var<workgroup> weight_tile: array<u32, TILE_OUTPUTS * PITCH>;
var<workgroup> value_tile: array<vec2<f32>, TILE_ROWS * TILE_WORDS>;
var<workgroup> sums: array<f32, THREADS>;

@compute @workgroup_size(THREADS)
fn project(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let head = group.y;
  let first_row = group.z * TILE_ROWS;
  if (PREFILL && !is_live(first_row)) {
    return;
  }
  let half = HEAD_DIM / 2u;
  let first_slot = group.x * TILE_OUTPUTS;
  let output = thread % TILE_OUTPUTS;
  let strand = thread / TILE_OUTPUTS;
  var products: array<f32, OWN_ROWS>;
  for (var first = 0u; first < half; first += TILE_WORDS) {
    let words = min(TILE_WORDS, half - first);
    workgroupBarrier();
    for (var i = thread; i < TILE_OUTPUTS * TILE_WORDS; i += THREADS) {
      let line = i / TILE_WORDS;
      let column = i % TILE_WORDS;
      var word = 0u;
      if (column < words && first_slot + line < params.outputs) {
        let start = (first_slot + line) * params.pitch + head * half + first;
        word = weight[start + column];
      }
      weight_tile[line * PITCH + column] = word;
    }
    for (var i = thread; i < TILE_ROWS * TILE_WORDS; i += THREADS) {
      let row = first_row + i / TILE_WORDS;
      var pair = vec2<f32>();
      if (i % TILE_WORDS < words && row < ROWS && is_live(row)) {
        let slot = slot_of(row, head / GROUP);
        if (slot != NO_SLOT) {
          pair = unpack_halves(values[slot * half + first + i % TILE_WORDS]);
        }
      }
      value_tile[i] = pair;
    }
    workgroupBarrier();
    for (var i = 0u; i < words; i++) {
      let pair = unpack_halves(weight_tile[output * PITCH + i]);
      for (var n = 0u; n < OWN_ROWS; n++) {
        let row = strand + n * STRANDS;
        products[n] += dot(pair, value_tile[row * TILE_WORDS + i]);
      }
    }
  }
  for (var n = 0u; n < OWN_ROWS; n++) {
    workgroupBarrier();
    sums[thread] = abs(products[n]);
    for (var width = TILE_OUTPUTS / 2u; width > 0u; width /= 2u) {
      workgroupBarrier();
      if (output < width) {
        sums[thread] += sums[thread + width];
      }
    }
    let row = first_row + strand + n * STRANDS;
    if (output == 0u && row < ROWS) {
      let part = params.first_part + group.x;
      partials[(row * HEADS + head) * params.parts + part] = sums[thread];
    }
  }
}

// Writes the norm of one value.
@compute @workgroup_size(COLLECT_THREADS)
fn collect(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let kv_head = group.x;
  let row = group.y;
  if (!is_live(row)) {
    return;
  }
  let slot = slot_of(row, kv_head);
  var sum = 0.0;
  if (PROJECTED) {
    let count = GROUP * params.parts;
    let first = (row * HEADS + kv_head * GROUP) * params.parts;
    for (var i = thread; i < count; i += COLLECT_THREADS) {
      sum += partials[first + i];
    }
  } else if (slot != NO_SLOT) {
    let half = HEAD_DIM / 2u;
    for (var i = thread; i < half; i += COLLECT_THREADS) {
      let pair = unpack_halves(values[slot * half + i]);
      sum += dot(pair, pair);
    }
  }
  sums[thread] = sum;
  for (var width = COLLECT_THREADS / 2u; width > 0u; width /= 2u) {
    workgroupBarrier();
    if (thread < width) {
      sums[thread] += sums[thread + width];
    }
  }
  if (thread == 0u && slot != NO_SLOT) {
    let norm = select(sqrt(sums[0]), sums[0] / f32(GROUP), PROJECTED);
    side[FIELD_VALUE_NORM * params.total + slot] = bitcast<u32>(norm);
  }
}

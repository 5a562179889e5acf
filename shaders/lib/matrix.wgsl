// Products of activations with a weight matrix: `input · weightᵀ`, where the
// input may have an RMS norm in front of it.
//
// Two forms. `multiply_vectors` is for the few rows of a decode step: weights
// are read once, 16 bytes per thread and load, with four rows of them in
// flight. `multiply_tiles` is for the many rows of a prefill chunk: tiles of
// input and weight meet in workgroup memory.
//
// An RMS norm scales the whole row by one number, which is a factor of every
// product. So the squares are summed while the row streams by, and no pass of
// their own is needed: `Σ w·(x·n)` first, then times `1 / rms(x)`.
//
// A kernel declares `weight`, `input` and `norm` and defines
//   weight_row(slot)  row of the weight block for a slot of the workgroup
//   input_row(row)    row of `input` for a row of the program
//   is_needed(row)    whether the row is computed at all

override COLUMNS: u32 = 8u;
override ROWS: u32 = 1u;
override NORMED: bool = false;
override EPSILON: f32 = 0.0;

const MAX_VECTORS = 8u;   // rows that multiply_vectors can take
const TEAM = 32u;         // threads that share a dot product
const TEAMS = 4u;
const TEAM_OUTPUTS = 4u;  // dot products that a team has in flight
const VECTOR_THREADS = 128u;
const VECTOR_OUTPUTS = 16u;

const TILE_THREADS = 256u;
const TILE_ROWS = 64u;
const TILE_OUTPUTS = 64u;
const TILE_COLUMNS = 32u;
// Tiles are padded by one element per row, so that rows start in other banks.
const INPUT_PITCH = TILE_COLUMNS / 4u + 1u;
const WEIGHT_PITCH = TILE_COLUMNS / 8u + 1u;

// Elements that one workgroup of multiply_vectors makes per row.
override SLOTS: u32 = VECTOR_OUTPUTS;
// ROWS * SLOTS. Array sizes are single constants, not expressions: naga 29
// fails on those.
override PRODUCTS: u32 = VECTOR_OUTPUTS;

var<workgroup> team_sums: array<vec4<f32>, VECTOR_THREADS>;
var<workgroup> team_squares: array<f32, VECTOR_THREADS>;
var<workgroup> products: array<f32, PRODUCTS>;

var<workgroup> input_tile: array<vec4<f32>, TILE_ROWS * INPUT_PITCH>;
var<workgroup> weight_tile: array<vec4<u32>, TILE_OUTPUTS * WEIGHT_PITCH>;
var<workgroup> tile_squares: array<f32, TILE_THREADS>;

// Words of 16 bytes in a row of the weight.
fn weight_pitch() -> u32 {
  return (COLUMNS + 7u) / 8u;
}

// Four elements of an input row; zeros beyond its end.
fn read_input(row: u32, group: u32) -> vec4<f32> {
  let groups = COLUMNS / 4u;
  if (group >= groups) {
    return vec4<f32>();
  }
  return input[row * groups + group];
}

fn read_norm(group: u32) -> vec4<f32> {
  if (group >= COLUMNS / 4u) {
    return vec4<f32>();
  }
  return norm[group];
}

fn rms_scale(squares: f32) -> f32 {
  return inverseSqrt(squares / f32(COLUMNS) + EPSILON);
}

fn is_any_needed() -> bool {
  var any = false;
  for (var row = 0u; row < ROWS; row++) {
    any = any || is_needed(row);
  }
  return any;
}

// Fills `products[row * SLOTS + slot]` for 16 slots from `first_slot`.
fn multiply_vectors(thread: u32, first_slot: u32) {
  let lane = thread % TEAM;
  let slot = first_slot + thread / TEAM * TEAM_OUTPUTS;
  let pitch = weight_pitch();
  let row0 = weight_row(slot) * pitch;
  let row1 = weight_row(slot + 1u) * pitch;
  let row2 = weight_row(slot + 2u) * pitch;
  let row3 = weight_row(slot + 3u) * pitch;
  var sums: array<vec4<f32>, MAX_VECTORS>;
  var squares: array<f32, MAX_VECTORS>;
  for (var i = lane; i < pitch; i += TEAM) {
    let weight0 = weight[row0 + i];
    let weight1 = weight[row1 + i];
    let weight2 = weight[row2 + i];
    let weight3 = weight[row3 + i];
    for (var row = 0u; row < ROWS; row++) {
      if (!is_needed(row)) {
        continue;
      }
      var low = read_input(input_row(row), 2u * i);
      var high = read_input(input_row(row), 2u * i + 1u);
      if (NORMED) {
        squares[row] += dot(low, low) + dot(high, high);
        low *= read_norm(2u * i);
        high *= read_norm(2u * i + 1u);
      }
      sums[row] += vec4(
        dot_halves(weight0, low, high),
        dot_halves(weight1, low, high),
        dot_halves(weight2, low, high),
        dot_halves(weight3, low, high),
      );
    }
  }
  for (var row = 0u; row < ROWS; row++) {
    team_sums[thread] = sums[row];
    team_squares[thread] = squares[row];
    for (var width = TEAM / 2u; width > 0u; width /= 2u) {
      workgroupBarrier();
      if (lane < width) {
        team_sums[thread] += team_sums[thread + width];
        team_squares[thread] += team_squares[thread + width];
      }
    }
    if (lane == 0u) {
      var sum = team_sums[thread];
      if (NORMED) {
        sum *= rms_scale(team_squares[thread]);
      }
      let at = row * SLOTS + slot;
      products[at] = sum.x;
      products[at + 1u] = sum.y;
      products[at + 2u] = sum.z;
      products[at + 3u] = sum.w;
    }
    workgroupBarrier();
  }
}

// The products of 64 rows from `first_row` with 64 slots. Returns those of the
// rows `first_row + thread / 16 + 16 i`, slots `4 (thread % 16) ..+ 4`.
fn multiply_tiles(thread: u32, first_row: u32) -> array<vec4<f32>, 4> {
  let x = thread % 16u;
  let y = thread / 16u;
  let pitch = weight_pitch();
  // What this thread loads: 16 bytes of a weight row, 8 elements of an input.
  let line = thread / 4u;
  let part = thread % 4u;
  // Slots 4x ..+ 4 lie 16 apart in the tile, so that neighbours in a workgroup
  // read neighbouring rows.
  let load_slot = line % 16u * 4u + line / 16u;
  let load_weight = weight_row(load_slot) * pitch;
  let load_row = first_row + line;
  let is_loaded = load_row < ROWS && is_needed(load_row);
  var sums: array<vec4<f32>, 4>;
  var squares = 0.0;
  for (var first = 0u; first < pitch; first += TILE_COLUMNS / 8u) {
    let i = first + part;
    var words = vec4<u32>();
    var low = vec4<f32>();
    var high = vec4<f32>();
    if (i < pitch) {
      words = weight[load_weight + i];
      if (is_loaded) {
        low = read_input(input_row(load_row), 2u * i);
        high = read_input(input_row(load_row), 2u * i + 1u);
      }
      if (NORMED) {
        squares += dot(low, low) + dot(high, high);
        low *= read_norm(2u * i);
        high *= read_norm(2u * i + 1u);
      }
    }
    workgroupBarrier();
    weight_tile[line * WEIGHT_PITCH + part] = words;
    input_tile[line * INPUT_PITCH + 2u * part] = low;
    input_tile[line * INPUT_PITCH + 2u * part + 1u] = high;
    workgroupBarrier();
    for (var k = 0u; k < TILE_COLUMNS / 8u; k++) {
      let weight0 = weight_tile[x * WEIGHT_PITCH + k];
      let weight1 = weight_tile[(x + 16u) * WEIGHT_PITCH + k];
      let weight2 = weight_tile[(x + 32u) * WEIGHT_PITCH + k];
      let weight3 = weight_tile[(x + 48u) * WEIGHT_PITCH + k];
      for (var j = 0u; j < 4u; j++) {
        let at = (y + 16u * j) * INPUT_PITCH + 2u * k;
        let a = input_tile[at];
        let b = input_tile[at + 1u];
        sums[j] += vec4(
          dot_halves(weight0, a, b),
          dot_halves(weight1, a, b),
          dot_halves(weight2, a, b),
          dot_halves(weight3, a, b),
        );
      }
    }
  }
  if (NORMED) {
    tile_squares[thread] = squares;
    workgroupBarrier();
    for (var j = 0u; j < 4u; j++) {
      let at = (y + 16u * j) * 4u;
      sums[j] *= rms_scale(
        tile_squares[at] + tile_squares[at + 1u] +
        tile_squares[at + 2u] + tile_squares[at + 3u],
      );
    }
  }
  return sums;
}

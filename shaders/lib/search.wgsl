// For each of a tile of slots, the best of some targets: that with the most
// similar key, or that which is cheapest to merge with (see `pairs.wgsl`).
//
// A workgroup holds the tile and reads the targets once, tile by tile. Where
// values count too, the same memory takes the keys and then the values of the
// targets.
//
// A kernel defines
//   slot_of(candidate)  the slot with a number
//   proposer_at(i)      the i-th candidate that looks for a target
//   target_at(t)        the t-th target
//   is_open_to(i, t)    whether the i-th may be compared with the t-th target
//   propose(i, best)    takes what was found for the i-th candidate

override PROPOSERS: u32 = 32u;
override TARGET_TILE: u32 = 32u;
// Sizes of the tiles: PROPOSERS * HEAD_DIM / 2, twice that where values count,
// and TARGET_TILE * (HEAD_DIM / 2 + 1).
override PROPOSER_WORDS: u32 = 64u;
override TARGET_WORDS: u32 = 96u;

// Proposers that a thread compares with its target, at most.
const STRAND_PROPOSERS = 4u;

var<workgroup> proposer_tile: array<u32, PROPOSER_WORDS>;
var<workgroup> target_tile: array<u32, TARGET_WORDS>;
var<workgroup> proposer_weights: array<f32, 32>;

fn search(thread: u32, first: u32, count: u32, targets: u32, scale: PairScale) {
  let half = HEAD_DIM / 2u;
  let pitch = half + 1u;
  for (var i = thread; i < count * half; i += THREADS) {
    let slot = slot_of(proposer_at(first + i / half));
    proposer_tile[i] = key_word(slot, i % half);
    if (MERGE == MERGE_PAIR) {
      proposer_tile[PROPOSERS * half + i] = value_word(slot, i % half);
    }
  }
  if (MERGE == MERGE_PAIR && thread < count) {
    proposer_weights[thread] = log_weight(slot_of(proposer_at(first + thread)));
  }

  // A thread has target `j` and every `strands`th proposer.
  let j = thread % TARGET_TILE;
  let strand = thread / TARGET_TILE;
  let strands = THREADS / TARGET_TILE;
  var best: array<Ranked, STRAND_PROPOSERS>;
  for (var n = 0u; n < STRAND_PROPOSERS; n++) {
    best[n] = unranked();
  }
  for (var tile = 0u; tile < targets; tile += TARGET_TILE) {
    let there = min(TARGET_TILE, targets - tile);
    // Zeroed in so many words: naga 29 does not zero a `var` again in a loop.
    var measures = array<f32, STRAND_PROPOSERS>();
    workgroupBarrier();
    for (var i = thread; i < there * half; i += THREADS) {
      target_tile[i / half * pitch + i % half] =
        key_word(slot_of(target_at(tile + i / half)), i % half);
    }
    workgroupBarrier();
    for (var n = 0u; j < there && strand + n * strands < count; n++) {
      let i = strand + n * strands;
      if (MERGE == MERGE_PAIR) {
        measures[n] = scale.keys * tile_distance(i, j);
      } else {
        measures[n] = -tile_cosine(i, j);
      }
    }
    if (MERGE == MERGE_PAIR) {
      workgroupBarrier();
      for (var i = thread; i < there * half; i += THREADS) {
        target_tile[i / half * pitch + i % half] =
          value_word(slot_of(target_at(tile + i / half)), i % half);
      }
      workgroupBarrier();
    }
    if (j < there) {
      let other = target_at(tile + j);
      let position = position_of(slot_of(other));
      var weight = 0.0;
      if (MERGE == MERGE_PAIR) {
        weight = log_weight(slot_of(other));
      }
      for (var n = 0u; strand + n * strands < count; n++) {
        let i = strand + n * strands;
        let c = proposer_at(first + i);
        if (other == c || !is_open_to(first + i, tile + j)) {
          continue;
        }
        var measure = measures[n];
        if (MERGE == MERGE_PAIR) {
          let mine = proposer_weights[i];
          let is_heavier = weight > mine ||
            (weight == mine && position < position_of(slot_of(c)));
          if (HEAVIER_TARGETS && !is_heavier) {
            continue;
          }
          let values = scale.values * tile_distance(PROPOSERS + i, j);
          measure = pair_distance(measure, values);
          if (!BY_DISTANCE) {
            measure = pair_cost(mine, weight, measure);
          }
        }
        let mine = Ranked(measure, position, other);
        if (is_before(mine, best[n])) {
          best[n] = mine;
        }
      }
    }
  }
  for (var n = 0u; n * strands < count; n++) {
    let i = strand + n * strands;
    workgroupBarrier();
    reduce_ranked[thread] = best[n];
    workgroupBarrier();
    if (j == 0u && i < count) {
      var nearest = best[n];
      for (var k = 1u; k < TARGET_TILE; k++) {
        if (is_before(reduce_ranked[thread + k], nearest)) {
          nearest = reduce_ranked[thread + k];
        }
      }
      propose(first + i, nearest);
    }
  }
}

// Cosine of vector `i` of the proposers' tile and `j` of the targets'.
fn tile_cosine(i: u32, j: u32) -> f32 {
  let half = HEAD_DIM / 2u;
  var product = 0.0;
  var squares = vec2<f32>();
  for (var p = 0u; p < half; p++) {
    let a = unpack_halves(proposer_tile[i * half + p]);
    let b = unpack_halves(target_tile[j * (half + 1u) + p]);
    product += dot(a, b);
    squares += vec2(dot(a, a), dot(b, b));
  }
  let norms = sqrt(squares.x * squares.y);
  return select(product / max(norms, 1e-30), 0.0, norms == 0.0);
}

// Squared distance of the same.
fn tile_distance(i: u32, j: u32) -> f32 {
  let half = HEAD_DIM / 2u;
  var sum = 0.0;
  for (var p = 0u; p < half; p++) {
    let a = unpack_halves(proposer_tile[i * half + p]);
    let b = unpack_halves(target_tile[j * (half + 1u) + p]);
    sum += dot(a - b, a - b);
  }
  return sum;
}

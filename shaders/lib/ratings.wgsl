// Scores that take more than a slot's own fields: of all keys of the head,
// pooled over neighbours, or shared by the heads of a layer.

// f32: a candidate's own score.
const WORK_SCORE = 6u;
// f32: the same, pooled.
const WORK_POOLED = 7u;

// Where the scores stand in the end.
fn rating_at(candidate: u32) -> u32 {
  return work_at(select(WORK_POOLED, WORK_SCORE, POOL == POOL_NONE), candidate);
}

// What the policy's score says of a candidate.
fn score_of(candidate: u32) -> f32 {
  if (RATED) {
    return bitcast<f32>(work[rating_at(candidate)]);
  }
  return plain_score(slot_of(candidate));
}

// Each candidate's own score.
@compute @workgroup_size(THREADS)
fn rate(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let c = group.x * THREADS + thread;
  if (begin(group.y) && c < params.candidates && is_held(c)) {
    set_rating(c, plain_score(slot_of(c)));
  }
}

// The same where it takes all keys of the head.
@compute @workgroup_size(THREADS)
fn rate_keys(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  if (begin(group.x)) {
    if (SCORE == SCORE_EXPECTED) {
      rate_by_expectation(thread, step_words[CHUNK_SEQUENCE], kv_head);
    } else {
      rate_by_key(thread);
    }
  }
}

fn rated_slot(candidate: u32) -> u32 {
  if (is_held(candidate)) {
    return slot_of(candidate);
  }
  return NO_SLOT;
}

fn rating(candidate: u32) -> f32 {
  return bitcast<f32>(work[work_at(WORK_SCORE, candidate)]);
}

fn set_rating(candidate: u32, value: f32) {
  work[work_at(WORK_SCORE, candidate)] = bitcast<u32>(value);
}

// Scores of neighbouring positions, outside the recent window, pooled. A
// thread has a candidate and goes through all of them by tiles.
@compute @workgroup_size(THREADS)
fn pool(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  if (!begin(group.y)) {
    return;
  }
  let mine = group.x * THREADS + thread;
  let position = pooled_position(mine);
  var sum = no_scores();
  var largest = -3e38;
  var count = 0u;
  for (var tile = 0u; tile < params.candidates; tile += THREADS) {
    let there = pooled_position(tile + thread);
    var score = 0.0;
    if (there != NOT_POOLED) {
      score = rating(tile + thread);
    }
    workgroupBarrier();
    reduce_words[thread] = there;
    reduce_floats[thread] = score;
    workgroupBarrier();
    for (var k = 0u; k < THREADS; k++) {
      let other = reduce_words[k];
      let distance = max(other, position) - min(other, position);
      if (other != NOT_POOLED && distance <= POOL_REACH) {
        sum = add_score(sum, reduce_floats[k]);
        largest = max(largest, reduce_floats[k]);
        count += 1u;
      }
    }
  }
  if (mine >= params.candidates || !is_held(mine)) {
    return;
  }
  var pooled = rating(mine);
  if (position != NOT_POOLED) {
    pooled = largest;
    if (POOL == POOL_MEAN) {
      pooled = mean_score(sum, count);
    }
  }
  work[work_at(WORK_POOLED, mine)] = bitcast<u32>(pooled);
}

const NOT_POOLED = 0xffffffffu;

// Position of a candidate that is neither free nor recent.
fn pooled_position(candidate: u32) -> u32 {
  if (candidate >= params.candidates || !is_held(candidate)) {
    return NOT_POOLED;
  }
  let position = position_of(slot_of(candidate));
  let is_older = position + table[head + HEAD_RECENT] <= newest_position();
  return select(NOT_POOLED, position, is_older);
}

// The mean over the heads of the layer, whose candidates are the same tokens in
// the same order. A thread has a candidate of all heads.
@compute @workgroup_size(THREADS)
fn share(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let c = group.x * THREADS + thread;
  if (!begin(0u) || c >= params.candidates || !is_held(c)) {
    return;
  }
  var sum = no_scores();
  for (var i = 0u; i < KV_HEADS; i++) {
    kv_head = i;
    sum = add_score(sum, bitcast<f32>(work[rating_at(c)]));
  }
  for (var i = 0u; i < KV_HEADS; i++) {
    kv_head = i;
    work[rating_at(c)] = bitcast<u32>(mean_score(sum, KV_HEADS));
  }
}

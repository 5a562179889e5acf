// For each listed candidate of a chunk, the target that it is merged into, if
// there is one: what `search` asks for, and where the answer goes.

// A workgroup compares a tile of candidates with all targets.
@compute @workgroup_size(THREADS)
fn find_targets(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  if (!begin(group.y)) {
    return;
  }
  let first = group.x * PROPOSERS;
  let listed = read_counter(thread, COUNT_LISTED);
  if (first >= listed) {
    return;
  }
  let targets = read_counter(thread, COUNT_TARGETS);
  let spread = bitcast<f32>(read_counter(thread, COUNT_SPREAD));
  search(thread, first, min(PROPOSERS, listed - first), targets, pair_scale(spread));
}

fn proposer_at(i: u32) -> u32 {
  return work[work_at(WORK_LIST, i)];
}

fn target_at(t: u32) -> u32 {
  return work[work_at(WORK_TARGETS, t)];
}

fn is_open_to(i: u32, t: u32) -> bool {
  return true;
}

fn propose(i: u32, best: Ranked) {
  let candidate = proposer_at(i);
  // A moving threshold is only known once all victims have a target.
  let is_close = MERGE != MERGE_VOTES || -best.key > THRESHOLD;
  work[work_at(WORK_KEY, candidate)] = ordered(best.key);
  work[work_at(WORK_CHOICE, candidate)] =
    select(NO_SLOT, best.slot, best.slot != NO_SLOT && is_close);
}

// Who goes when a chunk is compressed, and who may take them.

// Leaves of the listed candidates those that do not stay by their scores alone,
// with their ranks as keys.
fn contest(thread: u32, evictable: u32, victims: u32) {
  keep_lowest(thread, evictable - first_stage(evictable - victims));
  for (var c = thread; c < params.candidates; c += THREADS) {
    if (work[work_at(WORK_FLAGS, c)] == FLAG_LISTED) {
      let slot = slot_of(c);
      work[work_at(WORK_KEY, c)] = ordered(rank_of(score_of(c), slot));
    }
  }
  storageBarrier();
}

// Lists the slots with the lowest ranks, as many as the head is over its
// budget, and marks those that they may be merged into.
@compute @workgroup_size(THREADS)
fn select_victims(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  if (!begin(group.x)) {
    return;
  }
  let excess = count_excess(thread);
  let evictable = list_evictable(thread);
  let victims = min(excess, evictable);
  if (COUNT_VALUES && victims > 0u) {
    contest(thread, evictable, victims);
  }
  var last = vec2<u32>();
  if (victims > 0u) {
    last = select_rank(thread, FLAG_LISTED, victims);
  }
  for (var c = thread; c < params.candidates; c += THREADS) {
    let is_listed = work[work_at(WORK_FLAGS, c)] == FLAG_LISTED;
    var flags = 0u;
    work[work_at(WORK_NEXT, c)] = NO_SLOT;
    if (victims > 0u && is_listed && is_within(c, last)) {
      flags = FLAG_LISTED;
      work[work_at(WORK_CHOICE, c)] = NO_SLOT;
    } else if (is_held(c) && takes_victims(c)) {
      flags = FLAG_TARGET;
    }
    work[work_at(WORK_FLAGS, c)] = flags;
  }
  storageBarrier();
  make_list(thread);
  if (MERGE == MERGE_VOTES || MERGE == MERGE_PAIR || MERGE == MERGE_COSINE) {
    list_targets(thread);
  }
}

// Whether victims may be merged into a candidate that stays.
fn takes_victims(candidate: u32) -> bool {
  if (MERGE == MERGE_PAIR) {
    return may_go(candidate);
  }
  return position_of(slot_of(candidate)) >= SINKS;
}

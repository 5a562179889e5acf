// Pairing candidates up: who may pair, and which of the proposals that
// `find_targets` left are taken.

// Lists what may pair up, if the head is over its budget.
@compute @workgroup_size(THREADS)
fn list_pairs(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  if (!begin(group.x)) {
    return;
  }
  let excess = count_excess(thread);
  for (var c = thread; c < params.candidates; c += THREADS) {
    let is_listed = excess > 0u && is_held(c) && may_go(c);
    work[work_at(WORK_FLAGS, c)] =
      select(0u, FLAG_LISTED | FLAG_TARGET, is_listed);
  }
  storageBarrier();
  make_list(thread);
  list_targets(thread);
  if (thread == 0u) {
    atomicStore(&counters[kv_head * COUNTERS + COUNT_EXCESS], excess);
  }
}

fn mark_at(section: u32, candidate: u32) -> u32 {
  return (section * KV_HEADS + kv_head) * params.candidates + candidate;
}

// Whether both ends of a candidate's proposal are still free.
fn is_open(candidate: u32) -> bool {
  let choice = work[work_at(WORK_CHOICE, candidate)];
  if (choice == NO_SLOT) {
    return false;
  }
  let flags = work[work_at(WORK_FLAGS, candidate)] |
    work[work_at(WORK_FLAGS, choice)];
  return (flags & FLAG_TAKEN) == 0u;
}

fn touch_key(candidate: u32, key: u32) {
  atomicMin(&marks[mark_at(0u, candidate)], key);
}

fn touch_position(candidate: u32, key: u32, position: u32) {
  if (atomicLoad(&marks[mark_at(0u, candidate)]) == key) {
    atomicMin(&marks[mark_at(1u, candidate)], position);
  }
}

fn is_best_at(candidate: u32, key: u32, position: u32) -> bool {
  return atomicLoad(&marks[mark_at(0u, candidate)]) == key &&
    atomicLoad(&marks[mark_at(1u, candidate)]) == position;
}

// Takes proposals in order of similarity while both ends are free; returns how
// many. A proposal that is the best of all that touch its two ends is taken
// whatever happens elsewhere, so rounds of taking all of those give what one
// pass in order would.
fn accept_pairs(thread: u32, listed: u32) -> u32 {
  var accepted = 0u;
  loop {
    for (var i = thread; i < listed; i += THREADS) {
      let c = work[work_at(WORK_LIST, i)];
      atomicStore(&marks[mark_at(0u, c)], 0xffffffffu);
      atomicStore(&marks[mark_at(1u, c)], 0xffffffffu);
    }
    storageBarrier();
    for (var i = thread; i < listed; i += THREADS) {
      let c = work[work_at(WORK_LIST, i)];
      if (is_open(c)) {
        let key = work[work_at(WORK_KEY, c)];
        touch_key(c, key);
        touch_key(work[work_at(WORK_CHOICE, c)], key);
      }
    }
    storageBarrier();
    for (var i = thread; i < listed; i += THREADS) {
      let c = work[work_at(WORK_LIST, i)];
      if (is_open(c)) {
        let key = work[work_at(WORK_KEY, c)];
        let position = position_of(slot_of(c));
        touch_position(c, key, position);
        touch_position(work[work_at(WORK_CHOICE, c)], key, position);
      }
    }
    storageBarrier();
    var taken = 0u;
    for (var i = thread; i < listed; i += THREADS) {
      let c = work[work_at(WORK_LIST, i)];
      if (is_open(c)) {
        let key = work[work_at(WORK_KEY, c)];
        let choice = work[work_at(WORK_CHOICE, c)];
        let position = position_of(slot_of(c));
        if (is_best_at(c, key, position) && is_best_at(choice, key, position)) {
          work[work_at(WORK_FLAGS, c)] |= FLAG_TAKEN | FLAG_ACCEPTED;
          work[work_at(WORK_FLAGS, choice)] |= FLAG_TAKEN;
          taken += 1u;
        }
      }
    }
    storageBarrier();
    taken = sum_words(thread, taken);
    accepted += taken;
    if (taken == 0u) {
      break;
    }
  }
  return accepted;
}

// Takes the best pairs, as many as the head is over its budget, and lists the
// ends that go.
@compute @workgroup_size(THREADS)
fn pair(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  if (!begin(group.x)) {
    return;
  }
  let listed = read_counter(thread, COUNT_LISTED);
  let excess = read_counter(thread, COUNT_EXCESS);
  let accepted = accept_pairs(thread, listed);
  var last = vec2(0xffffffffu);
  if (accepted > excess) {
    last = select_rank(thread, FLAG_ACCEPTED, excess);
  }
  storageBarrier();
  for (var i = thread; i < listed; i += THREADS) {
    let c = work[work_at(WORK_LIST, i)];
    let flags = work[work_at(WORK_FLAGS, c)];
    work[work_at(WORK_FLAGS, c)] = flags & FLAG_ACCEPTED;
  }
  storageBarrier();
  for (var i = thread; i < listed; i += THREADS) {
    let c = work[work_at(WORK_LIST, i)];
    let flags = work[work_at(WORK_FLAGS, c)];
    if ((flags & FLAG_ACCEPTED) == 0u || !is_within(c, last)) {
      continue;
    }
    let choice = work[work_at(WORK_CHOICE, c)];
    let mine = slot_of(c);
    let other = slot_of(choice);
    let is_lower = is_before(
      Ranked(rank_of(score_of(c), mine), position_of(mine), mine),
      Ranked(rank_of(score_of(choice), other), position_of(other), other),
    );
    let goes = select(choice, c, is_lower);
    work[work_at(WORK_CHOICE, goes)] = select(c, choice, is_lower);
    work[work_at(WORK_NEXT, goes)] = NO_SLOT;
    work[work_at(WORK_FLAGS, goes)] |= FLAG_LISTED | FLAG_LEADER;
  }
  storageBarrier();
  make_list(thread);
}

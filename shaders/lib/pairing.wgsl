// Pairing candidates up by the proposals that `search` left.

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

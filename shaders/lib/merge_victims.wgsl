// Which victims of a chunk are merged into the same slot.

// Chains victims with the same target in the order of the list.
@compute @workgroup_size(THREADS)
fn link(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  if (!begin(group.x)) {
    return;
  }
  let listed = read_counter(thread, COUNT_LISTED);
  if (MERGE == MERGE_COSINE) {
    move_threshold(thread, listed);
  }
  for (var i = thread; i < listed; i += THREADS) {
    let c = work[work_at(WORK_LIST, i)];
    let choice = work[work_at(WORK_CHOICE, c)];
    if (choice == NO_SLOT) {
      continue;
    }
    var is_leader = true;
    var next = NO_SLOT;
    for (var k = 0u; k < listed; k++) {
      let other = work[work_at(WORK_LIST, k)];
      if (k == i || work[work_at(WORK_CHOICE, other)] != choice) {
        continue;
      }
      if (k < i) {
        is_leader = false;
      } else {
        next = other;
        break;
      }
    }
    work[work_at(WORK_NEXT, c)] = next;
    if (is_leader) {
      work[work_at(WORK_FLAGS, c)] |= FLAG_LEADER;
    }
  }
}

// Moves the threshold of the head and takes their targets from those victims
// that are not similar enough.
fn move_threshold(thread: u32, listed: u32) {
  var cosines = 0.0;
  var count = 0u;
  for (var i = thread; i < listed; i += THREADS) {
    let c = work[work_at(WORK_LIST, i)];
    if (work[work_at(WORK_CHOICE, c)] != NO_SLOT) {
      cosines -= unordered(work[work_at(WORK_KEY, c)]);
      count += 1u;
    }
  }
  cosines = sum_floats(thread, cosines);
  count = sum_words(thread, count);
  if (count == 0u) {
    return;
  }
  let past = bitcast<f32>(uniform_word(thread, table[head + HEAD_THRESHOLD]));
  let threshold = next_threshold(past, cosines / f32(count));
  for (var i = thread; i < listed; i += THREADS) {
    let c = work[work_at(WORK_LIST, i)];
    if (-unordered(work[work_at(WORK_KEY, c)]) < threshold) {
      work[work_at(WORK_CHOICE, c)] = NO_SLOT;
    }
  }
  if (thread == 0u) {
    table[head + HEAD_THRESHOLD] = bitcast<u32>(threshold);
  }
  storageBarrier();
}

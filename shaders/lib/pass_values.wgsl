// Passes the values of victims on, one by one in the order of their ranks, since
// each takes in what those before it have passed on. A workgroup has a head: the
// elements of a value do not touch each other, so threads wait only for the
// search of the slots that are still there.
@compute @workgroup_size(THREADS)
fn pass_values(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  if (!begin(group.x)) {
    return;
  }
  let listed = read_counter(thread, COUNT_LISTED);
  for (var i = thread; i < listed; i += THREADS) {
    let c = work[work_at(WORK_LIST, i)];
    let mine = vec2(work[work_at(WORK_KEY, c)], position_of(slot_of(c)));
    var place = 0u;
    for (var k = 0u; k < listed; k++) {
      let other = work[work_at(WORK_LIST, k)];
      place += select(0u, 1u, k != i && is_within(other, mine));
    }
    work[work_at(WORK_NEXT, place)] = c;
  }
  storageBarrier();
  for (var i = 0u; i < listed; i++) {
    let c = uniform_word(thread, work[work_at(WORK_NEXT, i)]);
    if (thread == 0u) {
      work[work_at(WORK_FLAGS, c)] |= FLAG_TAKEN;
    }
    storageBarrier();
    let taker = uniform_word(thread, pass_on(thread, c, params.candidates, kv_head));
    if (thread == 0u) {
      work[work_at(WORK_CHOICE, c)] = taker;
      if (taker != NO_SLOT) {
        free_slot(slot_of(c));
        atomicAdd(&counters[kv_head * COUNTERS + COUNT_MERGED], 1u);
      }
    }
  }
}

fn is_there(candidate: u32) -> bool {
  let flags = work[work_at(WORK_FLAGS, candidate)];
  return is_held(candidate) && (flags & FLAG_TAKEN) == 0u;
}

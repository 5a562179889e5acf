// Closing links between neighbours in the text until a chunk fits its budget.

// Lists the candidates that may be merged with their neighbours, if the head is
// over its budget.
@compute @workgroup_size(THREADS)
fn list_light(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  if (!begin(group.x)) {
    return;
  }
  let excess = count_excess(thread);
  if (excess == 0u) {
    return;
  }
  let evictable = list_evictable(thread);
  if (evictable > 0u) {
    keep_lowest(thread, light_slots(evictable, excess));
  }
  make_list(thread);
  if (thread == 0u) {
    atomicStore(&counters[kv_head * COUNTERS + COUNT_EXCESS], excess);
  }
}

// Measures the link of each listed candidate to its right neighbour:
// WORK_KEY. There is none to a neighbour that is not listed: WORK_CHOICE.
@compute @workgroup_size(THREADS)
fn measure_links(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  if (!begin(group.y)) {
    return;
  }
  let i = group.x * THREADS + thread;
  if (i >= atomicLoad(&counters[kv_head * COUNTERS + COUNT_LISTED])) {
    return;
  }
  let c = work[work_at(WORK_LIST, i)];
  let right = work[work_at(WORK_CHOICE, c)];
  if (right == NO_SLOT) {
    return;
  }
  if ((work[work_at(WORK_FLAGS, right)] & FLAG_LISTED) == 0u) {
    work[work_at(WORK_CHOICE, c)] = NO_SLOT;
    return;
  }
  work[work_at(WORK_KEY, c)] = ordered(-key_cosine(slot_of(c), slot_of(right)));
}

fn is_closed(candidate: u32) -> bool {
  return (work[work_at(WORK_FLAGS, candidate)] & FLAG_ACCEPTED) != 0u;
}

// Closes the closest links, as many as the head is over its budget, and lists
// the candidates that go: chains with the pivot of their segment as target.
@compute @workgroup_size(THREADS)
fn close_links(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  if (!begin(group.x)) {
    return;
  }
  let listed = read_counter(thread, COUNT_LISTED);
  let excess = read_counter(thread, COUNT_EXCESS);
  var links = 0u;
  for (var i = thread; i < listed; i += THREADS) {
    let c = work[work_at(WORK_LIST, i)];
    let is_link = work[work_at(WORK_CHOICE, c)] != NO_SLOT;
    work[work_at(WORK_FLAGS, c)] = select(0u, FLAG_ACCEPTED, is_link);
    work[work_at(WORK_NEXT, c)] = NO_SLOT;
    links += select(0u, 1u, is_link);
  }
  links = sum_words(thread, links);
  storageBarrier();
  var last = vec2(0xffffffffu);
  if (links > excess) {
    last = select_rank(thread, FLAG_ACCEPTED, excess);
  }
  for (var i = thread; i < listed; i += THREADS) {
    let c = work[work_at(WORK_LIST, i)];
    if (is_closed(c)) {
      if (is_within(c, last)) {
        work[work_at(WORK_NEXT, work[work_at(WORK_CHOICE, c)])] = c;
      } else {
        work[work_at(WORK_FLAGS, c)] = 0u;
      }
    }
  }
  storageBarrier();
  // A segment begins where nothing is linked from the left.
  for (var i = thread; i < listed; i += THREADS) {
    let c = work[work_at(WORK_LIST, i)];
    if (is_closed(c) && work[work_at(WORK_NEXT, c)] == NO_SLOT) {
      work[work_at(WORK_FLAGS, c)] |= FLAG_TAKEN;
    }
  }
  storageBarrier();
  for (var i = thread; i < listed; i += THREADS) {
    let c = work[work_at(WORK_LIST, i)];
    if ((work[work_at(WORK_FLAGS, c)] & FLAG_TAKEN) != 0u) {
      chain_segment(c);
    }
  }
  storageBarrier();
  make_list(thread);
}

// Chains the members of the segment that begins at a candidate to its pivot. A
// thread has a segment; segments are short unless the budget is far exceeded.
fn chain_segment(first: u32) {
  var pivot = first;
  var most = side_float(slot_of(first), FIELD_ACCUMULATED);
  var c = first;
  while (is_closed(c)) {
    c = work[work_at(WORK_CHOICE, c)];
    let attention = side_float(slot_of(c), FIELD_ACCUMULATED);
    if (attention > most) {
      most = attention;
      pivot = c;
    }
  }
  var last = NO_SLOT;
  c = first;
  while (c != NO_SLOT) {
    let next = select(NO_SLOT, work[work_at(WORK_CHOICE, c)], is_closed(c));
    work[work_at(WORK_FLAGS, c)] = 0u;
    if (c != pivot) {
      work[work_at(WORK_CHOICE, c)] = pivot;
      work[work_at(WORK_NEXT, c)] = NO_SLOT;
      work[work_at(WORK_FLAGS, c)] = FLAG_LISTED;
      if (last == NO_SLOT) {
        work[work_at(WORK_FLAGS, c)] |= FLAG_LEADER;
      } else {
        work[work_at(WORK_NEXT, last)] = c;
      }
      last = c;
    }
    c = next;
  }
}

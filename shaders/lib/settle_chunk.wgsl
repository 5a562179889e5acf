// The end of a chunk's compression: what is dropped is freed, and the staged
// rows that are left move, in order, into free slots, in order.
@compute @workgroup_size(THREADS)
fn settle(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  if (!begin(group.x)) {
    return;
  }
  // What is listed and chose no target is dropped.
  let listed = read_counter(thread, COUNT_LISTED);
  var dropped = 0u;
  var dropped_tokens = 0u;
  for (var i = thread; i < listed; i += THREADS) {
    let c = work[work_at(WORK_LIST, i)];
    if (work[work_at(WORK_CHOICE, c)] == NO_SLOT) {
      dropped += 1u;
      dropped_tokens += tokens_of(slot_of(c));
      free_slot(slot_of(c));
    }
  }
  var divergence = 0.0;
  for (var c = thread; c < params.candidates; c += THREADS) {
    divergence += bitcast<f32>(work[work_at(WORK_DIVERGENCE, c)]);
  }
  dropped = sum_words(thread, dropped);
  dropped_tokens = sum_words(thread, dropped_tokens);
  divergence = sum_floats(thread, divergence);
  storageBarrier();

  // Staged rows that are left, in order: WORK_LIST from now on.
  let rows = step_words[CHUNK_ROWS];
  var left = 0u;
  for (var first = 0u; first < rows; first += THREADS) {
    let c = params.max_capacity + first + thread;
    let is_left = select(0u, 1u, first + thread < rows && is_held(c));
    let place = prefix_sum(thread, is_left);
    if (is_left != 0u) {
      work[work_at(WORK_LIST, left + place - 1u)] = c;
    }
    left += sum_words(thread, is_left);
  }
  // As many free slots, in order: WORK_NEXT.
  let capacity = uniform_word(thread, table[head + HEAD_CAPACITY]);
  var found = 0u;
  for (var first = 0u; first < capacity && found < left; first += THREADS) {
    let c = first + thread;
    let is_free =
      select(0u, 1u, c < capacity && tokens_of(slot_of(c)) == 0u);
    let place = found + prefix_sum(thread, is_free);
    if (is_free != 0u && place <= left) {
      work[work_at(WORK_NEXT, place - 1u)] = c;
    }
    found += sum_words(thread, is_free);
  }
  storageBarrier();
  let moved = min(left, found);
  let half = HEAD_DIM / 2u;
  for (var i = thread; i < moved * half; i += THREADS) {
    let from_slot = slot_of(work[work_at(WORK_LIST, i / half)]);
    let to_slot = slot_of(work[work_at(WORK_NEXT, i / half)]);
    set_key_word(to_slot, i % half, key_word(from_slot, i % half));
    set_value_word(to_slot, i % half, value_word(from_slot, i % half));
  }
  for (var i = thread; i < moved; i += THREADS) {
    let from_slot = slot_of(work[work_at(WORK_LIST, i)]);
    let to_slot = slot_of(work[work_at(WORK_NEXT, i)]);
    for (var field = 0u; field < FIELD_BIAS + LANES; field++) {
      set_side_word(to_slot, field, side_word(from_slot, field));
    }
  }
  var high = uniform_word(thread, table[head + HEAD_HIGH]);
  if (moved > 0u) {
    let last = uniform_word(thread, work[work_at(WORK_NEXT, moved - 1u)]);
    high = max(high, last + 1u);
  }
  storageBarrier();

  var live = 0u;
  var free = high;
  for (var c = thread; c < high; c += THREADS) {
    if (PARTNERS) {
      set_side_word(slot_of(c), partner_field() + PARTNER_SLOT, 0u);
      set_side_word(slot_of(c), partner_field() + PARTNER_DISTANCE, 0u);
    }
    if (tokens_of(slot_of(c)) == 0u) {
      free = min(free, c);
    } else {
      live += 1u;
    }
  }
  live = sum_words(thread, live);
  free = min_words(thread, free);
  if (thread == 0u) {
    let counts = kv_head * COUNTERS;
    table[head + HEAD_LIVE] = live;
    table[head + HEAD_NEXT] = free;
    table[head + HEAD_HIGH] = high;
    table[head + HEAD_SPREAD] = 0u;
    table[head + HEAD_MERGED] += atomicLoad(&counters[counts + COUNT_MERGED]);
    table[head + HEAD_GUARDED] += atomicLoad(&counters[counts + COUNT_GUARDED]);
    table[head + HEAD_DROPPED] += dropped;
    table[head + HEAD_DROPPED_TOKENS] += dropped_tokens;
    table[head + HEAD_DIVERGENCE] = bitcast<u32>(
      bitcast<f32>(table[head + HEAD_DIVERGENCE]) + divergence,
    );
  }
}

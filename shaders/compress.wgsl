// Takes the live slots and the staged rows of a chunk down to each head's
// budget, and moves the staged rows that are left into free slots.
//
// The candidates of a head are numbered: cache slots first, staged rows from
// `max_capacity`. Whatever is proportional to them lives in scratch, so only
// memory bounds their number. The steps, each a dispatch:
//   allocate_heads  where heads are adaptive, gives them their budgets
//   survey          clears the counters
// then, once with merge-first, or some times where the cheapest pairs merge:
//   list_pairs      lists what may pair up, if the head is over its budget
//   find_targets    the best partner for each that is listed (many workgroups)
//   pair            takes pairs, best first, until the head fits
//   merge           merges the sets (many workgroups)
// or, where neighbours in the text are merged:
//   list_light      lists those that may be, if the head is over its budget
//   neighbours      the next slot to the right of each (many workgroups)
//   measure_links   how similar the two are (many workgroups)
//   close_links     takes the most similar ones, until the head fits
//   merge           merges what they connect (many workgroups)
// then
//   select_victims  lists the slots with the lowest ranks
// with, before `pair`, `list_light` and `select_victims`, where scores are not the slots' own:
//   rate            each candidate's own score (many workgroups), or rate_keys
//   pool            the scores of its neighbours (many workgroups)
//   share           the mean over the heads (many workgroups)
// then, where they go to the most similar key or the cheapest target:
//   find_targets    the best kept target for each of them
//   link            chains those that chose the same target
//   merge           merges the chains
// or, where their values go to the right neighbour:
//   neighbours      the next slot to the right of each of them (many workgroups)
//   weigh           what weight each has in the kept value that takes it
//   merge_runs      merges the values (many workgroups)
// or, where their values go to the slots after them:
//   pass_values     adds them, one by one
// and at the end:
//   settle          frees what is dropped, fills free slots, updates the head
// A single workgroup per head could do it all in one dispatch, but the searches
// are the work, quadratic in the candidates, and must fill the device.
//
// Nothing depends on the order in which workgroups run: choices are by key and
// position, sets are disjoint, and sums are taken in the order of candidates.

struct Params {
  layer: u32,
  first_head: u32,
  total: u32,
  stage_total: u32,
  stage_rows: u32,
  max_capacity: u32,
  // max_capacity + stage_rows
  candidates: u32,
  merge_groups: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
// (rows, heads, headDim)
@group(0) @binding(1) var<storage, read> queries: array<vec2<f32>>;
// (total, headDim) halves
@group(0) @binding(2) var<storage, read_write> keys: array<u32>;
@group(0) @binding(3) var<storage, read_write> values: array<u32>;
// (SlotField.bias + lanes, total)
@group(0) @binding(4) var<storage, read_write> side: array<u32>;
// The same of the staged rows, (kvHeads, stageRows).
@group(0) @binding(5) var<storage, read_write> stage_keys: array<u32>;
@group(0) @binding(6) var<storage, read_write> stage_values: array<u32>;
@group(0) @binding(7) var<storage, read_write> stage_side: array<u32>;
@group(0) @binding(8) var<storage, read_write> table: array<u32>;
@group(0) @binding(9) var<storage, read> step_words: array<u32>;
// (WORK_SECTIONS, kvHeads, candidates)
@group(0) @binding(10) var<storage, read_write> work: array<u32>;
// (2, kvHeads, candidates): best key and position that touch a candidate
@group(0) @binding(11) var<storage, read_write> marks: array<atomic<u32>>;
// (kvHeads, COUNTERS)
@group(0) @binding(12) var<storage, read_write> counters: array<atomic<u32>>;
// (sequences, heads, 3 headDim + 1)
@group(0) @binding(13) var<storage, read> statistics: array<f32>;

const THREADS = 256u;

var<workgroup> part_values: array<vec2<f32>, THREADS>;

// Clears what the other steps add to; the first step, whatever the policy.
@compute @workgroup_size(THREADS)
fn survey(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  if (!begin(group.x)) {
    return;
  }
  if (thread < COUNTERS) {
    atomicStore(&counters[kv_head * COUNTERS + thread], 0u);
  }
  for (var c = thread; c < params.candidates; c += THREADS) {
    work[work_at(WORK_DIVERGENCE, c)] = 0u;
    work[work_at(WORK_FLAGS, c)] = 0u;
  }
  storageBarrier();
  if (MERGE == MERGE_PAIR) {
    let spread = value_spread(thread, params.candidates);
    if (thread == 0u) {
      let at = kv_head * COUNTERS + COUNT_SPREAD;
      atomicStore(&counters[at], bitcast<u32>(spread));
    }
  }
}

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

// For each listed candidate, the target that it is merged into, if there is
// one. A workgroup compares a tile of candidates with all targets.
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

// The slot after `slot` in its chain: see `lib/merge_slots.wgsl`.
fn next_member(slot: u32) -> u32 {
  var candidate = slot - table[head + HEAD_OFFSET];
  if ((slot & STAGED) != 0u) {
    candidate = params.max_capacity + (slot ^ STAGED) -
      kv_head * params.stage_rows;
  }
  let next = work[work_at(WORK_NEXT, candidate)];
  if (next == NO_SLOT) {
    return NO_SLOT;
  }
  return slot_of(next);
}

// Merges listed candidates into the ones they chose. A workgroup takes whole
// sets, so no two touch the same slot.
@compute @workgroup_size(THREADS)
fn merge(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  if (!begin(group.y)) {
    return;
  }
  merge_vector = (step_words[CHUNK_ROWS] - 1u) * HEADS + kv_head * GROUP;
  let listed = read_counter(thread, COUNT_LISTED);
  for (var i = group.x; i < listed; i += params.merge_groups) {
    if (thread == 0u) {
      let c = work[work_at(WORK_LIST, i)];
      let is_leader = (work[work_at(WORK_FLAGS, c)] & FLAG_LEADER) != 0u;
      shared_words[1] = c;
      shared_words[2] = NO_SLOT;
      if (is_leader) {
        shared_words[2] = work[work_at(WORK_CHOICE, c)];
      }
    }
    let goes = workgroupUniformLoad(&shared_words[1]);
    let stays = workgroupUniformLoad(&shared_words[2]);
    if (stays == NO_SLOT) {
      continue;
    }
    let first = slot_of(goes);
    var merged = Merged(0u, 0u, 0.0);
    if (MERGE == MERGE_COSINE) {
      merged.count = blend_slots(thread, slot_of(stays), first);
    } else if (MERGE == MERGE_SEGMENTS) {
      merged.count = merge_segment(thread, slot_of(stays), first);
    } else {
      merged = merge_slots(thread, slot_of(stays), first);
    }
    storageBarrier();
    if (thread == 0u) {
      var slot = first;
      while (slot != NO_SLOT) {
        free_slot(slot);
        slot = next_member(slot);
      }
      let at = work_at(WORK_DIVERGENCE, stays);
      work[at] =
        bitcast<u32>(bitcast<f32>(work[at]) + merged.divergence);
      let counts = kv_head * COUNTERS;
      atomicAdd(&counters[counts + COUNT_MERGED], merged.count);
      atomicAdd(&counters[counts + COUNT_GUARDED], merged.guarded);
    }
  }
}

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

// Frees what is dropped and moves the staged rows that are left, in order,
// into free slots, in order.
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
      set_side_word(slot_of(c), partner_field(), 0u);
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
    table[head + HEAD_MERGED] += atomicLoad(&counters[counts + COUNT_MERGED]);
    table[head + HEAD_GUARDED] += atomicLoad(&counters[counts + COUNT_GUARDED]);
    table[head + HEAD_DROPPED] += dropped;
    table[head + HEAD_DROPPED_TOKENS] += dropped_tokens;
    table[head + HEAD_DIVERGENCE] = bitcast<u32>(
      bitcast<f32>(table[head + HEAD_DIVERGENCE]) + divergence,
    );
  }
}

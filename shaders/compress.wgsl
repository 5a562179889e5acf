// Takes the live slots and the staged rows of a chunk down to each head's
// budget, and moves the staged rows that are left into free slots.
//
// The candidates of a head are numbered: cache slots first, staged rows from
// `max_capacity`. Whatever is proportional to them lives in scratch, so only
// memory bounds their number. The steps, each a dispatch:
//   allocate_heads  where heads are adaptive, gives them their budgets
//   survey          counts; with merge-first, lists what may pair up
//   search          the nearest key for each that is listed (many workgroups)
//   pair            takes similar pairs, best first, until the head fits
//   merge           merges the sets (many workgroups)
//   select_victims  lists the slots with the lowest ranks
// with, before `pair` and `select_victims`, where scores are not the slots' own:
//   rate            each candidate's own score (many workgroups), or rate_keys
//   pool            the scores of its neighbours (many workgroups)
//   share           the mean over the heads (many workgroups)
// then, where they go to the most similar key:
//   search          the nearest kept key for each of them
//   link            chains those that chose the same target
//   merge           merges the chains
// or, where their values go to the right neighbour:
//   neighbours      the next slot to the right of each of them (many workgroups)
//   weigh           what weight each has in the kept value that takes it
//   merge_runs      merges the values (many workgroups)
// and at the end:
//   settle          frees what is dropped, fills free slots, updates the head
// A single workgroup per head could do it all in one dispatch, but the searches
// are the work, quadratic in the candidates, and must fill the device.
//
// Nothing depends on the order in which workgroups run: choices are by key and
// position, sets are disjoint, and sums are taken in the order of candidates.

struct Params {
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

const THREADS = 256u;

const PROPOSERS = 32u;
override KEY_TILE: u32 = 32u;
// Sizes of the tiles: PROPOSERS * HEAD_DIM / 2, KEY_TILE * (HEAD_DIM / 2 + 1).
override PROPOSER_WORDS: u32 = 64u;
override KEY_WORDS: u32 = 96u;
override MERGE_FIRST: bool = false;

var<workgroup> proposer_tile: array<u32, PROPOSER_WORDS>;
var<workgroup> key_tile: array<u32, KEY_WORDS>;
var<workgroup> part_values: array<vec2<f32>, THREADS>;

// Counts and lists; the first step, whatever the policy.
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
  let excess = count_excess(thread);
  for (var c = thread; c < params.candidates; c += THREADS) {
    work[work_at(WORK_DIVERGENCE, c)] = 0u;
    let is_listed = MERGE_FIRST && excess > 0u && is_held(c) && may_go(c);
    work[work_at(WORK_FLAGS, c)] =
      select(0u, FLAG_LISTED | FLAG_TARGET, is_listed);
  }
  storageBarrier();
  make_list(thread);
  if (thread == 0u) {
    atomicStore(&counters[kv_head * COUNTERS + COUNT_EXCESS], excess);
  }
}

// For each listed candidate, the target with the most similar key, if that is
// similar enough. A workgroup compares a tile of candidates with all targets.
@compute @workgroup_size(THREADS)
fn search(
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
  let count = min(PROPOSERS, listed - first);
  let half = HEAD_DIM / 2u;
  let pitch = half + 1u;
  for (var i = thread; i < count * half; i += THREADS) {
    let c = work[work_at(WORK_LIST, first + i / half)];
    proposer_tile[i] = key_word(slot_of(c), i % half);
  }
  let high = uniform_word(thread, table[head + HEAD_HIGH]);
  let cache_tiles = (high + KEY_TILE - 1u) / KEY_TILE;
  let rows = step_words[CHUNK_ROWS];
  let stage_tiles = (rows + KEY_TILE - 1u) / KEY_TILE;

  // A thread has target `j` and every `strands`th proposer: 4 at most.
  let j = thread % KEY_TILE;
  let strand = thread / KEY_TILE;
  let strands = THREADS / KEY_TILE;
  var best: array<Ranked, 4>;
  for (var n = 0u; n < 4u; n++) {
    best[n] = unranked();
  }
  for (var tile = 0u; tile < cache_tiles + stage_tiles; tile++) {
    var first_target = tile * KEY_TILE;
    var targets = min(KEY_TILE, high - min(high, first_target));
    if (tile >= cache_tiles) {
      let row = (tile - cache_tiles) * KEY_TILE;
      first_target = params.max_capacity + row;
      targets = min(KEY_TILE, rows - row);
    }
    workgroupBarrier();
    for (var i = thread; i < targets * half; i += THREADS) {
      key_tile[i / half * pitch + i % half] =
        key_word(slot_of(first_target + i / half), i % half);
    }
    workgroupBarrier();
    let c = first_target + j;
    if (
      j < targets && (work[work_at(WORK_FLAGS, c)] & FLAG_TARGET) != 0u
    ) {
      let position = position_of(slot_of(c));
      for (var n = 0u; strand + n * strands < count; n++) {
        let i = strand + n * strands;
        if (work[work_at(WORK_LIST, first + i)] == c) {
          continue;
        }
        let mine = Ranked(-cosine(i, j), position, c);
        if (is_before(mine, best[n])) {
          best[n] = mine;
        }
      }
    }
  }
  for (var n = 0u; n * strands < count; n++) {
    workgroupBarrier();
    reduce_ranked[thread] = best[n];
    workgroupBarrier();
    let i = strand + n * strands;
    if (j == 0u && i < count) {
      var nearest = best[n];
      for (var k = 1u; k < KEY_TILE; k++) {
        if (is_before(reduce_ranked[thread + k], nearest)) {
          nearest = reduce_ranked[thread + k];
        }
      }
      let c = work[work_at(WORK_LIST, first + i)];
      let is_similar = nearest.slot != NO_SLOT && -nearest.key > THRESHOLD;
      work[work_at(WORK_KEY, c)] = ordered(nearest.key);
      work[work_at(WORK_CHOICE, c)] =
        select(NO_SLOT, nearest.slot, is_similar);
    }
  }
}

// Cosine of proposer `i` and target `j` of the tiles.
fn cosine(i: u32, j: u32) -> f32 {
  let half = HEAD_DIM / 2u;
  var product = 0.0;
  var squares = vec2<f32>();
  for (var p = 0u; p < half; p++) {
    let a = unpack_halves(proposer_tile[i * half + p]);
    let b = unpack_halves(key_tile[j * (half + 1u) + p]);
    product += dot(a, b);
    squares += vec2(dot(a, a), dot(b, b));
  }
  let norms = sqrt(squares.x * squares.y);
  return select(product / max(norms, 1e-30), 0.0, norms == 0.0);
}

// Takes the most similar pairs, as many as the head is over its budget, and
// lists the ends that go.
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
    let merged = merge_slots(thread, slot_of(stays), first);
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
  let contested = evictable - first_stage(evictable - victims);
  let last = select_rank(thread, FLAG_LISTED, contested);
  for (var c = thread; c < params.candidates; c += THREADS) {
    let is_contested =
      work[work_at(WORK_FLAGS, c)] == FLAG_LISTED && is_within(c, last);
    work[work_at(WORK_FLAGS, c)] = select(0u, FLAG_LISTED, is_contested);
    if (is_contested) {
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
  var evictable = 0u;
  for (var c = thread; c < params.candidates; c += THREADS) {
    var flags = 0u;
    if (is_held(c) && may_go(c)) {
      flags = FLAG_LISTED;
      evictable += 1u;
      work[work_at(WORK_KEY, c)] = ordered(score_of(c));
    }
    work[work_at(WORK_FLAGS, c)] = flags;
  }
  evictable = sum_words(thread, evictable);
  storageBarrier();
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
    } else if (is_held(c) && position_of(slot_of(c)) >= SINKS) {
      flags = FLAG_TARGET;
    }
    work[work_at(WORK_FLAGS, c)] = flags;
  }
  storageBarrier();
  make_list(thread);
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

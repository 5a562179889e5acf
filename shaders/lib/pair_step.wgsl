// The cheapest pair of a head in a decode step, and its merge. `finish` lists
// the slots that may go, `find_partners` finds what each would be merged into
// (many workgroups), and `merge_pair` takes the cheapest proposal.
//
// Where slots remember partners (see `src/reference/partners.ts`), they are
// listed in steps with a search only, those that know none first: the
// workgroups that have these compare them with the whole list, all others only
// compare with them. What is found is remembered, and proposals are what slots
// remember: without a search nothing but their fields is looked at.

// Steps from one search of a head to the next, at most, and slots of its budget
// for each of them.
override SEARCH_EVERY: u32 = 1u;
override SEARCH_SLOTS: u32 = 1u;

// Words of a (row, KV head) in `pairs`: how many slots are listed, how many of
// them are compared with all, and the scatter of the head's values; then three
// sections with a word per slot.
const PAIR_COUNT = 0u;
const PAIR_ALONE = 1u;
const PAIR_SPREAD = 2u;
const PAIR_HEADER = 3u;
// Slots that may go, counted from the head's first.
const PAIR_LIST = 0u;
// By place in the list: the slot that each would be merged into, or NO_SLOT.
const PAIR_CHOICE = 1u;
// f32: how far away that is, where it is remembered, or what merging costs.
const PAIR_RANK = 2u;

var<private> pair_alone: u32;

// First word of the head that a workgroup has turned to.
fn pair_base() -> u32 {
  return (own_row * KV_HEADS + own_kv_head) *
    (PAIR_HEADER + 3u * params.max_capacity);
}

fn pair_at(section: u32, i: u32) -> u32 {
  return pair_base() + PAIR_HEADER + section * params.max_capacity + i;
}

fn proposer_at(i: u32) -> u32 {
  return pairs[pair_at(PAIR_LIST, i)];
}

fn target_at(t: u32) -> u32 {
  return pairs[pair_at(PAIR_LIST, t)];
}

// What a slot remembers: one more than its partner, or 0.
fn partner_of(candidate: u32) -> u32 {
  return side_word(slot_of(candidate), partner_field() + PARTNER_SLOT);
}

// How far away that is.
fn partner_distance(candidate: u32) -> f32 {
  return side_float(slot_of(candidate), partner_field() + PARTNER_DISTANCE);
}

fn set_partner(candidate: u32, word: u32, distance: f32) {
  let slot = slot_of(candidate);
  set_side_word(slot, partner_field() + PARTNER_SLOT, word);
  set_side_float(slot, partner_field() + PARTNER_DISTANCE, distance);
}

fn is_settled(i: u32) -> bool {
  return i >= pair_alone;
}

fn is_open_to(i: u32, t: u32) -> bool {
  return !is_settled(i) || !is_settled(t);
}

// Whether a step searches a head, of whose slots `known` know a partner.
fn is_search_due(known: u32) -> bool {
  if (!PARTNERS || known == 0u || head_words[HEAD_SPREAD] == 0u) {
    return true;
  }
  let period = clamp(head_words[HEAD_BUDGET] / SEARCH_SLOTS, 1u, SEARCH_EVERY);
  let turn = position_of_row(own_row) + params.layer + own_kv_head;
  return turn % period == 0u;
}

// Lists the slots that may go, if a head over its budget has to be searched,
// and measures the scatter of its values, unless that is known.
fn list_pairs(thread: u32, is_over: bool) {
  var known = 0u;
  for (var c = thread; PARTNERS && c < own_high; c += THREADS) {
    known += select(0u, 1u, partner_of(c) != 0u);
  }
  known = sum_words(thread, known);
  let is_due = is_over && is_search_due(known);
  var count = 0u;
  var alone = 0u;
  let used = select(0u, own_high, is_due);
  for (var settled = 0u; settled < select(1u, 2u, PARTNERS); settled++) {
    for (var first = 0u; first < used; first += THREADS) {
      let c = first + thread;
      var listed = 0u;
      if (c < used && may_go(slot_of(c))) {
        let is_known = PARTNERS && partner_of(c) != 0u;
        listed = select(0u, 1u, is_known == (settled == 1u));
      }
      let place = prefix_sum(thread, listed);
      if (listed != 0u) {
        pairs[pair_at(PAIR_LIST, count + place - 1u)] = c;
      }
      count += sum_words(thread, listed);
    }
    if (settled == 0u) {
      alone = count;
    }
  }
  var spread = bitcast<f32>(head_words[HEAD_SPREAD]);
  if (is_due && (!PARTNERS || spread == 0.0)) {
    spread = value_spread(thread, used);
  }
  if (thread == 0u) {
    pairs[pair_base() + PAIR_COUNT] = count;
    pairs[pair_base() + PAIR_ALONE] = alone;
    pairs[pair_base() + PAIR_SPREAD] = bitcast<u32>(spread);
    if (PARTNERS) {
      let head = head_at(sequence_of(own_row), own_kv_head);
      table[head + HEAD_SPREAD] = bitcast<u32>(spread);
    }
  }
}

@compute @workgroup_size(THREADS)
fn find_partners(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let row = group.z;
  if (!is_live(row)) {
    return;
  }
  begin(thread, group.y, row);
  let first = group.x * PROPOSERS;
  let count = uniform_word(thread, pairs[pair_base() + PAIR_COUNT]);
  if (first >= count) {
    return;
  }
  let alone = uniform_word(thread, pairs[pair_base() + PAIR_ALONE]);
  pair_alone = alone;
  let proposers = min(PROPOSERS, count - first);
  let scale = pair_scale(bitcast<f32>(pairs[pair_base() + PAIR_SPREAD]));
  search(thread, first, proposers, select(alone, count, first < alone), scale);
}

// The partner that a slot remembers, if it does and that one has not been
// compared with it again.
fn known_partner(candidate: u32) -> Ranked {
  let word = partner_of(candidate);
  if (word == 0u || partner_of(word - 1u) == 0u) {
    return unranked();
  }
  let position = position_of(slot_of(word - 1u));
  return Ranked(partner_distance(candidate), position, word - 1u);
}

fn propose(i: u32, found: Ranked) {
  var best = found;
  if (PARTNERS) {
    let known = known_partner(proposer_at(i));
    if (is_before(known, best)) {
      best = known;
    }
  }
  pairs[pair_at(PAIR_CHOICE, i)] = best.slot;
  pairs[pair_at(PAIR_RANK, i)] = bitcast<u32>(best.key);
}

// Makes all slots of the list remember what was found for them.
fn remember_found(thread: u32, count: u32) {
  for (var i = thread; i < count; i += THREADS) {
    let choice = pairs[pair_at(PAIR_CHOICE, i)];
    let distance = bitcast<f32>(pairs[pair_at(PAIR_RANK, i)]);
    let exists = choice != NO_SLOT;
    set_partner(
      proposer_at(i),
      select(0u, choice + 1u, exists),
      select(0.0, distance, exists),
    );
  }
}

// Makes all slots forget the one that goes, and that and the one that stays
// what they know.
fn forget_pair(thread: u32, stays: u32, goes: u32) {
  for (var c = thread; c < own_high; c += THREADS) {
    if (partner_of(c) == goes + 1u || c == stays || c == goes) {
      set_partner(c, 0u, 0.0);
    }
  }
}

// The cheapest of what slots remember: by its `slot`, who does.
fn cheapest_known(thread: u32) -> Ranked {
  var cheapest = unranked();
  for (var c = thread; c < own_high; c += THREADS) {
    let word = partner_of(c);
    if (word == 0u) {
      continue;
    }
    let cost = pair_cost(
      log_weight(slot_of(c)),
      log_weight(slot_of(word - 1u)),
      partner_distance(c),
    );
    let mine = Ranked(cost, position_of(slot_of(c)), c);
    if (is_before(mine, cheapest)) {
      cheapest = mine;
    }
  }
  return first_ranked(thread, cheapest);
}

// The cheapest of what was found: by its `slot`, the place in the list.
fn cheapest_found(thread: u32, count: u32) -> Ranked {
  var cheapest = unranked();
  for (var i = thread; i < count; i += THREADS) {
    let rank = bitcast<f32>(pairs[pair_at(PAIR_RANK, i)]);
    let mine = Ranked(rank, position_of(slot_of(proposer_at(i))), i);
    if (pairs[pair_at(PAIR_CHOICE, i)] != NO_SLOT && is_before(mine, cheapest)) {
      cheapest = mine;
    }
  }
  return first_ranked(thread, cheapest);
}

// The two ends of the cheapest pair, or NO_SLOTs.
fn cheapest_pair(thread: u32, count: u32) -> vec2<u32> {
  if (PARTNERS) {
    remember_found(thread, count);
    storageBarrier();
    let slot = cheapest_known(thread).slot;
    if (slot != NO_SLOT) {
      return vec2(slot, partner_of(slot) - 1u);
    }
  } else {
    let place = cheapest_found(thread, count).slot;
    if (place != NO_SLOT) {
      return vec2(proposer_at(place), pairs[pair_at(PAIR_CHOICE, place)]);
    }
  }
  return vec2(NO_SLOT);
}

@compute @workgroup_size(THREADS)
fn merge_pair(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let kv_head = group.x;
  let row = group.y;
  if (!is_live(row)) {
    return;
  }
  begin(thread, kv_head, row);
  let live = workgroupUniformLoad(&head_words[HEAD_LIVE]);
  if (live <= workgroupUniformLoad(&head_words[HEAD_BUDGET])) {
    return;
  }
  let count = uniform_word(thread, pairs[pair_base() + PAIR_COUNT]);
  let pair = cheapest_pair(thread, count);
  var merged = Merged(0u, 0u, 0.0);
  var victim = NO_SLOT;
  if (uniform_word(thread, pair.x) != NO_SLOT) {
    let a = slot_of(pair.x);
    let b = slot_of(pair.y);
    let is_lower = is_before(
      Ranked(rank_of(score_of(pair.x), a), position_of(a), a),
      Ranked(rank_of(score_of(pair.y), b), position_of(b), b),
    );
    // All threads know the two before anybody forgets them.
    storageBarrier();
    victim = select(b, a, is_lower);
    if (PARTNERS) {
      forget_pair(
        thread,
        select(pair.x, pair.y, is_lower),
        select(pair.y, pair.x, is_lower),
      );
    }
    merge_vector = query_vector(row * GROUP, kv_head);
    merged = merge_slots(thread, select(a, b, is_lower), victim);
  } else if (count > 0u) {
    // A slot that is alone has no partner, and is dropped.
    victim = slot_of(proposer_at(0u));
  }
  workgroupBarrier();
  if (victim != NO_SLOT) {
    remove(thread, head_at(sequence_of(row), kv_head), victim, merged);
  }
}

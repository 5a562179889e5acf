// The cheapest pair of a head in a decode step, and its merge. `finish` lists
// the slots that may go, `find_partners` finds what each would be merged into
// (many workgroups), and `merge_pair` takes the cheapest proposal.
//
// Where slots remember partners (see `src/reference/partners.ts`), those that
// know none come first in the list: the workgroups that have them compare them
// with the whole list, all others only compare with them and with what they
// remember.

// Words of a (row, KV head) in `pairs`: how many slots may go, how many of them
// are compared with all, and the scatter of the head's values; then four
// sections with a word per slot.
const PAIR_COUNT = 0u;
const PAIR_ALONE = 1u;
const PAIR_SPREAD = 2u;
const PAIR_HEADER = 3u;
// Slots that may go, counted from the head's first.
const PAIR_LIST = 0u;
// By place in the list: the slot that each would be merged into, or NO_SLOT.
const PAIR_CHOICE = 1u;
// f32: what proposals are ranked by.
const PAIR_RANK = 2u;
// The next nearest, or NO_SLOT.
const PAIR_NEXT = 3u;

var<private> pair_alone: u32;

// First word of the head that a workgroup has turned to.
fn pair_base() -> u32 {
  return (own_row * KV_HEADS + own_kv_head) *
    (PAIR_HEADER + 4u * params.max_capacity);
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

// What a slot remembers: one more than its nearest partner or, of rank 1, the
// next, or 0.
fn partner_of(candidate: u32, rank: u32) -> u32 {
  return side_word(slot_of(candidate), partner_field() + rank);
}

fn is_settled(i: u32) -> bool {
  return i >= pair_alone;
}

fn is_open_to(i: u32, t: u32) -> bool {
  if (!is_settled(i)) {
    return true;
  }
  let c = proposer_at(i);
  let other = target_at(t) + 1u;
  return !is_settled(t) && other != partner_of(c, 0u) &&
    other != partner_of(c, 1u);
}

// Lists the slots that may go, or none if the head is within its budget.
fn list_pairs(thread: u32, used: u32) {
  var count = 0u;
  var alone = 0u;
  for (var settled = 0u; settled < select(1u, 2u, PARTNERS); settled++) {
    for (var first = 0u; first < used; first += THREADS) {
      let c = first + thread;
      var listed = 0u;
      if (c < used && may_go(slot_of(c))) {
        let is_known = PARTNERS && partner_of(c, 0u) != 0u;
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
  var spread = 0.0;
  if (used > 0u) {
    spread = value_spread(thread, used);
  }
  if (thread == 0u) {
    pairs[pair_base() + PAIR_COUNT] = count;
    pairs[pair_base() + PAIR_ALONE] = alone;
    pairs[pair_base() + PAIR_SPREAD] = bitcast<u32>(spread);
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
  if (PARTNERS) {
    measure_partners(thread, first, proposers, scale);
  }
  search(thread, first, proposers, select(alone, count, first < alone), scale);
}

// Leaves the parts of the distances of keys and of values to remembered
// partners in `part_values`, those of a proposer's two after one another.
fn measure_partners(thread: u32, first: u32, count: u32, scale: PairScale) {
  let threads = THREADS / (2u * PROPOSERS);
  let i = thread / threads / 2u;
  let rank = thread / threads % 2u;
  var sum = vec2<f32>();
  if (i < count && partner_of(proposer_at(first + i), rank) != 0u) {
    let a = slot_of(proposer_at(first + i));
    let b = slot_of(partner_of(proposer_at(first + i), rank) - 1u);
    for (var p = thread % threads; p < HEAD_DIM / 2u; p += threads) {
      let key = unpack_halves(key_word(a, p)) - unpack_halves(key_word(b, p));
      let value =
        unpack_halves(value_word(a, p)) - unpack_halves(value_word(b, p));
      sum += vec2(scale.keys * dot(key, key), scale.values * dot(value, value));
    }
  }
  part_values[thread] = sum;
}

// A partner that the i-th slot of the list remembers, if there is one.
fn known_partner(i: u32, rank: u32) -> Ranked {
  let partner = partner_of(proposer_at(i), rank);
  if (partner == 0u) {
    return unranked();
  }
  let threads = THREADS / (2u * PROPOSERS);
  var sum = vec2<f32>();
  for (var t = 0u; t < threads; t++) {
    sum += part_values[(i % PROPOSERS * 2u + rank) * threads + t];
  }
  let slot = partner - 1u;
  return Ranked(pair_distance(sum.x, sum.y), position_of(slot_of(slot)), slot);
}

// What is found and what is remembered. Of what is found, only what is nearer
// than something that is remembered counts: beyond that others may be nearer.
fn join_known(i: u32, found: BestTwo) -> BestTwo {
  let nearest = known_partner(i, 0u);
  if (nearest.slot == NO_SLOT) {
    return found;
  }
  var best = best_with(none_found(), nearest);
  best = best_with(best, known_partner(i, 1u));
  var farther = best.first;
  if (best.second.slot != NO_SLOT) {
    farther = best.second;
  }
  if (is_before(found.first, farther)) {
    best = best_with(best, found.first);
  }
  if (is_before(found.second, farther)) {
    best = best_with(best, found.second);
  }
  return best;
}

fn propose(i: u32, found: BestTwo) {
  var best = found;
  if (PARTNERS) {
    best = join_known(i, found);
    if (best.first.slot != NO_SLOT) {
      best.first.key = pair_cost(
        log_weight(slot_of(proposer_at(i))),
        log_weight(slot_of(best.first.slot)),
        best.first.key,
      );
    }
    pairs[pair_at(PAIR_NEXT, i)] = best.second.slot;
  }
  pairs[pair_at(PAIR_CHOICE, i)] = best.first.slot;
  pairs[pair_at(PAIR_RANK, i)] = bitcast<u32>(best.first.key);
}

// Remembers the partners that all slots have found, but for `a` and `b`, which
// know none.
fn remember_partners(thread: u32, count: u32, a: u32, b: u32) {
  for (var i = thread; i < count; i += THREADS) {
    let c = proposer_at(i);
    var words = vec2<u32>(
      pairs[pair_at(PAIR_CHOICE, i)],
      pairs[pair_at(PAIR_NEXT, i)],
    );
    let is_gone = words == vec2(a) | words == vec2(b) | words == vec2(NO_SLOT);
    words = select(words + 1u, vec2(0u), is_gone | vec2(c == a || c == b));
    if (words.x == 0u) {
      words = vec2(words.y, 0u);
    }
    set_side_word(slot_of(c), partner_field(), words.x);
    set_side_word(slot_of(c), partner_field() + 1u, words.y);
  }
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
  let count = uniform_word(thread, pairs[pair_base() + PAIR_COUNT]);
  if (count == 0u) {
    return;
  }
  // The number of a proposal is its place in the list.
  var cheapest = unranked();
  for (var i = thread; i < count; i += THREADS) {
    let rank = bitcast<f32>(pairs[pair_at(PAIR_RANK, i)]);
    let mine = Ranked(rank, position_of(slot_of(proposer_at(i))), i);
    if (pairs[pair_at(PAIR_CHOICE, i)] != NO_SLOT && is_before(mine, cheapest)) {
      cheapest = mine;
    }
  }
  let best = first_ranked(thread, cheapest).slot;
  // A slot that is alone has no partner, and is dropped.
  var merged = Merged(0u, 0u, 0.0);
  var victim = slot_of(proposer_at(0u));
  if (best != NO_SLOT) {
    let proposer = proposer_at(best);
    let partner = pairs[pair_at(PAIR_CHOICE, best)];
    if (PARTNERS) {
      remember_partners(thread, count, proposer, partner);
    }
    let a = slot_of(proposer);
    let b = slot_of(partner);
    let is_lower = is_before(
      Ranked(rank_of(score_of(proposer), a), position_of(a), a),
      Ranked(rank_of(score_of(partner), b), position_of(b), b),
    );
    victim = select(b, a, is_lower);
    merge_vector = query_vector(row * GROUP, kv_head);
    merged = merge_slots(thread, select(a, b, is_lower), victim);
  }
  workgroupBarrier();
  remove(thread, head_at(sequence_of(row), kv_head), victim, merged);
}

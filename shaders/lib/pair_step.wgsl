// The cheapest pair of a head in a decode step, and its merge. `finish` lists
// the slots that may go, `find_partners` finds what each would be merged into
// (many workgroups), and `merge_pair` takes the cheapest proposal.

// Words of a (row, KV head) in `pairs`: the number of slots that may go and the
// scatter of the head's values, then three sections with a word per slot.
const PAIR_COUNT = 0u;
const PAIR_SPREAD = 1u;
const PAIR_HEADER = 2u;
// Slots that may go, counted from the head's first.
const PAIR_LIST = 0u;
// By place in the list: the slot that each would be merged into, or NO_SLOT.
const PAIR_CHOICE = 1u;
// f32: what proposals are ranked by.
const PAIR_RANK = 2u;

var<private> pair_base: u32;
var<private> pair_offset: u32;

// Turns to a head of a row.
fn begin_pairs(row: u32, kv_head: u32) {
  pair_base = (row * KV_HEADS + kv_head) *
    (PAIR_HEADER + 3u * params.max_capacity);
  pair_offset = table[head_at(sequence_of(row), kv_head) + HEAD_OFFSET];
}

fn pair_at(section: u32, i: u32) -> u32 {
  return pair_base + PAIR_HEADER + section * params.max_capacity + i;
}

fn slot_of(candidate: u32) -> u32 {
  return pair_offset + candidate;
}

fn is_held(candidate: u32) -> bool {
  return tokens_of(slot_of(candidate)) != 0u;
}

fn proposer_at(i: u32) -> u32 {
  return pairs[pair_at(PAIR_LIST, i)];
}

fn target_at(t: u32) -> u32 {
  return pairs[pair_at(PAIR_LIST, t)];
}

// Lists the slots that may go, or none if the head is within its budget.
fn list_pairs(thread: u32, used: u32, recent: u32, newest: u32) {
  var count = 0u;
  for (var first = 0u; first < used; first += THREADS) {
    let c = first + thread;
    var listed = 0u;
    if (c < used && is_held(c)) {
      let position = position_of(slot_of(c));
      listed = select(0u, 1u, is_evictable(position, recent, newest));
    }
    let place = prefix_sum(thread, listed);
    if (listed != 0u) {
      pairs[pair_at(PAIR_LIST, count + place - 1u)] = c;
    }
    count += sum_words(thread, listed);
  }
  var spread = 0.0;
  if (used > 0u) {
    spread = value_spread(thread, used);
  }
  if (thread == 0u) {
    pairs[pair_base + PAIR_COUNT] = count;
    pairs[pair_base + PAIR_SPREAD] = bitcast<u32>(spread);
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
  begin_pairs(row, group.y);
  let first = group.x * PROPOSERS;
  let count = uniform_word(thread, pairs[pair_base + PAIR_COUNT]);
  if (first >= count) {
    return;
  }
  let spread = bitcast<f32>(pairs[pair_base + PAIR_SPREAD]);
  search(thread, first, min(PROPOSERS, count - first), count, pair_scale(spread));
}

fn propose(i: u32, best: Ranked) {
  pairs[pair_at(PAIR_CHOICE, i)] = best.slot;
  pairs[pair_at(PAIR_RANK, i)] = bitcast<u32>(best.key);
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
  begin_pairs(row, kv_head);
  let count = uniform_word(thread, pairs[pair_base + PAIR_COUNT]);
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
    let a = slot_of(proposer_at(best));
    let b = slot_of(pairs[pair_at(PAIR_CHOICE, best)]);
    let is_lower = is_before(
      Ranked(eviction_score(a), position_of(a), a),
      Ranked(eviction_score(b), position_of(b), b),
    );
    victim = select(b, a, is_lower);
    merge_vector = query_vector(row * GROUP, kv_head);
    merged = merge_slots(thread, select(a, b, is_lower), victim);
  }
  workgroupBarrier();
  remove(thread, head_at(sequence_of(row), kv_head), victim, merged);
}

// Choosing a victim among the slots of one head in a decode step.

// The head that a workgroup has turned to.
var<private> own_row: u32;
var<private> own_kv_head: u32;
var<private> own_offset: u32;
var<private> own_high: u32;

// Turns to a head: reads its words.
fn begin(thread: u32, kv_head: u32, row: u32) {
  let head = head_at(sequence_of(row), kv_head);
  if (thread < HEAD_WORDS) {
    head_words[thread] = table[head + thread];
    if (thread == HEAD_HIGH) {
      head_words[thread] = used_slots(head);
    }
  }
  own_row = row;
  own_kv_head = kv_head;
  own_offset = workgroupUniformLoad(&head_words[HEAD_OFFSET]);
  own_high = workgroupUniformLoad(&head_words[HEAD_HIGH]);
}

// Slots of the head are numbered from its first: candidates.
fn slot_of(candidate: u32) -> u32 {
  return own_offset + candidate;
}

fn is_held(candidate: u32) -> bool {
  return tokens_of(slot_of(candidate)) != 0u;
}

// The slot that goes lies at no position after its own.
fn is_there(candidate: u32) -> bool {
  return is_held(candidate);
}

fn may_go(slot: u32) -> bool {
  let newest = position_of_row(own_row);
  return tokens_of(slot) != 0u &&
    is_evictable(position_of(slot), head_words[HEAD_RECENT], newest);
}

// What the policy's score says of slot `index` of the head.
fn score_of(index: u32) -> f32 {
  if (!RATED) {
    return plain_score(own_offset + index);
  }
  if (!LAYER_SCOPE) {
    return rating(index);
  }
  // The slots of all heads are the same tokens in the same order.
  var sum = no_scores();
  for (var i = 0u; i < KV_HEADS; i++) {
    sum = add_score(sum, ratings[rating_at(i) + index]);
  }
  return mean_score(sum, KV_HEADS);
}

fn rating_at(kv_head: u32) -> u32 {
  return (own_row * KV_HEADS + kv_head) * params.max_capacity;
}

// What `lib/select_rank.wgsl` looks at.
fn ranked_count() -> u32 {
  return own_high;
}

fn is_ranked(index: u32, flag: u32) -> bool {
  return may_go(own_offset + index);
}

fn ranked_key(index: u32) -> u32 {
  return ordered(score_of(index));
}

fn ranked_position(index: u32) -> u32 {
  return position_of(own_offset + index);
}

// What `lib/key_distance.wgsl` works on.
fn rated_slot(index: u32) -> u32 {
  let slot = own_offset + index;
  return select(slot, NO_SLOT, tokens_of(slot) == 0u);
}

fn rating(index: u32) -> f32 {
  return ratings[rating_at(own_kv_head) + index];
}

fn set_rating(index: u32, value: f32) {
  ratings[rating_at(own_kv_head) + index] = value;
}

// The slot with the lowest rank of those that may go and do not stay by their
// scores alone.
fn choose_victim(thread: u32) -> u32 {
  var last = vec2(0xffffffffu);
  if (COUNT_VALUES) {
    var evictable = 0u;
    for (var i = thread; i < own_high; i += THREADS) {
      evictable += select(0u, 1u, may_go(own_offset + i));
    }
    evictable = sum_words(thread, evictable);
    if (evictable == 0u) {
      return NO_SLOT;
    }
    last = select_rank(thread, 0u, evictable - first_stage(evictable - 1u));
  }
  var lowest = unranked();
  for (var i = thread; i < own_high; i += THREADS) {
    let slot = own_offset + i;
    if (may_go(slot) && (!COUNT_VALUES || is_within(i, last))) {
      let rank = rank_of(score_of(i), slot);
      let mine = Ranked(rank, position_of(slot), slot);
      if (is_before(mine, lowest)) {
        lowest = mine;
      }
    }
  }
  return first_ranked(thread, lowest).slot;
}

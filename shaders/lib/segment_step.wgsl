// The link between neighbours in the text that a decode step closes. A
// workgroup has a head: a step closes one link, and finding the neighbours reads
// positions alone.

// The two neighbours with the most similar keys of those that may be merged:
// the one that stays, and the one that goes; NO_SLOT if there are none.
fn closest_link(thread: u32) -> vec2<u32> {
  var evictable = 0u;
  for (var i = thread; i < own_high; i += THREADS) {
    evictable += select(0u, 1u, may_go(own_offset + i));
  }
  evictable = sum_words(thread, evictable);
  if (evictable == 0u) {
    return vec2(NO_SLOT);
  }
  let last = select_rank(thread, 0u, light_slots(evictable, 1u));
  var best = unranked();
  var best_right = NO_SLOT;
  for (var first = 0u; first < own_high; first += THREADS) {
    let i = first + thread;
    let slot = own_offset + i;
    // Nothing lies to the right of the last position.
    var position = 0xffffffffu;
    if (i < own_high && may_go(slot) && is_within(i, last)) {
      position = position_of(slot);
    }
    let next = right_of(thread, position, own_high);
    let right = own_offset + next;
    if (next != NO_SLOT && may_go(right) && is_within(next, last)) {
      let mine = Ranked(-key_cosine(slot, right), position, slot);
      if (is_before(mine, best)) {
        best = mine;
        best_right = right;
      }
    }
  }
  let left = first_ranked(thread, best).slot;
  if (left == NO_SLOT) {
    return vec2(NO_SLOT);
  }
  if (best.slot == left) {
    let is_right = side_float(best_right, FIELD_ACCUMULATED) >
      side_float(left, FIELD_ACCUMULATED);
    shared_words[1] = select(left, best_right, is_right);
    shared_words[2] = select(best_right, left, is_right);
  }
  return vec2(
    workgroupUniformLoad(&shared_words[1]),
    workgroupUniformLoad(&shared_words[2]),
  );
}

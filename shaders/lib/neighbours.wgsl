// Neighbours in the order of the text, among the slots of one head.
//
// A kernel defines
//   slot_of(candidate)  the slot with a number
//   is_held(candidate)  whether it holds a token

// The first of `count` candidates to the right of `position`, or NO_SLOT. A
// thread asks for its own position and goes through all by tiles; all threads
// call this together.
fn right_of(thread: u32, position: u32, count: u32) -> u32 {
  var nearest = NO_SLOT;
  var nearest_position = 0xffffffffu;
  for (var tile = 0u; tile < count; tile += THREADS) {
    let c = tile + thread;
    // Nothing lies to the left of position 0: it stands for no candidate.
    var there = 0u;
    if (c < count && is_held(c)) {
      there = position_of(slot_of(c));
    }
    workgroupBarrier();
    reduce_words[thread] = there;
    workgroupBarrier();
    for (var k = 0u; k < THREADS; k++) {
      let other = reduce_words[k];
      if (other > position && other < nearest_position) {
        nearest_position = other;
        nearest = tile + k;
      }
    }
  }
  return nearest;
}

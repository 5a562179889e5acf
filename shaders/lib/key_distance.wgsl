// How far each key points away from the mean direction of the head's keys: the
// score of KeyDiff. A workgroup rates a head, and reads its keys three times;
// keeping a running mean would read them once, but slots come and go.
//
// A kernel declares `part_values`, THREADS of vec2<f32> in workgroup memory,
// and defines
//   ranked_count()        entries to look at
//   rated_slot(i)         the slot of an entry, or NO_SLOT if it holds no token
//   rating(i)             a number kept for an entry
//   set_rating(i, value)

// Sets each entry's rating to -cos(k, Σ k / |k|).
fn rate_by_key(thread: u32) {
  let half = HEAD_DIM / 2u;
  let count = ranked_count();
  for (var i = thread; i < count; i += THREADS) {
    let slot = rated_slot(i);
    if (slot == NO_SLOT) {
      continue;
    }
    var squares = 0.0;
    for (var p = 0u; p < half; p++) {
      let key = unpack_halves(key_word(slot, p));
      squares += dot(key, key);
    }
    set_rating(i, select(inverseSqrt(squares), 0.0, squares == 0.0));
  }
  storageBarrier();
  // A thread has two elements and every `parts`th key.
  let parts = THREADS / half;
  let part = thread / half;
  let pair = thread % half;
  var sum = vec2<f32>();
  if (part < parts) {
    for (var i = part; i < count; i += parts) {
      let slot = rated_slot(i);
      if (slot != NO_SLOT) {
        sum += rating(i) * unpack_halves(key_word(slot, pair));
      }
    }
  }
  workgroupBarrier();
  part_values[thread] = sum;
  workgroupBarrier();
  if (thread < half) {
    for (var p = 1u; p < parts; p++) {
      sum += part_values[p * half + thread];
    }
    part_values[thread] = sum;
  }
  workgroupBarrier();
  var squares = 0.0;
  for (var p = 0u; p < half; p++) {
    squares += dot(part_values[p], part_values[p]);
  }
  let scale = select(inverseSqrt(squares), 0.0, squares == 0.0);
  for (var i = thread; i < count; i += THREADS) {
    let slot = rated_slot(i);
    if (slot == NO_SLOT) {
      continue;
    }
    var product = 0.0;
    for (var p = 0u; p < half; p++) {
      product += dot(part_values[p], unpack_halves(key_word(slot, p)));
    }
    set_rating(i, -product * scale * rating(i));
  }
  storageBarrier();
}

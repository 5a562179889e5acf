// Spreads the budget of a layer over its KV heads by the scores of the first
// chunk of a text: see `src/reference/allocate_heads.ts`. One workgroup, since
// it runs once per text and its work is linear in the staged rows. Counts are
// whole numbers, so the order of threads does not matter.

// Share that is spread evenly, in FLOOR_PARTS.
override FLOOR: u32 = FLOOR_PARTS;
const FLOOR_PARTS = 1024u;

// Counters of a head, which `survey` resets: parts that it gets, and its slots
// beside sinks and recent tokens.
const COUNT_PARTS = 0u;
const COUNT_FREE = 1u;

@compute @workgroup_size(THREADS)
fn allocate_heads(@builtin(local_invocation_index) thread: u32) {
  if (!begin(0u)) {
    return;
  }
  let live = uniform_word(thread, table[head + HEAD_LIVE]);
  if (live > 0u) {
    return;
  }
  // Ranked from the highest score.
  let rows = step_words[CHUNK_ROWS];
  var candidates = 0u;
  var free = 0u;
  var least = 0xffffffffu;
  for (var h = 0u; h < KV_HEADS; h++) {
    begin(h);
    let own = table[head + HEAD_BUDGET] - SINKS - table[head + HEAD_RECENT];
    free += own;
    least = min(least, own);
    for (var row = thread; row < rows; row += THREADS) {
      let c = params.max_capacity + row;
      let is_listed = may_go(c);
      work[work_at(WORK_FLAGS, c)] = select(0u, FLAG_LISTED, is_listed);
      work[work_at(WORK_KEY, c)] = ordered(-score_of(c));
      candidates += select(0u, 1u, is_listed);
    }
  }
  candidates = sum_words(thread, candidates);
  free = uniform_word(thread, free);
  if (candidates <= free) {
    return;
  }

  // The key of the last one that counts, eight bits at a time, and how many
  // with that key do.
  var last = 0u;
  var left = free;
  for (var pass_index = 0u; pass_index < 4u; pass_index++) {
    let shift = 24u - 8u * pass_index;
    atomicStore(&histogram[thread], 0u);
    workgroupBarrier();
    for (var h = 0u; h < KV_HEADS; h++) {
      begin(h);
      for (var row = thread; row < rows; row += THREADS) {
        let c = params.max_capacity + row;
        let key = work[work_at(WORK_KEY, c)];
        let is_listed = work[work_at(WORK_FLAGS, c)] != 0u;
        if (is_listed && ((key ^ last) >> shift) < 256u) {
          atomicAdd(&histogram[(key >> shift) & 255u], 1u);
        }
      }
    }
    let found = find_digit(thread, left);
    last |= found.x << shift;
    left = found.y;
  }

  let floor = max(FLOOR, (FLOOR_PARTS + least - 1u) / least);
  for (var h = 0u; h < KV_HEADS; h++) {
    begin(h);
    var above = 0u;
    var tied = 0u;
    for (var row = thread; row < rows; row += THREADS) {
      let c = params.max_capacity + row;
      if (work[work_at(WORK_FLAGS, c)] != 0u) {
        let key = work[work_at(WORK_KEY, c)];
        above += select(0u, 1u, key < last);
        tied += select(0u, 1u, key == last);
      }
    }
    above = sum_words(thread, above);
    tied = min(left, sum_words(thread, tied));
    left -= tied;
    if (thread == 0u) {
      let own = table[head + HEAD_BUDGET] - SINKS - table[head + HEAD_RECENT];
      let parts = (FLOOR_PARTS - floor) * (above + tied) + floor * own;
      let counts = h * COUNTERS;
      atomicStore(&counters[counts + COUNT_PARTS], parts);
      atomicStore(&counters[counts + COUNT_FREE], own);
    }
  }
  if (thread == 0u) {
    settle_heads(free);
  }
}

// Rounds the parts of all heads to `free` slots in all, and gives each head as
// many and its place in the layer.
fn settle_heads(free: u32) {
  var up = free;
  for (var h = 0u; h < KV_HEADS; h++) {
    up -= parts_of(h) / FLOOR_PARTS;
  }
  begin(0u);
  var offset = table[head + HEAD_OFFSET];
  for (var h = 0u; h < KV_HEADS; h++) {
    begin(h);
    let remainder = parts_of(h) % FLOOR_PARTS;
    var before = 0u;
    for (var other = 0u; other < KV_HEADS; other++) {
      let theirs = parts_of(other) % FLOOR_PARTS;
      let is_before =
        theirs > remainder || (theirs == remainder && other < h);
      before += select(0u, 1u, is_before);
    }
    let slots = parts_of(h) / FLOOR_PARTS + select(0u, 1u, before < up);
    let own = atomicLoad(&counters[h * COUNTERS + COUNT_FREE]);
    table[head + HEAD_OFFSET] = offset;
    table[head + HEAD_BUDGET] += slots - own;
    table[head + HEAD_CAPACITY] += slots - own;
    offset += table[head + HEAD_CAPACITY];
  }
}

fn parts_of(h: u32) -> u32 {
  return atomicLoad(&counters[h * COUNTERS + COUNT_PARTS]);
}

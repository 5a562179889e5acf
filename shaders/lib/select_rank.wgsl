// Selection by rank: which key stands at a place in the order of keys, ties
// going by position. A radix selection: eight bits of key and position at a
// time, so that no sort is needed. THREADS must be 256.
//
// A kernel defines
//   ranked_count()        entries to look at
//   is_ranked(i, flag)    whether an entry takes part
//   ranked_key(i)         its key, as `ordered` bits
//   ranked_position(i)    its position in the text

var<workgroup> histogram: array<atomic<u32>, THREADS>;
var<workgroup> shared_words: array<u32, 4>;

// Key and position of the entry that is number `rank`, from 1, among those
// that have a flag.
fn select_rank(thread: u32, flag: u32, rank: u32) -> vec2<u32> {
  var found = vec2<u32>();
  var left = rank;
  for (var pass_index = 0u; pass_index < 8u; pass_index++) {
    let by_position = pass_index >= 4u;
    let shift = 24u - 8u * (pass_index % 4u);
    atomicStore(&histogram[thread], 0u);
    workgroupBarrier();
    for (var i = thread; i < ranked_count(); i += THREADS) {
      if (!is_ranked(i, flag)) {
        continue;
      }
      var word = ranked_key(i);
      var prefix = found.x;
      if (by_position) {
        if (word != found.x) {
          continue;
        }
        word = ranked_position(i);
        prefix = found.y;
      }
      // The bits above this pass's eight; a shift by 32 is not defined.
      if (((word ^ prefix) >> shift) < 256u) {
        atomicAdd(&histogram[(word >> shift) & 255u], 1u);
      }
    }
    let next = find_digit(thread, left);
    left = next.y;
    if (by_position) {
      found.y |= next.x << shift;
    } else {
      found.x |= next.x << shift;
    }
  }
  return found;
}

// The bin of the histogram with the entry that is number `rank`, from 1, and
// what number the entry is in its bin.
fn find_digit(thread: u32, rank: u32) -> vec2<u32> {
  workgroupBarrier();
  let count = atomicLoad(&histogram[thread]);
  let up_to = prefix_sum(thread, count);
  if (up_to >= rank && up_to - count < rank) {
    shared_words[1] = thread;
    shared_words[2] = rank - (up_to - count);
  }
  return vec2(
    workgroupUniformLoad(&shared_words[1]),
    workgroupUniformLoad(&shared_words[2]),
  );
}

// Whether an entry's place is that of `last` or before it.
fn is_within(i: u32, last: vec2<u32>) -> bool {
  let key = ranked_key(i);
  return key < last.x || (key == last.x && ranked_position(i) <= last.y);
}

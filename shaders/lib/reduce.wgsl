// Sums and choices over a workgroup of THREADS threads, which must be a power
// of two. All threads call them together and all get the result. Sums are
// taken in a fixed order, so results do not change from run to run. Adapters
// without subgroups are the reason to go through workgroup memory.

const NO_SLOT = 0xffffffffu;

var<workgroup> reduce_words: array<u32, THREADS>;
var<workgroup> reduce_floats: array<f32, THREADS>;

// A word that is the same for all threads, whoever wrote it.
fn uniform_word(thread: u32, word: u32) -> u32 {
  if (thread == 0u) {
    reduce_words[0] = word;
  }
  return workgroupUniformLoad(&reduce_words[0]);
}

fn sum_words(thread: u32, value: u32) -> u32 {
  reduce_words[thread] = value;
  for (var width = THREADS / 2u; width > 0u; width /= 2u) {
    workgroupBarrier();
    if (thread < width) {
      reduce_words[thread] += reduce_words[thread + width];
    }
  }
  return workgroupUniformLoad(&reduce_words[0]);
}

fn min_words(thread: u32, value: u32) -> u32 {
  reduce_words[thread] = value;
  for (var width = THREADS / 2u; width > 0u; width /= 2u) {
    workgroupBarrier();
    if (thread < width) {
      reduce_words[thread] =
        min(reduce_words[thread], reduce_words[thread + width]);
    }
  }
  return workgroupUniformLoad(&reduce_words[0]);
}

fn sum_floats(thread: u32, value: f32) -> f32 {
  reduce_floats[thread] = value;
  for (var width = THREADS / 2u; width > 0u; width /= 2u) {
    workgroupBarrier();
    if (thread < width) {
      reduce_floats[thread] += reduce_floats[thread + width];
    }
  }
  return workgroupUniformLoad(&reduce_floats[0]);
}

fn max_floats(thread: u32, value: f32) -> f32 {
  reduce_floats[thread] = value;
  for (var width = THREADS / 2u; width > 0u; width /= 2u) {
    workgroupBarrier();
    if (thread < width) {
      reduce_floats[thread] =
        max(reduce_floats[thread], reduce_floats[thread + width]);
    }
  }
  return workgroupUniformLoad(&reduce_floats[0]);
}

// The sum of `value` over this thread and those before it.
fn prefix_sum(thread: u32, value: u32) -> u32 {
  reduce_words[thread] = value;
  workgroupBarrier();
  for (var width = 1u; width < THREADS; width *= 2u) {
    var sum = reduce_words[thread];
    if (thread >= width) {
      sum += reduce_words[thread - width];
    }
    workgroupBarrier();
    reduce_words[thread] = sum;
    workgroupBarrier();
  }
  let sum = reduce_words[thread];
  workgroupBarrier();
  return sum;
}

// A slot with what it is ranked by: a key, then its position in the text.
struct Ranked {
  key: f32,
  position: u32,
  slot: u32,
}

fn unranked() -> Ranked {
  return Ranked(3e38, 0xffffffffu, NO_SLOT);
}

fn is_before(a: Ranked, b: Ranked) -> bool {
  return a.key < b.key || (a.key == b.key && a.position < b.position);
}

var<workgroup> reduce_ranked: array<Ranked, THREADS>;

// The first of all ranked slots; one without a slot if there is none.
fn first_ranked(thread: u32, mine: Ranked) -> Ranked {
  reduce_ranked[thread] = mine;
  for (var width = THREADS / 2u; width > 0u; width /= 2u) {
    workgroupBarrier();
    if (thread < width) {
      if (is_before(reduce_ranked[thread + width], reduce_ranked[thread])) {
        reduce_ranked[thread] = reduce_ranked[thread + width];
      }
    }
  }
  return workgroupUniformLoad(&reduce_ranked[0]);
}

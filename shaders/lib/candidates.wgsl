// The candidates of a KV head that `compress` chooses from: cache slots first,
// staged rows from `max_capacity`. What is known of them lies in `work`, field
// by field; `kv_head` and `head` say whose they are.

// What a candidate is ranked by: a float in its ordered bits.
const WORK_KEY = 0u;
// Candidate to merge into, or NO_SLOT.
const WORK_CHOICE = 1u;
const WORK_FLAGS = 2u;
// Candidates that are searched for, or merged away, or dropped.
const WORK_LIST = 3u;
// Next candidate that chose the same target, or NO_SLOT.
const WORK_NEXT = 4u;
// f32: divergence of the merges into a candidate.
const WORK_DIVERGENCE = 5u;
// Candidates that others may be merged into.
const WORK_TARGETS = 8u;

const FLAG_LISTED = 1u;
const FLAG_TARGET = 2u;
// An end of a pair, or the first of a segment.
const FLAG_TAKEN = 4u;
// The proposer of a pair.
const FLAG_ACCEPTED = 8u;
// The first of those that chose its target.
const FLAG_LEADER = 16u;

const COUNTERS = 6u;
const COUNT_LISTED = 0u;
const COUNT_EXCESS = 1u;
const COUNT_MERGED = 2u;
const COUNT_GUARDED = 3u;
const COUNT_TARGETS = 4u;
// f32: how far the values of the head scatter, before anything is merged.
const COUNT_SPREAD = 5u;

var<private> kv_head: u32;
var<private> head: u32;

fn work_at(section: u32, candidate: u32) -> u32 {
  return (section * KV_HEADS + kv_head) * params.candidates + candidate;
}

// Turns to a KV head; false if the chunk is empty.
fn begin(index: u32) -> bool {
  kv_head = index;
  head = head_at(step_words[CHUNK_SEQUENCE], index);
  return step_words[CHUNK_ROWS] > 0u;
}

fn read_counter(thread: u32, counter: u32) -> u32 {
  return uniform_word(thread, atomicLoad(&counters[kv_head * COUNTERS + counter]));
}

fn slot_of(candidate: u32) -> u32 {
  if (candidate >= params.max_capacity) {
    let row = candidate - params.max_capacity;
    return STAGED | (kv_head * params.stage_rows + row);
  }
  return table[head + HEAD_OFFSET] + candidate;
}

// Whether a candidate holds a token.
fn is_held(candidate: u32) -> bool {
  var is_there = candidate < table[head + HEAD_HIGH];
  if (candidate >= params.max_capacity) {
    is_there = candidate - params.max_capacity < step_words[CHUNK_ROWS];
  }
  return is_there && tokens_of(slot_of(candidate)) != 0u;
}

// Position of the chunk's last row.
fn newest_position() -> u32 {
  return step_words[CHUNK_POSITION] + step_words[CHUNK_ROWS] - 1u;
}

fn may_go(candidate: u32) -> bool {
  let recent = table[head + HEAD_RECENT];
  let position = position_of(slot_of(candidate));
  return is_evictable(position, recent, newest_position());
}

// Candidates over the budget.
fn count_excess(thread: u32) -> u32 {
  var count = 0u;
  for (var c = thread; c < params.candidates; c += THREADS) {
    count += select(0u, 1u, is_held(c));
  }
  count = sum_words(thread, count);
  let budget = uniform_word(thread, table[head + HEAD_BUDGET]);
  return count - min(count, budget);
}

// Lists the candidates with a flag in order, and counts them.
fn list_flagged(thread: u32, flag: u32, section: u32, counter: u32) {
  var count = 0u;
  for (var first = 0u; first < params.candidates; first += THREADS) {
    let c = first + thread;
    var listed = 0u;
    if (c < params.candidates) {
      listed = select(0u, 1u, (work[work_at(WORK_FLAGS, c)] & flag) != 0u);
    }
    let place = prefix_sum(thread, listed);
    if (listed != 0u) {
      work[work_at(section, count + place - 1u)] = c;
    }
    count += sum_words(thread, listed);
  }
  if (thread == 0u) {
    atomicStore(&counters[kv_head * COUNTERS + counter], count);
  }
}

// Lists what is searched for, merged away or dropped.
fn make_list(thread: u32) {
  list_flagged(thread, FLAG_LISTED, WORK_LIST, COUNT_LISTED);
}

// Lists what that may be merged into.
fn list_targets(thread: u32) {
  list_flagged(thread, FLAG_TARGET, WORK_TARGETS, COUNT_TARGETS);
}

// Lists the candidates that may go, with their scores as keys; returns how many.
fn list_evictable(thread: u32) -> u32 {
  var evictable = 0u;
  for (var c = thread; c < params.candidates; c += THREADS) {
    var flags = 0u;
    if (is_held(c) && may_go(c)) {
      flags = FLAG_LISTED;
      evictable += 1u;
      work[work_at(WORK_KEY, c)] = ordered(score_of(c));
    }
    work[work_at(WORK_FLAGS, c)] = flags;
  }
  evictable = sum_words(thread, evictable);
  storageBarrier();
  return evictable;
}

// Leaves of the listed candidates the `count` with the lowest keys.
fn keep_lowest(thread: u32, count: u32) {
  let last = select_rank(thread, FLAG_LISTED, count);
  for (var c = thread; c < params.candidates; c += THREADS) {
    let is_kept =
      work[work_at(WORK_FLAGS, c)] == FLAG_LISTED && is_within(c, last);
    work[work_at(WORK_FLAGS, c)] = select(0u, FLAG_LISTED, is_kept);
  }
  storageBarrier();
}

// What `lib/select_rank.wgsl` looks at.
fn ranked_count() -> u32 {
  return params.candidates;
}

fn is_ranked(candidate: u32, flag: u32) -> bool {
  return (work[work_at(WORK_FLAGS, candidate)] & flag) != 0u;
}

fn ranked_key(candidate: u32) -> u32 {
  return work[work_at(WORK_KEY, candidate)];
}

fn ranked_position(candidate: u32) -> u32 {
  return position_of(slot_of(candidate));
}

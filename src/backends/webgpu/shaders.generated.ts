// Generated from shaders by `deno task embed-sources`: edit there

/** Files of `shaders` by their path below it. */
export const shaders: Readonly<Record<string, string>> = {
  "compress.wgsl": `// Takes the live slots and the staged rows of a chunk down to each head's
// budget, and moves the staged rows that are left into free slots.
//
// The candidates of a head are numbered: cache slots first, staged rows from
// \`max_capacity\`. Whatever is proportional to them lives in scratch, so only
// memory bounds their number. The steps, each a dispatch:
//   allocate_heads  where heads are adaptive, gives them their budgets
//   survey          clears the counters
// then, once with merge-first, or some times where the cheapest pairs merge:
//   list_pairs      lists what may pair up, if the head is over its budget
//   find_targets    the best partner for each that is listed (many workgroups)
//   pair            takes pairs, best first, until the head fits
//   merge           merges the sets (many workgroups)
// or, where neighbours in the text are merged:
//   list_light      lists those that may be, if the head is over its budget
//   neighbours      the next slot to the right of each (many workgroups)
//   measure_links   how similar the two are (many workgroups)
//   close_links     takes the most similar ones, until the head fits
//   merge           merges what they connect (many workgroups)
// then
//   select_victims  lists the slots with the lowest ranks
// with, before \`pair\`, \`list_light\` and \`select_victims\`, where scores are not the slots' own:
//   rate            each candidate's own score (many workgroups), or rate_keys
//   pool            the scores of its neighbours (many workgroups)
//   share           the mean over the heads (many workgroups)
// then, where they go to the most similar key or the cheapest target:
//   find_targets    the best kept target for each of them
//   link            chains those that chose the same target
//   merge           merges the chains
// or, where their values go to the right neighbour:
//   neighbours      the next slot to the right of each of them (many workgroups)
//   weigh           what weight each has in the kept value that takes it
//   merge_runs      merges the values (many workgroups)
// or, where their values go to the slots after them:
//   pass_values     adds them, one by one
// and at the end:
//   settle          frees what is dropped, fills free slots, updates the head
// \`survey\` is here, the others are in \`lib\`. A single workgroup per head could do
// it all in one dispatch, but the searches are the work, quadratic in the
// candidates, and must fill the device.
//
// Nothing depends on the order in which workgroups run: choices are by key and
// position, sets are disjoint, and sums are taken in the order of candidates.

struct Params {
  layer: u32,
  first_head: u32,
  total: u32,
  stage_total: u32,
  stage_rows: u32,
  max_capacity: u32,
  // max_capacity + stage_rows
  candidates: u32,
  merge_groups: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
// (rows, heads, headDim)
@group(0) @binding(1) var<storage, read> queries: array<vec2<f32>>;
// (total, headDim) halves
@group(0) @binding(2) var<storage, read_write> keys: array<u32>;
@group(0) @binding(3) var<storage, read_write> values: array<u32>;
// (SlotField.bias + lanes, total)
@group(0) @binding(4) var<storage, read_write> side: array<u32>;
// The same of the staged rows, (kvHeads, stageRows).
@group(0) @binding(5) var<storage, read_write> stage_keys: array<u32>;
@group(0) @binding(6) var<storage, read_write> stage_values: array<u32>;
@group(0) @binding(7) var<storage, read_write> stage_side: array<u32>;
@group(0) @binding(8) var<storage, read_write> table: array<u32>;
@group(0) @binding(9) var<storage, read> step_words: array<u32>;
// (WORK_SECTIONS, kvHeads, candidates)
@group(0) @binding(10) var<storage, read_write> work: array<u32>;
// (2, kvHeads, candidates): best key and position that touch a candidate
@group(0) @binding(11) var<storage, read_write> marks: array<atomic<u32>>;
// (kvHeads, COUNTERS)
@group(0) @binding(12) var<storage, read_write> counters: array<atomic<u32>>;
// (sequences, heads, 3 headDim + 1)
@group(0) @binding(13) var<storage, read> statistics: array<f32>;

const THREADS = 256u;

var<workgroup> part_values: array<vec2<f32>, THREADS>;

// Clears what the other steps add to; the first step, whatever the policy.
@compute @workgroup_size(THREADS)
fn survey(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  if (!begin(group.x)) {
    return;
  }
  if (thread < COUNTERS) {
    atomicStore(&counters[kv_head * COUNTERS + thread], 0u);
  }
  for (var c = thread; c < params.candidates; c += THREADS) {
    work[work_at(WORK_DIVERGENCE, c)] = 0u;
    work[work_at(WORK_FLAGS, c)] = 0u;
  }
  storageBarrier();
  if (MERGE == MERGE_PAIR) {
    let spread = value_spread(thread, params.candidates);
    if (thread == 0u) {
      let at = kv_head * COUNTERS + COUNT_SPREAD;
      atomicStore(&counters[at], bitcast<u32>(spread));
    }
  }
}
`,
  "embed.wgsl": `// Looks up the embedding row of each live token and marks the id as seen.
//
// Moves 2 bytes in and 4 bytes out per element. One workgroup per row; a matrix
// in several blocks takes one dispatch per block, and each row is done by the
// dispatch that has its id. The alternative, a host upload of the rows, would
// wait for the ids that \`sample\` leaves on the device.

struct Params {
  first_id: u32,
  block_rows: u32,
  seen_words: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
// (rows, hidden)
@group(0) @binding(1) var<storage, read_write> hidden: array<f32>;
// (sequences, ceil(vocabulary / 32))
@group(0) @binding(2) var<storage, read_write> seen: array<atomic<u32>>;
// (block rows, hidden) halves
@group(0) @binding(3) var<storage, read> embedding: array<u32>;
// (rows)
@group(0) @binding(4) var<storage, read> tokens: array<u32>;
@group(0) @binding(5) var<storage, read> step_words: array<u32>;

override HIDDEN: u32;
// Words in a row of the embedding, padding included.
override PITCH: u32;

@compute @workgroup_size(64)
fn embed(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let row = group.x;
  if (!is_forwarded(row)) {
    return;
  }
  let id = tokens[row];
  if (id < params.first_id || id - params.first_id >= params.block_rows) {
    return;
  }
  for (var i = thread; i < HIDDEN / 2u; i += 64u) {
    let pair = unpack_halves(embedding[(id - params.first_id) * PITCH + i]);
    hidden[row * HIDDEN + 2u * i] = pair.x;
    hidden[row * HIDDEN + 2u * i + 1u] = pair.y;
  }
  if (thread == 0u && is_live(row)) {
    let word = sequence_of(row) * params.seen_words + id / 32u;
    atomicOr(&seen[word], 1u << (id % 32u));
  }
}
`,
  "gate_up.wgsl": `// RMS norm, then silu(gate) * up.
//
// Streams the weight once, 2 bytes per element. Gate and up rows alternate in
// the weight, so the two halves of an output come from neighbouring rows and
// meet in one workgroup. Two products and a separate activation would write
// and read twice the width of the layer more.

struct Params {
  // First output of the weight block, and rows of the block: two per output.
  first_output: u32,
  block_rows: u32,
  // Outputs of the whole matrix.
  pitch: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
// (rows, ffn)
@group(0) @binding(1) var<storage, read_write> output: array<f32>;
// (rows, hidden)
@group(0) @binding(2) var<storage, read> input: array<vec4<f32>>;
// (hidden)
@group(0) @binding(3) var<storage, read> norm: array<vec4<f32>>;
// (block rows, hidden) halves: gate 0, up 0, gate 1, …
@group(0) @binding(4) var<storage, read> weight: array<vec4<u32>>;
// (2 ffn)
@group(0) @binding(5) var<storage, read> bias: array<f32>;
@group(0) @binding(6) var<storage, read> step_words: array<u32>;

override BIAS: bool = false;

var<private> first_slot: u32;

fn weight_row(slot: u32) -> u32 {
  return min(first_slot + slot, params.block_rows - 1u);
}

fn input_row(row: u32) -> u32 {
  return row;
}

fn is_needed(row: u32) -> bool {
  return is_forwarded(row);
}

// \`slot\` is that of the gate; the one after it is that of \`up\`.
fn activate(row: u32, slot: u32, pair: vec2<f32>) {
  let i = first_slot + slot;
  if (row >= ROWS || !is_forwarded(row) || i >= params.block_rows) {
    return;
  }
  let at = params.first_output + i / 2u;
  var gate = pair.x;
  var up = pair.y;
  if (BIAS) {
    gate += bias[2u * at];
    up += bias[2u * at + 1u];
  }
  output[row * params.pitch + at] = silu(gate) * up;
}

// Clamped because exp of a large number is infinite, which WGSL does not have.
fn silu(x: f32) -> f32 {
  return x / (1.0 + exp(min(-x, 80.0)));
}

@compute @workgroup_size(VECTOR_THREADS)
fn vector(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  if (!is_any_needed()) {
    return;
  }
  first_slot = group.x * VECTOR_OUTPUTS;
  multiply_vectors(thread, 0u);
  let pairs = VECTOR_OUTPUTS / 2u;
  for (var i = thread; i < ROWS * pairs; i += VECTOR_THREADS) {
    let slot = i % pairs * 2u;
    let at = i / pairs * VECTOR_OUTPUTS + slot;
    activate(i / pairs, slot, vec2(products[at], products[at + 1u]));
  }
}

@compute @workgroup_size(TILE_THREADS)
fn tile(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let first_row = group.y * TILE_ROWS;
  if (PREFILL && !is_forwarded(first_row)) {
    return;
  }
  first_slot = group.x * TILE_OUTPUTS;
  let sums = multiply_tiles(thread, first_row);
  for (var j = 0u; j < 4u; j++) {
    let row = first_row + thread / 16u + 16u * j;
    let slot = thread % 16u * 4u;
    activate(row, slot, sums[j].xy);
    activate(row, slot + 2u, sums[j].zw);
  }
}
`,
  "lib/allocate_heads.wgsl": `// Spreads the budget of a layer over its KV heads by the scores of the first
// chunk of a text: see \`src/reference/allocate_heads.ts\`. One workgroup, since
// it runs once per text and its work is linear in the staged rows. Counts are
// whole numbers, so the order of threads does not matter.

// Share that is spread evenly, in FLOOR_PARTS.
override FLOOR: u32 = FLOOR_PARTS;
const FLOOR_PARTS = 1024u;

// Counters of a head, which \`survey\` resets: parts that it gets, and its slots
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

// Rounds the parts of all heads to \`free\` slots in all, and gives each head as
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
`,
  "lib/appended.wgsl": `// Where a step appends keys and values: a head's next free slot in a decode
// step, a staged row in a prefill step.

const NO_SLOT = 0xffffffffu;

// The slot of \`keys\` and \`values\` that a row's token goes to, or NO_SLOT.
fn slot_of(row: u32, kv_head: u32) -> u32 {
  if (PREFILL) {
    return kv_head * params.stage_rows + row;
  }
  let head = head_at(sequence_of(row), kv_head);
  let next = table[head + HEAD_NEXT];
  if (next >= table[head + HEAD_CAPACITY]) {
    return NO_SLOT;
  }
  return table[head + HEAD_OFFSET] + next;
}
`,
  "lib/blend_slots.wgsl": `// Merging slots by the cosines of their keys, under a moving threshold: see
// \`src/reference/blend_slots.ts\` for the source and the formulas.
//
// A kernel defines
//   next_member(slot)  the member after \`slot\`, or NO_SLOT

// Weight of the past in the threshold.
override THRESHOLD_KEEP: f32 = 0.0;

const E = 2.7182817;

// The threshold after slots went whose mean cosine is \`mean\`.
fn next_threshold(past: f32, mean: f32) -> f32 {
  let moved = THRESHOLD_KEEP * past + (1.0 - THRESHOLD_KEEP) * mean;
  return select(moved, mean, past == 0.0);
}

// Merges \`first\` and the members after it into \`kept\`; returns how many. The
// caller waits for storage and then frees them.
fn blend_slots(thread: u32, kept: u32, first: u32) -> u32 {
  let half = HEAD_DIM / 2u;
  var key = vec2<f32>();
  var value = vec2<f32>();
  if (thread < half) {
    key = E * unpack_halves(key_word(kept, thread));
    value = E * unpack_halves(value_word(kept, thread));
  }
  var total = E;
  var norm = E * side_float(kept, FIELD_VALUE_NORM);
  var tokens = tokens_of(kept);
  var count = 0u;
  for (var slot = first; slot != NO_SLOT; slot = next_member(slot)) {
    let weight = exp(key_cosine(kept, slot));
    if (thread < half) {
      key += weight * unpack_halves(key_word(slot, thread));
      value += weight * unpack_halves(value_word(slot, thread));
    }
    total += weight;
    norm += weight * side_float(slot, FIELD_VALUE_NORM);
    tokens += tokens_of(slot);
    count += 1u;
  }
  // Every thread has read the kept key.
  storageBarrier();
  if (thread < half) {
    set_key_word(kept, thread, pack_halves(key / total));
    set_value_word(kept, thread, pack_halves(value / total));
  }
  if (thread == 0u) {
    set_side_float(kept, FIELD_VALUE_NORM, norm / total);
    set_side_word(kept, FIELD_TOKENS, tokens);
  }
  return count;
}

// Cosine of the keys of two slots; 0 where one of them is 0.
fn key_cosine(a: u32, b: u32) -> f32 {
  var product = 0.0;
  var squares = vec2<f32>();
  for (var i = 0u; i < HEAD_DIM / 2u; i++) {
    let x = unpack_halves(key_word(a, i));
    let y = unpack_halves(key_word(b, i));
    product += dot(x, y);
    squares += vec2(dot(x, x), dot(y, y));
  }
  let norms = sqrt(squares.x * squares.y);
  return select(product / max(norms, 1e-30), 0.0, norms == 0.0);
}
`,
  "lib/candidates.wgsl": `// The candidates of a KV head that \`compress\` chooses from: cache slots first,
// staged rows from \`max_capacity\`. What is known of them lies in \`work\`, field
// by field; \`kv_head\` and \`head\` say whose they are.

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

// Leaves of the listed candidates the \`count\` with the lowest keys.
fn keep_lowest(thread: u32, count: u32) {
  let last = select_rank(thread, FLAG_LISTED, count);
  for (var c = thread; c < params.candidates; c += THREADS) {
    let is_kept =
      work[work_at(WORK_FLAGS, c)] == FLAG_LISTED && is_within(c, last);
    work[work_at(WORK_FLAGS, c)] = select(0u, FLAG_LISTED, is_kept);
  }
  storageBarrier();
}

// What \`lib/select_rank.wgsl\` looks at.
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
`,
  "lib/choose_victims.wgsl": `// Who goes when a chunk is compressed, and who may take them.

// Leaves of the listed candidates those that do not stay by their scores alone,
// with their ranks as keys.
fn contest(thread: u32, evictable: u32, victims: u32) {
  keep_lowest(thread, evictable - first_stage(evictable - victims));
  for (var c = thread; c < params.candidates; c += THREADS) {
    if (work[work_at(WORK_FLAGS, c)] == FLAG_LISTED) {
      let slot = slot_of(c);
      work[work_at(WORK_KEY, c)] = ordered(rank_of(score_of(c), slot));
    }
  }
  storageBarrier();
}

// Lists the slots with the lowest ranks, as many as the head is over its
// budget, and marks those that they may be merged into.
@compute @workgroup_size(THREADS)
fn select_victims(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  if (!begin(group.x)) {
    return;
  }
  let excess = count_excess(thread);
  let evictable = list_evictable(thread);
  let victims = min(excess, evictable);
  if (COUNT_VALUES && victims > 0u) {
    contest(thread, evictable, victims);
  }
  var last = vec2<u32>();
  if (victims > 0u) {
    last = select_rank(thread, FLAG_LISTED, victims);
  }
  for (var c = thread; c < params.candidates; c += THREADS) {
    let is_listed = work[work_at(WORK_FLAGS, c)] == FLAG_LISTED;
    var flags = 0u;
    work[work_at(WORK_NEXT, c)] = NO_SLOT;
    if (victims > 0u && is_listed && is_within(c, last)) {
      flags = FLAG_LISTED;
      work[work_at(WORK_CHOICE, c)] = NO_SLOT;
    } else if (is_held(c) && takes_victims(c)) {
      flags = FLAG_TARGET;
    }
    work[work_at(WORK_FLAGS, c)] = flags;
  }
  storageBarrier();
  make_list(thread);
  if (MERGE == MERGE_VOTES || MERGE == MERGE_PAIR || MERGE == MERGE_COSINE) {
    list_targets(thread);
  }
}

// Whether victims may be merged into a candidate that stays.
fn takes_victims(candidate: u32) -> bool {
  if (MERGE == MERGE_PAIR) {
    return may_go(candidate);
  }
  return position_of(slot_of(candidate)) >= SINKS;
}
`,
  "lib/draw_id.wgsl": `// Drawing one of the ids that are left, by running sums in the order of ids.
//
// A kernel defines
//   weight_of(id, threshold)  the weight of an id, 0 below the threshold

var<workgroup> segment_sums: array<f32, THREADS>;

struct Segment {
  first: u32,
  end: u32,
  left: f32,
}

// Splits the ids \`first .. end\` into a segment per thread, and finds the one in
// which the running sum of weights passes \`left\`: the last segment with any
// weight, if none does. With a negative \`left\` it passes \`share\` of the whole.
fn find_segment(
  thread: u32,
  within: Segment,
  threshold: u32,
  share: f32,
) -> Segment {
  let size = (within.end - within.first + THREADS - 1u) / THREADS;
  let first = min(within.end, within.first + thread * size);
  let end = min(within.end, first + size);
  var sum = 0.0;
  for (var id = first; id < end; id++) {
    sum += weight_of(id, threshold);
  }
  workgroupBarrier();
  segment_sums[thread] = sum;
  workgroupBarrier();
  if (thread == 0u) {
    var left = within.left;
    if (left < 0.0) {
      left = 0.0;
      for (var i = 0u; i < THREADS; i++) {
        left += segment_sums[i];
      }
      left *= share;
    }
    var found = 0u;
    var inside = left;
    for (var i = 0u; i < THREADS; i++) {
      if (segment_sums[i] > 0.0) {
        found = i;
        inside = left;
        left -= segment_sums[i];
        if (left < 0.0) {
          break;
        }
      }
    }
    shared_words[0] = found;
    shared_floats[0] = inside;
  }
  let found = workgroupUniformLoad(&shared_words[0]);
  let inside = workgroupUniformLoad(&shared_floats[0]);
  let start = min(within.end, within.first + found * size);
  return Segment(start, min(within.end, start + size), inside);
}

// Draws an id at or above a threshold.
fn draw(thread: u32, threshold: u32, uniform_number: f32) -> u32 {
  let all = Segment(0u, params.vocabulary, -1.0);
  let coarse = find_segment(thread, all, threshold, uniform_number);
  let fine = find_segment(thread, coarse, threshold, 0.0);
  var chosen = fine.first;
  var left = fine.left;
  for (var id = fine.first; id < fine.end; id++) {
    let weight = weight_of(id, threshold);
    if (weight > 0.0) {
      chosen = id;
      left -= weight;
      if (left < 0.0) {
        break;
      }
    }
  }
  return chosen;
}

// A number in [0, 1) with 24 random bits, by the PCG output permutation.
fn random_uniform(seed_low: u32, seed_high: u32, counter: u32) -> f32 {
  let bits = permute(counter + permute(seed_low + permute(seed_high)));
  return f32(bits >> 8u) / 16777216.0;
}

fn permute(value: u32) -> u32 {
  let mixed = value * 747796405u + 2891336453u;
  let word = ((mixed >> ((mixed >> 28u) + 4u)) ^ mixed) * 277803737u;
  return (word >> 22u) ^ word;
}
`,
  "lib/evict_one.wgsl": `// The end of a decode step: the slot that goes, if one has to.

// Takes the head down to its budget and updates its words.
fn evict(thread: u32) {
  let kv_head = own_kv_head;
  let offset = own_offset;
  let high = own_high;
  var live = 0u;
  var free = high;
  for (var i = thread; i < high; i += THREADS) {
    if (tokens_of(offset + i) == 0u) {
      free = min(free, i);
    } else {
      live += 1u;
    }
  }
  live = sum_words(thread, live);
  free = min_words(thread, free);
  let head = head_at(sequence_of(own_row), kv_head);
  if (thread == 0u) {
    table[head + HEAD_LIVE] = live;
    table[head + HEAD_NEXT] = free;
    table[head + HEAD_HIGH] = high;
  }
  storageBarrier();
  let budget = workgroupUniformLoad(&head_words[HEAD_BUDGET]);
  if (MERGE == MERGE_PAIR) {
    list_pairs(thread, live > budget);
    return;
  }
  if (MERGE != MERGE_NEVER && live > budget) {
    var pair = vec2(NO_SLOT);
    if (MERGE == MERGE_SEGMENTS) {
      pair = closest_link(thread);
    }
    var victim = pair.y;
    if (victim == NO_SLOT) {
      victim = choose_victim(thread);
    }
    if (victim != NO_SLOT) {
      var merged = Merged(0u, 0u, 0.0);
      if (MERGE == MERGE_SEGMENTS && pair.y != NO_SLOT) {
        merged.count = merge_segment(thread, pair.x, victim);
      }
      if (MERGE == MERGE_VOTES) {
        let chosen = nearest(thread, victim, offset, high);
        if (chosen.slot != NO_SLOT && -chosen.key > THRESHOLD) {
          merge_vector = query_vector(own_row * GROUP, kv_head);
          merged = merge_slots(thread, chosen.slot, victim);
        }
      }
      if (MERGE == MERGE_COSINE) {
        let chosen = nearest(thread, victim, offset, high);
        let past = bitcast<f32>(head_words[HEAD_THRESHOLD]);
        let threshold = next_threshold(past, -chosen.key);
        if (chosen.slot != NO_SLOT) {
          if (thread == 0u) {
            table[head + HEAD_THRESHOLD] = bitcast<u32>(threshold);
          }
          if (-chosen.key >= threshold) {
            merged.count = blend_slots(thread, chosen.slot, victim);
          }
        }
      }
      if (MERGE == MERGE_NEXT_VALUES) {
        let taker = pass_on(thread, victim - offset, high, kv_head);
        merged.count = select(1u, 0u, taker == NO_SLOT);
      }
      if (MERGE == MERGE_RIGHT_NEIGHBOUR) {
        let kept = right_neighbour(thread, victim, offset, high);
        if (kept != NO_SLOT) {
          merged.count =
            merge_value(thread, own_row, kv_head, kept, victim, offset);
        }
      }
      workgroupBarrier();
      remove(thread, head, victim, merged);
    }
  }
}

// Frees the slot that goes, and counts what became of it.
fn remove(thread: u32, head: u32, victim: u32, merged: Merged) {
  if (thread != 0u) {
    return;
  }
  if (merged.count == 0u) {
    table[head + HEAD_DROPPED] += 1u;
    table[head + HEAD_DROPPED_TOKENS] += tokens_of(victim);
  }
  free_slot(victim);
  let index = victim - table[head + HEAD_OFFSET];
  table[head + HEAD_LIVE] -= 1u;
  table[head + HEAD_NEXT] = min(table[head + HEAD_NEXT], index);
  table[head + HEAD_MERGED] += merged.count;
  table[head + HEAD_GUARDED] += merged.guarded;
  table[head + HEAD_DIVERGENCE] = bitcast<u32>(
    bitcast<f32>(table[head + HEAD_DIVERGENCE]) + merged.divergence,
  );
}
`,
  "lib/expected_attention.wgsl": `// How much attention slots are expected to receive: see
// \`src/reference/expected_attention.ts\`. A workgroup rates a head, and goes
// through its keys twice; keeping the logits would take a float per query head
// and slot.
//
// A kernel declares \`statistics\`, (sequences, heads, 3 headDim + 1), and
// defines what \`lib/key_distance.wgsl\` takes.

var<workgroup> expected_sums: array<f32, MAX_GROUP>;

// ln of the weight that a slot has for the queries expected of a query head,
// whose statistics begin at \`own\`, before the softmax.
fn expected_logit(slot: u32, query_head: u32, own: u32) -> f32 {
  let half = HEAD_DIM / 2u;
  let future = own + future_at();
  let variance = own + variance_at();
  var product = 0.0;
  var spread = 0.0;
  // Words hold neighbours, pairs are half a head apart.
  for (var i = 0u; i < half; i += 2u) {
    let a = unpack_halves(key_word(slot, i / 2u));
    let b = unpack_halves(key_word(slot, (half + i) / 2u));
    product += dot(a, vec2(statistics[future + i], statistics[future + i + 1u]));
    product += dot(
      b,
      vec2(statistics[future + half + i], statistics[future + half + i + 1u]),
    );
    spread += dot(
      a * a + b * b,
      vec2(statistics[variance + i], statistics[variance + i + 1u]),
    );
  }
  return ROOT * (product + 0.5 * ROOT * spread) + vote_bias(slot, query_head);
}

// Sets each entry's rating to ln of the mean over the group of its share.
fn rate_by_expectation(thread: u32, sequence: u32, kv_head: u32) {
  let first = statistics_at(sequence, kv_head * GROUP);
  let pitch = statistics_at(0u, 1u);
  let count = ranked_count();
  var tops: array<f32, MAX_GROUP>;
  var sums: array<f32, MAX_GROUP>;
  for (var i = 0u; i < GROUP; i++) {
    tops[i] = -1e30;
  }
  for (var entry = thread; entry < count; entry += THREADS) {
    let slot = rated_slot(entry);
    if (slot == NO_SLOT || position_of(slot) < SINKS) {
      continue;
    }
    for (var i = 0u; i < GROUP; i++) {
      let logit = expected_logit(slot, i, first + i * pitch);
      let top = max(tops[i], logit);
      sums[i] = sums[i] * exp(tops[i] - top) + exp(logit - top);
      tops[i] = top;
    }
  }
  for (var i = 0u; i < GROUP; i++) {
    let top = max_floats(thread, tops[i]);
    let sum = sum_floats(thread, sums[i] * exp(tops[i] - top));
    if (thread == 0u) {
      expected_sums[i] = top + log(max(sum, 1e-30));
    }
  }
  workgroupBarrier();
  for (var entry = thread; entry < count; entry += THREADS) {
    let slot = rated_slot(entry);
    if (slot == NO_SLOT) {
      continue;
    }
    var share = -1e30;
    for (var i = 0u; i < GROUP; i++) {
      let logit = expected_logit(slot, i, first + i * pitch);
      share = log_add(share, logit - expected_sums[i]);
    }
    set_rating(entry, share - log(f32(GROUP)));
  }
  storageBarrier();
}
`,
  "lib/find_targets.wgsl": `// For each listed candidate of a chunk, the target that it is merged into, if
// there is one: what \`search\` asks for, and where the answer goes.

// A workgroup compares a tile of candidates with all targets.
@compute @workgroup_size(THREADS)
fn find_targets(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  if (!begin(group.y)) {
    return;
  }
  let first = group.x * PROPOSERS;
  let listed = read_counter(thread, COUNT_LISTED);
  if (first >= listed) {
    return;
  }
  let targets = read_counter(thread, COUNT_TARGETS);
  let spread = bitcast<f32>(read_counter(thread, COUNT_SPREAD));
  search(thread, first, min(PROPOSERS, listed - first), targets, pair_scale(spread));
}

fn proposer_at(i: u32) -> u32 {
  return work[work_at(WORK_LIST, i)];
}

fn target_at(t: u32) -> u32 {
  return work[work_at(WORK_TARGETS, t)];
}

fn is_open_to(i: u32, t: u32) -> bool {
  return true;
}

fn propose(i: u32, best: Ranked) {
  let candidate = proposer_at(i);
  // A moving threshold is only known once all victims have a target.
  let is_close = MERGE != MERGE_VOTES || -best.key > THRESHOLD;
  work[work_at(WORK_KEY, candidate)] = ordered(best.key);
  work[work_at(WORK_CHOICE, candidate)] =
    select(NO_SLOT, best.slot, best.slot != NO_SLOT && is_close);
}
`,
  "lib/half.wgsl": `// Halves: 16-bit floats, two to a 32-bit word. Packing and unpacking are core
// WGSL, so kernels need no shader-f16; they compute in 32 bits.

// Largest finite half. A larger number would be stored as infinity.
const HALF_MAX = 65504.0;

fn pack_halves(pair: vec2<f32>) -> u32 {
  return pack2x16float(clamp(pair, vec2(-HALF_MAX), vec2(HALF_MAX)));
}

fn unpack_halves(word: u32) -> vec2<f32> {
  return unpack2x16float(word);
}

// Dot product of eight halves with eight floats.
fn dot_halves(words: vec4<u32>, low: vec4<f32>, high: vec4<f32>) -> f32 {
  let a = vec4(unpack_halves(words.x), unpack_halves(words.y));
  let b = vec4(unpack_halves(words.z), unpack_halves(words.w));
  return dot(a, low) + dot(b, high);
}
`,
  "lib/head_choice.wgsl": `// Choosing a victim among the slots of one head in a decode step.

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

// What the policy's score says of slot \`index\` of the head.
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

// What \`lib/select_rank.wgsl\` looks at.
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

// What \`lib/key_distance.wgsl\` works on.
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
`,
  "lib/head_table.wgsl": `// Words of a (layer, sequence, KV head) in the head table: see HeadWord.

override KV_HEADS: u32 = 1u;

const HEAD_OFFSET = 0u;
const HEAD_CAPACITY = 1u;
const HEAD_BUDGET = 2u;
const HEAD_RECENT = 3u;
const HEAD_LIVE = 4u;
const HEAD_NEXT = 5u;
const HEAD_HIGH = 6u;
const HEAD_MERGED = 7u;
const HEAD_DROPPED = 8u;
const HEAD_DROPPED_TOKENS = 9u;
const HEAD_GUARDED = 10u;
const HEAD_DIVERGENCE = 11u;
const HEAD_THRESHOLD = 12u;
const HEAD_SPREAD = 13u;
const HEAD_WORDS = 16u;

// First word of a head. \`params.first_head\` is the number of heads in the
// layers before this one.
fn head_at(sequence: u32, kv_head: u32) -> u32 {
  return (params.first_head + sequence * KV_HEADS + kv_head) * HEAD_WORDS;
}
`,
  "lib/key_distance.wgsl": `// How far each key points away from the mean direction of the head's keys: the
// score of KeyDiff. A workgroup rates a head, and reads its keys three times;
// keeping a running mean would read them once, but slots come and go.
//
// A kernel declares \`part_values\`, THREADS of vec2<f32> in workgroup memory,
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
  // A thread has two elements and every \`parts\`th key.
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
`,
  "lib/matrix.wgsl": `// Products of activations with a weight matrix: \`input · weightᵀ\`, where the
// input may have an RMS norm in front of it.
//
// Two forms. \`multiply_vectors\` is for the few rows of a decode step: weights
// are read once, 16 bytes per thread and load, with four rows of them in
// flight. \`multiply_tiles\` is for the many rows of a prefill chunk: tiles of
// input and weight meet in workgroup memory.
//
// An RMS norm scales the whole row by one number, which is a factor of every
// product. So the squares are summed while the row streams by, and no pass of
// their own is needed: \`Σ w·(x·n)\` first, then times \`1 / rms(x)\`.
//
// A kernel declares \`weight\`, \`input\` and \`norm\` and defines
//   weight_row(slot)  row of the weight block for a slot of the workgroup
//   input_row(row)    row of \`input\` for a row of the program
//   is_needed(row)    whether the row is computed at all

override COLUMNS: u32 = 8u;
override ROWS: u32 = 1u;
override NORMED: bool = false;
override EPSILON: f32 = 0.0;

const MAX_VECTORS = 8u;   // rows that multiply_vectors can take
const TEAM = 32u;         // threads that share a dot product
const TEAMS = 4u;
const TEAM_OUTPUTS = 4u;  // dot products that a team has in flight
const VECTOR_THREADS = 128u;
const VECTOR_OUTPUTS = 16u;

const TILE_THREADS = 256u;
const TILE_ROWS = 64u;
const TILE_OUTPUTS = 64u;
const TILE_COLUMNS = 32u;
// Tiles are padded by one element per row, so that rows start in other banks.
const INPUT_PITCH = TILE_COLUMNS / 4u + 1u;
const WEIGHT_PITCH = TILE_COLUMNS / 8u + 1u;

// Elements that one workgroup of multiply_vectors makes per row.
override SLOTS: u32 = VECTOR_OUTPUTS;
// ROWS * SLOTS. Array sizes are single constants, not expressions: naga 29
// fails on those.
override PRODUCTS: u32 = VECTOR_OUTPUTS;

var<workgroup> team_sums: array<vec4<f32>, VECTOR_THREADS>;
var<workgroup> team_squares: array<f32, VECTOR_THREADS>;
var<workgroup> products: array<f32, PRODUCTS>;

var<workgroup> input_tile: array<vec4<f32>, TILE_ROWS * INPUT_PITCH>;
var<workgroup> weight_tile: array<vec4<u32>, TILE_OUTPUTS * WEIGHT_PITCH>;
var<workgroup> tile_squares: array<f32, TILE_THREADS>;

// Words of 16 bytes in a row of the weight.
fn weight_pitch() -> u32 {
  return (COLUMNS + 7u) / 8u;
}

// Four elements of an input row; zeros beyond its end.
fn read_input(row: u32, group: u32) -> vec4<f32> {
  let groups = COLUMNS / 4u;
  if (group >= groups) {
    return vec4<f32>();
  }
  return input[row * groups + group];
}

fn read_norm(group: u32) -> vec4<f32> {
  if (group >= COLUMNS / 4u) {
    return vec4<f32>();
  }
  return norm[group];
}

fn rms_scale(squares: f32) -> f32 {
  return inverseSqrt(squares / f32(COLUMNS) + EPSILON);
}

fn is_any_needed() -> bool {
  var any = false;
  for (var row = 0u; row < ROWS; row++) {
    any = any || is_needed(row);
  }
  return any;
}

// Fills \`products[row * SLOTS + slot]\` for 16 slots from \`first_slot\`.
fn multiply_vectors(thread: u32, first_slot: u32) {
  let lane = thread % TEAM;
  let slot = first_slot + thread / TEAM * TEAM_OUTPUTS;
  let pitch = weight_pitch();
  let row0 = weight_row(slot) * pitch;
  let row1 = weight_row(slot + 1u) * pitch;
  let row2 = weight_row(slot + 2u) * pitch;
  let row3 = weight_row(slot + 3u) * pitch;
  var sums: array<vec4<f32>, MAX_VECTORS>;
  var squares: array<f32, MAX_VECTORS>;
  for (var i = lane; i < pitch; i += TEAM) {
    let weight0 = weight[row0 + i];
    let weight1 = weight[row1 + i];
    let weight2 = weight[row2 + i];
    let weight3 = weight[row3 + i];
    for (var row = 0u; row < ROWS; row++) {
      if (!is_needed(row)) {
        continue;
      }
      var low = read_input(input_row(row), 2u * i);
      var high = read_input(input_row(row), 2u * i + 1u);
      if (NORMED) {
        squares[row] += dot(low, low) + dot(high, high);
        low *= read_norm(2u * i);
        high *= read_norm(2u * i + 1u);
      }
      sums[row] += vec4(
        dot_halves(weight0, low, high),
        dot_halves(weight1, low, high),
        dot_halves(weight2, low, high),
        dot_halves(weight3, low, high),
      );
    }
  }
  for (var row = 0u; row < ROWS; row++) {
    team_sums[thread] = sums[row];
    team_squares[thread] = squares[row];
    for (var width = TEAM / 2u; width > 0u; width /= 2u) {
      workgroupBarrier();
      if (lane < width) {
        team_sums[thread] += team_sums[thread + width];
        team_squares[thread] += team_squares[thread + width];
      }
    }
    if (lane == 0u) {
      var sum = team_sums[thread];
      if (NORMED) {
        sum *= rms_scale(team_squares[thread]);
      }
      let at = row * SLOTS + slot;
      products[at] = sum.x;
      products[at + 1u] = sum.y;
      products[at + 2u] = sum.z;
      products[at + 3u] = sum.w;
    }
    workgroupBarrier();
  }
}

// The products of 64 rows from \`first_row\` with 64 slots. Returns those of the
// rows \`first_row + thread / 16 + 16 i\`, slots \`4 (thread % 16) ..+ 4\`.
fn multiply_tiles(thread: u32, first_row: u32) -> array<vec4<f32>, 4> {
  let x = thread % 16u;
  let y = thread / 16u;
  let pitch = weight_pitch();
  // What this thread loads: 16 bytes of a weight row, 8 elements of an input.
  let line = thread / 4u;
  let part = thread % 4u;
  // Slots 4x ..+ 4 lie 16 apart in the tile, so that neighbours in a workgroup
  // read neighbouring rows.
  let load_slot = line % 16u * 4u + line / 16u;
  let load_weight = weight_row(load_slot) * pitch;
  let load_row = first_row + line;
  let is_loaded = load_row < ROWS && is_needed(load_row);
  var sums: array<vec4<f32>, 4>;
  var squares = 0.0;
  for (var first = 0u; first < pitch; first += TILE_COLUMNS / 8u) {
    let i = first + part;
    var words = vec4<u32>();
    var low = vec4<f32>();
    var high = vec4<f32>();
    if (i < pitch) {
      words = weight[load_weight + i];
      if (is_loaded) {
        low = read_input(input_row(load_row), 2u * i);
        high = read_input(input_row(load_row), 2u * i + 1u);
      }
      if (NORMED) {
        squares += dot(low, low) + dot(high, high);
        low *= read_norm(2u * i);
        high *= read_norm(2u * i + 1u);
      }
    }
    workgroupBarrier();
    weight_tile[line * WEIGHT_PITCH + part] = words;
    input_tile[line * INPUT_PITCH + 2u * part] = low;
    input_tile[line * INPUT_PITCH + 2u * part + 1u] = high;
    workgroupBarrier();
    for (var k = 0u; k < TILE_COLUMNS / 8u; k++) {
      let weight0 = weight_tile[x * WEIGHT_PITCH + k];
      let weight1 = weight_tile[(x + 16u) * WEIGHT_PITCH + k];
      let weight2 = weight_tile[(x + 32u) * WEIGHT_PITCH + k];
      let weight3 = weight_tile[(x + 48u) * WEIGHT_PITCH + k];
      for (var j = 0u; j < 4u; j++) {
        let at = (y + 16u * j) * INPUT_PITCH + 2u * k;
        let a = input_tile[at];
        let b = input_tile[at + 1u];
        sums[j] += vec4(
          dot_halves(weight0, a, b),
          dot_halves(weight1, a, b),
          dot_halves(weight2, a, b),
          dot_halves(weight3, a, b),
        );
      }
    }
  }
  if (NORMED) {
    tile_squares[thread] = squares;
    workgroupBarrier();
    for (var j = 0u; j < 4u; j++) {
      let at = (y + 16u * j) * 4u;
      sums[j] *= rms_scale(
        tile_squares[at] + tile_squares[at + 1u] +
        tile_squares[at + 2u] + tile_squares[at + 3u],
      );
    }
  }
  return sums;
}
`,
  "lib/merge_one.wgsl": `// Where the slot that goes after a decode step is merged: the one with the most
// similar key, or the values of its right neighbour.

// Only two slots are ever merged here: the second member is the last.
fn next_member(slot: u32) -> u32 {
  return NO_SLOT;
}

// The slot with the key most similar to that of \`victim\`, among \`high\` slots
// from \`offset\`; its key is minus the cosine.
fn nearest(thread: u32, victim: u32, offset: u32, high: u32) -> Ranked {
  let half = HEAD_DIM / 2u;
  let j = thread % KEY_TILE;
  let part = thread / KEY_TILE;
  let parts = THREADS / KEY_TILE;
  var best = unranked();
  var victim_squares = 0.0;
  for (var i = 0u; i < half; i++) {
    let element = unpack_halves(key_word(victim, i));
    victim_squares += dot(element, element);
  }
  for (var tile = 0u; tile < high; tile += KEY_TILE) {
    let count = min(KEY_TILE, high - tile);
    load_keys(thread, offset + tile, count);
    workgroupBarrier();
    var sums = vec2<f32>();
    for (var i = part; i < half; i += parts) {
      let key = unpack_halves(key_tile[j * key_pitch() + i]);
      let other = unpack_halves(key_word(victim, i));
      sums += vec2(dot(key, other), dot(key, key));
    }
    part_values[thread] = sums;
    workgroupBarrier();
    let slot = offset + tile + j;
    if (part == 0u && j < count && slot != victim && tokens_of(slot) != 0u) {
      let position = position_of(slot);
      if (position >= SINKS) {
        for (var p = 1u; p < parts; p++) {
          sums += part_values[p * KEY_TILE + j];
        }
        let norms = sqrt(sums.y * victim_squares);
        let cosine = select(sums.x / max(norms, 1e-30), 0.0, norms == 0.0);
        let mine = Ranked(-cosine, position, slot);
        if (is_before(mine, best)) {
          best = mine;
        }
      }
    }
  }
  return first_ranked(thread, best);
}

// The next slot to the right of \`victim\`.
fn right_neighbour(thread: u32, victim: u32, offset: u32, high: u32) -> u32 {
  let position = position_of(victim);
  var best = unranked();
  for (var i = thread; i < high; i += THREADS) {
    let slot = offset + i;
    if (tokens_of(slot) != 0u && position_of(slot) > position) {
      let mine = Ranked(0.0, position_of(slot), slot);
      if (is_before(mine, best)) {
        best = mine;
      }
    }
  }
  return first_ranked(thread, best).slot;
}

// Merges the value of \`victim\` into \`kept\`; returns how many slots it merged.
fn merge_value(
  thread: u32,
  row: u32,
  kv_head: u32,
  kept: u32,
  victim: u32,
  offset: u32,
) -> u32 {
  let half = HEAD_DIM / 2u;
  if (thread < half) {
    let from_value = unpack_halves(value_word(victim, thread));
    var value = unpack_halves(value_word(kept, thread));
    if (EXACT_VALUES) {
      var change = vec2<f32>();
      var lost = 0.0;
      var left = 0.0;
      for (var i = 0u; i < GROUP; i++) {
        let weight = attention_weight(row, kv_head, i, victim, offset);
        let vector = query_vector(row * GROUP + i, kv_head);
        change += weight * (from_value - output[vector * half + thread]);
        lost += weight;
        left += attention_weight(row, kv_head, i, kept, offset);
      }
      let scale = max(left, lost / RATIO_CAP);
      value += select(vec2<f32>(), change / scale, scale > 0.0);
    } else {
      let share = share_of(mean_attention(victim), mean_attention(kept));
      value = share * from_value + (1.0 - share) * value;
    }
    set_value_word(kept, thread, pack_halves(value));
  }
  if (thread == 0u) {
    set_side_word(kept, FIELD_TOKENS, tokens_of(kept) + tokens_of(victim));
    if (!EXACT_VALUES) {
      let share = share_of(mean_attention(victim), mean_attention(kept));
      let norm = share * side_float(victim, FIELD_VALUE_NORM) +
        (1.0 - share) * side_float(kept, FIELD_VALUE_NORM);
      set_side_float(kept, FIELD_VALUE_NORM, norm);
    }
  }
  return 1u;
}

// Weight of a slot in the attention of a query head.
fn attention_weight(
  row: u32,
  kv_head: u32,
  query_head: u32,
  slot: u32,
  offset: u32,
) -> f32 {
  let logit = raw_logits[logit_at(row, kv_head, query_head) + slot - offset];
  return exp(logit + vote_bias(slot, query_head) - log_sums[query_head]);
}
`,
  "lib/merge_sets.wgsl": `// Merging chains of listed candidates into what they chose.

// The slot after \`slot\` in its chain: see \`lib/merge_slots.wgsl\`.
fn next_member(slot: u32) -> u32 {
  var candidate = slot - table[head + HEAD_OFFSET];
  if ((slot & STAGED) != 0u) {
    candidate = params.max_capacity + (slot ^ STAGED) -
      kv_head * params.stage_rows;
  }
  let next = work[work_at(WORK_NEXT, candidate)];
  if (next == NO_SLOT) {
    return NO_SLOT;
  }
  return slot_of(next);
}

// Merges listed candidates into the ones they chose. A workgroup takes whole
// sets, so no two touch the same slot.
@compute @workgroup_size(THREADS)
fn merge(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  if (!begin(group.y)) {
    return;
  }
  merge_vector = (step_words[CHUNK_ROWS] - 1u) * HEADS + kv_head * GROUP;
  let listed = read_counter(thread, COUNT_LISTED);
  for (var i = group.x; i < listed; i += params.merge_groups) {
    if (thread == 0u) {
      let c = work[work_at(WORK_LIST, i)];
      let is_leader = (work[work_at(WORK_FLAGS, c)] & FLAG_LEADER) != 0u;
      shared_words[1] = c;
      shared_words[2] = NO_SLOT;
      if (is_leader) {
        shared_words[2] = work[work_at(WORK_CHOICE, c)];
      }
    }
    let goes = workgroupUniformLoad(&shared_words[1]);
    let stays = workgroupUniformLoad(&shared_words[2]);
    if (stays == NO_SLOT) {
      continue;
    }
    let first = slot_of(goes);
    var merged = Merged(0u, 0u, 0.0);
    if (MERGE == MERGE_COSINE) {
      merged.count = blend_slots(thread, slot_of(stays), first);
    } else if (MERGE == MERGE_SEGMENTS) {
      merged.count = merge_segment(thread, slot_of(stays), first);
    } else {
      merged = merge_slots(thread, slot_of(stays), first);
    }
    storageBarrier();
    if (thread == 0u) {
      var slot = first;
      while (slot != NO_SLOT) {
        free_slot(slot);
        slot = next_member(slot);
      }
      let at = work_at(WORK_DIVERGENCE, stays);
      work[at] =
        bitcast<u32>(bitcast<f32>(work[at]) + merged.divergence);
      let counts = kv_head * COUNTERS;
      atomicAdd(&counters[counts + COUNT_MERGED], merged.count);
      atomicAdd(&counters[counts + COUNT_GUARDED], merged.guarded);
    }
  }
}
`,
  "lib/merge_slots.wgsl": `// Merging slots: Electoral Votes and Zero Inference-Perturbation merging. See
// \`src/reference/merge_slots.ts\` for the source and the formulas.
//
// One workgroup merges one set. Every thread works out the merge weights for
// itself, from a few numbers per member; thread \`t\` then owns elements 2t and
// 2t + 1 of key and value, and the first threads one query head each.
//
// A kernel defines
//   next_member(slot)  the member after \`slot\`, or NO_SLOT

// Share of the mean squared query added to the Gram matrix's diagonal.
const RIDGE = 1e-6;

var<workgroup> head_votes: array<f32, MAX_GROUP>;
var<workgroup> head_excess: array<f32, MAX_GROUP>;
var<workgroup> gram: array<f32, MAX_GROUP * MAX_GROUP>;
var<workgroup> shift: array<f32, MAX_GROUP>;

// First of the query vectors, in \`queries\`, that the merge must not disturb.
var<private> merge_vector: u32;

struct Merged {
  // Slots merged into the kept one.
  count: u32,
  // 1 if a ZIP scale was unsafe.
  guarded: u32,
  // KL(merge weights, vote shares)
  divergence: f32,
}

// Merges \`first\` and the members after it into \`kept\`. The caller waits for
// storage and then frees them.
fn merge_slots(thread: u32, kept: u32, first: u32) -> Merged {
  let half = HEAD_DIM / 2u;
  var mass = -1e30;
  var votes = -1e30;
  var merged = Merged(0u, 0u, 0.0);
  for (var slot = kept; slot != NO_SLOT; slot = member_after(slot, kept, first)) {
    mass = log_add(mass, log_weight(slot));
    votes = log_add(votes, pooled_bias(slot));
    merged.count += 1u;
  }
  merged.count -= 1u;

  var mean_score = 0.0;
  var key = vec2<f32>();
  var value = vec2<f32>();
  var current = 0.0;
  var exact = -1e30;
  var lane_votes = -1e30;
  var observations = 0u;
  var accumulated = 0.0;
  var norm = 0.0;
  var tokens = 0u;
  for (var slot = kept; slot != NO_SLOT; slot = member_after(slot, kept, first)) {
    let score = log_score(slot);
    let weight = exp(log_weight(slot) - mass);
    mean_score += weight * score;
    if (thread < half) {
      key += weight * unpack_halves(key_word(slot, thread));
      value += weight * unpack_halves(value_word(slot, thread));
    }
    if (thread < GROUP) {
      let logit = member_logit(thread, slot);
      let bias = vote_bias(slot, thread);
      current += weight * logit;
      exact = log_add(exact, bias + logit);
      lane_votes = log_add(lane_votes, bias);
    }
    observations = max(observations, side_word(slot, FIELD_OBSERVATIONS));
    accumulated += side_float(slot, FIELD_ACCUMULATED);
    norm += weight * side_float(slot, FIELD_VALUE_NORM);
    tokens += tokens_of(slot);
  }
  merged.divergence = mean_score - (mass - votes);
  if (thread < GROUP) {
    head_votes[thread] = lane_votes;
    // By how much the mean key overstates the mass for the current query.
    head_excess[thread] = current - (exact - lane_votes);
  }
  workgroupBarrier();

  var is_real = KEY_FORM == KEY_REAL_VOTES;
  if (KEY_FORM == KEY_ZIP) {
    let scale = (mass - votes) / select(mean_score, 1.0, mean_score == 0.0);
    if (mean_score != 0.0 && scale >= GUARD_LOW && scale <= GUARD_HIGH) {
      key *= scale;
    } else {
      is_real = true;
      merged.guarded = 1u;
    }
  }
  if (KEY_FORM == KEY_MIN_NORM) {
    solve_shift(thread);
    for (var head = 0u; head < GROUP; head++) {
      if (thread < half) {
        key += shift[head] * queries[(merge_vector + head) * half + thread];
      }
    }
  }

  if (thread < half) {
    set_key_word(kept, thread, pack_halves(key));
    set_value_word(kept, thread, pack_halves(value));
  }
  if (thread == 0u) {
    var sum = 0.0;
    for (var lane = 0u; lane < LANES; lane++) {
      var bias = votes;
      var excess = merged.divergence;
      if (LANES > 1u) {
        bias = head_votes[lane];
        excess = head_excess[lane];
      }
      if (is_real) {
        bias -= excess;
      }
      sum += bias;
      set_side_float(kept, FIELD_BIAS + lane, bias);
    }
    if (observations > 0u) {
      // The score that gives the merged votes the mass of the members.
      let ema = mass - sum / f32(LANES) + ema_correction(observations);
      set_side_float(kept, FIELD_EMA, ema);
    }
    set_side_float(kept, FIELD_ACCUMULATED, accumulated);
    set_side_word(kept, FIELD_OBSERVATIONS, observations);
    set_side_float(kept, FIELD_VALUE_NORM, norm);
    set_side_word(kept, FIELD_TOKENS, tokens);
  }
  return merged;
}

fn member_after(slot: u32, kept: u32, first: u32) -> u32 {
  if (slot == kept) {
    return first;
  }
  return next_member(slot);
}

// Raw logit of a member for one query head. Members are never sinks.
fn member_logit(query_head: u32, slot: u32) -> f32 {
  let half = HEAD_DIM / 2u;
  var sum = 0.0;
  for (var i = 0u; i < half; i++) {
    let query = queries[(merge_vector + query_head) * half + i];
    sum += dot(query, unpack_halves(key_word(slot, i)));
  }
  return sum * ROOT;
}

// Solves for the coordinates, in the span of the queries, of the smallest
// change of a key that lowers the logit of head g by \`head_excess[g]\`. The Gram
// system of the queries is positive definite: elimination needs no pivoting.
fn solve_shift(thread: u32) {
  let half = HEAD_DIM / 2u;
  let row = thread / GROUP;
  let column = thread % GROUP;
  let is_inside = row < GROUP;
  if (is_inside) {
    var sum = 0.0;
    for (var i = 0u; i < half; i++) {
      sum += dot(
        queries[(merge_vector + row) * half + i],
        queries[(merge_vector + column) * half + i],
      );
    }
    gram[thread] = sum * ROOT;
  }
  workgroupBarrier();
  var mean = 0.0;
  for (var head = 0u; head < GROUP; head++) {
    mean += gram[head * GROUP + head];
  }
  mean /= f32(GROUP);
  workgroupBarrier();
  if (is_inside && row == column) {
    // Queries that are all 0 change no logit, whatever the key.
    gram[thread] = select(gram[thread] + RIDGE * mean, 1.0, mean == 0.0);
    shift[row] = select(-head_excess[row], 0.0, mean == 0.0);
  }
  workgroupBarrier();
  for (var pivot = 0u; pivot < GROUP; pivot++) {
    var factor = 0.0;
    var above = 0.0;
    let known = shift[pivot];
    if (is_inside && row != pivot) {
      factor = gram[row * GROUP + pivot] / gram[pivot * GROUP + pivot];
      above = gram[pivot * GROUP + column];
    }
    workgroupBarrier();
    if (is_inside && row != pivot) {
      gram[thread] -= factor * above;
      if (column == 0u) {
        shift[row] -= factor * known;
      }
    }
    workgroupBarrier();
  }
  if (thread < GROUP) {
    shift[thread] /= gram[thread * GROUP + thread];
  }
  workgroupBarrier();
}
`,
  "lib/merge_values.wgsl": `// Merging the value of a slot into its right neighbour: see
// \`src/reference/merge_values.ts\` for the source and the formulas.

// Share of the first of two mean attention weights; a half if both are 0.
fn share_of(a: f32, b: f32) -> f32 {
  let sum = a + b;
  return select(a / sum, 0.5, sum == 0.0);
}
`,
  "lib/merge_victims.wgsl": `// Which victims of a chunk are merged into the same slot.

// Chains victims with the same target in the order of the list.
@compute @workgroup_size(THREADS)
fn link(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  if (!begin(group.x)) {
    return;
  }
  let listed = read_counter(thread, COUNT_LISTED);
  if (MERGE == MERGE_COSINE) {
    move_threshold(thread, listed);
  }
  for (var i = thread; i < listed; i += THREADS) {
    let c = work[work_at(WORK_LIST, i)];
    let choice = work[work_at(WORK_CHOICE, c)];
    if (choice == NO_SLOT) {
      continue;
    }
    var is_leader = true;
    var next = NO_SLOT;
    for (var k = 0u; k < listed; k++) {
      let other = work[work_at(WORK_LIST, k)];
      if (k == i || work[work_at(WORK_CHOICE, other)] != choice) {
        continue;
      }
      if (k < i) {
        is_leader = false;
      } else {
        next = other;
        break;
      }
    }
    work[work_at(WORK_NEXT, c)] = next;
    if (is_leader) {
      work[work_at(WORK_FLAGS, c)] |= FLAG_LEADER;
    }
  }
}

// Moves the threshold of the head and takes their targets from those victims
// that are not similar enough.
fn move_threshold(thread: u32, listed: u32) {
  var cosines = 0.0;
  var count = 0u;
  for (var i = thread; i < listed; i += THREADS) {
    let c = work[work_at(WORK_LIST, i)];
    if (work[work_at(WORK_CHOICE, c)] != NO_SLOT) {
      cosines -= unordered(work[work_at(WORK_KEY, c)]);
      count += 1u;
    }
  }
  cosines = sum_floats(thread, cosines);
  count = sum_words(thread, count);
  if (count == 0u) {
    return;
  }
  let past = bitcast<f32>(uniform_word(thread, table[head + HEAD_THRESHOLD]));
  let threshold = next_threshold(past, cosines / f32(count));
  for (var i = thread; i < listed; i += THREADS) {
    let c = work[work_at(WORK_LIST, i)];
    if (-unordered(work[work_at(WORK_KEY, c)]) < threshold) {
      work[work_at(WORK_CHOICE, c)] = NO_SLOT;
    }
  }
  if (thread == 0u) {
    table[head + HEAD_THRESHOLD] = bitcast<u32>(threshold);
  }
  storageBarrier();
}
`,
  "lib/neighbours.wgsl": `// Neighbours in the order of the text, among the slots of one head.
//
// A kernel defines
//   slot_of(candidate)  the slot with a number
//   is_held(candidate)  whether it holds a token

// The first of \`count\` candidates to the right of \`position\`, or NO_SLOT. A
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
`,
  "lib/next_values.wgsl": `// Adding the value of a slot that goes to those of the slots after it: see
// \`src/reference/next_values.ts\` for the source and the formulas.
//
// A kernel defines
//   slot_of(candidate)   the slot with a number
//   is_there(candidate)  whether it holds a token and has not gone

// Positions after a slot that take its value in.
override NEXT_COUNT: u32 = 1u;
// Whether the probability of passing on stands for the draw.
override EXPECTED: bool = false;
override DRAW_SEED: u32 = 0u;

// Candidates by their distance from the one that goes.
var<workgroup> followers: array<u32, THREADS>;

// A number in [0, 1) that depends on the seed and the place alone.
fn draw_uniform(layer: u32, kv_head: u32, position: u32) -> f32 {
  let words = vec3(layer, kv_head, position);
  var hash = DRAW_SEED;
  for (var i = 0u; i < 3u; i++) {
    hash ^= words[i];
    hash = (hash ^ (hash >> 16u)) * 0x7feb352du;
    hash = (hash ^ (hash >> 15u)) * 0x846ca68bu;
    hash = (hash ^ (hash >> 16u)) + 0x9e3779b9u;
  }
  return f32(hash >> 8u) / 16777216.0;
}

// Passes the value of a candidate on; returns the one that took its tokens in,
// or NO_SLOT if nothing was passed on. The caller frees its slot.
fn pass_on(thread: u32, candidate: u32, candidates: u32, kv_head: u32) -> u32 {
  let slot = slot_of(candidate);
  let position = position_of(slot);
  workgroupBarrier();
  followers[thread] = NO_SLOT;
  workgroupBarrier();
  for (var c = thread; c < candidates; c += THREADS) {
    if (is_there(c)) {
      let other = position_of(slot_of(c));
      if (other > position && other - position <= NEXT_COUNT) {
        followers[other - position - 1u] = c;
      }
    }
  }
  workgroupBarrier();
  var nearest = NO_SLOT;
  var sum = 0.0;
  var count = 0u;
  for (var i = 0u; i < NEXT_COUNT; i++) {
    if (followers[i] != NO_SLOT) {
      nearest = min(nearest, i);
      sum += side_float(slot_of(followers[i]), FIELD_ACCUMULATED);
      count += 1u;
    }
  }
  if (count == 0u) {
    return NO_SLOT;
  }
  nearest = followers[nearest];
  let mean = sum / f32(count);
  let own = side_float(slot, FIELD_ACCUMULATED);
  var mask = 1.0;
  if (own < mean) {
    mask = own / mean;
  }
  if (!EXPECTED) {
    mask = select(0.0, 1.0, draw_uniform(params.layer, kv_head, position) < mask);
  }
  if (mask == 0.0) {
    return NO_SLOT;
  }
  let half = HEAD_DIM / 2u;
  if (thread < half) {
    let value = mask / f32(NEXT_COUNT) * unpack_halves(value_word(slot, thread));
    for (var i = 0u; i < NEXT_COUNT; i++) {
      if (followers[i] != NO_SLOT) {
        let other = slot_of(followers[i]);
        let own_value = unpack_halves(value_word(other, thread));
        set_value_word(other, thread, pack_halves(own_value + value));
      }
    }
  }
  if (thread < NEXT_COUNT && followers[thread] != NO_SLOT) {
    let other = slot_of(followers[thread]);
    let norm = side_float(other, FIELD_VALUE_NORM) +
      mask / f32(NEXT_COUNT) * side_float(slot, FIELD_VALUE_NORM);
    set_side_float(other, FIELD_VALUE_NORM, norm);
  }
  if (thread == 0u) {
    let other = slot_of(nearest);
    set_side_word(other, FIELD_TOKENS, tokens_of(other) + tokens_of(slot));
  }
  return nearest;
}
`,
  "lib/observe_step.wgsl": `// What a decode step adds to the scores of a head's slots.

// Softmax sums of the row at the scale of scores, as logarithms.
var<workgroup> gain_sums: array<f32, MAX_GROUP>;

// Adds this row to the scores of a slot.
fn observe_slot(row: u32, kv_head: u32, slot: u32, index: u32) {
  let gain = score_gain(position_of_row(row), head_words[HEAD_BUDGET]);
  var seen = init_observation();
  for (var i = 0u; i < GROUP; i++) {
    let logit = raw_logits[logit_at(row, kv_head, i) + index];
    var log_sum = log_sums[i];
    if (STEP_GAIN) {
      log_sum = gain_sums[i];
    }
    seen =
      observe_head(seen, gain * logit, gain * vote_bias(slot, i), log_sum);
  }
  let position = position_of_row(row);
  let scores = add_observation(read_scores(slot), seen, position);
  set_side_float(slot, FIELD_EMA, scores.ema);
  set_side_float(slot, FIELD_ACCUMULATED, scores.accumulated);
  set_side_word(slot, FIELD_OBSERVATIONS, scores.observations);
}

// Sums up the row's softmax at the scale of scores. The sum
// of the attention is at least its largest term, so nothing overflows.
fn sum_gained(thread: u32) {
  let gain = score_gain(position_of_row(own_row), head_words[HEAD_BUDGET]);
  for (var query_head = 0u; query_head < GROUP; query_head++) {
    let first = logit_at(own_row, own_kv_head, query_head);
    let log_sum = log_sums[query_head];
    var sum = 0.0;
    for (var i = thread; i < own_high; i += THREADS) {
      if (tokens_of(own_offset + i) != 0u) {
        let logit = raw_logits[first + i] +
          vote_bias(own_offset + i, query_head);
        sum += exp(gain * (logit - log_sum));
      }
    }
    sum = sum_floats(thread, sum);
    if (thread == 0u) {
      gain_sums[query_head] = gain * log_sum + log(sum);
    }
  }
  workgroupBarrier();
}

// Joins the attention of the head and adds the row to the scores.
fn attend_and_score(thread: u32) {
  let splits = (own_high + params.split_slots - 1u) / params.split_slots;
  join(thread, own_row, own_kv_head, splits);
  workgroupBarrier();
  if (STEP_GAIN && OBSERVE) {
    sum_gained(thread);
  }
  for (var i = thread; i < own_high; i += THREADS) {
    let slot = own_offset + i;
    if (tokens_of(slot) == 0u) {
      continue;
    }
    if (OBSERVE) {
      observe_slot(own_row, own_kv_head, slot, i);
    }
    if (RATED) {
      set_rating(i, plain_score(slot));
    }
  }
  if (MERGE != MERGE_NEVER) {
    if (SCORE == SCORE_KEY_DISTANCE) {
      rate_by_key(thread);
    } else if (SCORE == SCORE_EXPECTED) {
      rate_by_expectation(thread, sequence_of(own_row), own_kv_head);
    }
  }
}
`,
  "lib/ordered_bits.wgsl": `// Bits of a float that sort like the float.
fn ordered(value: f32) -> u32 {
  // Both zeros are the same number.
  let bits = bitcast<u32>(select(value, 0.0, value == 0.0));
  return select(bits | 0x80000000u, ~bits, (bits & 0x80000000u) != 0u);
}

// The float with these ordered bits.
fn unordered(bits: u32) -> f32 {
  return bitcast<f32>(select(~bits, bits ^ 0x80000000u, bits >= 0x80000000u));
}
`,
  "lib/pair_step.wgsl": `// The cheapest pair of a head in a decode step, and its merge. \`finish\` lists
// the slots that may go, \`find_partners\` finds what each would be merged into
// (many workgroups), and \`merge_pair\` takes the cheapest proposal.
//
// Where slots remember partners (see \`src/reference/partners.ts\`), they are
// listed in steps with a search only, those that know none first: the
// workgroups that have these compare them with the whole list, all others only
// compare with them. What is found is remembered, and proposals are what slots
// remember: without a search nothing but their fields is looked at.

// Steps from one search of a head to the next, at most, and slots of its budget
// for each of them.
override SEARCH_EVERY: u32 = 1u;
override SEARCH_SLOTS: u32 = 1u;

// Words of a (row, KV head) in \`pairs\`: how many slots are listed, how many of
// them are compared with all, and the scatter of the head's values; then three
// sections with a word per slot.
const PAIR_COUNT = 0u;
const PAIR_ALONE = 1u;
const PAIR_SPREAD = 2u;
const PAIR_HEADER = 3u;
// Slots that may go, counted from the head's first.
const PAIR_LIST = 0u;
// By place in the list: the slot that each would be merged into, or NO_SLOT.
const PAIR_CHOICE = 1u;
// f32: how far away that is, where it is remembered, or what merging costs.
const PAIR_RANK = 2u;

var<private> pair_alone: u32;

// First word of the head that a workgroup has turned to.
fn pair_base() -> u32 {
  return (own_row * KV_HEADS + own_kv_head) *
    (PAIR_HEADER + 3u * params.max_capacity);
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

// What a slot remembers: one more than its partner, or 0.
fn partner_of(candidate: u32) -> u32 {
  return side_word(slot_of(candidate), partner_field() + PARTNER_SLOT);
}

// How far away that is.
fn partner_distance(candidate: u32) -> f32 {
  return side_float(slot_of(candidate), partner_field() + PARTNER_DISTANCE);
}

fn set_partner(candidate: u32, word: u32, distance: f32) {
  let slot = slot_of(candidate);
  set_side_word(slot, partner_field() + PARTNER_SLOT, word);
  set_side_float(slot, partner_field() + PARTNER_DISTANCE, distance);
}

fn is_settled(i: u32) -> bool {
  return i >= pair_alone;
}

fn is_open_to(i: u32, t: u32) -> bool {
  return !is_settled(i) || !is_settled(t);
}

// Whether a step searches a head, of whose slots \`known\` know a partner.
fn is_search_due(known: u32) -> bool {
  if (!PARTNERS || known == 0u || head_words[HEAD_SPREAD] == 0u) {
    return true;
  }
  let period = clamp(head_words[HEAD_BUDGET] / SEARCH_SLOTS, 1u, SEARCH_EVERY);
  let turn = position_of_row(own_row) + params.layer + own_kv_head;
  return turn % period == 0u;
}

// Lists the slots that may go, if a head over its budget has to be searched,
// and measures the scatter of its values, unless that is known.
fn list_pairs(thread: u32, is_over: bool) {
  var known = 0u;
  for (var c = thread; PARTNERS && c < own_high; c += THREADS) {
    known += select(0u, 1u, partner_of(c) != 0u);
  }
  known = sum_words(thread, known);
  let is_due = is_over && is_search_due(known);
  var count = 0u;
  var alone = 0u;
  let used = select(0u, own_high, is_due);
  for (var settled = 0u; settled < select(1u, 2u, PARTNERS); settled++) {
    for (var first = 0u; first < used; first += THREADS) {
      let c = first + thread;
      var listed = 0u;
      if (c < used && may_go(slot_of(c))) {
        let is_known = PARTNERS && partner_of(c) != 0u;
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
  var spread = bitcast<f32>(head_words[HEAD_SPREAD]);
  if (is_due && (!PARTNERS || spread == 0.0)) {
    spread = value_spread(thread, used);
  }
  if (thread == 0u) {
    pairs[pair_base() + PAIR_COUNT] = count;
    pairs[pair_base() + PAIR_ALONE] = alone;
    pairs[pair_base() + PAIR_SPREAD] = bitcast<u32>(spread);
    if (PARTNERS) {
      let head = head_at(sequence_of(own_row), own_kv_head);
      table[head + HEAD_SPREAD] = bitcast<u32>(spread);
    }
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
  search(thread, first, proposers, select(alone, count, first < alone), scale);
}

// The partner that a slot remembers, if it does and that one has not been
// compared with it again.
fn known_partner(candidate: u32) -> Ranked {
  let word = partner_of(candidate);
  if (word == 0u || partner_of(word - 1u) == 0u) {
    return unranked();
  }
  let position = position_of(slot_of(word - 1u));
  return Ranked(partner_distance(candidate), position, word - 1u);
}

fn propose(i: u32, found: Ranked) {
  var best = found;
  if (PARTNERS) {
    let known = known_partner(proposer_at(i));
    if (is_before(known, best)) {
      best = known;
    }
  }
  pairs[pair_at(PAIR_CHOICE, i)] = best.slot;
  pairs[pair_at(PAIR_RANK, i)] = bitcast<u32>(best.key);
}

// Makes all slots of the list remember what was found for them.
fn remember_found(thread: u32, count: u32) {
  for (var i = thread; i < count; i += THREADS) {
    let choice = pairs[pair_at(PAIR_CHOICE, i)];
    let distance = bitcast<f32>(pairs[pair_at(PAIR_RANK, i)]);
    let exists = choice != NO_SLOT;
    set_partner(
      proposer_at(i),
      select(0u, choice + 1u, exists),
      select(0.0, distance, exists),
    );
  }
}

// Makes all slots forget the one that goes, and that and the one that stays
// what they know.
fn forget_pair(thread: u32, stays: u32, goes: u32) {
  for (var c = thread; c < own_high; c += THREADS) {
    if (partner_of(c) == goes + 1u || c == stays || c == goes) {
      set_partner(c, 0u, 0.0);
    }
  }
}

// The cheapest of what slots remember: by its \`slot\`, who does.
fn cheapest_known(thread: u32) -> Ranked {
  var cheapest = unranked();
  for (var c = thread; c < own_high; c += THREADS) {
    let word = partner_of(c);
    if (word == 0u) {
      continue;
    }
    let cost = pair_cost(
      log_weight(slot_of(c)),
      log_weight(slot_of(word - 1u)),
      partner_distance(c),
    );
    let mine = Ranked(cost, position_of(slot_of(c)), c);
    if (is_before(mine, cheapest)) {
      cheapest = mine;
    }
  }
  return first_ranked(thread, cheapest);
}

// The cheapest of what was found: by its \`slot\`, the place in the list.
fn cheapest_found(thread: u32, count: u32) -> Ranked {
  var cheapest = unranked();
  for (var i = thread; i < count; i += THREADS) {
    let rank = bitcast<f32>(pairs[pair_at(PAIR_RANK, i)]);
    let mine = Ranked(rank, position_of(slot_of(proposer_at(i))), i);
    if (pairs[pair_at(PAIR_CHOICE, i)] != NO_SLOT && is_before(mine, cheapest)) {
      cheapest = mine;
    }
  }
  return first_ranked(thread, cheapest);
}

// The two ends of the cheapest pair, or NO_SLOTs.
fn cheapest_pair(thread: u32, count: u32) -> vec2<u32> {
  if (PARTNERS) {
    remember_found(thread, count);
    storageBarrier();
    let slot = cheapest_known(thread).slot;
    if (slot != NO_SLOT) {
      return vec2(slot, partner_of(slot) - 1u);
    }
  } else {
    let place = cheapest_found(thread, count).slot;
    if (place != NO_SLOT) {
      return vec2(proposer_at(place), pairs[pair_at(PAIR_CHOICE, place)]);
    }
  }
  return vec2(NO_SLOT);
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
  let live = workgroupUniformLoad(&head_words[HEAD_LIVE]);
  if (live <= workgroupUniformLoad(&head_words[HEAD_BUDGET])) {
    return;
  }
  let count = uniform_word(thread, pairs[pair_base() + PAIR_COUNT]);
  let pair = cheapest_pair(thread, count);
  var merged = Merged(0u, 0u, 0.0);
  var victim = NO_SLOT;
  if (uniform_word(thread, pair.x) != NO_SLOT) {
    let a = slot_of(pair.x);
    let b = slot_of(pair.y);
    let is_lower = is_before(
      Ranked(rank_of(score_of(pair.x), a), position_of(a), a),
      Ranked(rank_of(score_of(pair.y), b), position_of(b), b),
    );
    // All threads know the two before anybody forgets them.
    storageBarrier();
    victim = select(b, a, is_lower);
    if (PARTNERS) {
      forget_pair(
        thread,
        select(pair.x, pair.y, is_lower),
        select(pair.y, pair.x, is_lower),
      );
    }
    merge_vector = query_vector(row * GROUP, kv_head);
    merged = merge_slots(thread, select(a, b, is_lower), victim);
  } else if (count > 0u) {
    // A slot that is alone has no partner, and is dropped.
    victim = slot_of(proposer_at(0u));
  }
  workgroupBarrier();
  if (victim != NO_SLOT) {
    remove(thread, head_at(sequence_of(row), kv_head), victim, merged);
  }
}
`,
  "lib/pairing.wgsl": `// Pairing candidates up: who may pair, and which of the proposals that
// \`find_targets\` left are taken.

// Lists what may pair up, if the head is over its budget.
@compute @workgroup_size(THREADS)
fn list_pairs(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  if (!begin(group.x)) {
    return;
  }
  let excess = count_excess(thread);
  for (var c = thread; c < params.candidates; c += THREADS) {
    let is_listed = excess > 0u && is_held(c) && may_go(c);
    work[work_at(WORK_FLAGS, c)] =
      select(0u, FLAG_LISTED | FLAG_TARGET, is_listed);
  }
  storageBarrier();
  make_list(thread);
  list_targets(thread);
  if (thread == 0u) {
    atomicStore(&counters[kv_head * COUNTERS + COUNT_EXCESS], excess);
  }
}

fn mark_at(section: u32, candidate: u32) -> u32 {
  return (section * KV_HEADS + kv_head) * params.candidates + candidate;
}

// Whether both ends of a candidate's proposal are still free.
fn is_open(candidate: u32) -> bool {
  let choice = work[work_at(WORK_CHOICE, candidate)];
  if (choice == NO_SLOT) {
    return false;
  }
  let flags = work[work_at(WORK_FLAGS, candidate)] |
    work[work_at(WORK_FLAGS, choice)];
  return (flags & FLAG_TAKEN) == 0u;
}

fn touch_key(candidate: u32, key: u32) {
  atomicMin(&marks[mark_at(0u, candidate)], key);
}

fn touch_position(candidate: u32, key: u32, position: u32) {
  if (atomicLoad(&marks[mark_at(0u, candidate)]) == key) {
    atomicMin(&marks[mark_at(1u, candidate)], position);
  }
}

fn is_best_at(candidate: u32, key: u32, position: u32) -> bool {
  return atomicLoad(&marks[mark_at(0u, candidate)]) == key &&
    atomicLoad(&marks[mark_at(1u, candidate)]) == position;
}

// Takes proposals in order of similarity while both ends are free; returns how
// many. A proposal that is the best of all that touch its two ends is taken
// whatever happens elsewhere, so rounds of taking all of those give what one
// pass in order would.
fn accept_pairs(thread: u32, listed: u32) -> u32 {
  var accepted = 0u;
  loop {
    for (var i = thread; i < listed; i += THREADS) {
      let c = work[work_at(WORK_LIST, i)];
      atomicStore(&marks[mark_at(0u, c)], 0xffffffffu);
      atomicStore(&marks[mark_at(1u, c)], 0xffffffffu);
    }
    storageBarrier();
    for (var i = thread; i < listed; i += THREADS) {
      let c = work[work_at(WORK_LIST, i)];
      if (is_open(c)) {
        let key = work[work_at(WORK_KEY, c)];
        touch_key(c, key);
        touch_key(work[work_at(WORK_CHOICE, c)], key);
      }
    }
    storageBarrier();
    for (var i = thread; i < listed; i += THREADS) {
      let c = work[work_at(WORK_LIST, i)];
      if (is_open(c)) {
        let key = work[work_at(WORK_KEY, c)];
        let position = position_of(slot_of(c));
        touch_position(c, key, position);
        touch_position(work[work_at(WORK_CHOICE, c)], key, position);
      }
    }
    storageBarrier();
    var taken = 0u;
    for (var i = thread; i < listed; i += THREADS) {
      let c = work[work_at(WORK_LIST, i)];
      if (is_open(c)) {
        let key = work[work_at(WORK_KEY, c)];
        let choice = work[work_at(WORK_CHOICE, c)];
        let position = position_of(slot_of(c));
        if (is_best_at(c, key, position) && is_best_at(choice, key, position)) {
          work[work_at(WORK_FLAGS, c)] |= FLAG_TAKEN | FLAG_ACCEPTED;
          work[work_at(WORK_FLAGS, choice)] |= FLAG_TAKEN;
          taken += 1u;
        }
      }
    }
    storageBarrier();
    taken = sum_words(thread, taken);
    accepted += taken;
    if (taken == 0u) {
      break;
    }
  }
  return accepted;
}

// Takes the best pairs, as many as the head is over its budget, and lists the
// ends that go.
@compute @workgroup_size(THREADS)
fn pair(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  if (!begin(group.x)) {
    return;
  }
  let listed = read_counter(thread, COUNT_LISTED);
  let excess = read_counter(thread, COUNT_EXCESS);
  let accepted = accept_pairs(thread, listed);
  var last = vec2(0xffffffffu);
  if (accepted > excess) {
    last = select_rank(thread, FLAG_ACCEPTED, excess);
  }
  storageBarrier();
  for (var i = thread; i < listed; i += THREADS) {
    let c = work[work_at(WORK_LIST, i)];
    let flags = work[work_at(WORK_FLAGS, c)];
    work[work_at(WORK_FLAGS, c)] = flags & FLAG_ACCEPTED;
  }
  storageBarrier();
  for (var i = thread; i < listed; i += THREADS) {
    let c = work[work_at(WORK_LIST, i)];
    let flags = work[work_at(WORK_FLAGS, c)];
    if ((flags & FLAG_ACCEPTED) == 0u || !is_within(c, last)) {
      continue;
    }
    let choice = work[work_at(WORK_CHOICE, c)];
    let mine = slot_of(c);
    let other = slot_of(choice);
    let is_lower = is_before(
      Ranked(rank_of(score_of(c), mine), position_of(mine), mine),
      Ranked(rank_of(score_of(choice), other), position_of(other), other),
    );
    let goes = select(choice, c, is_lower);
    work[work_at(WORK_CHOICE, goes)] = select(c, choice, is_lower);
    work[work_at(WORK_NEXT, goes)] = NO_SLOT;
    work[work_at(WORK_FLAGS, goes)] |= FLAG_LISTED | FLAG_LEADER;
  }
  storageBarrier();
  make_list(thread);
}
`,
  "lib/pairs.wgsl": `// What merging two slots costs: see \`src/reference/pairs.ts\` for the source and
// the formulas.
//
// A kernel declares \`part_values\`, THREADS of vec2<f32> in workgroup memory,
// and defines
//   slot_of(candidate)  the slot with a number
//   is_held(candidate)  whether it holds a token

// Whether squared distances of keys and values are multiplied or added.
override PRODUCT_DISTANCE: bool = false;
// keyWeight / √HEAD_DIM
override KEY_WEIGHT: f32 = 0.0;
override VALUE_WEIGHT: f32 = 0.0;
// Whether a slot only looks at targets that are heavier than itself.
override HEAVIER_TARGETS: bool = false;
// Whether the nearest target is looked for, whatever the weights.
override BY_DISTANCE: bool = false;

// Where two slots are the same, their cost still has a logarithm.
const LEAST_DISTANCE = 1e-30;

// What squared distances of keys and of values count.
struct PairScale {
  keys: f32,
  values: f32,
}

fn pair_scale(spread: f32) -> PairScale {
  let values = select(0.0, VALUE_WEIGHT / max(spread, 1e-30), spread > 0.0);
  return PairScale(KEY_WEIGHT, values);
}

// How far slots are apart whose keys and values have these scaled distances.
fn pair_distance(keys: f32, values: f32) -> f32 {
  return select(keys + values, keys * (1.0 + values), PRODUCT_DISTANCE);
}

// ln of the cost of merging slots whose weights have these logarithms.
fn pair_cost(a: f32, b: f32, distance: f32) -> f32 {
  return a + b - log_add(a, b) + log(max(distance, LEAST_DISTANCE));
}

// Mean squared distance of the values of some candidates from their mean.
fn value_spread(thread: u32, candidates: u32) -> f32 {
  let half = HEAD_DIM / 2u;
  // A thread has two elements and every \`parts\`th candidate.
  let parts = THREADS / half;
  let part = thread / half;
  let pair = thread % half;
  var sum = vec2<f32>();
  var count = 0u;
  for (var c = part; part < parts && c < candidates; c += parts) {
    if (is_held(c)) {
      sum += unpack_halves(value_word(slot_of(c), pair));
      count += select(0u, 1u, pair == 0u);
    }
  }
  let held = f32(max(1u, sum_words(thread, count)));
  part_values[thread] = sum;
  workgroupBarrier();
  var mean = vec2<f32>();
  for (var p = 0u; p < parts; p++) {
    mean += part_values[p * half + pair];
  }
  mean /= held;
  var squares = 0.0;
  for (var c = part; part < parts && c < candidates; c += parts) {
    if (is_held(c)) {
      let rest = unpack_halves(value_word(slot_of(c), pair)) - mean;
      squares += dot(rest, rest);
    }
  }
  return sum_floats(thread, squares) / held;
}
`,
  "lib/pass_values.wgsl": `// Passes the values of victims on, one by one in the order of their ranks, since
// each takes in what those before it have passed on. A workgroup has a head: the
// elements of a value do not touch each other, so threads wait only for the
// search of the slots that are still there.
@compute @workgroup_size(THREADS)
fn pass_values(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  if (!begin(group.x)) {
    return;
  }
  let listed = read_counter(thread, COUNT_LISTED);
  for (var i = thread; i < listed; i += THREADS) {
    let c = work[work_at(WORK_LIST, i)];
    let mine = vec2(work[work_at(WORK_KEY, c)], position_of(slot_of(c)));
    var place = 0u;
    for (var k = 0u; k < listed; k++) {
      let other = work[work_at(WORK_LIST, k)];
      place += select(0u, 1u, k != i && is_within(other, mine));
    }
    work[work_at(WORK_NEXT, place)] = c;
  }
  storageBarrier();
  for (var i = 0u; i < listed; i++) {
    let c = uniform_word(thread, work[work_at(WORK_NEXT, i)]);
    if (thread == 0u) {
      work[work_at(WORK_FLAGS, c)] |= FLAG_TAKEN;
    }
    storageBarrier();
    let taker = uniform_word(thread, pass_on(thread, c, params.candidates, kv_head));
    if (thread == 0u) {
      work[work_at(WORK_CHOICE, c)] = taker;
      if (taker != NO_SLOT) {
        free_slot(slot_of(c));
        atomicAdd(&counters[kv_head * COUNTERS + COUNT_MERGED], 1u);
      }
    }
  }
}

fn is_there(candidate: u32) -> bool {
  let flags = work[work_at(WORK_FLAGS, candidate)];
  return is_held(candidate) && (flags & FLAG_TAKEN) == 0u;
}
`,
  "lib/policy.wgsl": `// The numbers of a policy: see \`src/policies/parts.ts\`.

const SCORE_POSITION = 0u;
const SCORE_ACCUMULATED = 1u;
const SCORE_EMA = 2u;
const SCORE_MEAN = 3u;
const SCORE_LAST = 4u;
const SCORE_AGE = 5u;
const SCORE_KEY_DISTANCE = 6u;
const SCORE_STEP_GAIN = 7u;
const SCORE_EXPECTED = 8u;
override SCORE: u32 = SCORE_POSITION;
// ln alpha and ln(1 - alpha) of the moving sum; alpha is 0 where there is none.
override LOG_ALPHA: f32 = -1e30;
override LOG_REST: f32 = 0.0;
// Whether the moving sum is over exp(q·k/√d) itself.
override RAW_SCALE: bool = false;
override COUNT_VOTES: bool = false;
// Whether anything reads the scores of slots.
override OBSERVE: bool = true;

// Whether scores count times the norms of values, beside a first stage; the
// power of a norm; what is added to a score then, and its logarithm.
override COUNT_VALUES: bool = false;
override FIRST_STAGE: f32 = 0.0;
override VALUE_POWER: u32 = 1u;
override VALUE_EPSILON: f32 = 0.0;
override LOG_VALUE_EPSILON: f32 = -1e30;

// Whether scores take more than a slot's own fields: the keys of the head, the
// neighbours up to a distance, the heads of the layer.
override RATED: bool = false;
const POOL_NONE = 0u;
const POOL_MEAN = 1u;
const POOL_MAX = 2u;
override POOL: u32 = POOL_NONE;
override POOL_REACH: u32 = 0u;
override LAYER_SCOPE: bool = false;

const MERGE_NEVER = 0u;
const MERGE_DROP = 1u;
const MERGE_VOTES = 2u;
const MERGE_RIGHT_NEIGHBOUR = 3u;
const MERGE_PAIR = 4u;
const MERGE_COSINE = 5u;
const MERGE_NEXT_VALUES = 6u;
const MERGE_SEGMENTS = 7u;
override MERGE: u32 = MERGE_NEVER;

// Whether slots remember the partner that they would be merged with.
override PARTNERS: bool = false;

const KEY_ZIP = 0u;
const KEY_MIN_NORM = 1u;
const KEY_REAL_VOTES = 2u;
const KEY_CONVEX = 3u;
override KEY_FORM: u32 = KEY_CONVEX;
override THRESHOLD: f32 = 1.0;
override GUARD_LOW: f32 = 0.0;
override GUARD_HIGH: f32 = 0.0;

// Whether a right neighbour's value keeps the output of the current row, and
// the largest ratio of attention weights that this applies.
override EXACT_VALUES: bool = false;
override RATIO_CAP: f32 = 1.0;
`,
  "lib/query_statistics.wgsl": `// Where the statistics of query heads are: see \`queryStatisticsLayout\` of the
// backends.

// First float of a query head.
fn statistics_at(sequence: u32, query_head: u32) -> u32 {
  return (sequence * HEADS + query_head) * (3u * HEAD_DIM + 1u);
}

fn scatter_at() -> u32 {
  return HEAD_DIM;
}

fn future_at() -> u32 {
  return HEAD_DIM / 2u * 3u;
}

fn variance_at() -> u32 {
  return HEAD_DIM / 2u * 5u;
}

fn count_at() -> u32 {
  return HEAD_DIM * 3u;
}
`,
  "lib/ranks.wgsl": `// What slots are ranked by: see \`src/reference/selection.ts\`.

// Smallest norm that counts; the logarithm of less is of no use.
const LEAST_NORM = 1e-30;

// Whether the numbers that a score says are logarithms.
fn is_logarithm() -> bool {
  return SCORE == SCORE_EMA || SCORE == SCORE_EXPECTED;
}

// The sum of no scores; where they are logarithms, of what they stand for.
fn no_scores() -> f32 {
  return select(0.0, -1e30, is_logarithm());
}

fn add_score(sum: f32, score: f32) -> f32 {
  if (is_logarithm()) {
    return log_add(sum, score);
  }
  return sum + score;
}

fn mean_score(sum: f32, count: u32) -> f32 {
  if (is_logarithm()) {
    return sum - log(f32(count));
  }
  return sum / f32(count);
}

// The rank of a slot with a score: times its value's norm, where that counts.
fn rank_of(score: f32, slot: u32) -> f32 {
  if (!COUNT_VALUES) {
    return score;
  }
  let norm = side_float(slot, FIELD_VALUE_NORM);
  if (is_logarithm()) {
    return log_add(score, LOG_VALUE_EPSILON) +
      f32(VALUE_POWER) * log(max(norm, LEAST_NORM));
  }
  return (score + VALUE_EPSILON) * select(norm, norm * norm, VALUE_POWER == 2u);
}

// Of \`fitting\` slots that have room, those that stay by their scores alone.
fn first_stage(fitting: u32) -> u32 {
  return u32(floor(FIRST_STAGE * f32(fitting)));
}
`,
  "lib/ratings.wgsl": `// Scores that take more than a slot's own fields: of all keys of the head,
// pooled over neighbours, or shared by the heads of a layer.

// f32: a candidate's own score.
const WORK_SCORE = 6u;
// f32: the same, pooled.
const WORK_POOLED = 7u;

// Where the scores stand in the end.
fn rating_at(candidate: u32) -> u32 {
  return work_at(select(WORK_POOLED, WORK_SCORE, POOL == POOL_NONE), candidate);
}

// What the policy's score says of a candidate.
fn score_of(candidate: u32) -> f32 {
  if (RATED) {
    return bitcast<f32>(work[rating_at(candidate)]);
  }
  return plain_score(slot_of(candidate));
}

// Each candidate's own score.
@compute @workgroup_size(THREADS)
fn rate(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let c = group.x * THREADS + thread;
  if (begin(group.y) && c < params.candidates && is_held(c)) {
    set_rating(c, plain_score(slot_of(c)));
  }
}

// The same where it takes all keys of the head.
@compute @workgroup_size(THREADS)
fn rate_keys(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  if (begin(group.x)) {
    if (SCORE == SCORE_EXPECTED) {
      rate_by_expectation(thread, step_words[CHUNK_SEQUENCE], kv_head);
    } else {
      rate_by_key(thread);
    }
  }
}

fn rated_slot(candidate: u32) -> u32 {
  if (is_held(candidate)) {
    return slot_of(candidate);
  }
  return NO_SLOT;
}

fn rating(candidate: u32) -> f32 {
  return bitcast<f32>(work[work_at(WORK_SCORE, candidate)]);
}

fn set_rating(candidate: u32, value: f32) {
  work[work_at(WORK_SCORE, candidate)] = bitcast<u32>(value);
}

// Scores of neighbouring positions, outside the recent window, pooled. A
// thread has a candidate and goes through all of them by tiles.
@compute @workgroup_size(THREADS)
fn pool(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  if (!begin(group.y)) {
    return;
  }
  let mine = group.x * THREADS + thread;
  let position = pooled_position(mine);
  var sum = no_scores();
  var largest = -3e38;
  var count = 0u;
  for (var tile = 0u; tile < params.candidates; tile += THREADS) {
    let there = pooled_position(tile + thread);
    var score = 0.0;
    if (there != NOT_POOLED) {
      score = rating(tile + thread);
    }
    workgroupBarrier();
    reduce_words[thread] = there;
    reduce_floats[thread] = score;
    workgroupBarrier();
    for (var k = 0u; k < THREADS; k++) {
      let other = reduce_words[k];
      let distance = max(other, position) - min(other, position);
      if (other != NOT_POOLED && distance <= POOL_REACH) {
        sum = add_score(sum, reduce_floats[k]);
        largest = max(largest, reduce_floats[k]);
        count += 1u;
      }
    }
  }
  if (mine >= params.candidates || !is_held(mine)) {
    return;
  }
  var pooled = rating(mine);
  if (position != NOT_POOLED) {
    pooled = largest;
    if (POOL == POOL_MEAN) {
      pooled = mean_score(sum, count);
    }
  }
  work[work_at(WORK_POOLED, mine)] = bitcast<u32>(pooled);
}

const NOT_POOLED = 0xffffffffu;

// Position of a candidate that is neither free nor recent.
fn pooled_position(candidate: u32) -> u32 {
  if (candidate >= params.candidates || !is_held(candidate)) {
    return NOT_POOLED;
  }
  let position = position_of(slot_of(candidate));
  let is_older = position + table[head + HEAD_RECENT] <= newest_position();
  return select(NOT_POOLED, position, is_older);
}

// The mean over the heads of the layer, whose candidates are the same tokens in
// the same order. A thread has a candidate of all heads.
@compute @workgroup_size(THREADS)
fn share(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let c = group.x * THREADS + thread;
  if (!begin(0u) || c >= params.candidates || !is_held(c)) {
    return;
  }
  var sum = no_scores();
  for (var i = 0u; i < KV_HEADS; i++) {
    kv_head = i;
    sum = add_score(sum, bitcast<f32>(work[rating_at(c)]));
  }
  for (var i = 0u; i < KV_HEADS; i++) {
    kv_head = i;
    work[rating_at(c)] = bitcast<u32>(mean_score(sum, KV_HEADS));
  }
}
`,
  "lib/reduce.wgsl": `// Sums and choices over a workgroup of THREADS threads, which must be a power
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

// The sum of \`value\` over this thread and those before it.
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
`,
  "lib/rope.wgsl": `// Angles of rotary position embeddings: see \`src/model/rope.ts\`. A kernel
// declares \`rope\`, (3, 256, headDim / 2) of cosine and sine.

// The angle of a pair at a position: the product of the rotations of its three
// base-256 digits.
fn angle_at(index: u32, position: u32) -> vec2<f32> {
  let half = HEAD_DIM / 2u;
  var angle = rope[(position & 255u) * half + index];
  for (var level = 1u; level < 3u; level++) {
    let digit = (position >> (8u * level)) & 255u;
    angle = turn(angle, rope[(level * 256u + digit) * half + index]);
  }
  return angle;
}

// The product of two complex numbers: a pair, turned by an angle.
fn turn(pair: vec2<f32>, angle: vec2<f32>) -> vec2<f32> {
  return vec2(
    pair.x * angle.x - pair.y * angle.y,
    pair.y * angle.x + pair.x * angle.y,
  );
}
`,
  "lib/runs.wgsl": `// Runs: candidates that all go, in the order of their positions, up to the kept
// one to their right, which takes their values. \`runWeights\` of the reference
// says what weights they have there.
//
// The reference reads a run with a stack. Here each member finds its own
// weight, by walks along the run: which member takes it in (the next one that
// goes after it, or the kept one), and what the members that are taken in
// after it leave of it. Runs are short unless the budget is far exceeded.

// f32: what is left of a candidate's own value by those that it takes in; from
// the second half of \`weigh\` on, its weight in the kept value.
const WORK_SHARE = 9u;
// f32: what of it stays in the candidate that takes it in.
const WORK_PASS = 10u;
// Candidate that takes it in, or NO_SLOT.
const WORK_PARENT = 11u;

// Finds the right neighbour of each listed candidate: WORK_CHOICE, and the way
// back: WORK_NEXT.
@compute @workgroup_size(THREADS)
fn neighbours(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  if (!begin(group.y)) {
    return;
  }
  let listed = read_counter(thread, COUNT_LISTED);
  let first = group.x * THREADS;
  if (first >= listed) {
    return;
  }
  var mine = NO_SLOT;
  var position = 0xffffffffu;
  if (first + thread < listed) {
    mine = work[work_at(WORK_LIST, first + thread)];
    position = position_of(slot_of(mine));
  }
  let nearest = right_of(thread, position, params.candidates);
  if (mine != NO_SLOT) {
    work[work_at(WORK_CHOICE, mine)] = nearest;
    if (nearest != NO_SLOT) {
      work[work_at(WORK_NEXT, nearest)] = mine;
    }
  }
}

fn goes(candidate: u32) -> bool {
  return (work[work_at(WORK_FLAGS, candidate)] & FLAG_LISTED) != 0u;
}

fn order_of(candidate: u32) -> u32 {
  return work[work_at(WORK_KEY, candidate)];
}

// What is left of the target's value once \`candidate\` is merged into it.
fn left_by(candidate: u32, target_mean: f32) -> f32 {
  return 1.0 - share_of(mean_attention(slot_of(candidate)), target_mean);
}

// Weighs the victims. Ties go by position: the left one goes first.
@compute @workgroup_size(THREADS)
fn weigh(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  if (!begin(group.x)) {
    return;
  }
  let listed = read_counter(thread, COUNT_LISTED);
  for (var i = thread; i < listed; i += THREADS) {
    let c = work[work_at(WORK_LIST, i)];
    let order = order_of(c);
    var parent = work[work_at(WORK_CHOICE, c)];
    while (parent != NO_SLOT && goes(parent) && order_of(parent) < order) {
      parent = work[work_at(WORK_CHOICE, parent)];
    }
    work[work_at(WORK_PARENT, c)] = parent;
    work[work_at(WORK_SHARE, c)] =
      bitcast<u32>(left_of(c, mean_attention(slot_of(c)), order));
    if (parent == NO_SLOT) {
      continue;
    }
    let mean = mean_attention(slot_of(parent));
    let limit = select(0xffffffffu, order_of(parent), goes(parent));
    var pass_on = 1.0 - left_by(c, mean);
    var last = order;
    for (
      var left = work[work_at(WORK_NEXT, c)];
      left != NO_SLOT && order_of(left) <= limit;
      left = work[work_at(WORK_NEXT, left)]
    ) {
      if (order_of(left) > last) {
        pass_on *= left_by(left, mean);
        last = order_of(left);
      }
    }
    work[work_at(WORK_PASS, c)] = bitcast<u32>(pass_on);
  }
  storageBarrier();
  for (var i = thread; i < listed; i += THREADS) {
    let c = work[work_at(WORK_LIST, i)];
    var weight = bitcast<f32>(work[work_at(WORK_SHARE, c)]);
    var taker = c;
    while (taker != NO_SLOT && goes(taker)) {
      weight *= bitcast<f32>(work[work_at(WORK_PASS, taker)]);
      taker = work[work_at(WORK_PARENT, taker)];
    }
    work[work_at(WORK_SHARE, c)] = bitcast<u32>(weight);
    work[work_at(WORK_CHOICE, c)] = taker;
    if (taker != NO_SLOT && work[work_at(WORK_NEXT, taker)] == c) {
      work[work_at(WORK_FLAGS, c)] |= FLAG_LEADER;
    }
  }
}

// What the candidates that a slot takes in leave of its own value: those to its
// left, as long as they go before it and no nearer one takes them.
fn left_of(candidate: u32, mean: f32, limit: u32) -> f32 {
  var share = 1.0;
  var last = 0u;
  var is_first = true;
  for (
    var left = work[work_at(WORK_NEXT, candidate)];
    left != NO_SLOT && order_of(left) <= limit;
    left = work[work_at(WORK_NEXT, left)]
  ) {
    if (is_first || order_of(left) > last) {
      share *= left_by(left, mean);
      last = order_of(left);
      is_first = false;
    }
  }
  return share;
}

// Merges the values of runs. A workgroup takes whole runs, from right to left.
@compute @workgroup_size(THREADS)
fn merge_runs(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  if (!begin(group.y)) {
    return;
  }
  let half = HEAD_DIM / 2u;
  let listed = read_counter(thread, COUNT_LISTED);
  for (var i = group.x; i < listed; i += params.merge_groups) {
    let c = work[work_at(WORK_LIST, i)];
    if ((work[work_at(WORK_FLAGS, c)] & FLAG_LEADER) == 0u) {
      continue;
    }
    let kept = work[work_at(WORK_CHOICE, c)];
    let kept_slot = slot_of(kept);
    if (thread < half) {
      let own = left_of(kept, mean_attention(kept_slot), 0xffffffffu);
      var value = own * unpack_halves(value_word(kept_slot, thread));
      for (var m = c; m != NO_SLOT; m = work[work_at(WORK_NEXT, m)]) {
        value += bitcast<f32>(work[work_at(WORK_SHARE, m)]) *
          unpack_halves(value_word(slot_of(m), thread));
      }
      set_value_word(kept_slot, thread, pack_halves(value));
    }
    if (thread == 0u) {
      var tokens = tokens_of(kept_slot);
      var count = 0u;
      let own = left_of(kept, mean_attention(kept_slot), 0xffffffffu);
      var norm = own * side_float(kept_slot, FIELD_VALUE_NORM);
      for (var m = c; m != NO_SLOT; m = work[work_at(WORK_NEXT, m)]) {
        tokens += tokens_of(slot_of(m));
        norm += bitcast<f32>(work[work_at(WORK_SHARE, m)]) *
          side_float(slot_of(m), FIELD_VALUE_NORM);
        count += 1u;
        free_slot(slot_of(m));
      }
      set_side_word(kept_slot, FIELD_TOKENS, tokens);
      set_side_float(kept_slot, FIELD_VALUE_NORM, norm);
      atomicAdd(&counters[kv_head * COUNTERS + COUNT_MERGED], count);
    }
  }
}
`,
  "lib/score_tile.wgsl": `// Logits of a tile of queries and a tile of keys, both in workgroup memory, so
// that all query heads of a group share one read of the keys.
//
// Queries are numbered row by row: query \`i\` belongs to row \`i / GROUP\` and to
// head \`i % GROUP\` of its KV head.

override QUERY_TILE: u32 = 1u;
override KEY_TILE: u32 = 16u;
// Sizes of the arrays below: QUERY_TILE * HEAD_DIM / 2, KEY_TILE * KEY_PITCH
// and QUERY_TILE * LOGIT_PITCH. Single constants: naga 29 fails on expressions.
override QUERY_PAIRS: u32 = 2u;
override KEY_WORDS: u32 = 48u;
override LOGITS: u32 = 17u;
// Whether sinks are attended with queries of their own.
override SINK_QUERIES: bool = false;

var<workgroup> query_tile: array<vec2<f32>, QUERY_PAIRS>;
// Halves as they are stored.
var<workgroup> key_tile: array<u32, KEY_WORDS>;
var<workgroup> logits: array<f32, LOGITS>;

// Rows are padded by one, so that neighbours start in different banks.
fn key_pitch() -> u32 {
  return HEAD_DIM / 2u + 1u;
}

fn logit_pitch() -> u32 {
  return KEY_TILE + 1u;
}

// Index in \`queries\` of the vector of a query.
fn query_vector(query: u32, kv_head: u32) -> u32 {
  return query / GROUP * HEADS + kv_head * GROUP + query % GROUP;
}

// Loads \`count\` queries from \`first\`; the rest of the tile becomes 0.
fn load_queries(thread: u32, first: u32, count: u32, kv_head: u32) {
  let half = HEAD_DIM / 2u;
  for (var i = thread; i < QUERY_TILE * half; i += THREADS) {
    var pair = vec2<f32>();
    if (i / half < count) {
      pair = queries[query_vector(first + i / half, kv_head) * half + i % half];
    }
    query_tile[i] = pair;
  }
}

// Loads the keys of \`count\` slots from \`first\`.
fn load_keys(thread: u32, first: u32, count: u32) {
  let half = HEAD_DIM / 2u;
  for (var i = thread; i < min(count, KEY_TILE) * half; i += THREADS) {
    key_tile[i / half * key_pitch() + i % half] =
      key_word(first + i / half, i % half);
  }
}

// Raw logit \`q·k/√d\` of query \`i\` and key \`j\` of the tiles.
// \`vector\` is that of the query, for slots that are sinks.
fn raw_logit(i: u32, j: u32, vector: u32, slot: u32) -> f32 {
  let half = HEAD_DIM / 2u;
  var sum = 0.0;
  if (SINK_QUERIES && position_of(slot) < SINKS) {
    for (var p = 0u; p < half; p++) {
      let key = unpack_halves(key_tile[j * key_pitch() + p]);
      sum += dot(sink_queries[vector * half + p], key);
    }
  } else {
    for (var p = 0u; p < half; p++) {
      let key = unpack_halves(key_tile[j * key_pitch() + p]);
      sum += dot(query_tile[i * half + p], key);
    }
  }
  return sum * ROOT;
}
`,
  "lib/scores.wgsl": `// The scores that rows of attention leave on slots.

// Largest group of query heads that share a KV head.
const MAX_GROUP = 16u;

// ln(exp a + exp b) without overflow.
fn log_add(a: f32, b: f32) -> f32 {
  let top = max(a, b);
  return top + log(1.0 + exp(min(a, b) - top));
}

// ln(1 - exp x) for x < 0: a series where the difference would cancel.
fn log_one_minus_exp(x: f32) -> f32 {
  if (x > -0.1) {
    return log(-x * (1.0 + x / 2.0 * (1.0 + x / 3.0 * (1.0 + x / 4.0))));
  }
  return log(1.0 - exp(max(x, -80.0)));
}

// ln(1 - alphaⁿ): the bias correction of a moving sum of n terms.
fn ema_correction(observations: u32) -> f32 {
  return log_one_minus_exp(max(f32(observations) * LOG_ALPHA, -1e30));
}

// Scores of a slot while rows are added to them.
struct SlotScores {
  ema: f32,
  accumulated: f32,
  observations: u32,
}

fn read_scores(slot: u32) -> SlotScores {
  return SlotScores(
    side_float(slot, FIELD_EMA),
    side_float(slot, FIELD_ACCUMULATED),
    side_word(slot, FIELD_OBSERVATIONS),
  );
}

// What one row of attention adds: per query head, a raw logit and the ln of
// the row's softmax sum; see \`observeRow\` of the reference.
struct Observation {
  score: f32,   // running ln of the sum of scores
  weight: f32,  // running sum of attention weights
}

fn init_observation() -> Observation {
  return Observation(-1e30, 0.0);
}

fn observe_head(
  so_far: Observation,
  logit: f32,
  bias: f32,
  log_sum: f32,
) -> Observation {
  return Observation(
    log_add(so_far.score, select(logit - log_sum, logit, RAW_SCALE)),
    so_far.weight + exp(logit + bias - log_sum),
  );
}

// Share of the mean attention that a slot needs in order to matter.
const LEAST_SHARE = 0.999;

// Adds the row at \`position\` of the text, which all query heads of the group
// have observed.
fn add_observation(
  scores: SlotScores,
  seen: Observation,
  position: u32,
) -> SlotScores {
  let score = seen.score - log(f32(GROUP));
  var past = scores;
  if (SCORE == SCORE_LAST) {
    past.accumulated = 0.0;
    past.observations = 0u;
  }
  let weight = seen.weight / f32(GROUP);
  var accumulated = past.accumulated + weight;
  if (SCORE == SCORE_AGE) {
    let tokens = f32(position + 1u);
    accumulated =
      select(past.accumulated, tokens, weight * tokens >= LEAST_SHARE);
  }
  return SlotScores(
    log_add(past.ema + LOG_ALPHA, score + LOG_REST),
    accumulated,
    past.observations + 1u,
  );
}

// ln votes of a slot for its group: the mean over its lanes.
fn pooled_bias(slot: u32) -> f32 {
  var sum = 0.0;
  for (var lane = 0u; lane < LANES; lane++) {
    sum += side_float(slot, FIELD_BIAS + lane);
  }
  return sum / f32(LANES);
}

// ln of the corrected score of a slot; 0 if no row observed it yet.
fn log_score(slot: u32) -> f32 {
  let observations = side_word(slot, FIELD_OBSERVATIONS);
  if (observations == 0u) {
    return 0.0;
  }
  return side_float(slot, FIELD_EMA) - ema_correction(observations);
}

// ln of the weight that a slot has in a merge: votes · ŝ.
fn log_weight(slot: u32) -> f32 {
  return pooled_bias(slot) + log_score(slot);
}

// Mean attention weight of the rows that observed a slot.
fn mean_attention(slot: u32) -> f32 {
  return side_float(slot, FIELD_ACCUMULATED) /
    f32(max(1u, side_word(slot, FIELD_OBSERVATIONS)));
}

// What the policy's score says of a slot; the lowest goes first, ties by
// position. A position too large for a float is rounded, and the tie puts it
// right.
fn plain_score(slot: u32) -> f32 {
  if (SCORE == SCORE_POSITION) {
    return f32(position_of(slot));
  }
  if (
    SCORE == SCORE_ACCUMULATED || SCORE == SCORE_LAST || SCORE == SCORE_AGE
  ) {
    return side_float(slot, FIELD_ACCUMULATED);
  }
  if (SCORE == SCORE_MEAN || SCORE == SCORE_STEP_GAIN) {
    return mean_attention(slot);
  }
  var score = log_score(slot);
  if (COUNT_VOTES) {
    score += pooled_bias(slot);
  }
  return score;
}

// Whether a slot may be evicted: neither a sink nor a recent token.
fn is_evictable(position: u32, recent: u32, newest: u32) -> bool {
  return position >= SINKS && position + recent <= newest;
}
`,
  "lib/search.wgsl": `// For each of a tile of slots, the best of some targets: that with the most
// similar key, or that which is cheapest to merge with (see \`pairs.wgsl\`).
//
// A workgroup holds the tile and reads the targets once, tile by tile. Where
// values count too, the same memory takes the keys and then the values of the
// targets.
//
// A kernel defines
//   slot_of(candidate)  the slot with a number
//   proposer_at(i)      the i-th candidate that looks for a target
//   target_at(t)        the t-th target
//   is_open_to(i, t)    whether the i-th may be compared with the t-th target
//   propose(i, best)    takes what was found for the i-th candidate

override PROPOSERS: u32 = 32u;
override TARGET_TILE: u32 = 32u;
// Sizes of the tiles: PROPOSERS * HEAD_DIM / 2, twice that where values count,
// and TARGET_TILE * (HEAD_DIM / 2 + 1).
override PROPOSER_WORDS: u32 = 64u;
override TARGET_WORDS: u32 = 96u;

// Proposers that a thread compares with its target, at most.
const STRAND_PROPOSERS = 4u;

var<workgroup> proposer_tile: array<u32, PROPOSER_WORDS>;
var<workgroup> target_tile: array<u32, TARGET_WORDS>;
var<workgroup> proposer_weights: array<f32, 32>;

fn search(thread: u32, first: u32, count: u32, targets: u32, scale: PairScale) {
  let half = HEAD_DIM / 2u;
  let pitch = half + 1u;
  for (var i = thread; i < count * half; i += THREADS) {
    let slot = slot_of(proposer_at(first + i / half));
    proposer_tile[i] = key_word(slot, i % half);
    if (MERGE == MERGE_PAIR) {
      proposer_tile[PROPOSERS * half + i] = value_word(slot, i % half);
    }
  }
  if (MERGE == MERGE_PAIR && thread < count) {
    proposer_weights[thread] = log_weight(slot_of(proposer_at(first + thread)));
  }

  // A thread has target \`j\` and every \`strands\`th proposer.
  let j = thread % TARGET_TILE;
  let strand = thread / TARGET_TILE;
  let strands = THREADS / TARGET_TILE;
  var best: array<Ranked, STRAND_PROPOSERS>;
  for (var n = 0u; n < STRAND_PROPOSERS; n++) {
    best[n] = unranked();
  }
  for (var tile = 0u; tile < targets; tile += TARGET_TILE) {
    let there = min(TARGET_TILE, targets - tile);
    // Zeroed in so many words: naga 29 does not zero a \`var\` again in a loop.
    var measures = array<f32, STRAND_PROPOSERS>();
    workgroupBarrier();
    for (var i = thread; i < there * half; i += THREADS) {
      target_tile[i / half * pitch + i % half] =
        key_word(slot_of(target_at(tile + i / half)), i % half);
    }
    workgroupBarrier();
    for (var n = 0u; j < there && strand + n * strands < count; n++) {
      let i = strand + n * strands;
      if (MERGE == MERGE_PAIR) {
        measures[n] = scale.keys * tile_distance(i, j);
      } else {
        measures[n] = -tile_cosine(i, j);
      }
    }
    if (MERGE == MERGE_PAIR) {
      workgroupBarrier();
      for (var i = thread; i < there * half; i += THREADS) {
        target_tile[i / half * pitch + i % half] =
          value_word(slot_of(target_at(tile + i / half)), i % half);
      }
      workgroupBarrier();
    }
    if (j < there) {
      let other = target_at(tile + j);
      let position = position_of(slot_of(other));
      var weight = 0.0;
      if (MERGE == MERGE_PAIR) {
        weight = log_weight(slot_of(other));
      }
      for (var n = 0u; strand + n * strands < count; n++) {
        let i = strand + n * strands;
        let c = proposer_at(first + i);
        if (other == c || !is_open_to(first + i, tile + j)) {
          continue;
        }
        var measure = measures[n];
        if (MERGE == MERGE_PAIR) {
          let mine = proposer_weights[i];
          let is_heavier = weight > mine ||
            (weight == mine && position < position_of(slot_of(c)));
          if (HEAVIER_TARGETS && !is_heavier) {
            continue;
          }
          let values = scale.values * tile_distance(PROPOSERS + i, j);
          measure = pair_distance(measure, values);
          if (!BY_DISTANCE) {
            measure = pair_cost(mine, weight, measure);
          }
        }
        let mine = Ranked(measure, position, other);
        if (is_before(mine, best[n])) {
          best[n] = mine;
        }
      }
    }
  }
  for (var n = 0u; n * strands < count; n++) {
    let i = strand + n * strands;
    workgroupBarrier();
    reduce_ranked[thread] = best[n];
    workgroupBarrier();
    if (j == 0u && i < count) {
      var nearest = best[n];
      for (var k = 1u; k < TARGET_TILE; k++) {
        if (is_before(reduce_ranked[thread + k], nearest)) {
          nearest = reduce_ranked[thread + k];
        }
      }
      propose(first + i, nearest);
    }
  }
}

// Cosine of vector \`i\` of the proposers' tile and \`j\` of the targets'.
fn tile_cosine(i: u32, j: u32) -> f32 {
  let half = HEAD_DIM / 2u;
  var product = 0.0;
  var squares = vec2<f32>();
  for (var p = 0u; p < half; p++) {
    let a = unpack_halves(proposer_tile[i * half + p]);
    let b = unpack_halves(target_tile[j * (half + 1u) + p]);
    product += dot(a, b);
    squares += vec2(dot(a, a), dot(b, b));
  }
  let norms = sqrt(squares.x * squares.y);
  return select(product / max(norms, 1e-30), 0.0, norms == 0.0);
}

// Squared distance of the same.
fn tile_distance(i: u32, j: u32) -> f32 {
  let half = HEAD_DIM / 2u;
  var sum = 0.0;
  for (var p = 0u; p < half; p++) {
    let a = unpack_halves(proposer_tile[i * half + p]);
    let b = unpack_halves(target_tile[j * (half + 1u) + p]);
    sum += dot(a - b, a - b);
  }
  return sum;
}
`,
  "lib/segment_rounds.wgsl": `// Closing links between neighbours in the text until a chunk fits its budget.

// Lists the candidates that may be merged with their neighbours, if the head is
// over its budget.
@compute @workgroup_size(THREADS)
fn list_light(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  if (!begin(group.x)) {
    return;
  }
  let excess = count_excess(thread);
  if (excess == 0u) {
    return;
  }
  let evictable = list_evictable(thread);
  if (evictable > 0u) {
    keep_lowest(thread, light_slots(evictable, excess));
  }
  make_list(thread);
  if (thread == 0u) {
    atomicStore(&counters[kv_head * COUNTERS + COUNT_EXCESS], excess);
  }
}

// Measures the link of each listed candidate to its right neighbour:
// WORK_KEY. There is none to a neighbour that is not listed: WORK_CHOICE.
@compute @workgroup_size(THREADS)
fn measure_links(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  if (!begin(group.y)) {
    return;
  }
  let i = group.x * THREADS + thread;
  if (i >= atomicLoad(&counters[kv_head * COUNTERS + COUNT_LISTED])) {
    return;
  }
  let c = work[work_at(WORK_LIST, i)];
  let right = work[work_at(WORK_CHOICE, c)];
  if (right == NO_SLOT) {
    return;
  }
  if ((work[work_at(WORK_FLAGS, right)] & FLAG_LISTED) == 0u) {
    work[work_at(WORK_CHOICE, c)] = NO_SLOT;
    return;
  }
  work[work_at(WORK_KEY, c)] = ordered(-key_cosine(slot_of(c), slot_of(right)));
}

fn is_closed(candidate: u32) -> bool {
  return (work[work_at(WORK_FLAGS, candidate)] & FLAG_ACCEPTED) != 0u;
}

// Closes the closest links, as many as the head is over its budget, and lists
// the candidates that go: chains with the pivot of their segment as target.
@compute @workgroup_size(THREADS)
fn close_links(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  if (!begin(group.x)) {
    return;
  }
  let listed = read_counter(thread, COUNT_LISTED);
  let excess = read_counter(thread, COUNT_EXCESS);
  var links = 0u;
  for (var i = thread; i < listed; i += THREADS) {
    let c = work[work_at(WORK_LIST, i)];
    let is_link = work[work_at(WORK_CHOICE, c)] != NO_SLOT;
    work[work_at(WORK_FLAGS, c)] = select(0u, FLAG_ACCEPTED, is_link);
    work[work_at(WORK_NEXT, c)] = NO_SLOT;
    links += select(0u, 1u, is_link);
  }
  links = sum_words(thread, links);
  storageBarrier();
  var last = vec2(0xffffffffu);
  if (links > excess) {
    last = select_rank(thread, FLAG_ACCEPTED, excess);
  }
  for (var i = thread; i < listed; i += THREADS) {
    let c = work[work_at(WORK_LIST, i)];
    if (is_closed(c)) {
      if (is_within(c, last)) {
        work[work_at(WORK_NEXT, work[work_at(WORK_CHOICE, c)])] = c;
      } else {
        work[work_at(WORK_FLAGS, c)] = 0u;
      }
    }
  }
  storageBarrier();
  // A segment begins where nothing is linked from the left.
  for (var i = thread; i < listed; i += THREADS) {
    let c = work[work_at(WORK_LIST, i)];
    if (is_closed(c) && work[work_at(WORK_NEXT, c)] == NO_SLOT) {
      work[work_at(WORK_FLAGS, c)] |= FLAG_TAKEN;
    }
  }
  storageBarrier();
  for (var i = thread; i < listed; i += THREADS) {
    let c = work[work_at(WORK_LIST, i)];
    if ((work[work_at(WORK_FLAGS, c)] & FLAG_TAKEN) != 0u) {
      chain_segment(c);
    }
  }
  storageBarrier();
  make_list(thread);
}

// Chains the members of the segment that begins at a candidate to its pivot. A
// thread has a segment; segments are short unless the budget is far exceeded.
fn chain_segment(first: u32) {
  var pivot = first;
  var most = side_float(slot_of(first), FIELD_ACCUMULATED);
  var c = first;
  while (is_closed(c)) {
    c = work[work_at(WORK_CHOICE, c)];
    let attention = side_float(slot_of(c), FIELD_ACCUMULATED);
    if (attention > most) {
      most = attention;
      pivot = c;
    }
  }
  var last = NO_SLOT;
  c = first;
  while (c != NO_SLOT) {
    let next = select(NO_SLOT, work[work_at(WORK_CHOICE, c)], is_closed(c));
    work[work_at(WORK_FLAGS, c)] = 0u;
    if (c != pivot) {
      work[work_at(WORK_CHOICE, c)] = pivot;
      work[work_at(WORK_NEXT, c)] = NO_SLOT;
      work[work_at(WORK_FLAGS, c)] = FLAG_LISTED;
      if (last == NO_SLOT) {
        work[work_at(WORK_FLAGS, c)] |= FLAG_LEADER;
      } else {
        work[work_at(WORK_NEXT, last)] = c;
      }
      last = c;
    }
    c = next;
  }
}
`,
  "lib/segment_step.wgsl": `// The link between neighbours in the text that a decode step closes. A
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
`,
  "lib/segments.wgsl": `// Merging neighbours in the text whose keys are similar: see
// \`src/reference/segments.ts\` for the source and the formulas.
//
// A kernel defines
//   next_member(slot)  the member after \`slot\`, or NO_SLOT

// Share of the slots that stay which is for those with the highest scores.
override HEAVY: f32 = 0.0;

// Of \`evictable\` slots, \`count\` of which go, those that may be merged.
fn light_slots(evictable: u32, count: u32) -> u32 {
  let fitting = evictable - min(evictable, count);
  return evictable - u32(floor(HEAVY * f32(fitting)));
}

// Merges \`first\` and the members after it into their pivot \`kept\`; returns how
// many. The caller waits for storage and then frees them.
fn merge_segment(thread: u32, kept: u32, first: u32) -> u32 {
  let half = HEAD_DIM / 2u;
  var distances = 0.0;
  var members = 1u;
  for (var slot = first; slot != NO_SLOT; slot = next_member(slot)) {
    distances += key_distance(kept, slot);
    members += 1u;
  }
  let mean = distances / f32(members);

  // The pivot's own weight is 1.
  var key = vec2<f32>();
  var value = vec2<f32>();
  if (thread < half) {
    key = unpack_halves(key_word(kept, thread));
    value = unpack_halves(value_word(kept, thread));
  }
  var total = 1.0;
  var norm = side_float(kept, FIELD_VALUE_NORM);
  var score = log_score(kept);
  var accumulated = side_float(kept, FIELD_ACCUMULATED);
  var observations = side_word(kept, FIELD_OBSERVATIONS);
  var tokens = tokens_of(kept);
  for (var slot = first; slot != NO_SLOT; slot = next_member(slot)) {
    var weight = 1.0;
    if (mean > 0.0) {
      let ratio = key_distance(kept, slot) / mean;
      weight = exp(-ratio * ratio);
    }
    if (thread < half) {
      key += weight * unpack_halves(key_word(slot, thread));
      value += weight * unpack_halves(value_word(slot, thread));
    }
    total += weight;
    norm += weight * side_float(slot, FIELD_VALUE_NORM);
    score = log_add(score, log_score(slot));
    accumulated += side_float(slot, FIELD_ACCUMULATED);
    observations = max(observations, side_word(slot, FIELD_OBSERVATIONS));
    tokens += tokens_of(slot);
  }
  // Every thread has read the pivot.
  storageBarrier();
  if (thread < half) {
    set_key_word(kept, thread, pack_halves(key / total));
    set_value_word(kept, thread, pack_halves(value / total));
  }
  if (thread == 0u) {
    if (observations > 0u) {
      set_side_float(kept, FIELD_EMA, score + ema_correction(observations));
    }
    set_side_float(kept, FIELD_ACCUMULATED, accumulated);
    set_side_word(kept, FIELD_OBSERVATIONS, observations);
    set_side_float(kept, FIELD_VALUE_NORM, norm / total);
    set_side_word(kept, FIELD_TOKENS, tokens);
  }
  return members - 1u;
}

// Distance of the keys of two slots.
fn key_distance(a: u32, b: u32) -> f32 {
  var sum = 0.0;
  for (var i = 0u; i < HEAD_DIM / 2u; i++) {
    let rest = unpack_halves(key_word(a, i)) - unpack_halves(key_word(b, i));
    sum += dot(rest, rest);
  }
  return sqrt(sum);
}
`,
  "lib/select_rank.wgsl": `// Selection by rank: which key stands at a place in the order of keys, ties
// going by position. A radix selection: eight bits of key and position at a
// time, so that no sort is needed. THREADS must be 256.
//
// A kernel defines
//   ranked_count()        entries to look at
//   is_ranked(i, flag)    whether an entry takes part
//   ranked_key(i)         its key, as \`ordered\` bits
//   ranked_position(i)    its position in the text

var<workgroup> histogram: array<atomic<u32>, THREADS>;
var<workgroup> shared_words: array<u32, 4>;

// Key and position of the entry that is number \`rank\`, from 1, among those
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

// The bin of the histogram with the entry that is number \`rank\`, from 1, and
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

// Whether an entry's place is that of \`last\` or before it.
fn is_within(i: u32, last: vec2<u32>) -> bool {
  let key = ranked_key(i);
  return key < last.x || (key == last.x && ranked_position(i) <= last.y);
}
`,
  "lib/settle_chunk.wgsl": `// The end of a chunk's compression: what is dropped is freed, and the staged
// rows that are left move, in order, into free slots, in order.
@compute @workgroup_size(THREADS)
fn settle(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  if (!begin(group.x)) {
    return;
  }
  // What is listed and chose no target is dropped.
  let listed = read_counter(thread, COUNT_LISTED);
  var dropped = 0u;
  var dropped_tokens = 0u;
  for (var i = thread; i < listed; i += THREADS) {
    let c = work[work_at(WORK_LIST, i)];
    if (work[work_at(WORK_CHOICE, c)] == NO_SLOT) {
      dropped += 1u;
      dropped_tokens += tokens_of(slot_of(c));
      free_slot(slot_of(c));
    }
  }
  var divergence = 0.0;
  for (var c = thread; c < params.candidates; c += THREADS) {
    divergence += bitcast<f32>(work[work_at(WORK_DIVERGENCE, c)]);
  }
  dropped = sum_words(thread, dropped);
  dropped_tokens = sum_words(thread, dropped_tokens);
  divergence = sum_floats(thread, divergence);
  storageBarrier();

  // Staged rows that are left, in order: WORK_LIST from now on.
  let rows = step_words[CHUNK_ROWS];
  var left = 0u;
  for (var first = 0u; first < rows; first += THREADS) {
    let c = params.max_capacity + first + thread;
    let is_left = select(0u, 1u, first + thread < rows && is_held(c));
    let place = prefix_sum(thread, is_left);
    if (is_left != 0u) {
      work[work_at(WORK_LIST, left + place - 1u)] = c;
    }
    left += sum_words(thread, is_left);
  }
  // As many free slots, in order: WORK_NEXT.
  let capacity = uniform_word(thread, table[head + HEAD_CAPACITY]);
  var found = 0u;
  for (var first = 0u; first < capacity && found < left; first += THREADS) {
    let c = first + thread;
    let is_free =
      select(0u, 1u, c < capacity && tokens_of(slot_of(c)) == 0u);
    let place = found + prefix_sum(thread, is_free);
    if (is_free != 0u && place <= left) {
      work[work_at(WORK_NEXT, place - 1u)] = c;
    }
    found += sum_words(thread, is_free);
  }
  storageBarrier();
  let moved = min(left, found);
  let half = HEAD_DIM / 2u;
  for (var i = thread; i < moved * half; i += THREADS) {
    let from_slot = slot_of(work[work_at(WORK_LIST, i / half)]);
    let to_slot = slot_of(work[work_at(WORK_NEXT, i / half)]);
    set_key_word(to_slot, i % half, key_word(from_slot, i % half));
    set_value_word(to_slot, i % half, value_word(from_slot, i % half));
  }
  for (var i = thread; i < moved; i += THREADS) {
    let from_slot = slot_of(work[work_at(WORK_LIST, i)]);
    let to_slot = slot_of(work[work_at(WORK_NEXT, i)]);
    for (var field = 0u; field < FIELD_BIAS + LANES; field++) {
      set_side_word(to_slot, field, side_word(from_slot, field));
    }
  }
  var high = uniform_word(thread, table[head + HEAD_HIGH]);
  if (moved > 0u) {
    let last = uniform_word(thread, work[work_at(WORK_NEXT, moved - 1u)]);
    high = max(high, last + 1u);
  }
  storageBarrier();

  var live = 0u;
  var free = high;
  for (var c = thread; c < high; c += THREADS) {
    if (PARTNERS) {
      set_side_word(slot_of(c), partner_field() + PARTNER_SLOT, 0u);
      set_side_word(slot_of(c), partner_field() + PARTNER_DISTANCE, 0u);
    }
    if (tokens_of(slot_of(c)) == 0u) {
      free = min(free, c);
    } else {
      live += 1u;
    }
  }
  live = sum_words(thread, live);
  free = min_words(thread, free);
  if (thread == 0u) {
    let counts = kv_head * COUNTERS;
    table[head + HEAD_LIVE] = live;
    table[head + HEAD_NEXT] = free;
    table[head + HEAD_HIGH] = high;
    table[head + HEAD_SPREAD] = 0u;
    table[head + HEAD_MERGED] += atomicLoad(&counters[counts + COUNT_MERGED]);
    table[head + HEAD_GUARDED] += atomicLoad(&counters[counts + COUNT_GUARDED]);
    table[head + HEAD_DROPPED] += dropped;
    table[head + HEAD_DROPPED_TOKENS] += dropped_tokens;
    table[head + HEAD_DIVERGENCE] = bitcast<u32>(
      bitcast<f32>(table[head + HEAD_DIVERGENCE]) + divergence,
    );
  }
}
`,
  "lib/slot_writes.wgsl": `// Writing the slots of one layer.

fn set_key_word(slot: u32, i: u32, word: u32) {
  keys[slot * (HEAD_DIM / 2u) + i] = word;
}

fn set_value_word(slot: u32, i: u32, word: u32) {
  values[slot * (HEAD_DIM / 2u) + i] = word;
}

fn set_side_word(slot: u32, field: u32, word: u32) {
  side[field * params.total + slot] = word;
}

fn set_side_float(slot: u32, field: u32, value: f32) {
  set_side_word(slot, field, bitcast<u32>(value));
}

fn free_slot(slot: u32) {
  set_side_word(slot, FIELD_TOKENS, 0u);
  for (var lane = 0u; lane < LANES; lane++) {
    set_side_float(slot, FIELD_BIAS + lane, FREE_BIAS);
  }
}
`,
  "lib/slots.wgsl": `// Reading the slots of one layer: see Slots and SlotField.

override HEADS: u32 = 1u;
override GROUP: u32 = 1u;
override HEAD_DIM: u32 = 4u;
// 1 / √HEAD_DIM
override ROOT: f32 = 0.5;
override LANES: u32 = 1u;
// First tokens of the text that are never evicted.
override SINKS: u32 = 0u;

const FIELD_EMA = 0u;
const FIELD_ACCUMULATED = 1u;
const FIELD_OBSERVATIONS = 2u;
const FIELD_POSITION = 3u;
const FIELD_TOKENS = 4u;
const FIELD_VALUE_NORM = 5u;
const FIELD_BIAS = 6u;
// Fields of a remembered partner, from \`partner_field\` on: see PartnerField.
const PARTNER_SLOT = 0u;
const PARTNER_DISTANCE = 1u;
fn partner_field() -> u32 {
  return FIELD_BIAS + LANES;
}

// Vote bias of a free slot.
const FREE_BIAS = -1e30;

// Two elements of a slot's key.
fn key_word(slot: u32, i: u32) -> u32 {
  return keys[slot * (HEAD_DIM / 2u) + i];
}

fn value_word(slot: u32, i: u32) -> u32 {
  return values[slot * (HEAD_DIM / 2u) + i];
}

fn side_word(slot: u32, field: u32) -> u32 {
  return side[field * params.total + slot];
}

fn side_float(slot: u32, field: u32) -> f32 {
  return bitcast<f32>(side_word(slot, field));
}

fn position_of(slot: u32) -> u32 {
  return side_word(slot, FIELD_POSITION);
}

// Tokens that a slot stands for; 0 if it is free.
fn tokens_of(slot: u32) -> u32 {
  return side_word(slot, FIELD_TOKENS);
}

// ln votes of a slot for a query head of its group.
fn vote_bias(slot: u32, query_head: u32) -> f32 {
  return side_float(slot, FIELD_BIAS + select(query_head, 0u, LANES == 1u));
}
`,
  "lib/softmax_state.wgsl": `// Softmax over a stream of logits: running maximum, sum and weighted value.
// Two states over disjoint parts merge into the state over both, so attention
// may be split anywhere. A thread holds two elements of the value.

// Below every logit; WGSL has no infinity.
const LEAST_LOGIT = -1e30;

struct SoftmaxState {
  max: f32,
  sum: f32,
  value: vec2<f32>,
}

fn init_softmax() -> SoftmaxState {
  return SoftmaxState(LEAST_LOGIT, 0.0, vec2<f32>());
}

fn merge_softmax(a: SoftmaxState, b: SoftmaxState) -> SoftmaxState {
  let top = max(a.max, b.max);
  let mine = exp(a.max - top);
  let theirs = exp(b.max - top);
  return SoftmaxState(
    top,
    a.sum * mine + b.sum * theirs,
    a.value * mine + b.value * theirs,
  );
}

// The weighted mean value; 0 over no logits at all.
fn normalize_softmax(state: SoftmaxState) -> vec2<f32> {
  return state.value / max(state.sum, 1e-30);
}

// ln of the softmax sum.
fn log_softmax_sum(state: SoftmaxState) -> f32 {
  return state.max + log(max(state.sum, 1e-30));
}
`,
  "lib/staged_slot_writes.wgsl": `// Writing the slots of one layer and the staged rows of a chunk. Otherwise the
// same as \`slot_writes.wgsl\`.

fn set_key_word(slot: u32, i: u32, word: u32) {
  if ((slot & STAGED) != 0u) {
    stage_keys[(slot ^ STAGED) * (HEAD_DIM / 2u) + i] = word;
    return;
  }
  keys[slot * (HEAD_DIM / 2u) + i] = word;
}

fn set_value_word(slot: u32, i: u32, word: u32) {
  if ((slot & STAGED) != 0u) {
    stage_values[(slot ^ STAGED) * (HEAD_DIM / 2u) + i] = word;
    return;
  }
  values[slot * (HEAD_DIM / 2u) + i] = word;
}

fn set_side_word(slot: u32, field: u32, word: u32) {
  if ((slot & STAGED) != 0u) {
    stage_side[field * params.stage_total + (slot ^ STAGED)] = word;
    return;
  }
  side[field * params.total + slot] = word;
}

fn set_side_float(slot: u32, field: u32, value: f32) {
  set_side_word(slot, field, bitcast<u32>(value));
}

fn free_slot(slot: u32) {
  set_side_word(slot, FIELD_TOKENS, 0u);
  for (var lane = 0u; lane < LANES; lane++) {
    set_side_float(slot, FIELD_BIAS + lane, FREE_BIAS);
  }
}
`,
  "lib/staged_slots.wgsl": `// Reading the slots of one layer and the staged rows of a chunk. The number of
// a staged row has the highest bit set. Otherwise the same as \`slots.wgsl\`.

const STAGED = 0x80000000u;

override HEADS: u32 = 1u;
override GROUP: u32 = 1u;
override HEAD_DIM: u32 = 4u;
// 1 / √HEAD_DIM
override ROOT: f32 = 0.5;
override LANES: u32 = 1u;
// First tokens of the text that are never evicted.
override SINKS: u32 = 0u;

const FIELD_EMA = 0u;
const FIELD_ACCUMULATED = 1u;
const FIELD_OBSERVATIONS = 2u;
const FIELD_POSITION = 3u;
const FIELD_TOKENS = 4u;
const FIELD_VALUE_NORM = 5u;
const FIELD_BIAS = 6u;
// Fields of a remembered partner, from \`partner_field\` on: see PartnerField.
const PARTNER_SLOT = 0u;
const PARTNER_DISTANCE = 1u;
fn partner_field() -> u32 {
  return FIELD_BIAS + LANES;
}

// Vote bias of a free slot.
const FREE_BIAS = -1e30;

// Two elements of a slot's key.
fn key_word(slot: u32, i: u32) -> u32 {
  if ((slot & STAGED) != 0u) {
    return stage_keys[(slot ^ STAGED) * (HEAD_DIM / 2u) + i];
  }
  return keys[slot * (HEAD_DIM / 2u) + i];
}

fn value_word(slot: u32, i: u32) -> u32 {
  if ((slot & STAGED) != 0u) {
    return stage_values[(slot ^ STAGED) * (HEAD_DIM / 2u) + i];
  }
  return values[slot * (HEAD_DIM / 2u) + i];
}

fn side_word(slot: u32, field: u32) -> u32 {
  if ((slot & STAGED) != 0u) {
    return stage_side[field * params.stage_total + (slot ^ STAGED)];
  }
  return side[field * params.total + slot];
}

fn side_float(slot: u32, field: u32) -> f32 {
  return bitcast<f32>(side_word(slot, field));
}

fn position_of(slot: u32) -> u32 {
  return side_word(slot, FIELD_POSITION);
}

// Tokens that a slot stands for; 0 if it is free.
fn tokens_of(slot: u32) -> u32 {
  return side_word(slot, FIELD_TOKENS);
}

// ln votes of a slot for a query head of its group.
fn vote_bias(slot: u32, query_head: u32) -> f32 {
  return side_float(slot, FIELD_BIAS + select(query_head, 0u, LANES == 1u));
}
`,
  "lib/step.wgsl": `// The rows that a program works on. \`step_words\` is the chunk of a prefill
// program and the state of a decode program: see ChunkWord and StateWord.

override PREFILL: bool = false;

// Whether a row has a token to work on.
fn is_live(row: u32) -> bool {
  if (PREFILL) {
    return row < step_words[CHUNK_ROWS];
  }
  return step_words[row * STATE_WORDS + STATE_FINISHED] == 0u;
}

// The same, or a guest, which goes through the layers but is no part of the text.
fn is_forwarded(row: u32) -> bool {
  if (PREFILL) {
    return row < step_words[CHUNK_ROWS] + step_words[CHUNK_GUESTS];
  }
  return is_live(row);
}

// Sequence that a row belongs to.
fn sequence_of(row: u32) -> u32 {
  if (PREFILL) {
    return step_words[CHUNK_SEQUENCE];
  }
  return row;
}

// Position of a row's token in the text.
fn position_of_row(row: u32) -> u32 {
  if (PREFILL) {
    return step_words[CHUNK_POSITION] + row;
  }
  return step_words[row * STATE_WORDS + STATE_POSITION];
}
`,
  "lib/step_gain.wgsl": `// The scale of scores that is not the model's: see \`scoreGain\` of the reference.

override STEP_GAIN: bool = false;

// What the logits of the row at \`position\` are multiplied with for its scores.
fn score_gain(position: u32, budget: u32) -> f32 {
  if (!STEP_GAIN) {
    return 1.0;
  }
  let ratio = f32(position + 1u) / f32(budget);
  return sqrt(2.0 * max(0.0, log(ratio)));
}
`,
  "lib/step_words.wgsl": `// Words of a chunk and of the state of a sequence: see ChunkWord and StateWord.

const CHUNK_SEQUENCE = 0u;
const CHUNK_ROWS = 1u;
const CHUNK_POSITION = 2u;
const CHUNK_GUESTS = 3u;

const STATE_POSITION = 0u;
const STATE_FINISHED = 1u;
const STATE_PRODUCED = 2u;
const STATE_LIMIT = 3u;
const STATE_SEED_LOW = 4u;
const STATE_SEED_HIGH = 5u;
const STATE_WORDS = 8u;
`,
  "lm_head.wgsl": `// Final RMS norm and the logits of every id.
//
// Streams the output embedding once, 2 bytes per element. The sampler reads
// the logits from memory: a sampler fused in here would have to agree on a
// threshold across all workgroups, which WGSL cannot do in one dispatch.

struct Params {
  // First id of the weight block, and ids in it.
  first_output: u32,
  outputs: u32,
  // Ids in all.
  pitch: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
// (rows, vocabulary), or (1, vocabulary) where LAST
@group(0) @binding(1) var<storage, read_write> logits: array<f32>;
// (rows, hidden)
@group(0) @binding(2) var<storage, read> input: array<vec4<f32>>;
// (hidden)
@group(0) @binding(3) var<storage, read> norm: array<vec4<f32>>;
// (outputs, hidden) halves
@group(0) @binding(4) var<storage, read> weight: array<vec4<u32>>;
@group(0) @binding(5) var<storage, read> step_words: array<u32>;

// Whether the only row is the last one of a chunk.
override LAST: bool = false;

var<private> first_slot: u32;

fn weight_row(slot: u32) -> u32 {
  return min(first_slot + slot, params.outputs - 1u);
}

fn input_row(row: u32) -> u32 {
  if (LAST) {
    return max(step_words[CHUNK_ROWS], 1u) - 1u;
  }
  return row;
}

fn is_needed(row: u32) -> bool {
  return is_live(input_row(row));
}

fn store(row: u32, slot: u32, product: f32) {
  let i = first_slot + slot;
  if (row < ROWS && is_needed(row) && i < params.outputs) {
    logits[row * params.pitch + params.first_output + i] = product;
  }
}

@compute @workgroup_size(VECTOR_THREADS)
fn vector(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  if (!is_any_needed()) {
    return;
  }
  first_slot = group.x * VECTOR_OUTPUTS;
  multiply_vectors(thread, 0u);
  for (var i = thread; i < ROWS * VECTOR_OUTPUTS; i += VECTOR_THREADS) {
    store(i / VECTOR_OUTPUTS, i % VECTOR_OUTPUTS, products[i]);
  }
}

@compute @workgroup_size(TILE_THREADS)
fn tile(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let first_row = group.y * TILE_ROWS;
  if (PREFILL && !is_live(first_row)) {
    return;
  }
  first_slot = group.x * TILE_OUTPUTS;
  let sums = multiply_tiles(thread, first_row);
  for (var j = 0u; j < 4u; j++) {
    for (var i = 0u; i < 4u; i++) {
      store(
        first_row + thread / 16u + 16u * j,
        thread % 16u * 4u + i,
        sums[j][i],
      );
    }
  }
}
`,
  "merge_attend.wgsl": `// Attention of one new token per sequence over the voted slots of its heads,
// softmax(q·k/√d + ln votes); then, per KV head, the policy's work: scores, and
// one slot merged into its most similar neighbour or dropped if the head is
// over its budget. Position and slot number are independent, so nothing moves.
//
// Moves keys and values once, 4 bytes per element pair, whatever the number of
// query heads in a group, and about 28 bytes beside each pair.
//
// \`attend\` splits the slots of a head over workgroups; each leaves a partial
// softmax state and, where scores are kept, raw logits. \`finish\`, a workgroup
// per head, joins the states and does the rest, because a victim can only be
// chosen once all slots are scored. Where the heads of a layer choose together
// it is split: \`score\` first, then \`choose\`. It reads the keys again for the
// nearest one; riding with the attention as another query would save that, but needs
// the victim before the scores of this step.

struct Params {
  layer: u32,
  first_head: u32,
  total: u32,
  max_capacity: u32,
  // Workgroups that share a head, and slots of each.
  splits: u32,
  split_slots: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
// (rows, heads, headDim)
@group(0) @binding(1) var<storage, read_write> output: array<vec2<f32>>;
// (rows, heads, headDim)
@group(0) @binding(2) var<storage, read> queries: array<vec2<f32>>;
@group(0) @binding(3) var<storage, read> sink_queries: array<vec2<f32>>;
// (total, headDim) halves
@group(0) @binding(4) var<storage, read_write> keys: array<u32>;
@group(0) @binding(5) var<storage, read_write> values: array<u32>;
// (SlotField.bias + lanes, total)
@group(0) @binding(6) var<storage, read_write> side: array<u32>;
@group(0) @binding(7) var<storage, read_write> table: array<u32>;
@group(0) @binding(8) var<storage, read> step_words: array<u32>;
// (rows, heads, maxCapacity): raw logits, votes not counted
@group(0) @binding(9) var<storage, read_write> raw_logits: array<f32>;
// (rows, kvHeads, splits, group, 1 + headDim / 2): maximum and sum, then value
@group(0) @binding(10) var<storage, read_write> partials: array<vec2<f32>>;
// (rows, kvHeads, maxCapacity): scores that take more than a slot's own fields
@group(0) @binding(11) var<storage, read_write> ratings: array<f32>;
// (rows, kvHeads, PAIR_HEADER + 3 * maxCapacity): see \`lib/pair_step.wgsl\`
@group(0) @binding(12) var<storage, read_write> pairs: array<u32>;
// (sequences, heads, 3 headDim + 1)
@group(0) @binding(13) var<storage, read> statistics: array<f32>;

const THREADS = 256u;

var<workgroup> state_max: array<f32, MAX_GROUP>;
var<workgroup> state_keep: array<f32, MAX_GROUP>;
var<workgroup> part_values: array<vec2<f32>, THREADS>;
var<workgroup> part_sums: array<f32, THREADS>;
var<workgroup> log_sums: array<f32, MAX_GROUP>;
var<workgroup> head_words: array<u32, HEAD_WORDS>;

// Slots that may be live once the new token is in its slot.
fn used_slots(head: u32) -> u32 {
  let used = min(table[head + HEAD_NEXT] + 1u, table[head + HEAD_CAPACITY]);
  return max(table[head + HEAD_HIGH], used);
}

fn logit_at(row: u32, kv_head: u32, query_head: u32) -> u32 {
  return (row * HEADS + kv_head * GROUP + query_head) * params.max_capacity;
}

fn partial_at(row: u32, kv_head: u32, split: u32, query_head: u32) -> u32 {
  let part = (row * KV_HEADS + kv_head) * params.splits + split;
  return (part * GROUP + query_head) * (HEAD_DIM / 2u + 1u);
}

@compute @workgroup_size(THREADS)
fn attend(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let split = group.x;
  let kv_head = group.y;
  let row = group.z;
  if (!is_live(row)) {
    return;
  }
  let head = head_at(sequence_of(row), kv_head);
  if (thread == 0u) {
    head_words[HEAD_OFFSET] = table[head + HEAD_OFFSET];
    head_words[HEAD_HIGH] = used_slots(head);
  }
  let offset = workgroupUniformLoad(&head_words[HEAD_OFFSET]);
  let high = workgroupUniformLoad(&head_words[HEAD_HIGH]);
  let first = split * params.split_slots;
  let end = min(first + params.split_slots, high);
  if (first >= end) {
    return;
  }
  let half = HEAD_DIM / 2u;
  load_queries(thread, row * GROUP, GROUP, kv_head);
  if (thread < GROUP) {
    state_max[thread] = LEAST_LOGIT;
  }

  // Logits: a thread has key \`j\` and every \`strands\`th query.
  let j = thread % KEY_TILE;
  let strand = thread / KEY_TILE;
  let strands = THREADS / KEY_TILE;
  // Values: a thread has two elements and every \`parts\`th slot.
  let parts = THREADS / half;
  let part = thread / half;
  let pair = thread % half;
  var values_sum: array<vec2<f32>, MAX_GROUP>;
  var weights_sum: array<f32, MAX_GROUP>;
  for (var tile = first; tile < end; tile += KEY_TILE) {
    let count = min(KEY_TILE, end - tile);
    load_keys(thread, offset + tile, count);
    workgroupBarrier();
    let slot = offset + tile + j;
    let is_used = j < count && tokens_of(slot) != 0u;
    for (var i = strand; i < GROUP; i += strands) {
      var logit = LEAST_LOGIT;
      if (is_used) {
        let vector = query_vector(row * GROUP + i, kv_head);
        let raw = raw_logit(i, j, vector, slot);
        if (OBSERVE) {
          raw_logits[logit_at(row, kv_head, i) + tile + j] = raw;
        }
        logit = raw + vote_bias(slot, i);
      }
      logits[i * logit_pitch() + j] = logit;
    }
    workgroupBarrier();
    // Zeroed in so many words: naga 29 does not zero a \`var\` again in a loop.
    var tops = array<f32, MAX_GROUP>();
    var weights = array<f32, MAX_GROUP>();
    for (var i = strand; i < GROUP; i += strands) {
      var top = state_max[i];
      for (var k = 0u; k < KEY_TILE; k++) {
        top = max(top, logits[i * logit_pitch() + k]);
      }
      tops[i] = top;
      if (is_used) {
        weights[i] = exp(logits[i * logit_pitch() + j] - top);
      }
    }
    workgroupBarrier();
    for (var i = strand; i < GROUP; i += strands) {
      logits[i * logit_pitch() + j] = weights[i];
      if (j == 0u) {
        state_keep[i] = exp(state_max[i] - tops[i]);
        state_max[i] = tops[i];
      }
    }
    workgroupBarrier();
    if (part < parts) {
      for (var i = 0u; i < GROUP; i++) {
        values_sum[i] *= state_keep[i];
        weights_sum[i] *= state_keep[i];
      }
      for (var k = part; k < count; k += parts) {
        let value = unpack_halves(value_word(offset + tile + k, pair));
        for (var i = 0u; i < GROUP; i++) {
          let weight = logits[i * logit_pitch() + k];
          values_sum[i] += weight * value;
          weights_sum[i] += weight;
        }
      }
    }
  }

  for (var i = 0u; i < GROUP; i++) {
    workgroupBarrier();
    part_values[thread] = values_sum[i];
    part_sums[thread] = weights_sum[i];
    workgroupBarrier();
    if (part == 0u) {
      var value = vec2<f32>();
      var sum = 0.0;
      for (var p = 0u; p < parts; p++) {
        value += part_values[p * half + pair];
        sum += part_sums[p * half + pair];
      }
      let at = partial_at(row, kv_head, split, i);
      partials[at + 1u + pair] = value;
      if (pair == 0u) {
        partials[at] = vec2(state_max[i], sum);
      }
    }
  }
}

// Joins the partial states of a head and writes its output.
fn join(thread: u32, row: u32, kv_head: u32, splits: u32) {
  let half = HEAD_DIM / 2u;
  for (var i = thread; i < GROUP * half; i += THREADS) {
    let query_head = i / half;
    let pair = i % half;
    var state = init_softmax();
    for (var split = 0u; split < splits; split++) {
      let at = partial_at(row, kv_head, split, query_head);
      let sums = partials[at];
      state = merge_softmax(
        state,
        SoftmaxState(sums.x, sums.y, partials[at + 1u + pair]),
      );
    }
    let vector = query_vector(row * GROUP + query_head, kv_head);
    output[vector * half + pair] = normalize_softmax(state);
    if (pair == 0u) {
      log_sums[query_head] = log_softmax_sum(state);
    }
  }
}

@compute @workgroup_size(THREADS)
fn finish(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  if (!is_live(group.y)) {
    return;
  }
  begin(thread, group.x, group.y);
  attend_and_score(thread);
  evict(thread);
}

// The same in two dispatches, where the scores of all heads come first.
@compute @workgroup_size(THREADS)
fn score(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  if (!is_live(group.y)) {
    return;
  }
  begin(thread, group.x, group.y);
  attend_and_score(thread);
}

@compute @workgroup_size(THREADS)
fn choose(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  if (!is_live(group.y)) {
    return;
  }
  begin(thread, group.x, group.y);
  if (EXACT_VALUES) {
    // For the softmax sums, which are not kept.
    let splits = (own_high + params.split_slots - 1u) / params.split_slots;
    join(thread, own_row, own_kv_head, splits);
    workgroupBarrier();
  }
  evict(thread);
}
`,
  "observe.wgsl": `// Adds the attention of a chunk's observed rows to the scores of the slots and
// of the staged rows.
//
// Logits are computed again from queries and keys, with the softmax sums that
// \`prefill_attend\` left; storing them would take rows × slots. A workgroup owns
// a tile of slots of one KV head and goes through the observed rows in order,
// because a moving average depends on the order.

struct Params {
  first_head: u32,
  total: u32,
  stage_total: u32,
  stage_rows: u32,
  // Tiles of cache slots; the tiles after them are of staged rows.
  cache_tiles: u32,
  // Rows observed at the end of the chunk, guests included.
  probe_rows: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
// (rows, heads, headDim)
@group(0) @binding(1) var<storage, read> queries: array<vec2<f32>>;
@group(0) @binding(2) var<storage, read> sink_queries: array<vec2<f32>>;
// (rows, heads)
@group(0) @binding(3) var<storage, read> log_sums: array<f32>;
// (total, headDim) halves
@group(0) @binding(4) var<storage, read_write> keys: array<u32>;
@group(0) @binding(5) var<storage, read_write> values: array<u32>;
// (SlotField.bias + lanes, total)
@group(0) @binding(6) var<storage, read_write> side: array<u32>;
// The same of the staged rows, (kvHeads, stageRows).
@group(0) @binding(7) var<storage, read_write> stage_keys: array<u32>;
@group(0) @binding(8) var<storage, read_write> stage_values: array<u32>;
@group(0) @binding(9) var<storage, read_write> stage_side: array<u32>;
@group(0) @binding(10) var<storage, read> table: array<u32>;
@group(0) @binding(11) var<storage, read> step_words: array<u32>;

const THREADS = 256u;

@compute @workgroup_size(THREADS)
fn observe(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let kv_head = group.y;
  let rows = step_words[CHUNK_ROWS];
  let head = head_at(step_words[CHUNK_SEQUENCE], kv_head);
  var tile = group.x;
  var end = table[head + HEAD_HIGH];
  let is_staged = tile >= params.cache_tiles;
  if (is_staged) {
    tile -= params.cache_tiles;
    end = rows;
  }
  if (rows == 0u || tile * KEY_TILE >= end) {
    return;
  }
  let count = min(KEY_TILE, end - tile * KEY_TILE);
  var first_slot = table[head + HEAD_OFFSET] + tile * KEY_TILE;
  if (is_staged) {
    first_slot = STAGED | (kv_head * params.stage_rows + tile * KEY_TILE);
  }
  load_keys(thread, first_slot, count);

  let j = thread % KEY_TILE;
  let strand = thread / KEY_TILE;
  let strands = THREADS / KEY_TILE;
  let slot = first_slot + j;
  let is_used = j < count && (is_staged || tokens_of(slot) != 0u);
  var scores = SlotScores(0.0, 0.0, 0u);
  if (is_used) {
    scores = read_scores(slot);
  }
  // A tile holds whole rows: QUERY_TILE is a multiple of GROUP.
  let tile_rows = QUERY_TILE / GROUP;
  let end_row = rows + step_words[CHUNK_GUESTS];
  let first_row = end_row - min(end_row, params.probe_rows);
  for (var row = first_row; row < end_row; row += tile_rows) {
    let queries_left = (end_row - row) * GROUP;
    workgroupBarrier();
    load_queries(thread, row * GROUP, min(QUERY_TILE, queries_left), kv_head);
    workgroupBarrier();
    for (var i = strand; i < min(QUERY_TILE, queries_left); i += strands) {
      if (is_used) {
        let vector = query_vector(row * GROUP + i, kv_head);
        logits[i * logit_pitch() + j] = raw_logit(i, j, vector, slot);
      }
    }
    workgroupBarrier();
    if (is_used && strand == 0u) {
      // A row does not see the rows after it.
      let first_seeing = select(0u, tile * KEY_TILE + j, is_staged);
      let start = max(first_seeing, row) - row;
      for (var r = start; r < min(tile_rows, end_row - row); r++) {
        let position = step_words[CHUNK_POSITION] + row + r;
        let gain = score_gain(position, table[head + HEAD_BUDGET]);
        var seen = init_observation();
        for (var i = 0u; i < GROUP; i++) {
          let query = (row + r) * GROUP + i;
          seen = observe_head(
            seen,
            gain * logits[(r * GROUP + i) * logit_pitch() + j],
            gain * vote_bias(slot, i),
            log_sums[query_vector(query, kv_head)],
          );
        }
        scores = add_observation(scores, seen, position);
      }
    }
  }
  if (is_used && strand == 0u) {
    set_side_float(slot, FIELD_EMA, scores.ema);
    set_side_float(slot, FIELD_ACCUMULATED, scores.accumulated);
    set_side_word(slot, FIELD_OBSERVATIONS, scores.observations);
  }
}
`,
  "prefill_attend.wgsl": `// Attention of the rows of a chunk: each row attends to the voted slots and to
// the rows up to itself.
//
// One workgroup takes a tile of queries, rows times the heads of a group, over
// all slots of their KV head, with a running softmax: neither logits nor
// weights leave workgroup memory. Keys and values are read once per tile of
// queries. Splitting the slots over workgroups too would help short chunks
// over long caches only; decode, which needs that, has \`merge_attend\`.

struct Params {
  first_head: u32,
  total: u32,
  stage_total: u32,
  stage_rows: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
// (rows, heads, headDim)
@group(0) @binding(1) var<storage, read_write> output: array<vec2<f32>>;
// (rows, heads): ln of the softmax sums
@group(0) @binding(2) var<storage, read_write> log_sums: array<f32>;
// (rows, heads, headDim)
@group(0) @binding(3) var<storage, read> queries: array<vec2<f32>>;
@group(0) @binding(4) var<storage, read> sink_queries: array<vec2<f32>>;
// (total, headDim) halves
@group(0) @binding(5) var<storage, read> keys: array<u32>;
@group(0) @binding(6) var<storage, read> values: array<u32>;
// (SlotField.bias + lanes, total)
@group(0) @binding(7) var<storage, read> side: array<u32>;
// The same of the staged rows, (kvHeads, stageRows).
@group(0) @binding(8) var<storage, read> stage_keys: array<u32>;
@group(0) @binding(9) var<storage, read> stage_values: array<u32>;
@group(0) @binding(10) var<storage, read> stage_side: array<u32>;
@group(0) @binding(11) var<storage, read> table: array<u32>;
@group(0) @binding(12) var<storage, read> step_words: array<u32>;

const THREADS = 256u;
// Queries that a thread adds values for, at most: 32 queries, 2 threads per
// element pair of the widest head.
const MAX_QUERIES = 16u;
// Logits of a thread, at most.
const MAX_LOGITS = 4u;
const LEAST_LOGIT = -1e30;

override MAX_TILE: u32 = 32u;

var<workgroup> row_max: array<f32, MAX_TILE>;
var<workgroup> row_sum: array<f32, MAX_TILE>;
var<workgroup> row_keep: array<f32, MAX_TILE>;
// The same sum at the scale of scores.
var<workgroup> gain_sum: array<f32, MAX_TILE>;

// Adds a tile of logits to a query's sum at the scale of scores. Its
// largest logit is that of the attention.
fn add_gained(i: u32, gain: f32) {
  var top = row_max[i];
  for (var k = 0u; k < KEY_TILE; k++) {
    top = max(top, logits[i * logit_pitch() + k]);
  }
  var sum = gain_sum[i] * exp(gain * (row_max[i] - top));
  for (var k = 0u; k < KEY_TILE; k++) {
    let logit = logits[i * logit_pitch() + k];
    if (logit > LEAST_LOGIT) {
      sum += exp(gain * (logit - top));
    }
  }
  gain_sum[i] = sum;
}

@compute @workgroup_size(THREADS)
fn attend(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let kv_head = group.y;
  let first = group.x * QUERY_TILE;
  let rows = step_words[CHUNK_ROWS] + step_words[CHUNK_GUESTS];
  if (first >= rows * GROUP) {
    return;
  }
  let count = min(QUERY_TILE, rows * GROUP - first);
  let half = HEAD_DIM / 2u;
  let head = head_at(step_words[CHUNK_SEQUENCE], kv_head);
  let high = table[head + HEAD_HIGH];
  let cache_tiles = (high + KEY_TILE - 1u) / KEY_TILE;
  // The tile's last query is in this row.
  let end_row = (first + count - 1u) / GROUP + 1u;
  let stage_tiles = (end_row + KEY_TILE - 1u) / KEY_TILE;
  load_queries(thread, first, count, kv_head);
  if (thread < QUERY_TILE) {
    row_max[thread] = LEAST_LOGIT;
    row_sum[thread] = 0.0;
    gain_sum[thread] = 0.0;
  }
  // Of the query that the first threads sum up.
  let position = step_words[CHUNK_POSITION] + (first + thread) / GROUP;
  let gain = score_gain(position, table[head + HEAD_BUDGET]);

  // Logits: a thread has key \`j\` and every \`strands\`th query.
  let j = thread % KEY_TILE;
  let strand = thread / KEY_TILE;
  let strands = THREADS / KEY_TILE;
  // Values: a thread has two elements and every \`parts\`th query.
  let parts = THREADS / half;
  let part = thread / half;
  let pair = thread % half;
  var sums: array<vec2<f32>, MAX_QUERIES>;
  for (var tile = 0u; tile < cache_tiles + stage_tiles; tile++) {
    var first_slot = table[head + HEAD_OFFSET] + tile * KEY_TILE;
    var first_row = 0u;
    var slots = min(KEY_TILE, high - min(high, tile * KEY_TILE));
    let is_staged = tile >= cache_tiles;
    if (is_staged) {
      first_row = (tile - cache_tiles) * KEY_TILE;
      first_slot = STAGED | (kv_head * params.stage_rows + first_row);
      slots = min(KEY_TILE, end_row - first_row);
    }
    load_keys(thread, first_slot, slots);
    workgroupBarrier();
    let slot = first_slot + j;
    let is_used = j < slots && (is_staged || tokens_of(slot) != 0u);
    for (var i = strand; i < QUERY_TILE; i += strands) {
      var logit = LEAST_LOGIT;
      let query = first + i;
      let is_seen = !is_staged || first_row + j <= query / GROUP;
      if (is_used && is_seen && i < count) {
        logit = raw_logit(i, j, query_vector(query, kv_head), slot) +
          vote_bias(slot, query % GROUP);
      }
      logits[i * logit_pitch() + j] = logit;
    }
    workgroupBarrier();
    // Zeroed in so many words: naga 29 does not zero a \`var\` again in a loop.
    var tops = array<f32, MAX_LOGITS>();
    var weights = array<f32, MAX_LOGITS>();
    for (var n = 0u; strand + n * strands < QUERY_TILE; n++) {
      let i = strand + n * strands;
      var top = row_max[i];
      for (var k = 0u; k < KEY_TILE; k++) {
        top = max(top, logits[i * logit_pitch() + k]);
      }
      tops[n] = top;
      let logit = logits[i * logit_pitch() + j];
      if (logit > LEAST_LOGIT) {
        weights[n] = exp(logit - top);
      }
    }
    if (STEP_GAIN && thread < QUERY_TILE) {
      add_gained(thread, gain);
    }
    workgroupBarrier();
    for (var n = 0u; strand + n * strands < QUERY_TILE; n++) {
      let i = strand + n * strands;
      logits[i * logit_pitch() + j] = weights[n];
      if (j == 0u) {
        row_keep[i] = exp(row_max[i] - tops[n]);
        row_max[i] = tops[n];
      }
    }
    workgroupBarrier();
    if (thread < QUERY_TILE) {
      var sum = row_sum[thread] * row_keep[thread];
      for (var k = 0u; k < KEY_TILE; k++) {
        sum += logits[thread * logit_pitch() + k];
      }
      row_sum[thread] = sum;
    }
    if (part < parts) {
      for (var n = 0u; part + n * parts < QUERY_TILE; n++) {
        sums[n] *= row_keep[part + n * parts];
      }
      for (var k = 0u; k < slots; k++) {
        let value = unpack_halves(value_word(first_slot + k, pair));
        for (var n = 0u; part + n * parts < QUERY_TILE; n++) {
          sums[n] += logits[(part + n * parts) * logit_pitch() + k] * value;
        }
      }
    }
  }

  workgroupBarrier();
  if (part < parts) {
    for (var n = 0u; part + n * parts < count; n++) {
      let i = part + n * parts;
      let vector = query_vector(first + i, kv_head);
      output[vector * half + pair] = sums[n] / row_sum[i];
      if (pair == 0u) {
        log_sums[vector] = row_max[i] + log(row_sum[i]);
        if (STEP_GAIN) {
          let at = step_words[CHUNK_POSITION] + (first + i) / GROUP;
          let own_gain = score_gain(at, table[head + HEAD_BUDGET]);
          log_sums[vector] = own_gain * row_max[i] + log(gain_sum[i]);
        }
      }
    }
  }
}
`,
  "project_add.wgsl": `// hidden += input · weightᵀ + bias.
//
// Streams the weight once: 2 bytes per element, and 4 bytes per element of
// input and output, which stay in the caches. A workgroup owns 16 outputs for
// all rows (\`vector\`) or a tile of 64 rows and 64 outputs (\`tile\`). Splitting
// the columns over workgroups as well would fill a large GPU better for narrow
// outputs, but needs a second pass or atomics on floats, which WGSL lacks.

struct Params {
  // First output of the weight block, and outputs in it.
  first_output: u32,
  outputs: u32,
  // Outputs of the whole matrix.
  pitch: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
// (rows, hidden)
@group(0) @binding(1) var<storage, read_write> hidden: array<f32>;
// (rows, columns)
@group(0) @binding(2) var<storage, read> input: array<vec4<f32>>;
// Unused: the input has no norm.
@group(0) @binding(3) var<storage, read> norm: array<vec4<f32>>;
// (outputs, columns) halves
@group(0) @binding(4) var<storage, read> weight: array<vec4<u32>>;
// (hidden)
@group(0) @binding(5) var<storage, read> bias: array<f32>;
@group(0) @binding(6) var<storage, read> step_words: array<u32>;

override BIAS: bool = false;

var<private> first_slot: u32;

fn weight_row(slot: u32) -> u32 {
  return min(first_slot + slot, params.outputs - 1u);
}

fn input_row(row: u32) -> u32 {
  return row;
}

fn is_needed(row: u32) -> bool {
  return is_forwarded(row);
}

fn add(row: u32, slot: u32, product: f32) {
  let i = first_slot + slot;
  if (row >= ROWS || !is_forwarded(row) || i >= params.outputs) {
    return;
  }
  let output = params.first_output + i;
  var sum = product;
  if (BIAS) {
    sum += bias[output];
  }
  hidden[row * params.pitch + output] += sum;
}

@compute @workgroup_size(VECTOR_THREADS)
fn vector(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  if (!is_any_needed()) {
    return;
  }
  first_slot = group.x * VECTOR_OUTPUTS;
  multiply_vectors(thread, 0u);
  for (var i = thread; i < ROWS * VECTOR_OUTPUTS; i += VECTOR_THREADS) {
    add(i / VECTOR_OUTPUTS, i % VECTOR_OUTPUTS, products[i]);
  }
}

@compute @workgroup_size(TILE_THREADS)
fn tile(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let first_row = group.y * TILE_ROWS;
  if (PREFILL && !is_forwarded(first_row)) {
    return;
  }
  first_slot = group.x * TILE_OUTPUTS;
  let sums = multiply_tiles(thread, first_row);
  for (var j = 0u; j < 4u; j++) {
    for (var i = 0u; i < 4u; i++) {
      add(
        first_row + thread / 16u + 16u * j,
        thread % 16u * 4u + i,
        sums[j][i],
      );
    }
  }
}
`,
  "qkv_rope_append.wgsl": `// RMS norm, the q|k|v product with its bias, per-head norms, RoPE, and one new
// slot per KV head that holds the token: the head's next free slot in a decode
// step, a staged row in a prefill step.
//
// Streams the weight once, 2 bytes per element; writes 4 bytes per query
// element and 2 per key and value element. RoPE turns the pairs (i, i + half),
// so a workgroup of \`vector\` owns both ends of PAIRS pairs of a head, and the
// whole head where the model norms heads. A chunk takes two dispatches: \`tile\`
// leaves products in scratch and \`append\` finishes them. Doing it in one would
// need tiles as wide as a head, 64 KiB of workgroup memory.

struct Params {
  // First output of the weight block, and outputs in it: whole heads.
  first_output: u32,
  outputs: u32,
  // Workgroups of \`vector\` that share a head.
  parts: u32,
  first_head: u32,
  // Slots in \`keys\`, and those of a KV head in a prefill step.
  total: u32,
  stage_rows: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
// (rows, heads, headDim)
@group(0) @binding(1) var<storage, read_write> queries: array<f32>;
@group(0) @binding(2) var<storage, read_write> sink_queries: array<f32>;
// (rows, hidden)
@group(0) @binding(3) var<storage, read> input: array<vec4<f32>>;
// (hidden)
@group(0) @binding(4) var<storage, read> norm: array<vec4<f32>>;
// (outputs, hidden) halves
@group(0) @binding(5) var<storage, read> weight: array<vec4<u32>>;
// ((heads + 2 kvHeads) headDim)
@group(0) @binding(6) var<storage, read> bias: array<f32>;
// (headDim)
@group(0) @binding(7) var<storage, read> query_norm: array<f32>;
@group(0) @binding(8) var<storage, read> key_norm: array<f32>;
// (3, 256, headDim / 2): cosine and sine
@group(0) @binding(9) var<storage, read> rope: array<vec2<f32>>;
// (total, headDim) halves
@group(0) @binding(10) var<storage, read_write> keys: array<u32>;
@group(0) @binding(11) var<storage, read_write> values: array<u32>;
// (SlotField.bias + lanes, total)
@group(0) @binding(12) var<storage, read_write> side: array<u32>;
@group(0) @binding(13) var<storage, read> table: array<u32>;
@group(0) @binding(14) var<storage, read> step_words: array<u32>;
// (rows, heads + 2 kvHeads, headDim): products of \`tile\`
@group(0) @binding(15) var<storage, read_write> scratch: array<f32>;

override HEADS: u32;
override HEAD_DIM: u32;
override LANES: u32;
override PAIRS: u32;
override BIAS: bool = false;
override SINK_QUERIES: bool = false;
override QUERY_NORM: bool = false;
override KEY_NORM: bool = false;

const SIDE_FIELDS = 6u;
const FIELD_EMA = 0u;
const FIELD_ACCUMULATED = 1u;
const FIELD_OBSERVATIONS = 2u;
const FIELD_POSITION = 3u;
const FIELD_TOKENS = 4u;
const FIELD_VALUE_NORM = 5u;
const LOG_ZERO = -1e30;

var<private> first_weight_row: u32;
var<private> pair_offset: u32;

// Slots 0 .. PAIRS are the first ends of the pairs, the others the second.
fn element_of(slot: u32) -> u32 {
  let half = HEAD_DIM / 2u;
  return min(pair_offset + slot % PAIRS, half - 1u) + slot / PAIRS * half;
}

fn weight_row(slot: u32) -> u32 {
  if (IS_TILED) {
    return min(first_weight_row + slot, params.outputs - 1u);
  }
  // The last of several parts may have slots to spare.
  return first_weight_row + element_of(min(slot, 2u * PAIRS - 1u));
}

override IS_TILED: bool = false;

fn input_row(row: u32) -> u32 {
  return row;
}

fn is_needed(row: u32) -> bool {
  return is_forwarded(row);
}

// Turns a pair by the angle of \`position\`.
fn rotate(pair: vec2<f32>, index: u32, position: u32) -> vec2<f32> {
  return turn(pair, angle_at(index, position));
}

// Index in the cache that a row's token takes, staged rows included.
fn place_of(row: u32, kv_head: u32) -> u32 {
  let live = table[head_at(sequence_of(row), kv_head) + HEAD_LIVE];
  if (PREFILL) {
    return live + row;
  }
  return live;
}

fn initialise(slot: u32, position: u32) {
  side[FIELD_EMA * params.total + slot] = bitcast<u32>(LOG_ZERO);
  side[FIELD_ACCUMULATED * params.total + slot] = 0u;
  side[FIELD_OBSERVATIONS * params.total + slot] = 0u;
  side[FIELD_POSITION * params.total + slot] = position;
  side[FIELD_TOKENS * params.total + slot] = 1u;
  side[FIELD_VALUE_NORM * params.total + slot] = 0u;
  for (var lane = 0u; lane < LANES; lane++) {
    side[(SIDE_FIELDS + lane) * params.total + slot] = 0u;
  }
}

// 1 / rms of the head in \`products\`, which then holds all of it.
fn head_scale(base: u32) -> f32 {
  var squares = 0.0;
  for (var i = 0u; i < HEAD_DIM; i++) {
    squares += products[base + i] * products[base + i];
  }
  return inverseSqrt(squares / f32(HEAD_DIM) + EPSILON);
}

// Adds biases to the products of a head in \`products[index]\`, for all rows.
fn add_bias(thread: u32, threads: u32, rows: u32, head: u32) {
  for (var i = thread; i < rows * 2u * PAIRS; i += threads) {
    let slot = i % (2u * PAIRS);
    products[i / (2u * PAIRS) * SLOTS + slot] +=
      bias[head * HEAD_DIM + element_of(slot)];
  }
}

// Norms, turns and writes two neighbouring pairs, \`index\` and the next one, of
// a head whose products stand in \`products\` from \`base\`.
fn write_pairs(row: u32, head: u32, index: u32, base: u32) {
  let half = HEAD_DIM / 2u;
  let i = pair_offset + index;
  let position = position_of_row(row);
  var even = vec2(products[base + index], products[base + PAIRS + index]);
  var odd = vec2(products[base + index + 1u], products[base + PAIRS + index + 1u]);
  if (head < HEADS) {
    if (QUERY_NORM) {
      let scale = head_scale(base);
      even *= scale * vec2(query_norm[i], query_norm[i + half]);
      odd *= scale * vec2(query_norm[i + 1u], query_norm[i + 1u + half]);
    }
    let at = (row * HEADS + head) * HEAD_DIM + i;
    let a = rotate(even, i, position);
    let b = rotate(odd, i + 1u, position);
    queries[at] = a.x;
    queries[at + 1u] = b.x;
    queries[at + half] = a.y;
    queries[at + half + 1u] = b.y;
    if (SINK_QUERIES) {
      let place = place_of(row, head / (HEADS / KV_HEADS));
      let a = rotate(even, i, place);
      let b = rotate(odd, i + 1u, place);
      sink_queries[at] = a.x;
      sink_queries[at + 1u] = b.x;
      sink_queries[at + half] = a.y;
      sink_queries[at + half + 1u] = b.y;
    }
    return;
  }
  let is_key = head < HEADS + KV_HEADS;
  let slot = slot_of(row, (head - HEADS) % KV_HEADS);
  if (slot == NO_SLOT) {
    return;
  }
  let at = (slot * HEAD_DIM + i) / 2u;
  if (!is_key) {
    values[at] = pack_halves(vec2(even.x, odd.x));
    values[at + half / 2u] = pack_halves(vec2(even.y, odd.y));
    return;
  }
  if (KEY_NORM) {
    let scale = head_scale(base);
    even *= scale * vec2(key_norm[i], key_norm[i + half]);
    odd *= scale * vec2(key_norm[i + 1u], key_norm[i + 1u + half]);
  }
  let a = rotate(even, i, position);
  let b = rotate(odd, i + 1u, position);
  keys[at] = pack_halves(vec2(a.x, b.x));
  keys[at + half / 2u] = pack_halves(vec2(a.y, b.y));
  if (i == 0u) {
    initialise(slot, position);
  }
}

@compute @workgroup_size(VECTOR_THREADS)
fn vector(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  if (!is_any_needed()) {
    return;
  }
  let local_head = group.x / params.parts;
  let head = params.first_output / HEAD_DIM + local_head;
  first_weight_row = local_head * HEAD_DIM;
  pair_offset = group.x % params.parts * PAIRS;
  for (var slot = 0u; slot < 2u * PAIRS; slot += VECTOR_OUTPUTS) {
    multiply_vectors(thread, slot);
  }
  if (BIAS) {
    add_bias(thread, VECTOR_THREADS, ROWS, head);
    workgroupBarrier();
  }
  let couples = PAIRS / 2u;
  for (var i = thread; i < ROWS * couples; i += VECTOR_THREADS) {
    let row = i / couples;
    let index = i % couples * 2u;
    if (is_forwarded(row) && pair_offset + index < HEAD_DIM / 2u) {
      write_pairs(row, head, index, row * SLOTS);
    }
  }
}

@compute @workgroup_size(TILE_THREADS)
fn tile(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let first_row = group.y * TILE_ROWS;
  if (PREFILL && !is_forwarded(first_row)) {
    return;
  }
  first_weight_row = group.x * TILE_OUTPUTS;
  let sums = multiply_tiles(thread, first_row);
  let pitch = (HEADS + 2u * KV_HEADS) * HEAD_DIM;
  for (var j = 0u; j < 4u; j++) {
    let row = first_row + thread / 16u + 16u * j;
    for (var i = 0u; i < 4u; i++) {
      let output = first_weight_row + thread % 16u * 4u + i;
      if (row < ROWS && output < params.outputs) {
        scratch[row * pitch + params.first_output + output] = sums[j][i];
      }
    }
  }
}

// Finishes one head of one row from \`scratch\`. PAIRS is half the head.
@compute @workgroup_size(64)
fn append(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let head = group.x;
  let row = group.y;
  if (!is_forwarded(row)) {
    return;
  }
  let base = (row * (HEADS + 2u * KV_HEADS) + head) * HEAD_DIM;
  for (var i = thread; i < HEAD_DIM; i += 64u) {
    products[i] = scratch[base + i];
  }
  workgroupBarrier();
  if (BIAS) {
    add_bias(thread, 64u, 1u, head);
    workgroupBarrier();
  }
  for (var index = 2u * thread; index < PAIRS; index += 128u) {
    write_pairs(row, head, index, 0u);
  }
}
`,
  "query_statistics.wgsl": `// For each query head, the mean of its unrotated queries and, per RoPE pair,
// the mean of their squared distances from it, over the text so far; then the
// mean and the variance of the queries that are expected after the last row,
// rotated like keys.
//
// Reads the queries of the step once, 4 bytes per element, and 28 bytes per
// pair and query head of statistics. A workgroup has a query head: its threads
// share the pairs, and the rows of a chunk, whose statistics they join in the
// end. Letting \`qkv_rope_append\` count its queries before it turns them would
// save undoing the rotation, but its workgroups own rows, not heads.

@group(0) @binding(0) var<storage, read_write> statistics: array<f32>;
// (rows, heads, headDim)
@group(0) @binding(1) var<storage, read> queries: array<f32>;
// (3, 256, headDim / 2): cosine and sine
@group(0) @binding(2) var<storage, read> rope: array<vec2<f32>>;
// (headDim / 2): mean of the rotations by the next positions
@group(0) @binding(3) var<storage, read> ahead: array<vec2<f32>>;
@group(0) @binding(4) var<storage, read> step_words: array<u32>;

override HEADS: u32 = 1u;
override HEAD_DIM: u32 = 4u;
// First tokens of the text, whose queries do not count.
override SINKS: u32 = 0u;

const THREADS = 256u;

// How many queries there were, their mean, and how far they scatter.
struct Moments {
  count: f32,
  scatter: f32,
  mean: vec2<f32>,
}

var<workgroup> part_moments: array<Moments, THREADS>;

// The moments of both together. Differences from the mean are summed up, not
// squares, since queries may scatter little about a mean far from 0.
fn join_moments(a: Moments, b: Moments) -> Moments {
  if (b.count == 0.0) {
    return a;
  }
  let count = a.count + b.count;
  let share = b.count / count;
  let change = b.mean - a.mean;
  let between = (1.0 - share) * dot(change, change);
  return Moments(
    count,
    a.scatter + share * (b.scatter - a.scatter + between),
    a.mean + share * change,
  );
}

@compute @workgroup_size(THREADS)
fn count_queries(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let head = group.x;
  let first = group.y;
  if (!is_live(first)) {
    return;
  }
  let half = HEAD_DIM / 2u;
  var rows = 1u;
  if (PREFILL) {
    rows = step_words[CHUNK_ROWS];
  }
  let own = statistics_at(sequence_of(first), head);
  let counted = statistics[own + count_at()];
  // A thread has a pair and every \`parts\`th row.
  let parts = THREADS / half;
  let pair = thread % half;
  var moments = Moments(0.0, 0.0, vec2<f32>());
  if (thread / half < parts) {
    for (var row = first + thread / half; row < first + rows; row += parts) {
      let position = position_of_row(row);
      if (position < SINKS) {
        continue;
      }
      let at = (row * HEADS + head) * HEAD_DIM + pair;
      let query = vec2(queries[at], queries[at + half]);
      let angle = angle_at(pair, position);
      // The table may scale what it turns.
      let back = vec2(angle.x, -angle.y) / dot(angle, angle);
      moments = join_moments(moments, Moments(1.0, 0.0, turn(query, back)));
    }
  }
  part_moments[thread] = moments;
  // Everybody has read the count before one writes it.
  storageBarrier();
  workgroupBarrier();
  if (thread >= half) {
    return;
  }
  moments = Moments(
    counted,
    statistics[own + scatter_at() + pair],
    vec2(statistics[own + pair], statistics[own + half + pair]),
  );
  for (var part = 0u; part < parts; part++) {
    moments = join_moments(moments, part_moments[part * half + pair]);
  }
  statistics[own + pair] = moments.mean.x;
  statistics[own + half + pair] = moments.mean.y;
  statistics[own + scatter_at() + pair] = moments.scatter;
  if (pair == 0u) {
    statistics[own + count_at()] = moments.count;
  }
  let angle =
    turn(angle_at(pair, position_of_row(first + rows - 1u)), ahead[pair]);
  let future = turn(moments.mean, angle);
  statistics[own + future_at() + pair] = future.x;
  statistics[own + future_at() + half + pair] = future.y;
  statistics[own + variance_at() + pair] =
    dot(angle, angle) * moments.scatter / 2.0;
}
`,
  "sample.wgsl": `// Repetition penalty, temperature, top-k, top-p, min-p and one draw, or the
// most likely id; then moves the sequence on.
//
// One workgroup per sequence reads the logits a few times, 4 bytes per id and
// pass. The thresholds of top-k and top-p are searched for in the bits of the
// floats, eight or one at a time, so nothing is sorted and ids that tie at a
// threshold stay together. A sort would move the whole vocabulary many times.

struct Params {
  vocabulary: u32,
  seen_words: u32,
  ring: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
// (sequences)
@group(0) @binding(1) var<storage, read_write> next_tokens: array<u32>;
// (sequences, ring, 2): id, and the bits of its log probability
@group(0) @binding(2) var<storage, read_write> output: array<u32>;
// (sequences, ring): ids that are taken whatever their probability
@group(0) @binding(3) var<storage, read> forced: array<u32>;
// (rows, vocabulary)
@group(0) @binding(4) var<storage, read> logits: array<f32>;
// (sequences, SamplingWord.count)
@group(0) @binding(5) var<storage, read> sampling: array<u32>;
// (sequences, seen_words)
@group(0) @binding(6) var<storage, read> seen: array<u32>;
// (ChunkWord.count), in a prefill step
@group(0) @binding(7) var<storage, read> chunk: array<u32>;
// (sequences, StateWord.count)
@group(0) @binding(8) var<storage, read_write> state: array<u32>;

override PREFILL: bool = false;

const THREADS = 256u;
const NOT_FORCED = 0xffffffffu;

// See SamplingWord.
const SAMPLING_TEMPERATURE = 0u;
const SAMPLING_TOP_K = 1u;
const SAMPLING_TOP_P = 2u;
const SAMPLING_MIN_P = 3u;
const SAMPLING_PENALTY = 4u;
const SAMPLING_STOP_COUNT = 5u;
const SAMPLING_STOP_IDS = 8u;
const SAMPLING_WORDS = 32u;

var<workgroup> histogram: array<atomic<u32>, THREADS>;
var<workgroup> shared_words: array<u32, 2>;
var<workgroup> shared_floats: array<f32, 2>;

var<private> base: u32;
var<private> first_seen: u32;
var<private> penalty: f32;
var<private> temperature: f32;
var<private> top: f32;

// The logit of an id after the repetition penalty.
fn penalized(id: u32) -> f32 {
  let logit = logits[base + id];
  let is_seen = ((seen[first_seen + id / 32u] >> (id % 32u)) & 1u) != 0u;
  return select(
    logit,
    select(logit * penalty, logit / penalty, logit > 0.0),
    is_seen,
  );
}

// The same below the largest, over the temperature: at most 0.
fn scaled(id: u32) -> f32 {
  return max((penalized(id) - top) / temperature, -1e30);
}

// Ordered bits of the \`rank\`th largest scaled logit.
fn select_largest(thread: u32, rank: u32) -> u32 {
  var found = 0u;
  var left = rank;
  for (var shift = 32u; shift > 0u;) {
    shift -= 8u;
    atomicStore(&histogram[thread], 0u);
    workgroupBarrier();
    for (var id = thread; id < params.vocabulary; id += THREADS) {
      let bits = ordered(scaled(id));
      if (((bits ^ found) >> shift) < 256u) {
        // Largest first: bin 0 is that of the largest digit.
        atomicAdd(&histogram[255u - ((bits >> shift) & 255u)], 1u);
      }
    }
    workgroupBarrier();
    let count = atomicLoad(&histogram[thread]);
    let up_to = prefix_sum(thread, count);
    if (up_to >= left && up_to - count < left) {
      shared_words[0] = 255u - thread;
      shared_words[1] = left - (up_to - count);
    }
    found |= workgroupUniformLoad(&shared_words[0]) << shift;
    left = workgroupUniformLoad(&shared_words[1]);
  }
  return found;
}

// Sum of the weights of ids at or above a threshold.
fn mass_above(thread: u32, threshold: u32) -> f32 {
  var mass = 0.0;
  for (var id = thread; id < params.vocabulary; id += THREADS) {
    mass += weight_of(id, threshold);
  }
  return sum_floats(thread, mass);
}

fn weight_of(id: u32, threshold: u32) -> f32 {
  let logit = scaled(id);
  return select(0.0, exp(logit), ordered(logit) >= threshold);
}

// The largest threshold above which at least \`share\` of the mass lies.
fn select_mass(thread: u32, lowest: u32, share: f32) -> u32 {
  let wanted = share * mass_above(thread, lowest);
  var low = lowest;
  // The largest scaled logit is 0: nothing lies above it.
  var high = ordered(0.0) + 1u;
  while (high - low > 1u) {
    let middle = low + (high - low) / 2u;
    if (mass_above(thread, middle) >= wanted) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

fn choose(thread: u32, best: u32, options: u32, uniform_number: f32) -> u32 {
  temperature = bitcast<f32>(sampling[options + SAMPLING_TEMPERATURE]);
  if (temperature == 0.0) {
    return best;
  }
  let top_k = sampling[options + SAMPLING_TOP_K];
  let top_p = bitcast<f32>(sampling[options + SAMPLING_TOP_P]);
  let min_p = bitcast<f32>(sampling[options + SAMPLING_MIN_P]);
  var threshold = 0u;
  if (top_k > 0u && top_k < params.vocabulary) {
    threshold = select_largest(thread, top_k);
  }
  if (top_p < 1.0) {
    threshold = select_mass(thread, threshold, top_p);
  }
  if (min_p > 0.0) {
    threshold = max(threshold, ordered(log(min_p)));
  }
  return draw(thread, threshold, uniform_number);
}

@compute @workgroup_size(THREADS)
fn sample(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  var sequence = group.x;
  if (PREFILL) {
    if (chunk[CHUNK_ROWS] == 0u) {
      return;
    }
    sequence = chunk[CHUNK_SEQUENCE];
  }
  let at = sequence * STATE_WORDS;
  if (thread == 0u) {
    shared_words[0] = state[at + STATE_FINISHED];
    shared_words[1] = state[at + STATE_PRODUCED];
  }
  let finished = workgroupUniformLoad(&shared_words[0]);
  let produced = workgroupUniformLoad(&shared_words[1]);
  if (!PREFILL && finished != 0u) {
    return;
  }
  let options = sequence * SAMPLING_WORDS;
  base = group.x * params.vocabulary;
  first_seen = sequence * params.seen_words;
  penalty = bitcast<f32>(sampling[options + SAMPLING_PENALTY]);

  var likeliest = unranked();
  var largest = unranked();
  for (var id = thread; id < params.vocabulary; id += THREADS) {
    let mine = Ranked(-penalized(id), id, id);
    if (is_before(mine, likeliest)) {
      likeliest = mine;
    }
    let raw = Ranked(-logits[base + id], id, id);
    if (is_before(raw, largest)) {
      largest = raw;
    }
  }
  let best = first_ranked(thread, likeliest);
  top = -best.key;
  let raw_max = -first_ranked(thread, largest).key;
  var sum = 0.0;
  for (var id = thread; id < params.vocabulary; id += THREADS) {
    sum += exp(logits[base + id] - raw_max);
  }
  let log_sum = raw_max + log(sum_floats(thread, sum));

  let place = produced % params.ring;
  var id = forced[sequence * params.ring + place];
  if (id == NOT_FORCED) {
    let uniform_number = random_uniform(
      state[at + STATE_SEED_LOW],
      state[at + STATE_SEED_HIGH],
      produced,
    );
    // Logits that are not numbers leave no best id.
    let likely = select(best.slot, 0u, best.slot == NO_SLOT);
    id = choose(thread, likely, options, uniform_number);
  }
  if (thread != 0u) {
    return;
  }
  next_tokens[sequence] = id;
  let entry = (sequence * params.ring + place) * 2u;
  output[entry] = id;
  output[entry + 1u] = bitcast<u32>(logits[base + id] - log_sum);
  if (PREFILL) {
    state[at + STATE_POSITION] = chunk[CHUNK_POSITION] + chunk[CHUNK_ROWS];
  } else {
    state[at + STATE_POSITION] += 1u;
  }
  state[at + STATE_PRODUCED] = produced + 1u;
  var is_stop = produced + 1u >= state[at + STATE_LIMIT];
  for (var i = 0u; i < sampling[options + SAMPLING_STOP_COUNT]; i++) {
    is_stop = is_stop || sampling[options + SAMPLING_STOP_IDS + i] == id;
  }
  if (is_stop) {
    state[at + STATE_FINISHED] = 1u;
  }
}
`,
  "value_norms.wgsl": `// The norm of each value that \`qkv_rope_append\` has just written: the mean over
// the query heads of the group of ‖v · W_O[h]‖₁, W_O[h] being the head's columns
// of the output projection; or ‖v‖₂.
//
// Streams the projection once per tile of 32 rows, 2 bytes per element, so once
// in a decode step. \`project\` has a workgroup per 64 outputs, query head and
// tile; it takes the projection through workgroup memory, 64 columns at a time,
// and leaves a sum of absolute products. \`collect\` adds them up in a fixed
// order, since WGSL has no atomics on floats. The Gram matrix W Wᵀ of each head
// would need headDim² products instead of headDim · hidden, but gives the L2
// norm, and has to be made and stored for each layer.

struct Params {
  // Outputs in the weight block.
  outputs: u32,
  // Words in a row of the weight.
  pitch: u32,
  // Workgroups over the outputs before this block, and of all blocks.
  first_part: u32,
  parts: u32,
  first_head: u32,
  // Slots in \`values\`, and those of a KV head in a prefill step.
  total: u32,
  stage_rows: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
// (outputs, heads * headDim) halves
@group(0) @binding(1) var<storage, read> weight: array<u32>;
// (total, headDim) halves
@group(0) @binding(2) var<storage, read> values: array<u32>;
// (SlotField.bias + lanes, total)
@group(0) @binding(3) var<storage, read_write> side: array<u32>;
@group(0) @binding(4) var<storage, read> table: array<u32>;
@group(0) @binding(5) var<storage, read> step_words: array<u32>;
// (rows, heads, parts)
@group(0) @binding(6) var<storage, read_write> partials: array<f32>;

override HEADS: u32 = 1u;
override GROUP: u32 = 1u;
override HEAD_DIM: u32 = 4u;
override ROWS: u32 = 1u;
// Whether norms are those of projected values.
override PROJECTED: bool = true;

const FIELD_VALUE_NORM = 5u;
const THREADS = 256u;
const TILE_OUTPUTS = 64u;
const TILE_ROWS = 32u;
// Words, each of two columns.
const TILE_WORDS = 32u;
// Rows are padded by one word, so that they start in other banks.
const PITCH = TILE_WORDS + 1u;
// Rows of a thread: every fourth of the tile.
const STRANDS = THREADS / TILE_OUTPUTS;
const OWN_ROWS = TILE_ROWS / STRANDS;
const COLLECT_THREADS = 64u;

var<workgroup> weight_tile: array<u32, TILE_OUTPUTS * PITCH>;
var<workgroup> value_tile: array<vec2<f32>, TILE_ROWS * TILE_WORDS>;
var<workgroup> sums: array<f32, THREADS>;

@compute @workgroup_size(THREADS)
fn project(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let head = group.y;
  let first_row = group.z * TILE_ROWS;
  if (PREFILL && !is_live(first_row)) {
    return;
  }
  let half = HEAD_DIM / 2u;
  let first_slot = group.x * TILE_OUTPUTS;
  let output = thread % TILE_OUTPUTS;
  let strand = thread / TILE_OUTPUTS;
  var products: array<f32, OWN_ROWS>;
  for (var first = 0u; first < half; first += TILE_WORDS) {
    let words = min(TILE_WORDS, half - first);
    workgroupBarrier();
    for (var i = thread; i < TILE_OUTPUTS * TILE_WORDS; i += THREADS) {
      let line = i / TILE_WORDS;
      let column = i % TILE_WORDS;
      var word = 0u;
      if (column < words && first_slot + line < params.outputs) {
        let start = (first_slot + line) * params.pitch + head * half + first;
        word = weight[start + column];
      }
      weight_tile[line * PITCH + column] = word;
    }
    for (var i = thread; i < TILE_ROWS * TILE_WORDS; i += THREADS) {
      let row = first_row + i / TILE_WORDS;
      var pair = vec2<f32>();
      if (i % TILE_WORDS < words && row < ROWS && is_live(row)) {
        let slot = slot_of(row, head / GROUP);
        if (slot != NO_SLOT) {
          pair = unpack_halves(values[slot * half + first + i % TILE_WORDS]);
        }
      }
      value_tile[i] = pair;
    }
    workgroupBarrier();
    for (var i = 0u; i < words; i++) {
      let pair = unpack_halves(weight_tile[output * PITCH + i]);
      for (var n = 0u; n < OWN_ROWS; n++) {
        let row = strand + n * STRANDS;
        products[n] += dot(pair, value_tile[row * TILE_WORDS + i]);
      }
    }
  }
  for (var n = 0u; n < OWN_ROWS; n++) {
    workgroupBarrier();
    sums[thread] = abs(products[n]);
    for (var width = TILE_OUTPUTS / 2u; width > 0u; width /= 2u) {
      workgroupBarrier();
      if (output < width) {
        sums[thread] += sums[thread + width];
      }
    }
    let row = first_row + strand + n * STRANDS;
    if (output == 0u && row < ROWS) {
      let part = params.first_part + group.x;
      partials[(row * HEADS + head) * params.parts + part] = sums[thread];
    }
  }
}

// Writes the norm of one value.
@compute @workgroup_size(COLLECT_THREADS)
fn collect(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let kv_head = group.x;
  let row = group.y;
  if (!is_live(row)) {
    return;
  }
  let slot = slot_of(row, kv_head);
  var sum = 0.0;
  if (PROJECTED) {
    let count = GROUP * params.parts;
    let first = (row * HEADS + kv_head * GROUP) * params.parts;
    for (var i = thread; i < count; i += COLLECT_THREADS) {
      sum += partials[first + i];
    }
  } else if (slot != NO_SLOT) {
    let half = HEAD_DIM / 2u;
    for (var i = thread; i < half; i += COLLECT_THREADS) {
      let pair = unpack_halves(values[slot * half + i]);
      sum += dot(pair, pair);
    }
  }
  sums[thread] = sum;
  for (var width = COLLECT_THREADS / 2u; width > 0u; width /= 2u) {
    workgroupBarrier();
    if (thread < width) {
      sums[thread] += sums[thread + width];
    }
  }
  if (thread == 0u && slot != NO_SLOT) {
    let norm = select(sqrt(sums[0]), sums[0] / f32(GROUP), PROJECTED);
    side[FIELD_VALUE_NORM * params.total + slot] = bitcast<u32>(norm);
  }
}
`,
};

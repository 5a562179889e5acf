// Takes the live slots and the staged rows of a chunk down to each head's
// budget, and moves the staged rows that are left into free slots.
//
// The candidates of a head are numbered: cache slots first, staged rows from
// `max_capacity`. Whatever is proportional to them lives in scratch, so only
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
// with, before `pair`, `list_light` and `select_victims`, where scores are not the slots' own:
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
// `survey` is here, the others are in `lib`. A single workgroup per head could do
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

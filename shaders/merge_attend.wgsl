// Attention of one new token per sequence over the voted slots of its heads,
// softmax(q·k/√d + ln votes); then, per KV head, the policy's work: scores, and
// one slot merged into its most similar neighbour or dropped if the head is
// over its budget. Position and slot number are independent, so nothing moves.
//
// Moves keys and values once, 4 bytes per element pair, whatever the number of
// query heads in a group, and about 28 bytes beside each pair.
//
// `attend` splits the slots of a head over workgroups; each leaves a partial
// softmax state and, where scores are kept, raw logits. `finish`, a workgroup
// per head, joins the states and does the rest, because a victim can only be
// chosen once all slots are scored. Where the heads of a layer choose together
// it is split: `score` first, then `choose`. It reads the keys again for the
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
// (rows, kvHeads, PAIR_HEADER + 3 * maxCapacity): see `lib/pair_step.wgsl`
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

  // Logits: a thread has key `j` and every `strands`th query.
  let j = thread % KEY_TILE;
  let strand = thread / KEY_TILE;
  let strands = THREADS / KEY_TILE;
  // Values: a thread has two elements and every `parts`th slot.
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
    // Zeroed in so many words: naga 29 does not zero a `var` again in a loop.
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

// Runs: candidates that all go, in the order of their positions, up to the kept
// one to their right, which takes their values. `runWeights` of the reference
// says what weights they have there.
//
// The reference reads a run with a stack. Here each member finds its own
// weight, by walks along the run: which member takes it in (the next one that
// goes after it, or the kept one), and what the members that are taken in
// after it leave of it. Runs are short unless the budget is far exceeded.

// f32: what is left of a candidate's own value by those that it takes in; from
// the second half of `weigh` on, its weight in the kept value.
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

// What is left of the target's value once `candidate` is merged into it.
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

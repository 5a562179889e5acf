// Merging chains of listed candidates into what they chose.

// The slot after `slot` in its chain: see `lib/merge_slots.wgsl`.
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

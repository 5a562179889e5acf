// The end of a decode step: the slot that goes, if one has to.

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

// Writing the slots of one layer and the staged rows of a chunk. Otherwise the
// same as `slot_writes.wgsl`.

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

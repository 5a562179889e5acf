// Where a step appends keys and values: a head's next free slot in a decode
// step, a staged row in a prefill step.

const NO_SLOT = 0xffffffffu;

// The slot of `keys` and `values` that a row's token goes to, or NO_SLOT.
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

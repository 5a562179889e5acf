// Reading the slots of one layer: see Slots and SlotField.

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
// Fields of a remembered partner, from `partner_field` on: see PartnerField.
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

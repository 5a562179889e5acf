// Words of a (layer, sequence, KV head) in the head table: see HeadWord.

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

// First word of a head. `params.first_head` is the number of heads in the
// layers before this one.
fn head_at(sequence: u32, kv_head: u32) -> u32 {
  return (params.first_head + sequence * KV_HEADS + kv_head) * HEAD_WORDS;
}

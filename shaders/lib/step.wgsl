// The rows that a program works on. `step_words` is the chunk of a prefill
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

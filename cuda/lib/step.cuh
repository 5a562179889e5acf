// The rows that a program works on: see Step, ChunkWord and StateWord in
// src/backends/backend.ts.
#pragma once

#include <stdint.h>

#include "../steadykv.h"

enum ChunkWord {
  kChunkSequence = 0,
  kChunkRows = 1,
  kChunkPosition = 2,
  kChunkGuests = 3
};

enum StateWord {
  kStatePosition = 0,
  kStateFinished = 1,
  kStateProduced = 2,
  kStateLimit = 3,
  kStateSeedLow = 4,
  kStateSeedHigh = 5,
  kStateWords = 8
};

struct Row {
  bool live;
  // Live, or a guest, which goes through the layers but is no part of the text.
  bool forwarded;
  uint32_t sequence;
  uint32_t position;
};

// A row of the step. Rows beyond those recorded are not live.
__device__ inline Row row_of(const skv_step &step, uint32_t row) {
  if (row >= step.rows) return {false, false, 0, 0};
  if (step.kind == SKV_PREFILL) {
    const uint32_t rows = step.chunk[kChunkRows];
    return {row < rows, row < rows + step.chunk[kChunkGuests],
            step.chunk[kChunkSequence], step.chunk[kChunkPosition] + row};
  }
  const uint32_t *state = step.state + row * kStateWords;
  const bool live = state[kStateFinished] == 0;
  return {live, live, row, state[kStatePosition]};
}

// Rows from 0 that may be live: all of a decode step, those of the chunk in a
// prefill step.
__device__ inline uint32_t row_end(const skv_step &step) {
  return step.kind == SKV_PREFILL ? min(step.rows, step.chunk[kChunkRows])
                                  : step.rows;
}

// The same with the guests of a chunk.
__device__ inline uint32_t forward_end(const skv_step &step) {
  if (step.kind != SKV_PREFILL) return step.rows;
  return min(step.rows, step.chunk[kChunkRows] + step.chunk[kChunkGuests]);
}

// The rows that a program works on: see Step, ChunkWord and StateWord in
// src/backends/backend.ts.
#pragma once

#include <stdint.h>

#include "../steadykv.h"

enum ChunkWord { kChunkSequence = 0, kChunkRows = 1, kChunkPosition = 2 };

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
  uint32_t sequence;
  uint32_t position;
};

// A row of the step. Rows beyond those recorded are not live.
__device__ inline Row row_of(const skv_step &step, uint32_t row) {
  if (row >= step.rows) return {false, 0, 0};
  if (step.kind == SKV_PREFILL) {
    return {row < step.chunk[kChunkRows], step.chunk[kChunkSequence],
            step.chunk[kChunkPosition] + row};
  }
  const uint32_t *state = step.state + row * kStateWords;
  return {state[kStateFinished] == 0, row, state[kStatePosition]};
}

// Rows from 0 that may be live: all of a decode step, those of the chunk in a
// prefill step.
__device__ inline uint32_t row_end(const skv_step &step) {
  return step.kind == SKV_PREFILL ? min(step.rows, step.chunk[kChunkRows])
                                  : step.rows;
}

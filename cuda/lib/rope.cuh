// Rotations of RoPE as complex numbers, from tables: see src/model/rope.ts.
#pragma once

#include <stdint.h>

__device__ inline float2 turned(float2 x, float2 turn) {
  return {x.x * turn.x - x.y * turn.y, x.y * turn.x + x.x * turn.y};
}

// Cosine and sine by which pair `pair` of a head turns at `position`: the
// product of one rotation per base-256 digit.
__device__ inline float2 rotation(const float *rope, uint32_t half,
                                  uint32_t pair, uint32_t position) {
  const float2 *table = reinterpret_cast<const float2 *>(rope);
  float2 turn = {1.0f, 0.0f};
#pragma unroll
  for (uint32_t level = 0; level < 3; level++) {
    const uint32_t digit = (position >> (8 * level)) & 255;
    turn = turned(turn, table[(level * 256 + digit) * half + pair]);
  }
  return turn;
}

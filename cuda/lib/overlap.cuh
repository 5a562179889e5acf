// How kernels overlap with the ones before and after them.
//
// A kernel may be started when all blocks of the one in front of it run. Until
// wait_for_previous returns it may read what no kernel of the program writes
// before it does so itself, and nothing else: weights, and in a decode step the
// words of sequences and heads, all slots but the newest and the shortlist of
// slots that are likely to go, which change after attention alone. Every thread
// calls it, so that whoever waits for this kernel has waited for all before it.
#pragma once

#include "instructions.cuh"

// Both, for kernels that have nothing to do meanwhile.
__device__ inline void begin_kernel() {
  let_next_start();
  wait_for_previous();
}

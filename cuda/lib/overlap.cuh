// How kernels overlap with the ones before and after them.
//
// A kernel may be started when all blocks of the one in front of it run. Until
// wait_for_previous returns it may read what no kernel writes, such as weights,
// and nothing else; every thread calls it, so that whoever waits for this
// kernel has waited for all before it.
#pragma once

#include "instructions.cuh"

// Both, for kernels that have nothing to do meanwhile.
__device__ inline void begin_kernel() {
  let_next_start();
  wait_for_previous();
}

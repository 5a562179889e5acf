// How kernels overlap with the ones before and after them.
//
// A kernel may be started when all blocks of the one in front of it run. Until
// wait_for_previous returns it may read what no kernel writes, such as weights,
// and nothing else; every thread calls it, so that whoever waits for this
// kernel has waited for all before it.
#pragma once

// Lets the next kernel start as soon as there is room for it.
__device__ inline void let_next_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// Returns when the kernels before this one have ended.
__device__ inline void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Both, for kernels that have nothing to do meanwhile.
__device__ inline void begin_kernel() {
  let_next_start();
  wait_for_previous();
}

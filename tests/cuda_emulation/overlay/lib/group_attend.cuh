// In place of cuda/lib/group_attend.cuh: the emulated device has no engines
// that copy tiles.
#pragma once

#include "../runtime/launch.cuh"
#include "chunk_share.cuh"

template <int DIM>
inline cudaError_t launch_group_attend(const skv_chunk_args &, const Launch &,
                                       bool &) {
  return cudaSuccess;
}

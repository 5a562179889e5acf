// Streams beside that of a program: see Sides.
#include <algorithm>

#include "launch.cuh"

cudaError_t fork(const Launch &launch, Launch *side) {
  *side = launch;
  side->overlaps = false;
  Sides *sides = launch.sides;
  if (sides == nullptr) return cudaSuccess;
  side->stream = sides->streams[sides->next];
  sides->next = (sides->next + 1) % Sides::kCount;
  sides->used = std::min(sides->used + 1, Sides::kCount);
  const cudaError_t status = cudaEventRecord(sides->event, launch.stream);
  if (status != cudaSuccess) return status;
  return cudaStreamWaitEvent(side->stream, sides->event);
}

cudaError_t join(const Launch &launch) {
  Sides *sides = launch.sides;
  if (sides == nullptr) return cudaSuccess;
  cudaError_t status = cudaSuccess;
  for (int i = 0; i < sides->used && status == cudaSuccess; i++) {
    status = cudaEventRecord(sides->event, sides->streams[i]);
    if (status == cudaSuccess) {
      status = cudaStreamWaitEvent(launch.stream, sides->event);
    }
  }
  sides->used = sides->next = 0;
  return status;
}

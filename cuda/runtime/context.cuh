// A context: one device, one stream, and what was allocated on them.
#pragma once

#include <cuda_runtime.h>

#include <memory>
#include <mutex>
#include <set>

#include "../steadykv.h"
#include "launch.cuh"
#include "matrix_library.cuh"
#include "staging.cuh"
#include "tile_maps.cuh"

struct skv_context {
  int device = 0;
  uint32_t flags = 0;
  uint32_t multiprocessors = 0;
  // Most shared memory of a block.
  size_t shared_bytes = 0;
  cudaStream_t stream = nullptr;
  Sides sides;
  // Whether the device can start a kernel before the one in front has ended.
  bool overlaps = false;
  // Whether the device has products of groups of warps.
  bool has_groups = false;
  // Null where the device has no engines that copy tiles.
  std::unique_ptr<TileMaps> tile_maps;
  // Whether the library was looked for, and what was found.
  bool has_looked = false;
  std::unique_ptr<MatrixLibrary> library;
  std::set<void *> allocations;
  WriteRing writes;
  ReadPool reads;
  // Guards `error`, and the pool of reads, which other threads wait for.
  std::mutex mutex;
  char error[512] = {};
};

// Remembers what went wrong, printf-like, and returns the status. A null
// context stands for skv_open.
int32_t fail(skv_context *context, skv_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

// Turns what CUDA says into a status; `what` was being done.
int32_t check(skv_context *context, cudaError_t error, const char *what);

// Makes the context's device that of this thread.
int32_t enter(skv_context *context);

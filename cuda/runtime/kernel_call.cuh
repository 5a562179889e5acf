// What a recorded program keeps of a call: the kernel and its arguments.
#pragma once

#include <stddef.h>

#include "launch.cuh"

constexpr size_t kMaxArgs = 512;

// What a recorded program knows about a kernel.
struct Kernel {
  const char *name;
  size_t size;
  Needs (*needs)(const void *args, uint32_t multiprocessors);
  cudaError_t (*launch)(const void *args, const Launch &launch);
  // Launches work that no later call of the program waits for; null where there
  // is none.
  cudaError_t (*launch_late)(const void *args, const Launch &launch) = nullptr;
  // Whether late work begins beside this call.
  bool has_time = false;
};

template <class Args, Needs (*NEEDS)(const Args &, uint32_t),
          cudaError_t (*LAUNCH)(const Args &, const Launch &)>
constexpr Kernel kernel(const char *name) {
  static_assert(sizeof(Args) <= kMaxArgs, "room for the arguments");
  return {name, sizeof(Args),
          [](const void *args, uint32_t multiprocessors) {
            return NEEDS(*static_cast<const Args *>(args), multiprocessors);
          },
          [](const void *args, const Launch &launch) {
            return LAUNCH(*static_cast<const Args *>(args), launch);
          }};
}

template <class Args, cudaError_t (*LATE)(const Args &, const Launch &)>
constexpr Kernel with_late(Kernel kernel) {
  kernel.launch_late = [](const void *args, const Launch &launch) {
    return LATE(*static_cast<const Args *>(args), launch);
  };
  return kernel;
}

constexpr Kernel with_time(Kernel kernel) {
  kernel.has_time = true;
  return kernel;
}

struct Call {
  const Kernel *kernel;
  // Where its own memory begins.
  size_t own = 0;
  alignas(8) unsigned char args[kMaxArgs];
};

// The order in which the calls of a program are launched.
#pragma once

#include <vector>

#include "kernel_call.cuh"

// Launches the calls of a program: all in order where they are waited for, else
// late work beside a long call near the end. There it is many small blocks on
// all multiprocessors. Beside each layer's products it would hold up a few of
// these, and with them all others, which have equal shares: with 512 slots of
// an 8B model on an H200, a merge in each layer took 6 % of a step that way,
// and takes 2 %.
class Launcher {
 public:
  // `own` is the memory that calls have parts of. `waits` says whether all runs
  // in order.
  Launcher(const Launch &launch, char *own, bool waits)
      : launch_(launch), own_(own), waits_(waits) {}

  // Launches everything but late work.
  cudaError_t run(const Call &call) {
    if (call.kernel->has_time) {
      const cudaError_t status = run_late();
      if (status != cudaSuccess) return status;
    }
    const cudaError_t status = call.kernel->launch(call.args, launch_of(call));
    if (status != cudaSuccess || call.kernel->launch_late == nullptr) {
      return status;
    }
    late_.push_back(&call);
    return waits_ ? run_late() : cudaSuccess;
  }

  // Launches late work.
  cudaError_t run_late() {
    cudaError_t status = cudaSuccess;
    for (const Call *call : late_) {
      if (status != cudaSuccess) break;
      status = call->kernel->launch_late(call->args, launch_of(*call));
    }
    late_.clear();
    return status;
  }

  cudaError_t end() {
    const cudaError_t status = run_late();
    return status == cudaSuccess ? join(launch_) : status;
  }

 private:
  const Launch &launch_of(const Call &call) {
    launch_.own = own_ + call.own;
    return launch_;
  }

  Launch launch_;
  char *const own_;
  const bool waits_;
  std::vector<const Call *> late_;
};

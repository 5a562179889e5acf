// What a kernel's host side needs to know: the stream, scratch memory and the
// device. A kernel's file defines two functions that src/backends/cuda never
// sees: `<name>_needs`, how much scratch a call takes, and `launch_<name>`.
#pragma once

#include <cuda_runtime.h>
#include <stddef.h>
#include <stdint.h>

#include "../steadykv.h"

// Rounds up, so that whatever follows is aligned.
inline size_t aligned_bytes(size_t bytes) { return (bytes + 255) / 256 * 256; }

// Scratch memory, handed out from the front.
class Scratch {
 public:
  explicit Scratch(char *memory) : memory_(memory) {}

  template <class T>
  T *take(size_t count) {
    T *const taken = reinterpret_cast<T *>(memory_);
    memory_ += aligned_bytes(count * sizeof(T));
    return taken;
  }

  // Bytes since `memory`.
  size_t taken(const char *memory) const {
    return static_cast<size_t>(memory_ - memory);
  }

 private:
  char *memory_;
};

// Device memory that a call takes beside its arguments.
struct Needs {
  // Bytes that the next call may overwrite.
  size_t scratch = 0;
  // The same where the library multiplies; 0 where it has no part in the call.
  size_t library_scratch = 0;
  // Words that are zero before each call and that the kernel leaves zero.
  size_t tickets = 0;
  // Bytes that no other call of the program overwrites.
  size_t own = 0;
};

class MatrixLibrary;
class TileMaps;

// Streams for work that the rest of the program does not wait for.
struct Sides {
  static constexpr int kCount = 32;

  cudaStream_t streams[kCount] = {};
  cudaEvent_t event = nullptr;
  // How many of the streams were used since the last join.
  int used = 0;
  int next = 0;
};

// How to launch a call.
struct Launch {
  cudaStream_t stream;
  char *scratch;
  char *own;
  uint32_t *tickets;
  uint32_t multiprocessors;
  // Most shared memory that a block may have, that of the kernel's own
  // variables included.
  size_t shared_bytes;
  // Whether a kernel may start before the one in front of it has ended. All
  // kernels wait for it themselves: see lib/overlap.cuh.
  bool overlaps;
  // Null where everything runs in order.
  Sides *sides;
  // Null where all products are ours.
  MatrixLibrary *library;
  // Whether groups of four warps multiply: see lib/group_instructions.cuh.
  bool has_groups;
  // Null where tiles are copied by threads.
  const TileMaps *tile_maps;
};

// A launch on a stream that goes on beside the main one, from here on; the end
// of the program waits for it.
cudaError_t fork(const Launch &launch, Launch *side);

// Makes the main stream wait for the others.
cudaError_t join(const Launch &launch);

// Launches a kernel; `form` is one more attribute of the launch, or null.
template <class... Parameters, class... Arguments>
inline cudaError_t launch_as(const Launch &launch,
                             const cudaLaunchAttribute *form,
                             void (*kernel)(Parameters...), dim3 grid,
                             uint32_t threads, size_t shared_bytes,
                             const Arguments &...arguments) {
  cudaLaunchAttribute attributes[2] = {};
  uint32_t count = 0;
  if (launch.overlaps) {
    cudaLaunchAttribute &overlap = attributes[count++];
    overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlap.val.programmaticStreamSerializationAllowed = 1;
  }
  if (form != nullptr) attributes[count++] = *form;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = launch.stream;
  config.attrs = attributes;
  config.numAttrs = count;
  return cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
}

// The same for most kernels.
template <class... Parameters, class... Arguments>
inline cudaError_t launch_kernel(const Launch &launch,
                                 void (*kernel)(Parameters...), dim3 grid,
                                 uint32_t threads, size_t shared_bytes,
                                 const Arguments &...arguments) {
  return launch_as(launch, nullptr, kernel, grid, threads, shared_bytes,
                   arguments...);
}

// Launches a kernel that starts when everything in front of it has ended.
template <class... Parameters, class... Arguments>
inline cudaError_t start_kernel(cudaStream_t stream,
                                void (*kernel)(Parameters...), dim3 grid,
                                uint32_t threads,
                                const Arguments &...arguments) {
  Launch launch = {};
  launch.stream = stream;
  return launch_kernel(launch, kernel, grid, threads, 0, arguments...);
}

// What every device from compute capability 8.0 on gives a block: 8.6 gives no
// more, 8.0 gives 163 KiB, 9.0 gives 227 KiB.
constexpr size_t kLeastSharedBytes = 99 * 1024;

// Lets a kernel have more shared memory than blocks get unasked: 48 KiB, those
// of its own variables included. What it was given before stays: programs that
// were recorded rely on it.
template <class Kernel>
inline cudaError_t allow_shared_memory(Kernel kernel, size_t bytes) {
  constexpr size_t kUnasked = 48 * 1024;
  cudaFuncAttributes attributes;
  const cudaError_t status = cudaFuncGetAttributes(&attributes, kernel);
  if (status != cudaSuccess) return status;
  if (attributes.sharedSizeBytes + bytes <= kUnasked) return cudaSuccess;
  const size_t given =
      static_cast<size_t>(attributes.maxDynamicSharedSizeBytes);
  if (given > kUnasked && given >= bytes) return cudaSuccess;
  return cudaFuncSetAttribute(kernel,
                              cudaFuncAttributeMaxDynamicSharedMemorySize,
                              static_cast<int>(bytes));
}

// The kernels: see src/backends/backend.ts for what each computes.
Needs embed_needs(const skv_embed_args &args, uint32_t multiprocessors);
cudaError_t launch_embed(const skv_embed_args &args, const Launch &launch);
Needs qkv_rope_append_needs(const skv_qkv_rope_append_args &args,
                            uint32_t multiprocessors);
cudaError_t launch_qkv_rope_append(const skv_qkv_rope_append_args &args,
                                   const Launch &launch);
Needs value_norms_needs(const skv_value_norms_args &args,
                        uint32_t multiprocessors);
cudaError_t launch_value_norms(const skv_value_norms_args &args,
                               const Launch &launch);
Needs query_statistics_needs(const skv_query_statistics_args &args,
                             uint32_t multiprocessors);
cudaError_t launch_query_statistics(const skv_query_statistics_args &args,
                                    const Launch &launch);
Needs merge_attend_needs(const skv_merge_attend_args &args,
                         uint32_t multiprocessors);
cudaError_t launch_merge_attend(const skv_merge_attend_args &args,
                                const Launch &launch);
// What the policy does with what attention left: the next step waits for it.
cudaError_t merge_late(const skv_merge_attend_args &args, const Launch &launch);
Needs prefill_attend_needs(const skv_chunk_args &args,
                           uint32_t multiprocessors);
cudaError_t launch_prefill_attend(const skv_chunk_args &args,
                                  const Launch &launch);
Needs observe_needs(const skv_chunk_args &args, uint32_t multiprocessors);
cudaError_t launch_observe(const skv_chunk_args &args, const Launch &launch);
Needs compress_needs(const skv_chunk_args &args, uint32_t multiprocessors);
cudaError_t launch_compress(const skv_chunk_args &args, const Launch &launch);
Needs project_add_needs(const skv_project_add_args &args,
                        uint32_t multiprocessors);
cudaError_t launch_project_add(const skv_project_add_args &args,
                               const Launch &launch);
Needs gate_up_needs(const skv_gate_up_args &args, uint32_t multiprocessors);
cudaError_t launch_gate_up(const skv_gate_up_args &args, const Launch &launch);
Needs lm_head_needs(const skv_lm_head_args &args, uint32_t multiprocessors);
cudaError_t launch_lm_head(const skv_lm_head_args &args, const Launch &launch);
Needs sample_needs(const skv_sample_args &args, uint32_t multiprocessors);
cudaError_t launch_sample(const skv_sample_args &args, const Launch &launch);

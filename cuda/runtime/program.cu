// Programs: kernel calls are kept while a program is recorded, and captured
// into a graph when it ends, in one go and by one thread. Nothing else happens
// on the stream meanwhile, and scratch memory is allocated once its size is
// known.
#include <stdio.h>
#include <string.h>

#include <algorithm>
#include <new>
#include <vector>

#include "context.cuh"
#include "launcher.cuh"

struct skv_program {
  skv_context *context = nullptr;
  std::vector<Call> calls;
  // One allocation: tickets, shared scratch memory, and that of single calls.
  uint32_t *tickets = nullptr;
  char *scratch = nullptr;
  char *own = nullptr;
  cudaGraphExec_t graph = nullptr;
  bool recorded = false;
};

namespace {

int32_t add_call(skv_program *program, const Kernel &kernel, const void *args,
                 uint64_t size) {
  skv_context *context = program->context;
  if (size != kernel.size) {
    return fail(context, SKV_INVALID,
                "cannot record %s: its arguments take %zu bytes, not %llu",
                kernel.name, kernel.size,
                static_cast<unsigned long long>(size));
  }
  if (program->recorded) {
    return fail(context, SKV_INVALID,
                "cannot record %s: the recording has ended", kernel.name);
  }
  Call call;
  call.kernel = &kernel;
  memcpy(call.args, args, size);
  program->calls.push_back(call);
  return SKV_OK;
}

bool has_flag(const skv_context *context, uint32_t flag) {
  return (context->flags & flag) != 0;
}

// The library, looked for when the first program wants it.
const MatrixLibrary *library_of(skv_context *context) {
  if (!context->has_looked && !has_flag(context, SKV_OWN_PRODUCTS)) {
    context->library = MatrixLibrary::open();
  }
  context->has_looked = true;
  return context->library.get();
}

// Launches all calls; waits for each where the context is to check them. No
// side stream is left to be joined, whatever fails.
int32_t launch_calls(skv_program *program) {
  skv_context *context = program->context;
  const bool checks = has_flag(context, SKV_CHECK_EVERY_KERNEL);
  Launch launch = {};
  launch.stream = context->stream;
  launch.scratch = program->scratch;
  launch.tickets = program->tickets;
  launch.multiprocessors = context->multiprocessors;
  launch.shared_bytes = context->shared_bytes;
  launch.overlaps = !checks && context->overlaps;
  launch.sides = checks ? nullptr : &context->sides;
  launch.library = context->library.get();
  launch.has_groups = context->has_groups;
  launch.tile_maps = context->tile_maps.get();
  Launcher launcher(launch, program->own, checks);
  const auto fail_with = [&](cudaError_t error, const char *what) {
    // Nobody joins what this program began: the next one must not either.
    context->sides.used = context->sides.next = 0;
    return check(context, error, what);
  };
  for (const Call &call : program->calls) {
    cudaError_t error = launcher.run(call);
    if (error == cudaSuccess && checks) {
      error = cudaStreamSynchronize(context->stream);
    }
    if (error != cudaSuccess) {
      char what[64];
      snprintf(what, sizeof(what), "run kernel %s", call.kernel->name);
      return fail_with(error, what);
    }
  }
  const cudaError_t error = launcher.end();
  return error == cudaSuccess ? SKV_OK : fail_with(error, "end a program");
}

int32_t capture(skv_program *program) {
  skv_context *context = program->context;
  // Relaxed: kernels are loaded when they are first launched, which may be now.
  cudaError_t error =
      cudaStreamBeginCapture(context->stream, cudaStreamCaptureModeRelaxed);
  if (error != cudaSuccess) return check(context, error, "start a capture");
  const int32_t status = launch_calls(program);
  cudaGraph_t graph = nullptr;
  error = cudaStreamEndCapture(context->stream, &graph);
  if (status == SKV_OK && error == cudaSuccess) {
    error = cudaGraphInstantiate(&program->graph, graph, 0);
    if (error == cudaSuccess) {
      error = cudaGraphUpload(program->graph, context->stream);
    }
  }
  if (graph != nullptr) cudaGraphDestroy(graph);
  if (status != SKV_OK) {
    cudaGetLastError();
    return status;
  }
  return check(context, error, "make a graph");
}

}  // namespace

#define SKV_CALL(name, type, ...)                                             \
  int32_t skv_##name(skv_program *program, const type *args, uint64_t size) { \
    static constexpr Kernel entry = __VA_ARGS__;                              \
    return add_call(program, entry, args, size);                              \
  }
#define SKV_KERNEL(name, type) kernel<type, name##_needs, launch_##name>(#name)
#define SKV_KERNEL_CALL(name, type) SKV_CALL(name, type, SKV_KERNEL(name, type))

SKV_KERNEL_CALL(embed, skv_embed_args)
SKV_KERNEL_CALL(qkv_rope_append, skv_qkv_rope_append_args)
SKV_KERNEL_CALL(value_norms, skv_value_norms_args)
SKV_KERNEL_CALL(query_statistics, skv_query_statistics_args)
SKV_CALL(merge_attend, skv_merge_attend_args,
         with_late<skv_merge_attend_args, merge_late>(
             SKV_KERNEL(merge_attend, skv_merge_attend_args)))
SKV_KERNEL_CALL(prefill_attend, skv_chunk_args)
SKV_KERNEL_CALL(observe, skv_chunk_args)
SKV_KERNEL_CALL(compress, skv_chunk_args)
SKV_KERNEL_CALL(project_add, skv_project_add_args)
SKV_KERNEL_CALL(gate_up, skv_gate_up_args)
SKV_CALL(lm_head, skv_lm_head_args,
         with_time(SKV_KERNEL(lm_head, skv_lm_head_args)))
SKV_KERNEL_CALL(sample, skv_sample_args)

#undef SKV_KERNEL_CALL
#undef SKV_KERNEL
#undef SKV_CALL

int32_t skv_begin_record(skv_context *context, skv_program **program) {
  auto *started = new (std::nothrow) skv_program;
  if (started == nullptr) {
    return fail(context, SKV_OUT_OF_MEMORY, "the host has no memory left");
  }
  started->context = context;
  *program = started;
  return SKV_OK;
}

int32_t skv_end_record(skv_program *program, uint64_t *scratch_bytes) {
  skv_context *context = program->context;
  int32_t status = enter(context);
  if (status != SKV_OK) return status;
  program->recorded = true;
  Needs most;
  for (Call &call : program->calls) {
    const Needs needs = call.kernel->needs(call.args, context->multiprocessors);
    most.scratch = std::max(most.scratch, needs.scratch);
    if (needs.library_scratch > 0 && library_of(context) != nullptr) {
      most.scratch = std::max(most.scratch, needs.library_scratch);
    }
    most.tickets = std::max(most.tickets, needs.tickets);
    call.own = most.own;
    most.own += aligned_bytes(needs.own);
  }
  const size_t tickets = aligned_bytes(most.tickets * sizeof(uint32_t));
  *scratch_bytes = tickets + most.scratch + most.own;
  if (*scratch_bytes > 0) {
    uint64_t address = 0;
    status = skv_allocate(context, *scratch_bytes, &address);
    if (status != SKV_OK) return status;
    program->tickets = reinterpret_cast<uint32_t *>(address);
    program->scratch = reinterpret_cast<char *>(address + tickets);
    program->own = program->scratch + most.scratch;
  }
  return has_flag(context, SKV_CHECK_EVERY_KERNEL) ? SKV_OK : capture(program);
}

int32_t skv_run(skv_program *program, uint32_t times) {
  skv_context *context = program->context;
  int32_t status = enter(context);
  for (uint32_t i = 0; status == SKV_OK && i < times; i++) {
    status =
        program->graph == nullptr
            ? launch_calls(program)
            : check(context, cudaGraphLaunch(program->graph, context->stream),
                    "run a program");
  }
  return status;
}

void skv_dispose(skv_program *program) {
  if (program == nullptr) return;
  skv_context *context = program->context;
  cudaSetDevice(context->device);
  if (program->graph != nullptr) cudaGraphExecDestroy(program->graph);
  if (program->tickets != nullptr) {
    skv_free(context, reinterpret_cast<uint64_t>(program->tickets));
  }
  cudaGetLastError();
  delete program;
}

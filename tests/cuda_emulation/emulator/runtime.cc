// The functions of the CUDA runtime. Work runs when it is enqueued, on the
// thread that enqueues it, but for that of a graph. After a fault every
// function returns it, as on a device, until the last stream is gone.
#include <stdio.h>
#include <stdlib.h>

#include <atomic>
#include <chrono>
#include <map>
#include <mutex>
#include <vector>

#include "emulator.h"

// A kernel of a graph and the nodes that it has to come after.
struct EmulatedNode {
  emulation::Launch launch;
  std::vector<size_t> after;
};

struct EmulatedGraph {
  std::vector<EmulatedNode> nodes;
  // The streams that its capture takes in.
  std::vector<EmulatedStream *> streams;
  // One for what was captured, and one for each graph made of it.
  int owners = 1;
  uint32_t runs = 0;

  ~EmulatedGraph() {
    for (const EmulatedNode &node : nodes) free(node.launch.work.arguments);
  }
};

struct EmulatedStream {
  // The graph that takes what is enqueued, and the nodes that come before it.
  EmulatedGraph *capture = nullptr;
  std::vector<size_t> last;
};

struct EmulatedEvent {
  EmulatedGraph *capture = nullptr;
  std::vector<size_t> last;
  std::chrono::steady_clock::time_point time;
};

namespace emulation {

namespace {

constexpr int kMultiprocessors = 6;
constexpr int kVersion = 12000;

// What blocks get unasked, and what of it a kernel's own variables are taken to
// have: how much they really have is not known here.
constexpr size_t kPlainShared = 48 * 1024;
constexpr size_t kOwnShared = 256;

// The devices: one like a Hopper, one that has as little as any, and one that
// there is no code for.
struct Model {
  int major;
  int minor;
  size_t most_shared;
  bool runs_kernels;
};
constexpr int kDevices = 3;
constexpr Model kModels[kDevices] = {{9, 0, 227 * 1024, true},
                                     {8, 6, 99 * 1024, true},
                                     {7, 5, 64 * 1024, false}};

// The device that was chosen last. On a real machine each thread chooses its
// own; tests use one device at a time.
std::atomic<int> current{0};

// Guards everything below, and the memory that the devices share.
std::mutex &mutex() {
  static std::mutex *const it = new std::mutex;
  return *it;
}

struct Device {
  int streams = 0;
  // Shared memory that kernels were allowed.
  std::map<const void *, size_t> allowed;

  size_t allowed_to(const void *kernel) const {
    const auto found = allowed.find(kernel);
    return found == allowed.end() ? kPlainShared - kOwnShared : found->second;
  }
};

Device *devices() {
  static Device *const them = new Device[kDevices];
  return them;
}

Device &device() { return devices()[current]; }

// Gives back what takes up memory of the host once nobody uses a device. That
// is work of a tenth of a second: when the process ends, destructors must not
// do it, while other threads may end and use libraries that are closed already.
void release_unused() {
  for (int i = 0; i < kDevices; i++) {
    if (devices()[i].streams > 0) return;
  }
  free_block();
  close_memory();
}

using Lock = std::lock_guard<std::mutex>;

bool is_good_launch(const Launch &launch) {
  const size_t threads =
      size_t{launch.block.x} * launch.block.y * launch.block.z;
  return launch.grid.x > 0 && launch.grid.y > 0 && launch.grid.z > 0 &&
         launch.grid.x < 1u << 31 && launch.grid.y < 65536 &&
         launch.grid.z < 65536 && threads > 0 && threads <= kMostThreads &&
         threads % 32 == 0 && threads == launch.block.x &&
         launch.shared_bytes <= device().allowed_to(launch.work.kernel);
}

// Nodes in an order that the graph allows: that of the capture, or one in which
// everything beside the main stream comes as late as it can.
void run_graph(EmulatedGraph &graph) {
  const bool late = graph.runs++ % 2 == 1;
  const size_t count = graph.nodes.size();
  std::vector<bool> done(count);
  for (size_t ran = 0; ran < count && failure == cudaSuccess; ran++) {
    for (size_t i = 0; i < count; i++) {
      const size_t at = late ? count - 1 - i : i;
      if (done[at]) continue;
      bool ready = true;
      for (const size_t before : graph.nodes[at].after) {
        ready = ready && done[before];
      }
      if (!ready) continue;
      run_blocks(graph.nodes[at].launch);
      done[at] = true;
      break;
    }
  }
}

void release(EmulatedGraph *graph) {
  if (--graph->owners == 0) delete graph;
}

// From here on, the graph takes what is enqueued.
void join_capture(EmulatedStream *stream, EmulatedGraph *graph) {
  stream->capture = graph;
  graph->streams.push_back(stream);
}

void add_all(std::vector<size_t> &to, const std::vector<size_t> &from) {
  to.insert(to.end(), from.begin(), from.end());
}

}  // namespace

cudaError_t launch(const cudaLaunchConfig_t &config, const Work &work) {
  const Lock lock(mutex());
  Launch launch = {work, config.gridDim, config.blockDim,
                   config.dynamicSmemBytes, config.numAttrs > 0};
  const bool good = failure == cudaSuccess && is_good_launch(launch);
  EmulatedGraph *capture = config.stream->capture;
  if (good && capture != nullptr) {
    std::vector<size_t> &last = config.stream->last;
    capture->nodes.push_back({launch, last});
    last = {capture->nodes.size() - 1};
    return cudaSuccess;
  }
  if (good) run_blocks(launch);
  free(work.arguments);
  return good                     ? cudaSuccess
         : failure != cudaSuccess ? failure
                                  : cudaErrorInvalidConfiguration;
}

cudaError_t set_shared_memory(const void *kernel, size_t bytes) {
  const Lock lock(mutex());
  if (bytes + kOwnShared > kModels[current].most_shared) {
    return cudaErrorInvalidValue;
  }
  device().allowed[kernel] = bytes;
  return failure;
}

cudaError_t get_attributes(const void *kernel, cudaFuncAttributes *attributes) {
  const Lock lock(mutex());
  if (!kModels[current].runs_kernels) return cudaErrorNoKernelImageForDevice;
  attributes->sharedSizeBytes = kOwnShared;
  attributes->maxDynamicSharedSizeBytes =
      static_cast<int>(device().allowed_to(kernel));
  return failure;
}

}  // namespace emulation

using emulation::failure;
using emulation::Lock;

cudaError_t cudaDriverGetVersion(int *version) {
  *version = emulation::kVersion;
  return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version) {
  *version = emulation::kVersion;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int *count) {
  *count = emulation::kDevices;
  return failure;
}

cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= emulation::kDevices) {
    return cudaErrorInvalidDevice;
  }
  emulation::current = device;
  return failure;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int device) {
  const Lock lock(emulation::mutex());
  *properties = {};
  snprintf(properties->name, sizeof(properties->name), "emulated device");
  size_t free = 0;
  emulation::memory_sizes(&free, &properties->totalGlobalMem);
  properties->major = emulation::kModels[device].major;
  properties->minor = emulation::kModels[device].minor;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute,
                                   int device) {
  const emulation::Model &model = emulation::kModels[device];
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = emulation::kMultiprocessors;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = model.major;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(model.most_shared);
      break;
  }
  return failure;
}

cudaError_t cudaMemGetInfo(size_t *free, size_t *total) {
  const Lock lock(emulation::mutex());
  emulation::memory_sizes(free, total);
  return failure;
}

cudaError_t cudaGetLastError() { return failure; }

const char *cudaGetErrorString(cudaError_t error) {
  static thread_local char text[640];
  const char *name = "an error";
  switch (error) {
    case cudaSuccess:
      name = "no error";
      break;
    case cudaErrorInvalidValue:
      name = "invalid argument";
      break;
    case cudaErrorMemoryAllocation:
      name = "out of memory";
      break;
    case cudaErrorInvalidConfiguration:
      name = "invalid configuration argument";
      break;
    case cudaErrorInvalidDevice:
      name = "invalid device ordinal";
      break;
    case cudaErrorInvalidResourceHandle:
      name = "invalid resource handle";
      break;
    case cudaErrorIllegalAddress:
      name = "an illegal memory access was encountered";
      break;
    case cudaErrorMisalignedAddress:
      name = "misaligned address";
      break;
    case cudaErrorInvalidAddressSpace:
      name = "operation not supported on global/shared address space";
      break;
    case cudaErrorLaunchFailure:
      name = "unspecified launch failure";
      break;
    case cudaErrorStreamCaptureIsolation:
      name = "dependency created on uncaptured work in another stream";
      break;
    default:
      break;
  }
  const bool known = error != cudaSuccess && error == failure;
  snprintf(text, sizeof(text), "%s%s%s", name, known ? ": " : "",
           known ? emulation::failure_text : "");
  return text;
}

cudaError_t cudaMalloc(void **memory, size_t bytes) {
  const Lock lock(emulation::mutex());
  if (failure != cudaSuccess) return failure;
  *memory = emulation::allocate_memory(bytes);
  return *memory == nullptr ? cudaErrorMemoryAllocation : cudaSuccess;
}

cudaError_t cudaFree(void *memory) {
  const Lock lock(emulation::mutex());
  if (!emulation::free_memory(memory)) return cudaErrorInvalidValue;
  return failure;
}

// Pinned memory lies where kernels may use it, too.
cudaError_t cudaHostAlloc(void **memory, size_t bytes, unsigned) {
  return cudaMalloc(memory, bytes);
}

cudaError_t cudaFreeHost(void *memory) { return cudaFree(memory); }

cudaError_t cudaHostGetDevicePointer(void **on_device, void *memory, unsigned) {
  *on_device = memory;
  return failure;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes,
                            cudaMemcpyKind, cudaStream_t) {
  const Lock lock(emulation::mutex());
  if (failure != cudaSuccess) return failure;
  // Both ends: a copy to or from memory that is not pinned would wait.
  if (!emulation::is_allocated(to, bytes) ||
      !emulation::is_allocated(from, bytes)) {
    return cudaErrorInvalidValue;
  }
  memcpy(to, from, bytes);
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t) {
  const Lock lock(emulation::mutex());
  if (failure != cudaSuccess) return failure;
  if (!emulation::is_allocated(to, bytes)) return cudaErrorInvalidValue;
  memset(to, value, bytes);
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned) {
  const Lock lock(emulation::mutex());
  if (failure != cudaSuccess) return failure;
  *stream = new EmulatedStream;
  emulation::device().streams++;
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const Lock lock(emulation::mutex());
  delete stream;
  if (--emulation::device().streams == 0) failure = cudaSuccess;
  emulation::release_unused();
  return failure;
}

cudaError_t cudaStreamSynchronize(cudaStream_t) { return failure; }

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event,
                                unsigned) {
  const Lock lock(emulation::mutex());
  // What is captured can wait for nothing outside its capture.
  if (stream->capture != nullptr && event->capture != stream->capture) {
    return cudaErrorStreamCaptureIsolation;
  }
  if (event->capture != nullptr) {
    if (stream->capture == nullptr)
      emulation::join_capture(stream, event->capture);
    emulation::add_all(stream->last, event->last);
  }
  return failure;
}

cudaError_t cudaEventCreate(cudaEvent_t *event) {
  *event = new EmulatedEvent;
  return failure;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned) {
  return cudaEventCreate(event);
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return failure;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const Lock lock(emulation::mutex());
  event->capture = stream->capture;
  event->last = stream->last;
  event->time = std::chrono::steady_clock::now();
  return failure;
}

cudaError_t cudaEventSynchronize(cudaEvent_t) { return failure; }

cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t begin,
                                 cudaEvent_t end) {
  const std::chrono::duration<float, std::milli> passed =
      end->time - begin->time;
  *milliseconds = passed.count();
  return failure;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  const Lock lock(emulation::mutex());
  emulation::join_capture(stream, new EmulatedGraph);
  return failure;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
  const Lock lock(emulation::mutex());
  *graph = stream->capture;
  // Everything has to lead to the end of the stream that began.
  std::vector<bool> joined((*graph)->nodes.size());
  std::vector<size_t> open = stream->last;
  while (!open.empty()) {
    const size_t at = open.back();
    open.pop_back();
    if (joined[at]) continue;
    joined[at] = true;
    emulation::add_all(open, (*graph)->nodes[at].after);
  }
  for (EmulatedStream *it : (*graph)->streams) {
    it->capture = nullptr;
    it->last.clear();
  }
  (*graph)->streams.clear();
  for (const bool it : joined) {
    if (!it) return cudaErrorInvalidValue;
  }
  return failure;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *executable, cudaGraph_t graph,
                                 unsigned long long) {
  const Lock lock(emulation::mutex());
  graph->owners++;
  *executable = graph;
  return failure;
}

cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) { return failure; }

cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t) {
  const Lock lock(emulation::mutex());
  if (failure != cudaSuccess) return failure;
  emulation::run_graph(*executable);
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  const Lock lock(emulation::mutex());
  emulation::release(graph);
  return failure;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  return cudaGraphDestroy(executable);
}

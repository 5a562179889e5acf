// Kernels with one mistake each, to see that the emulation finds it.
#include "../lib/instructions.cuh"
#include "../lib/reduce.cuh"
#include "../runtime/launch.cuh"

namespace {

enum Mistake {
  kNone = 0,
  kBeyondTheEnd = 1,
  kNoBarrier = 2,
  kNoWarpBarrier = 3,
  kDivergentBarrier = 4,
  kMissingLane = 5,
  kUnwaitedCopy = 6,
  kTwoBlocks = 7,
  kMisaligned = 8,
  kNeverWaits = 9
};

constexpr uint32_t kThreads = 64;

__global__ void mistaken_kernel(Mistake mistake, uint32_t *memory) {
  __shared__ uint32_t shared[kThreads];
  if (mistake != kNeverWaits) wait_for_previous();
  const uint32_t thread = threadIdx.x;
  shared[thread] = thread;
  if (mistake == kBeyondTheEnd) memory[kThreads + thread] = 0;
  if (mistake == kMisaligned) {
    *reinterpret_cast<uint4 *>(memory + 1) = uint4{0, 0, 0, 0};
  }
  if (mistake == kMissingLane && thread == 5) return;
  if (mistake == kMissingLane) __syncwarp();
  if (mistake == kDivergentBarrier && thread < 32) __syncthreads();
  if (mistake == kDivergentBarrier && thread >= 32) __syncthreads();
  if (mistake == kNoWarpBarrier && thread < 32) {
    shared[thread] = shared[thread ^ 1];
  }
  if (mistake != kNoBarrier) __syncthreads();
  const uint32_t other = shared[kThreads - 1 - thread];
  __syncthreads();
  if (mistake == kUnwaitedCopy) {
    uint4 *to = dynamic_shared_memory();
    if (thread == 0) {
      copy_async(reinterpret_cast<skv_half *>(to),
                 reinterpret_cast<const skv_half *>(memory), true);
      commit_copies();
    }
    __syncthreads();
    if (thread < 4) memory[thread] = reinterpret_cast<uint32_t *>(to)[thread];
    return;
  }
  if (mistake == kTwoBlocks || blockIdx.x == 0) memory[thread] = other;
}

__global__ void counting_kernel(uint32_t *runs) {
  if (threadIdx.x == 0) *runs += 1;
}

}  // namespace

// Runs the kernel; writes what CUDA says, and the first words of its memory.
extern "C" SKV_API void emulation_run_mistake(uint32_t mistake, uint8_t *text,
                                              uint32_t *words) {
  cudaStream_t stream;
  void *memory = nullptr;
  cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  cudaMalloc(&memory, kThreads * sizeof(uint32_t));
  cudaMemsetAsync(memory, 0, kThreads * sizeof(uint32_t), stream);
  Launch launch = {};
  launch.stream = stream;
  launch.overlaps = true;
  launch_kernel(launch, mistaken_kernel, 2, kThreads, 16,
                static_cast<Mistake>(mistake), static_cast<uint32_t *>(memory));
  const char *said = cudaGetErrorString(cudaStreamSynchronize(stream));
  strncpy(reinterpret_cast<char *>(text), said, 511);
  memcpy(words, memory, 4 * sizeof(uint32_t));
  cudaFree(memory);
  cudaStreamDestroy(stream);
}

// Captures a kernel on a stream beside the one that began, forgets the graph,
// and launches the kernel there once more. Returns how often it ran.
extern "C" SKV_API uint32_t emulation_run_after_capture() {
  cudaStream_t stream, side;
  cudaEvent_t event;
  void *memory = nullptr;
  cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  cudaStreamCreateWithFlags(&side, cudaStreamNonBlocking);
  cudaEventCreate(&event);
  cudaMalloc(&memory, sizeof(uint32_t));
  cudaMemsetAsync(memory, 0, sizeof(uint32_t), stream);
  auto *runs = static_cast<uint32_t *>(memory);
  cudaGraph_t graph;
  cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed);
  cudaEventRecord(event, stream);
  cudaStreamWaitEvent(side, event);
  start_kernel(side, counting_kernel, 1, 32, runs);
  cudaEventRecord(event, side);
  cudaStreamWaitEvent(stream, event);
  cudaStreamEndCapture(stream, &graph);
  cudaGraphDestroy(graph);
  start_kernel(side, counting_kernel, 1, 32, runs);
  const uint32_t count = *runs;
  cudaFree(memory);
  cudaEventDestroy(event);
  cudaStreamDestroy(side);
  cudaStreamDestroy(stream);
  return count;
}

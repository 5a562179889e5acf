// Opening a device, its memory, and what is said when something fails.
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <new>

#include "../lib/cached.cuh"
#include "context.cuh"

namespace {

// The sentence about the last skv_open that failed on this thread.
thread_local char open_error[sizeof(skv_context::error)] = "";

// Text of the architectures that this library holds code for.
#define SKV_TEXT(...) #__VA_ARGS__
#define SKV_LIST(...) SKV_TEXT(__VA_ARGS__)

// "900,1000" becomes "9.0, 10.0".
void describe_architectures(char *text, size_t capacity) {
  size_t length = 0;
  for (const char *at = SKV_LIST(__CUDA_ARCH_LIST__); *at != '\0';) {
    int number = 0, used = 0;
    if (sscanf(at, "%d%n", &number, &used) != 1) break;
    at += used;
    if (*at == ',') at++;
    const int written =
        snprintf(text + length, capacity - length, "%s%d.%d",
                 length == 0 ? "" : ", ", number / 100, number / 10 % 10);
    if (written < 0 || length + written >= capacity) break;
    length += written;
  }
}

skv_status status_of(cudaError_t error) {
  switch (error) {
    case cudaErrorMemoryAllocation:
      return SKV_OUT_OF_MEMORY;
    case cudaErrorNoDevice:
    case cudaErrorInvalidDevice:
    case cudaErrorInsufficientDriver:
    case cudaErrorInitializationError:
    case cudaErrorSystemDriverMismatch:
    case cudaErrorSystemNotReady:
    case cudaErrorCompatNotSupportedOnDevice:
    case cudaErrorStubLibrary:
      return SKV_NO_DEVICE;
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorUnsupportedPtxVersion:
    case cudaErrorInvalidKernelImage:
      return SKV_ARCHITECTURE;
    case cudaErrorIllegalAddress:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorHardwareStackError:
    case cudaErrorLaunchFailure:
    case cudaErrorLaunchTimeout:
    case cudaErrorAssert:
      return SKV_KERNEL;
    case cudaErrorInvalidValue:
    case cudaErrorInvalidConfiguration:
    case cudaErrorLaunchOutOfResources:
      return SKV_INVALID;
    default:
      return SKV_DEVICE_LOST;
  }
}

// Fails where the driver is missing or too old for the runtime in here.
int32_t check_driver() {
  int driver = 0, runtime = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  if (driver == 0) {
    return fail(nullptr, SKV_NO_DEVICE, "there is no NVIDIA driver");
  }
  if (driver / 1000 < runtime / 1000) {
    return fail(nullptr, SKV_NO_DEVICE,
                "the NVIDIA driver supports CUDA %d.%d, but the library was "
                "built with %d.%d",
                driver / 1000, driver % 1000 / 10, runtime / 1000,
                runtime % 1000 / 10);
  }
  return SKV_OK;
}

// Exists to be asked for: it has code for a device if all kernels have.
__global__ void probe_kernel() {}

int32_t check_architecture(int index) {
  cudaFuncAttributes attributes;
  const cudaError_t error = cudaFuncGetAttributes(&attributes, probe_kernel);
  if (status_of(error) != SKV_ARCHITECTURE) {
    return check(nullptr, error, "load the kernels");
  }
  cudaDeviceProp properties;
  cudaGetDeviceProperties(&properties, index);
  char built[64] = "";
  describe_architectures(built, sizeof(built));
  return fail(nullptr, SKV_ARCHITECTURE,
              "the library was built for compute capability %s, but %s has "
              "%d.%d",
              built, properties.name, properties.major, properties.minor);
}

// Asks for the device's properties, and creates what work is enqueued on.
cudaError_t create_streams(skv_context *context) {
  const int device = context->device;
  int multiprocessors = 0, major = 0, shared_bytes = 0;
  cudaError_t error = cudaDeviceGetAttribute(
      &multiprocessors, cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor,
                                   device);
  }
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(
        &shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  }
  context->shared_bytes = static_cast<size_t>(shared_bytes);
  context->multiprocessors = static_cast<uint32_t>(multiprocessors);
  context->overlaps = major >= 9;
  context->has_groups = major == 9;
  context->tile_maps = TileMaps::open(major);
  if (error == cudaSuccess) {
    error = cudaStreamCreateWithFlags(&context->stream, cudaStreamNonBlocking);
  }
  for (cudaStream_t &side : context->sides.streams) {
    if (error != cudaSuccess) break;
    error = cudaStreamCreateWithFlags(&side, cudaStreamNonBlocking);
  }
  if (error == cudaSuccess) {
    error =
        cudaEventCreateWithFlags(&context->sides.event, cudaEventDisableTiming);
  }
  return error;
}

}  // namespace

int32_t fail(skv_context *context, skv_status status, const char *format, ...) {
  char text[sizeof(open_error)];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof(text), format, arguments);
  va_end(arguments);
  if (context == nullptr) {
    memcpy(open_error, text, sizeof(text));
  } else {
    const std::lock_guard<std::mutex> lock(context->mutex);
    memcpy(context->error, text, sizeof(text));
  }
  return status;
}

int32_t check(skv_context *context, cudaError_t error, const char *what) {
  if (error == cudaSuccess) return SKV_OK;
  // Errors that a call merely returns must not be found by the next one.
  cudaGetLastError();
  return fail(context, status_of(error), "cannot %s: %s", what,
              cudaGetErrorString(error));
}

int32_t enter(skv_context *context) {
  return check(context, cudaSetDevice(context->device), "use the device");
}

uint32_t skv_abi_version(void) { return SKV_ABI_VERSION; }

uint32_t skv_cache_type(void) {
  return kCachesHalves ? SKV_CACHE_IS_HALF : SKV_CACHE_IS_BFLOAT16;
}

void skv_last_error(skv_context *context, uint8_t *text, uint64_t capacity) {
  if (capacity == 0) return;
  char *to = reinterpret_cast<char *>(text);
  if (context == nullptr) {
    snprintf(to, capacity, "%s", open_error);
    return;
  }
  const std::lock_guard<std::mutex> lock(context->mutex);
  snprintf(to, capacity, "%s", context->error);
}

int32_t skv_open(uint32_t index, uint32_t flags, skv_context **context) {
  *context = nullptr;
  int32_t status = check_driver();
  if (status != SKV_OK) return status;
  int count = 0;
  status = check(nullptr, cudaGetDeviceCount(&count), "find a GPU");
  if (status != SKV_OK) return status;
  if (index >= static_cast<uint32_t>(count)) {
    return fail(nullptr, SKV_NO_DEVICE,
                "there is no GPU %u: the driver finds %d", index, count);
  }
  const int device = static_cast<int>(index);
  status = check(nullptr, cudaSetDevice(device), "use the device");
  if (status != SKV_OK) return status;
  status = check_architecture(device);
  if (status != SKV_OK) return status;
  auto *opened = new (std::nothrow) skv_context;
  if (opened == nullptr) {
    return fail(nullptr, SKV_OUT_OF_MEMORY, "the host has no memory left");
  }
  opened->device = device;
  opened->flags = flags;
  status = check(nullptr, create_streams(opened), "create streams");
  if (status != SKV_OK) {
    delete opened;
    return status;
  }
  *context = opened;
  return SKV_OK;
}

void skv_close(skv_context *context) {
  if (context == nullptr) return;
  // After a fault these fail too, and the driver frees what is left.
  cudaSetDevice(context->device);
  cudaStreamSynchronize(context->stream);
  for (void *allocation : context->allocations) cudaFree(allocation);
  context->library.reset();
  context->writes.release();
  context->reads.release();
  for (const cudaStream_t side : context->sides.streams) {
    cudaStreamDestroy(side);
  }
  cudaEventDestroy(context->sides.event);
  cudaStreamDestroy(context->stream);
  cudaGetLastError();
  delete context;
}

int32_t skv_describe(skv_context *context, skv_device_info *info) {
  cudaDeviceProp properties;
  int driver = 0, runtime = 0;
  cudaError_t error = cudaGetDeviceProperties(&properties, context->device);
  if (error == cudaSuccess) error = cudaDriverGetVersion(&driver);
  if (error == cudaSuccess) error = cudaRuntimeGetVersion(&runtime);
  if (error != cudaSuccess) return check(context, error, "ask for the device");
  *info = {};
  info->memory_bytes = properties.totalGlobalMem;
  info->multiprocessors = context->multiprocessors;
  info->compute_capability =
      static_cast<uint32_t>(10 * properties.major + properties.minor);
  info->runtime_version = static_cast<uint32_t>(runtime);
  info->driver_version = static_cast<uint32_t>(driver);
  snprintf(reinterpret_cast<char *>(info->name), sizeof(info->name), "%s",
           properties.name);
  return SKV_OK;
}

int32_t skv_allocate(skv_context *context, uint64_t bytes, uint64_t *address) {
  int32_t status = enter(context);
  if (status != SKV_OK) return status;
  void *memory = nullptr;
  const cudaError_t error = cudaMalloc(&memory, bytes);
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    size_t free = 0, total = 0;
    cudaMemGetInfo(&free, &total);
    return fail(context, SKV_OUT_OF_MEMORY,
                "the device has %zu of its %zu bytes free", free, total);
  }
  if (error != cudaSuccess) return check(context, error, "allocate memory");
  context->allocations.insert(memory);
  *address = reinterpret_cast<uint64_t>(memory);
  return check(context, cudaMemsetAsync(memory, 0, bytes, context->stream),
               "clear memory");
}

int32_t skv_free(skv_context *context, uint64_t address) {
  const int32_t status = enter(context);
  if (status != SKV_OK) return status;
  void *memory = reinterpret_cast<void *>(address);
  if (context->allocations.erase(memory) == 0) {
    return fail(context, SKV_INVALID, "cannot free memory that is not there");
  }
  return check(context, cudaFree(memory), "free memory");
}

int32_t skv_synchronize(skv_context *context) {
  const int32_t status = enter(context);
  if (status != SKV_OK) return status;
  return check(context, cudaStreamSynchronize(context->stream),
               "wait for the device");
}

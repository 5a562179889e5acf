// Writes and reads, and kernels that convert to and from 16 bits on the way:
// straight from and to pinned host memory, so that no memory of the device is
// needed for it.
#include <math.h>
#include <string.h>

#include "../lib/cached.cuh"
#include "context.cuh"

namespace {

constexpr uint32_t kThreads = 256;

uint32_t blocks_for(uint64_t count) {
  const uint64_t blocks = (count + kThreads - 1) / kThreads;
  return static_cast<uint32_t>(blocks < 4096 ? blocks : 4096);
}

__device__ inline void store(skv_half &to, float x) { to = to_half(x); }
__device__ inline void store(skv_cached &to, float x) { to = to_cached(x); }

template <class T>
__global__ void __launch_bounds__(kThreads)
    store_rows(T *to, const float *from, skv_rows rows) {
  const uint64_t count = static_cast<uint64_t>(rows.rows) * rows.columns;
  for (uint64_t i = blockIdx.x * kThreads + threadIdx.x; i < count;
       i += static_cast<uint64_t>(gridDim.x) * kThreads) {
    store(to[rows.offset + i / rows.columns * rows.pitch + i % rows.columns],
          from[i]);
  }
}

__global__ void __launch_bounds__(kThreads)
    load_floats(float *to, const skv_cached *from, uint64_t count) {
  for (uint64_t i = blockIdx.x * kThreads + threadIdx.x; i < count;
       i += static_cast<uint64_t>(gridDim.x) * kThreads) {
    to[i] = to_float(from[i]);
  }
}

// The finalizer of MurmurHash3 in 64 bits: every bit reaches every bit.
__device__ inline uint64_t hashed(uint64_t x) {
  x = (x ^ (x >> 33)) * 0xff51afd7ed558ccdull;
  x = (x ^ (x >> 33)) * 0xc4ceb9fe1a85ec53ull;
  return x ^ (x >> 33);
}

__global__ void __launch_bounds__(kThreads)
    fill_normal(skv_half *to, skv_rows rows, float deviation, uint64_t seed) {
  const uint64_t count = static_cast<uint64_t>(rows.rows) * rows.columns;
  for (uint64_t i = blockIdx.x * kThreads + threadIdx.x; i < count;
       i += static_cast<uint64_t>(gridDim.x) * kThreads) {
    const uint64_t bits = hashed(seed * 0x9e3779b97f4a7c15ull + i);
    // Box and Muller: a radius and an angle.
    const float u = (static_cast<float>(bits >> 40) + 0.5f) * 0x1p-24f;
    const float v = static_cast<float>(bits & 0xffffff) * 0x1p-24f;
    const float normal = sqrtf(-2.0f * logf(u)) * cospif(2.0f * v);
    to[rows.offset + i / rows.columns * rows.pitch + i % rows.columns] =
        to_half(normal * deviation);
  }
}

__global__ void __launch_bounds__(kThreads)
    read_everything(const uint4 *from, uint64_t count, uint32_t *never) {
  uint32_t bits = 0;
  const uint64_t stride = static_cast<uint64_t>(gridDim.x) * kThreads;
#pragma unroll 8
  for (uint64_t i = blockIdx.x * kThreads + threadIdx.x; i < count;
       i += stride) {
    const uint4 v = load_weights(reinterpret_cast<const skv_half *>(from + i));
    bits |= v.x | v.y | v.z | v.w;
  }
  // The memory is zero; the compiler does not know.
  if (bits != 0) *never = bits;
}

// Without an exit in the loop, so that it runs on vectors.
bool are_below(float limit, const float *data, uint64_t count) {
  bool good = true;
  for (uint64_t i = 0; i < count; i++) good &= fabsf(data[i]) < limit;
  return good;
}

// Writes one piece of rows that lie `pitch` apart.
template <class T>
int32_t write_piece(skv_context *context, T *to, const float *data,
                    const skv_rows &rows) {
  const size_t count = static_cast<size_t>(rows.rows) * rows.columns;
  void *piece = nullptr;
  cudaError_t error = context->writes.take(count * sizeof(float), &piece);
  if (error != cudaSuccess) return check(context, error, "stage a write");
  memcpy(piece, data, count * sizeof(float));
  void *on_device = nullptr;
  error = cudaHostGetDevicePointer(&on_device, piece, 0);
  if (error != cudaSuccess) return check(context, error, "stage a write");
  error =
      start_kernel(context->stream, store_rows<T>, blocks_for(count), kThreads,
                   to, static_cast<const float *>(on_device), rows);
  if (error == cudaSuccess) error = context->writes.keep(context->stream);
  return check(context, error, "write rows");
}

// Writes rows, in as many pieces as it takes.
template <class T>
int32_t write_rows(skv_context *context, T *to, const float *data,
                   const skv_rows &rows) {
  const uint64_t columns = rows.columns;
  int32_t status = SKV_OK;
  constexpr uint64_t kMost = WriteRing::kPieceBytes / sizeof(float);
  if (columns > kMost) {
    // A row that is longer than a piece goes in parts.
    for (uint64_t row = 0; row < rows.rows; row++) {
      for (uint64_t at = 0; status == SKV_OK && at < columns; at += kMost) {
        const uint64_t left = columns - at;
        const skv_rows part = {
            rows.offset + row * rows.pitch + at, 1,
            static_cast<uint32_t>(left < kMost ? left : kMost), 0};
        status = write_piece(context, to, data + row * columns + at, part);
      }
    }
    return status;
  }
  const uint64_t most = columns == 0 ? 0 : kMost / columns;
  for (uint64_t row = 0; status == SKV_OK && row < rows.rows && most > 0;
       row += most) {
    const uint64_t left = rows.rows - row;
    const skv_rows part = {rows.offset + row * rows.pitch,
                           static_cast<uint32_t>(left < most ? left : most),
                           rows.columns, rows.pitch};
    status = write_piece(context, to, data + row * columns, part);
  }
  return status;
}

}  // namespace

int32_t skv_write(skv_context *context, uint64_t address, const uint8_t *data,
                  uint64_t bytes) {
  int32_t status = enter(context);
  for (uint64_t done = 0; status == SKV_OK && done < bytes;) {
    const uint64_t left = bytes - done;
    const size_t size =
        left < WriteRing::kPieceBytes ? left : WriteRing::kPieceBytes;
    void *piece = nullptr;
    cudaError_t error = context->writes.take(size, &piece);
    if (error == cudaSuccess) {
      memcpy(piece, data + done, size);
      error = cudaMemcpyAsync(reinterpret_cast<void *>(address + done), piece,
                              size, cudaMemcpyHostToDevice, context->stream);
    }
    if (error == cudaSuccess) error = context->writes.keep(context->stream);
    status = check(context, error, "write");
    done += size;
  }
  return status;
}

int32_t skv_write_rows(skv_context *context, uint64_t address,
                       const float *data, const skv_rows *rows,
                       uint32_t element) {
  const int32_t status = enter(context);
  if (status != SKV_OK) return status;
  const uint64_t count = static_cast<uint64_t>(rows->rows) * rows->columns;
  const bool cached = element == SKV_CACHED;
  if (!are_below(cached ? kCacheOverflow : kHalfOverflow, data, count)) {
    return fail(context, SKV_TOO_LARGE,
                cached && !kCachesHalves
                    ? "expected a number that a bfloat16 can hold, at most "
                      "3.39e38"
                    : "expected a number that a 16-bit float can hold, at most "
                      "65504");
  }
  void *to = reinterpret_cast<void *>(address);
  return cached
             ? write_rows(context, static_cast<skv_cached *>(to), data, *rows)
             : write_rows(context, static_cast<skv_half *>(to), data, *rows);
}

int32_t skv_read(skv_context *context, uint64_t address, uint64_t count,
                 uint32_t element, uint32_t *ticket) {
  int32_t status = enter(context);
  if (status != SKV_OK) return status;
  const size_t bytes = count * sizeof(float);
  PendingRead *read = nullptr;
  cudaError_t error;
  {
    const std::lock_guard<std::mutex> lock(context->mutex);
    error = context->reads.take(bytes == 0 ? 1 : bytes, ticket);
    if (error == cudaSuccess) read = context->reads.find(*ticket);
  }
  if (error != cudaSuccess) return check(context, error, "stage a read");
  if (count > 0 && element == SKV_CACHED) {
    void *on_device = nullptr;
    error = cudaHostGetDevicePointer(&on_device, read->memory, 0);
    if (error == cudaSuccess) {
      error =
          start_kernel(context->stream, load_floats, blocks_for(count),
                       kThreads, static_cast<float *>(on_device),
                       reinterpret_cast<const skv_cached *>(address), count);
    }
  } else if (count > 0) {
    error = cudaMemcpyAsync(read->memory, reinterpret_cast<void *>(address),
                            bytes, cudaMemcpyDeviceToHost, context->stream);
  }
  if (error == cudaSuccess)
    error = cudaEventRecord(read->event, context->stream);
  if (error != cudaSuccess) {
    const std::lock_guard<std::mutex> lock(context->mutex);
    context->reads.give_back(*ticket);
  }
  return check(context, error, "read");
}

int32_t skv_wait(skv_context *context, uint32_t ticket, uint8_t *data,
                 uint64_t bytes) {
  int32_t status = enter(context);
  if (status != SKV_OK) return status;
  PendingRead *read;
  {
    const std::lock_guard<std::mutex> lock(context->mutex);
    read = context->reads.find(ticket);
  }
  if (read == nullptr) {
    return fail(context, SKV_INVALID, "cannot wait for a read that is over");
  }
  const cudaError_t error = cudaEventSynchronize(read->event);
  if (error == cudaSuccess) {
    memcpy(data, read->memory, bytes < read->bytes ? bytes : read->bytes);
  }
  {
    const std::lock_guard<std::mutex> lock(context->mutex);
    context->reads.give_back(ticket);
  }
  return check(context, error, "run kernels");
}

int32_t skv_fill_normal(skv_context *context, uint64_t address,
                        const skv_rows *rows, float deviation, uint64_t seed) {
  const int32_t status = enter(context);
  if (status != SKV_OK) return status;
  const uint64_t count = static_cast<uint64_t>(rows->rows) * rows->columns;
  if (count == 0) return SKV_OK;
  return check(context,
               start_kernel(context->stream, fill_normal, blocks_for(count),
                            kThreads, reinterpret_cast<skv_half *>(address),
                            *rows, deviation, seed),
               "fill memory");
}

int32_t skv_measure_read(skv_context *context, uint64_t bytes, uint32_t times,
                         double *bytes_per_second) {
  uint64_t address = 0;
  int32_t status = skv_allocate(context, bytes, &address);
  if (status != SKV_OK) return status;
  cudaEvent_t begin = nullptr, end = nullptr;
  cudaError_t error = cudaEventCreate(&begin);
  if (error == cudaSuccess) error = cudaEventCreate(&end);
  const uint64_t count = bytes / sizeof(uint4);
  const uint32_t blocks = context->multiprocessors * 8;
  for (uint32_t i = 0; error == cudaSuccess && i <= times; i++) {
    // The first time warms up.
    if (i == 1) error = cudaEventRecord(begin, context->stream);
    if (error == cudaSuccess) {
      error = start_kernel(context->stream, read_everything, blocks, kThreads,
                           reinterpret_cast<const uint4 *>(address), count,
                           reinterpret_cast<uint32_t *>(address));
    }
  }
  float milliseconds = 0.0f;
  if (error == cudaSuccess) error = cudaEventRecord(end, context->stream);
  if (error == cudaSuccess) error = cudaEventSynchronize(end);
  if (error == cudaSuccess) {
    error = cudaEventElapsedTime(&milliseconds, begin, end);
  }
  if (begin != nullptr) cudaEventDestroy(begin);
  if (end != nullptr) cudaEventDestroy(end);
  const int32_t freed = skv_free(context, address);
  status = check(context, error, "measure the memory");
  if (status != SKV_OK) return status;
  *bytes_per_second = static_cast<double>(count * sizeof(uint4)) * times /
                      (milliseconds * 1e-3);
  return freed;
}

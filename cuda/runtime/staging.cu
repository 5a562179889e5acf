#include "staging.cuh"

cudaError_t WriteRing::retire() {
  const Piece piece = pieces_.front();
  const cudaError_t status = cudaEventSynchronize(piece.event);
  if (status != cudaSuccess) return status;
  pieces_.pop_front();
  events_.push_back(piece.event);
  return cudaSuccess;
}

cudaError_t WriteRing::take(size_t bytes, void **piece) {
  cudaError_t status = cudaSuccess;
  if (memory_ == nullptr) {
    status = cudaHostAlloc(reinterpret_cast<void **>(&memory_), kBytes,
                           cudaHostAllocPortable | cudaHostAllocMapped);
    if (status != cudaSuccess) return status;
  }
  size_t begin = next_;
  if (begin + bytes > kBytes) begin = 0;
  const size_t end = begin + (bytes + 255) / 256 * 256;
  // The oldest pieces lie right after the newest one.
  while (!pieces_.empty()) {
    const Piece &oldest = pieces_.front();
    const bool wrapped = begin < next_ && oldest.begin >= next_;
    const bool overlaps = oldest.begin < end && begin < oldest.end;
    if (!wrapped && !overlaps) break;
    status = retire();
    if (status != cudaSuccess) return status;
  }
  cudaEvent_t event;
  if (events_.empty()) {
    status = cudaEventCreateWithFlags(
        &event, cudaEventDisableTiming | cudaEventBlockingSync);
    if (status != cudaSuccess) return status;
  } else {
    event = events_.back();
    events_.pop_back();
  }
  taken_ = {begin, end, event};
  next_ = end;
  *piece = memory_ + begin;
  return cudaSuccess;
}

cudaError_t WriteRing::keep(cudaStream_t stream) {
  const cudaError_t status = cudaEventRecord(taken_.event, stream);
  if (status == cudaSuccess) {
    pieces_.push_back(taken_);
  } else {
    events_.push_back(taken_.event);
  }
  return status;
}

void WriteRing::release() {
  for (const Piece &piece : pieces_) cudaEventDestroy(piece.event);
  for (const cudaEvent_t event : events_) cudaEventDestroy(event);
  pieces_.clear();
  events_.clear();
  if (memory_ != nullptr) cudaFreeHost(memory_);
  memory_ = nullptr;
  next_ = 0;
}

cudaError_t ReadPool::take(size_t bytes, uint32_t *ticket) {
  // The smallest that is large enough, or else any idle one.
  PendingRead *chosen = nullptr;
  for (PendingRead &read : reads_) {
    if (read.busy) continue;
    const bool fits = read.capacity >= bytes;
    const bool better =
        chosen == nullptr || (fits && (chosen->capacity < bytes ||
                                       read.capacity < chosen->capacity));
    if (better) chosen = &read;
  }
  cudaError_t status = cudaSuccess;
  if (chosen == nullptr) {
    PendingRead read = {};
    status = cudaEventCreateWithFlags(
        &read.event, cudaEventDisableTiming | cudaEventBlockingSync);
    if (status != cudaSuccess) return status;
    reads_.push_back(read);
    chosen = &reads_.back();
  }
  if (chosen->capacity < bytes) {
    if (chosen->memory != nullptr) cudaFreeHost(chosen->memory);
    chosen->memory = nullptr;
    chosen->capacity = 0;
    const size_t capacity = (bytes + 4095) / 4096 * 4096;
    status = cudaHostAlloc(reinterpret_cast<void **>(&chosen->memory), capacity,
                           cudaHostAllocPortable | cudaHostAllocMapped);
    if (status != cudaSuccess) return status;
    chosen->capacity = capacity;
  }
  chosen->bytes = bytes;
  chosen->busy = true;
  for (size_t i = 0; i < reads_.size(); i++) {
    if (&reads_[i] == chosen) *ticket = static_cast<uint32_t>(i);
  }
  return cudaSuccess;
}

PendingRead *ReadPool::find(uint32_t ticket) {
  if (ticket >= reads_.size() || !reads_[ticket].busy) return nullptr;
  return &reads_[ticket];
}

void ReadPool::give_back(uint32_t ticket) {
  PendingRead &read = reads_[ticket];
  read.busy = false;
  if (read.capacity <= kKeptBytes) return;
  cudaFreeHost(read.memory);
  read.memory = nullptr;
  read.capacity = 0;
}

void ReadPool::release() {
  for (const PendingRead &read : reads_) {
    cudaEventDestroy(read.event);
    if (read.memory != nullptr) cudaFreeHost(read.memory);
  }
  reads_.clear();
}

// Pinned host memory that writes and reads go through, so that neither waits
// for the device.
#pragma once

#include <cuda_runtime.h>
#include <stddef.h>
#include <stdint.h>

#include <deque>
#include <vector>

// A ring of pinned memory. A piece is in use until the event behind it is
// reached.
class WriteRing {
 public:
  // Most bytes of one piece.
  static constexpr size_t kPieceBytes = size_t{1} << 22;

  // A piece of `bytes` bytes, at most kPieceBytes. Waits where the ring is
  // full.
  cudaError_t take(size_t bytes, void **piece);
  // Keeps the piece taken last until what is in the stream now is done.
  cudaError_t keep(cudaStream_t stream);
  void release();

 private:
  static constexpr size_t kBytes = 4 * kPieceBytes;

  struct Piece {
    size_t begin;
    size_t end;
    cudaEvent_t event;
  };

  cudaError_t retire();

  char *memory_ = nullptr;
  size_t next_ = 0;
  Piece taken_ = {};
  std::deque<Piece> pieces_;
  std::vector<cudaEvent_t> events_;
};

// One read that is under way, or pinned memory for the next one.
struct PendingRead {
  char *memory;
  size_t capacity;
  size_t bytes;
  cudaEvent_t event;
  bool busy;
};

// Reads by their ticket.
class ReadPool {
 public:
  // Finds or makes room for `bytes` bytes.
  cudaError_t take(size_t bytes, uint32_t *ticket);
  // The read of a ticket, or null.
  PendingRead *find(uint32_t ticket);
  // Gives a ticket back. Large memory is freed.
  void give_back(uint32_t ticket);
  void release();

 private:
  // Pinned memory that is kept for later reads.
  static constexpr size_t kKeptBytes = size_t{1} << 20;

  // A deque: a read stays where it is while others are added.
  std::deque<PendingRead> reads_;
};

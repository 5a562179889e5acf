// What the parts of the emulation know of each other.
#pragma once

#include <cuda_runtime.h>

#include "fibers.h"

namespace emulation {

constexpr int kMostThreads = 1024;
constexpr int kMostWarps = kMostThreads / 32;
constexpr int kMostCopies = 64;

// A launch as it is kept until it runs.
struct Launch {
  Work work;
  dim3 grid;
  dim3 block;
  size_t shared_bytes;
  // Whether it may start before the kernel in front of it has ended.
  bool overlaps;
};

// A copy to shared memory that has been started.
struct Copy {
  void *to;
  const void *from;
  int group;
};

enum class Status { kReady, kMeeting, kBarrier, kDone };

// A thread of the block that runs.
struct Thread {
  Status status;
  void *fiber;
  Stack stack;
  Place place;
  bool waited_for_previous;
  // Copies to shared memory that were not waited for, and groups committed.
  Copy copies[kMostCopies];
  int copy_count;
  int group;
};

// Lanes that wait for each other.
struct Warp {
  Meeting kind;
  Place place;
  int arrived;
  // Lanes of two meetings by turns: some still read the last one when others
  // come to the next.
  Lanes lanes[2];
  int turn;
  // How often its lanes synchronized.
  uint32_t syncs;
};

// The block that runs.
struct Block {
  Thread threads[kMostThreads];
  Warp warps[kMostWarps];
  int count;
  int alive;
  int waiting;
  bool any[2];
  int turn;
  Place place;
  // How often its threads synchronized.
  uint32_t barriers;
  // The thread that runs, or null for the scheduler.
  Thread *current;
  // The host's thread that they all run on.
  const void *host;
};

extern Block *block;
// The work of the launch that runs.
extern const Work *work;

// Runs all blocks of a launch. What goes wrong is kept by `fault`.
void run_blocks(const Launch &launch);
// Gives the threads of blocks back; the next launch makes new ones.
void free_block();

// Ends the thread that runs and with it the launch, printf-like.
[[noreturn]] void fault(cudaError_t error, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

// The error that ended a launch, and what it was about.
extern cudaError_t failure;
extern char failure_text[512];

// Memory of the device; fresh memory holds no numbers.
void *allocate_memory(size_t bytes);
// Gives all of it back; the next allocation finds an empty device.
void close_memory();
bool free_memory(void *memory);
void memory_sizes(size_t *free, size_t *total);
// Whether bytes belong to one allocation.
bool is_allocated(const void *address, size_t bytes);

// Checks and notes what threads do with memory, see access.cc. `code` is where.
enum class Access { kRead, kWrite, kAtomicRead, kAtomic };
void check_access(uintptr_t address, size_t bytes, Access access,
                  const void *code);
bool is_shared(const void *address);
// Makes shared memory ready for a launch, and for each of its blocks.
void begin_launch(const Launch &launch, uint32_t blocks);
void begin_block(uint32_t index);

}  // namespace emulation

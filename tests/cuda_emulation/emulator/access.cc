// Memory of the device, and what threads do with it.
//
// The device's sources are compiled with calls before every load and store (the
// compiler's instrumentation for data races; its library is not used). Here
// those calls find addresses outside any allocation, misaligned ones, and
// races: two threads that use the same bytes, one of them to write, with
// neither a barrier nor, in one warp, a __syncwarp in between. Of another
// block's bytes, a thread may read what was written in front of a fence and an
// atomic operation, if its own block made an atomic operation since.
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "emulator.h"

extern "C" {
extern char skv_shared_begin[] SKV_HIDDEN;
extern char skv_shared_end[] SKV_HIDDEN;
extern char __ehdr_start[] SKV_HIDDEN;
extern char _end[] SKV_HIDDEN;
}

namespace emulation {

namespace {

constexpr size_t kArenaBytes = size_t{1} << 36;
// What the device says it has.
constexpr size_t kDeviceBytes = size_t{1} << 32;
constexpr size_t kMostShared = 227 * 1024;
constexpr size_t kGranule = 16;
// Bytes that belong to nobody, between allocations.
constexpr size_t kGap = 512;
constexpr size_t kCellBytes = 2;

// Who used two bytes last.
struct Use {
  // Serial number of the block.
  uint32_t block;
  // Low bits of how often threads and lanes had synchronized.
  uint16_t barriers;
  uint16_t syncs;
  uint16_t thread;
  // Which of the bytes.
  uint8_t bytes;
  uint8_t flags;
};

// Flags of a use.
constexpr uint8_t kIsAtomic = 1;
constexpr uint8_t kManyLanes = 2;
constexpr uint8_t kManyWarps = 4;

struct Cell {
  Use write;
  Use read;
};

struct Memory {
  char *arena;
  // Bytes of each granule that belong to an allocation.
  uint8_t *valid;
  Cell *cells;
  Cell *shared_cells;
  size_t next;
  size_t used;
  char *dynamic;
  size_t dynamic_bytes;
  // Part of the static shared memory that was written since it was poisoned.
  char *dirty_begin;
  char *dirty_end;
  // Serial numbers of the launch's first block and of the present one.
  uint32_t first_block;
  uint32_t next_block;
  uint32_t this_block;
  // By block of the launch: whether an atomic operation followed its writes.
  bool *released;
  size_t released_capacity;
  bool acquired;
  bool fenced;
};

Memory *memory;

size_t shared_cell_bytes() {
  return static_cast<size_t>(skv_shared_end - skv_shared_begin) / kCellBytes *
         sizeof(Cell);
}

void *map(size_t bytes) {
  void *mapped = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) {
    perror("cannot map memory for an emulated device");
    abort();
  }
  return mapped;
}

size_t rounded(size_t bytes, size_t to) { return (bytes + to - 1) / to * to; }

// Notes that `bytes` bytes from an offset of the arena may be used.
void set_valid(size_t offset, size_t bytes) {
  uint8_t *valid = memory->valid + offset / kGranule;
  memset(valid, kGranule, bytes / kGranule);
  if (bytes % kGranule != 0) {
    valid[bytes / kGranule] = static_cast<uint8_t>(bytes % kGranule);
  }
}

void clear_valid(size_t offset, size_t bytes) {
  memset(memory->valid + offset / kGranule, 0,
         rounded(bytes, kGranule) / kGranule);
}

// A place in the arena, with the gap behind it.
size_t take(size_t bytes) {
  const size_t offset = memory->next;
  memory->next += rounded(bytes + kGap, 256);
  return offset;
}

void open_memory() {
  if (memory != nullptr) return;
  memory = static_cast<Memory *>(calloc(1, sizeof(Memory)));
  memory->arena = static_cast<char *>(map(kArenaBytes));
  memory->valid = static_cast<uint8_t *>(map(kArenaBytes / kGranule));
  memory->cells =
      static_cast<Cell *>(map(kArenaBytes / kCellBytes * sizeof(Cell)));
  memory->shared_cells = static_cast<Cell *>(map(shared_cell_bytes()));
  memory->next = kGap;
  memory->dynamic = memory->arena + take(kMostShared);
  memory->first_block = memory->next_block = 1;
  memory->dirty_begin = skv_shared_begin;
  memory->dirty_end = skv_shared_end;
}

// Sizes of allocations lie in the gap in front of them.
size_t &size_of(char *start) {
  return *reinterpret_cast<size_t *>(start - kGap / 2);
}

bool in_static_shared(uintptr_t address) {
  return address >= reinterpret_cast<uintptr_t>(skv_shared_begin) &&
         address < reinterpret_cast<uintptr_t>(skv_shared_end);
}

const char *name_of(Access access) {
  switch (access) {
    case Access::kRead:
    case Access::kAtomicRead:
      return "read";
    case Access::kWrite:
      return "write";
    default:
      return "atomic operation";
  }
}

// Where code is, as addr2line takes it.
uintptr_t offset_of(const void *code) {
  return reinterpret_cast<uintptr_t>(code) -
         reinterpret_cast<uintptr_t>(__ehdr_start) - 1;
}

// Whether a use before this one is ordered before it, or can do no harm.
bool is_ordered(const Use &use, bool atomic, bool shared) {
  if (use.block < memory->first_block) return true;
  if (shared && use.block != memory->this_block) return true;
  if (atomic && (use.flags & kIsAtomic) != 0) return true;
  if (use.block != memory->this_block) {
    return memory->acquired &&
           memory->released[use.block - memory->first_block];
  }
  if (use.barriers != static_cast<uint16_t>(block->barriers)) return true;
  if ((use.flags & kManyWarps) != 0) return false;
  const uint32_t thread = threadIdx.x;
  if (use.thread / 32 == thread / 32) {
    if (use.syncs != static_cast<uint16_t>(block->warps[thread / 32].syncs)) {
      return true;
    }
    return use.thread == thread && (use.flags & kManyLanes) == 0;
  }
  return false;
}

// Notes this use in place of the last one, or beside it where both only read.
void note(Use &use, uint8_t bytes, bool atomic, bool read) {
  const uint32_t thread = threadIdx.x;
  Use mine = {memory->this_block,
              static_cast<uint16_t>(block->barriers),
              static_cast<uint16_t>(block->warps[thread / 32].syncs),
              static_cast<uint16_t>(thread),
              bytes,
              static_cast<uint8_t>(atomic ? kIsAtomic : 0)};
  if (read && use.block == mine.block && use.barriers == mine.barriers) {
    mine.bytes |= use.bytes;
    mine.flags |= use.flags & (kManyWarps | kManyLanes);
    if (use.thread / 32 != thread / 32) {
      mine.flags |= kManyWarps;
    } else if (use.thread != thread && use.syncs == mine.syncs) {
      mine.flags |= kManyLanes;
    }
    if (!atomic || (use.flags & kIsAtomic) == 0) {
      mine.flags &= static_cast<uint8_t>(~kIsAtomic);
    }
  }
  use = mine;
}

void check_race(Cell &cell, uint8_t bytes, Access access, uintptr_t address,
                const void *code) {
  const bool atomic =
      access == Access::kAtomic || access == Access::kAtomicRead;
  const bool writes = access == Access::kAtomic || access == Access::kWrite;
  const bool shared = is_shared(reinterpret_cast<void *>(address));
  const Use *other = nullptr;
  if ((cell.write.bytes & bytes) != 0 &&
      !is_ordered(cell.write, atomic, shared)) {
    other = &cell.write;
  } else if (writes && (cell.read.bytes & bytes) != 0 &&
             !is_ordered(cell.read, atomic, shared)) {
    other = &cell.read;
  }
  if (other != nullptr) {
    fault(cudaErrorLaunchFailure,
          "race: %s of %s memory at %#zx (code %#zx) that %s %u of %s block "
          "%s, with no barrier in between",
          name_of(access), shared ? "shared" : "global",
          static_cast<size_t>(address), static_cast<size_t>(offset_of(code)),
          (other->flags & (kManyLanes | kManyWarps)) != 0
              ? "several threads up to"
              : "thread",
          other->thread,
          other->block == memory->this_block ? "this" : "another",
          other == &cell.write ? "writes" : "reads");
  }
  if (writes) {
    note(cell.write, bytes, atomic, false);
  } else {
    note(cell.read, bytes, atomic, true);
  }
}

void check_races(Cell *cells, size_t offset, size_t bytes, Access access,
                 uintptr_t address, const void *code) {
  const size_t end = offset + bytes;
  while (offset < end) {
    const size_t first = offset % kCellBytes;
    const size_t last =
        end - offset < kCellBytes - first ? first + end - offset : kCellBytes;
    check_race(cells[offset / kCellBytes],
               static_cast<uint8_t>((1u << last) - (1u << first)), access,
               address, code);
    offset += last - first;
  }
}

[[noreturn]] void illegal(uintptr_t address, size_t bytes, Access access,
                          const void *code) {
  fault(cudaErrorIllegalAddress, "%s of %zu bytes at %#zx (code %#zx)",
        name_of(access), bytes, static_cast<size_t>(address),
        static_cast<size_t>(offset_of(code)));
}

}  // namespace

void *allocate_memory(size_t bytes) {
  open_memory();
  if (bytes > kDeviceBytes - memory->used ||
      memory->next + bytes + kGap > kArenaBytes) {
    return nullptr;
  }
  char *start = memory->arena + take(bytes);
  memory->used += bytes;
  size_of(start) = bytes;
  set_valid(static_cast<size_t>(start - memory->arena), bytes);
  memset(start, 0xff, bytes);
  return start;
}

void close_memory() {
  if (memory == nullptr) return;
  munmap(memory->arena, kArenaBytes);
  munmap(memory->valid, kArenaBytes / kGranule);
  munmap(memory->cells, kArenaBytes / kCellBytes * sizeof(Cell));
  munmap(memory->shared_cells, shared_cell_bytes());
  free(memory->released);
  free(memory);
  memory = nullptr;
}

bool free_memory(void *address) {
  open_memory();
  char *start = static_cast<char *>(address);
  const size_t offset = static_cast<size_t>(start - memory->arena);
  if (offset >= memory->next || memory->valid[offset / kGranule] == 0) {
    return false;
  }
  const size_t bytes = size_of(start);
  memory->used -= bytes;
  clear_valid(offset, bytes);
  // Addresses are never used again; the host gets what lies behind them back.
  const uintptr_t page = 4096;
  const auto release = [&](void *from, size_t length) {
    const uintptr_t begin = rounded(reinterpret_cast<uintptr_t>(from), page);
    const uintptr_t end =
        (reinterpret_cast<uintptr_t>(from) + length) / page * page;
    if (begin < end) {
      madvise(reinterpret_cast<void *>(begin), end - begin, MADV_DONTNEED);
    }
  };
  release(start, bytes);
  release(memory->cells + offset / kCellBytes,
          bytes / kCellBytes * sizeof(Cell));
  return true;
}

void memory_sizes(size_t *free, size_t *total) {
  open_memory();
  *free = kDeviceBytes - memory->used;
  *total = kDeviceBytes;
}

bool is_allocated(const void *address, size_t bytes) {
  open_memory();
  const size_t offset = reinterpret_cast<uintptr_t>(address) -
                        reinterpret_cast<uintptr_t>(memory->arena);
  if (offset >= kArenaBytes || bytes > kArenaBytes - offset) return false;
  if (bytes == 0) return true;
  const size_t last = offset + bytes - 1;
  for (size_t at = offset / kGranule; at < last / kGranule; at++) {
    if (memory->valid[at] != kGranule) return false;
  }
  return last % kGranule < memory->valid[last / kGranule];
}

bool is_shared(const void *address) {
  const auto at = reinterpret_cast<uintptr_t>(address);
  const auto dynamic = reinterpret_cast<uintptr_t>(memory->dynamic);
  return in_static_shared(at) || at - dynamic < memory->dynamic_bytes;
}

void check_access(uintptr_t address, size_t bytes, Access access,
                  const void *code) {
  const Thread *self = block->current;
  const bool writes = access == Access::kAtomic || access == Access::kWrite;
  const uintptr_t low = reinterpret_cast<uintptr_t>(self->stack.low);
  if (address - low < static_cast<size_t>(self->stack.high - self->stack.low)) {
    return;
  }
  const uintptr_t offset = address - reinterpret_cast<uintptr_t>(memory->arena);
  if (offset < kArenaBytes) {
    if (!is_allocated(reinterpret_cast<void *>(address), bytes)) {
      illegal(address, bytes, access, code);
    }
    check_races(memory->cells, offset, bytes, access, address, code);
    return;
  }
  if (in_static_shared(address)) {
    char *at = reinterpret_cast<char *>(address);
    if (writes && at < memory->dirty_begin) memory->dirty_begin = at;
    if (writes && at + bytes > memory->dirty_end) {
      memory->dirty_end = at + bytes;
    }
    check_races(memory->shared_cells,
                static_cast<size_t>(at - skv_shared_begin), bytes, access,
                address, code);
    return;
  }
  // Arguments and constants.
  const uintptr_t arguments = reinterpret_cast<uintptr_t>(work->arguments);
  const uintptr_t image = reinterpret_cast<uintptr_t>(__ehdr_start);
  const bool constant =
      address - arguments < work->bytes ||
      (address >= image && address < reinterpret_cast<uintptr_t>(_end));
  if (!constant || writes) illegal(address, bytes, access, code);
}

void begin_launch(const Launch &launch, uint32_t blocks) {
  open_memory();
  const size_t dynamic = static_cast<size_t>(memory->dynamic - memory->arena);
  clear_valid(dynamic, memory->dynamic_bytes);
  memory->dynamic_bytes = launch.shared_bytes;
  set_valid(dynamic, launch.shared_bytes);
  memory->first_block = memory->next_block;
  memory->next_block += blocks;
  if (blocks > memory->released_capacity) {
    free(memory->released);
    memory->released = static_cast<bool *>(malloc(blocks));
    memory->released_capacity = blocks;
  }
  memset(memory->released, 0, blocks);
}

void begin_block(uint32_t index) {
  memory->this_block = memory->first_block + index;
  memory->acquired = memory->fenced = false;
  memset(memory->dynamic, 0xff, memory->dynamic_bytes);
  if (memory->dirty_begin < memory->dirty_end) {
    memset(memory->dirty_begin, 0xff,
           static_cast<size_t>(memory->dirty_end - memory->dirty_begin));
  }
  memory->dirty_begin = skv_shared_end;
  memory->dirty_end = skv_shared_begin;
}

uint4 *dynamic_shared_memory() {
  return reinterpret_cast<uint4 *>(memory->dynamic);
}

void check_atomic(const volatile void *address, size_t bytes) {
  check_access(reinterpret_cast<uintptr_t>(address), bytes, Access::kAtomic,
               __builtin_return_address(0));
  memory->acquired = true;
  if (memory->fenced) {
    memory->released[memory->this_block - memory->first_block] = true;
  }
}

void check_relaxed(const void *address, size_t bytes) {
  check_access(reinterpret_cast<uintptr_t>(address), bytes, Access::kAtomicRead,
               __builtin_return_address(0));
}

void fence() { memory->fenced = true; }

}  // namespace emulation

// What the compiler calls before loads and stores.
namespace {

using emulation::Access;

// Host code is instrumented too, also that of other threads meanwhile.
inline bool in_kernel() {
  const emulation::Block *block = emulation::block;
  return block != nullptr && block->current != nullptr &&
         block->host == __builtin_thread_pointer();
}

inline void hook(void *address, size_t bytes, Access access, const void *code) {
  if (!in_kernel()) return;
  emulation::check_access(reinterpret_cast<uintptr_t>(address), bytes, access,
                          code);
}

}  // namespace

extern "C" {

#define SKV_HOOK(name, bytes, access)                          \
  void __tsan_##name##bytes(void *address) {                   \
    hook(address, bytes, access, __builtin_return_address(0)); \
  }
#define SKV_HOOKS(bytes)                              \
  SKV_HOOK(read, bytes, Access::kRead)                \
  SKV_HOOK(write, bytes, Access::kWrite)              \
  SKV_HOOK(unaligned_read, bytes, Access::kRead)      \
  SKV_HOOK(unaligned_write, bytes, Access::kWrite)    \
  SKV_HOOK(volatile_read, bytes, Access::kAtomicRead) \
  SKV_HOOK(volatile_write, bytes, Access::kWrite)
SKV_HOOKS(1)
SKV_HOOKS(2)
SKV_HOOKS(4)
SKV_HOOKS(8)
SKV_HOOKS(16)
#undef SKV_HOOKS
#undef SKV_HOOK

void __tsan_read_range(void *address, size_t bytes) {
  hook(address, bytes, Access::kRead, __builtin_return_address(0));
}
void __tsan_write_range(void *address, size_t bytes) {
  hook(address, bytes, Access::kWrite, __builtin_return_address(0));
}
// An address that its type cannot have.
void __ubsan_handle_type_mismatch_v1(void *, void *address) {
  if (!in_kernel()) return;
  emulation::fault(cudaErrorMisalignedAddress, "%#zx (code %#zx)",
                   reinterpret_cast<size_t>(address),
                   emulation::offset_of(__builtin_return_address(0)));
}

void __tsan_init() {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit() {}
void __tsan_vptr_read(void **) {}
void __tsan_vptr_update(void **, void *) {}

}  // extern "C"

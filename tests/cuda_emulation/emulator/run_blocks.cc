// Runs the blocks of a launch one after another, and the threads of a block by
// turns: each goes on until it waits for others or ends.
//
// Warps, lanes and blocks take turns in orders that change from one to the
// next, but are the same whenever the program is: who relies on an order is
// found out.
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "emulator.h"

// Kernels see these as constants.
uint3 thread_index asm("threadIdx");
uint3 block_index asm("blockIdx");
dim3 block_size asm("blockDim");
dim3 grid_size asm("gridDim");

namespace emulation {

Block *block;
const Work *work;
cudaError_t failure;
char failure_text[512];

namespace {

void *scheduler;

uint32_t launches;

void yield(Status status) {
  Thread *self = block->current;
  self->status = status;
  block->current = nullptr;
  switch_fiber(&self->fiber, scheduler);
}

// Lets all who wait at the barrier go on.
void release_block() {
  for (int i = 0; i < block->count; i++) {
    Thread &thread = block->threads[i];
    if (thread.status == Status::kBarrier) thread.status = Status::kReady;
  }
  block->waiting = 0;
  block->turn ^= 1;
  block->any[block->turn] = false;
  block->barriers++;
}

// The first function of a thread.
void thread_main() {
  work->run(work->arguments);
  block->alive--;
  if (block->alive > 0 && block->waiting == block->alive) release_block();
  yield(Status::kDone);
  abort();
}

void resume(Thread &thread, int index) {
  thread_index = {static_cast<unsigned>(index), 0, 0};
  block->current = &thread;
  switch_fiber(&scheduler, thread.fiber);
  block->current = nullptr;
}

const char *base_name(const char *file) {
  const char *slash = strrchr(file, '/');
  return slash == nullptr ? file : slash + 1;
}

const char *name_of(Status status) {
  return status == Status::kBarrier ? "the barrier" : "an exchange of the warp";
}

// Nobody can go on: says who waits where.
void report_deadlock() {
  const Thread *first = nullptr, *other = nullptr;
  int done = 0;
  for (int i = 0; i < block->count; i++) {
    const Thread &thread = block->threads[i];
    if (thread.status == Status::kDone) {
      done++;
    } else if (first == nullptr) {
      first = &thread;
    } else if (other == nullptr && (thread.status != first->status ||
                                    thread.place.line != first->place.line)) {
      other = &thread;
    }
  }
  if (other == nullptr) other = first;
  failure = cudaErrorLaunchFailure;
  snprintf(failure_text, sizeof(failure_text),
           "threads wait for each other in block (%u, %u, %u): thread %d at %s "
           "in %s:%d, thread %d at %s in %s:%d, and %d of %d have ended",
           block_index.x, block_index.y, block_index.z,
           static_cast<int>(first - block->threads), name_of(first->status),
           base_name(first->place.file), first->place.line,
           static_cast<int>(other - block->threads), name_of(other->status),
           base_name(other->place.file), other->place.line, done, block->count);
}

// Runs the block until all threads have ended or something fails.
void run_block(uint32_t order) {
  const int warps = block->count / 32;
  for (uint32_t round = order; block->alive > 0; round++) {
    bool progress = false;
    for (int w = 0; w < warps; w++) {
      // Odd rounds go backwards; where they begin changes too.
      const int turned = (w + round / 2) % warps;
      const int warp = round % 2 == 0 ? turned : warps - 1 - turned;
      for (int l = 0; l < 32; l++) {
        const int lane = (round + warp) % 2 == 0 ? l : 31 - l;
        const int index = 32 * warp + lane;
        Thread &thread = block->threads[index];
        if (thread.status != Status::kReady) continue;
        progress = true;
        resume(thread, index);
        if (failure != cudaSuccess) return;
      }
    }
    if (!progress && block->alive > 0) {
      report_deadlock();
      return;
    }
  }
}

void prepare_block(const Launch &launch) {
  block->count = static_cast<int>(launch.block.x);
  block->alive = block->count;
  block->waiting = 0;
  block->any[0] = block->any[1] = false;
  block->turn = 0;
  block->barriers = 1;
  block->current = nullptr;
  for (int i = 0; i < block->count; i++) {
    Thread &thread = block->threads[i];
    thread.status = Status::kReady;
    thread.fiber = start_fiber(thread.stack, thread_main);
    thread.waited_for_previous = false;
    thread.copy_count = thread.group = 0;
  }
  for (int w = 0; w < block->count / 32; w++) {
    block->warps[w].arrived = block->warps[w].turn = 0;
    block->warps[w].syncs = 1;
  }
}

// Copies that nobody waited for land where something else may be by then.
void check_copies() {
  for (int i = 0; i < block->count; i++) {
    const int left = block->threads[i].copy_count;
    if (left == 0) continue;
    failure = cudaErrorLaunchFailure;
    snprintf(failure_text, sizeof(failure_text),
             "thread %d ended with %d copies under way", i, left);
    return;
  }
}

void check_waited(const Launch &launch) {
  for (int i = 0; launch.overlaps && i < block->count; i++) {
    if (block->threads[i].waited_for_previous) continue;
    failure = cudaErrorLaunchFailure;
    snprintf(failure_text, sizeof(failure_text),
             "thread %d of a kernel that may start early ended without having "
             "waited for the kernels before",
             i);
    return;
  }
}

Stack *stacks;

void allocate_block() {
  block = static_cast<Block *>(calloc(1, sizeof(Block)));
  stacks = allocate_stacks(kMostThreads);
  for (int i = 0; i < kMostThreads; i++) block->threads[i].stack = stacks[i];
}

}  // namespace

void free_block() {
  if (block == nullptr) return;
  free_stacks(stacks, kMostThreads);
  free(block);
  block = nullptr;
}

void run_blocks(const Launch &launch) {
  if (block == nullptr) allocate_block();
  const uint32_t number = launches++;
  block->host = __builtin_thread_pointer();
  work = &launch.work;
  grid_size = launch.grid;
  block_size = launch.block;
  const int blocks =
      static_cast<int>(launch.grid.x * launch.grid.y * launch.grid.z);
  begin_launch(launch, static_cast<uint32_t>(blocks));
  for (int i = 0; i < blocks && failure == cudaSuccess; i++) {
    const unsigned index =
        static_cast<unsigned>(number % 2 == 0 ? i : blocks - 1 - i);
    block_index = {index % launch.grid.x, index / launch.grid.x % launch.grid.y,
                   index / launch.grid.x / launch.grid.y};
    prepare_block(launch);
    begin_block(static_cast<uint32_t>(i));
    run_block(number + static_cast<uint32_t>(i));
    if (failure == cudaSuccess) check_waited(launch);
    if (failure == cudaSuccess) check_copies();
  }
  block->current = nullptr;
}

void fault(cudaError_t error, const char *format, ...) {
  failure = error;
  char what[384];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(what, sizeof(what), format, arguments);
  va_end(arguments);
  snprintf(failure_text, sizeof(failure_text),
           "%s, by thread %u of block (%u, %u, %u)", what, thread_index.x,
           block_index.x, block_index.y, block_index.z);
  yield(Status::kDone);
  abort();
}

bool meet_block(bool value, Place place) {
  Thread *self = block->current;
  if (block->waiting == 0) {
    block->place = place;
  } else if (block->place.line != place.line) {
    fault(cudaErrorLaunchFailure,
          "some threads are at the barrier in %s:%d, others at that in %s:%d",
          base_name(block->place.file), block->place.line,
          base_name(place.file), place.line);
  }
  const int turn = block->turn;
  block->any[turn] |= value;
  self->place = place;
  if (++block->waiting == block->alive) {
    release_block();
  } else {
    yield(Status::kBarrier);
  }
  return block->any[turn];
}

const Lanes &meet(Meeting kind, uint32_t mask, uint64_t value, Place place,
                  void (*finish)(Lanes &)) {
  const int first = static_cast<int>(thread_index.x) / 32 * 32;
  const int lane = static_cast<int>(thread_index.x) % 32;
  Warp &warp = block->warps[first / 32];
  Thread *self = block->current;
  if (mask != 0xffffffffu) {
    fault(cudaErrorLaunchFailure, "exchange of lanes %08x in %s:%d: only all",
          mask, base_name(place.file), place.line);
  }
  if (warp.arrived == 0) {
    warp.kind = kind;
    warp.place = place;
  } else if (warp.kind != kind || warp.place.line != place.line) {
    fault(cudaErrorLaunchFailure,
          "some lanes of a warp are in %s:%d, others in %s:%d",
          base_name(warp.place.file), warp.place.line, base_name(place.file),
          place.line);
  }
  Lanes &lanes = warp.lanes[warp.turn];
  lanes.values[lane] = value;
  self->place = place;
  if (++warp.arrived < 32) {
    yield(Status::kMeeting);
    return lanes;
  }
  warp.arrived = 0;
  warp.turn ^= 1;
  if (kind == Meeting::kSyncWarp) warp.syncs++;
  if (finish != nullptr) finish(lanes);
  for (int i = 0; i < 32; i++) {
    Thread &thread = block->threads[first + i];
    if (thread.status == Status::kMeeting) thread.status = Status::kReady;
  }
  return lanes;
}

void wait_for_previous() { block->current->waited_for_previous = true; }

}  // namespace emulation

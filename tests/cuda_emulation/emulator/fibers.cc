#include "fibers.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

namespace emulation {

namespace {

constexpr size_t kStackBytes = 256 * 1024;
constexpr size_t kGuardBytes = 4096;
constexpr size_t kPitch = kStackBytes + kGuardBytes;

}  // namespace

Stack *allocate_stacks(size_t count) {
  void *memory = mmap(nullptr, count * kPitch, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    perror("cannot map stacks for emulated threads");
    abort();
  }
  auto *stacks = static_cast<Stack *>(malloc(count * sizeof(Stack)));
  for (size_t i = 0; i < count; i++) {
    char *base = static_cast<char *>(memory) + i * kPitch;
    mprotect(base, kGuardBytes, PROT_NONE);
    stacks[i] = {base + kGuardBytes, base + kPitch};
  }
  return stacks;
}

void free_stacks(Stack *stacks, size_t count) {
  munmap(stacks[0].low - kGuardBytes, count * kPitch);
  free(stacks);
}

}  // namespace emulation

#if defined(__x86_64__)

// Saves the registers that a function has to keep, and takes those of the
// other.
asm(R"(
.text
.globl skv_switch_fiber
.hidden skv_switch_fiber
.type skv_switch_fiber, @function
skv_switch_fiber:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size skv_switch_fiber, .-skv_switch_fiber
)");

extern "C" void skv_switch_fiber(void **from, void *to);

namespace emulation {

void *start_fiber(const Stack &stack, void (*body)()) {
  auto *top = reinterpret_cast<uintptr_t *>(stack.high);
  // A function begins 8 bytes off a multiple of 16, where its caller returns.
  *--top = 0;
  *--top = reinterpret_cast<uintptr_t>(body);
  for (int i = 0; i < 6; i++) *--top = 0;
  return top;
}

void switch_fiber(void **from, void *to) { skv_switch_fiber(from, to); }

}  // namespace emulation

#else

#include <ucontext.h>

namespace emulation {

// The context of a fiber lies at the top of its stack; that of the scheduler is
// made when it first switches away.
void *start_fiber(const Stack &stack, void (*body)()) {
  const size_t bytes = (sizeof(ucontext_t) + 63) / 64 * 64;
  auto *context = reinterpret_cast<ucontext_t *>(stack.high - bytes);
  getcontext(context);
  context->uc_stack.ss_sp = stack.low;
  context->uc_stack.ss_size =
      static_cast<size_t>(stack.high - stack.low) - bytes;
  context->uc_link = nullptr;
  makecontext(context, body, 0);
  return context;
}

void switch_fiber(void **from, void *to) {
  if (*from == nullptr) *from = malloc(sizeof(ucontext_t));
  swapcontext(static_cast<ucontext_t *>(*from), static_cast<ucontext_t *>(to));
}

}  // namespace emulation

#endif

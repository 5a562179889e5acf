// Fibers: stacks that one thread of the host runs by turns.
#pragma once

#include <stddef.h>

namespace emulation {

struct Stack {
  char *low;
  char *high;
};

// `count` stacks with a page between them that must not be touched.
Stack *allocate_stacks(size_t count);
void free_stacks(Stack *stacks, size_t count);

// A fiber that starts in `body` when it is first resumed. Stays where it was
// when it is never resumed again.
void *start_fiber(const Stack &stack, void (*body)());

// Goes on where `to` stopped, and notes in `from` where this one did.
void switch_fiber(void **from, void *to);

}  // namespace emulation

"""A Triton kernel that reads memory and does next to nothing with it."""

import triton
import triton.language as tl

STEPS = 8


@triton.jit
def read_kernel(words, out, BLOCK: tl.constexpr, COUNT: tl.constexpr):
    """Reads `COUNT` blocks of 32-bit words and writes one word."""
    program = tl.program_id(0).to(tl.int64)
    places = program * BLOCK * COUNT + tl.arange(0, BLOCK)
    bits = tl.zeros([BLOCK], dtype=tl.int32)
    for step in tl.static_range(COUNT):
        bits = bits | tl.load(words + places + step * BLOCK)
    tl.store(out + program, tl.max(bits, axis=0))

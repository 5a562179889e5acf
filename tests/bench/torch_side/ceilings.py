"""What the GPU reads from memory and multiplies at most."""

import torch

from .common import Options, Recorder, timed

READ_BYTES = 2**33
MATRIX = 8192


def measure(options: Options, recorder: Recorder) -> None:
    """Times a read of 8 GiB in several ways, and one large bf16 product."""
    read_bytes = READ_BYTES if options.cuda else 2**26
    words = torch.zeros(read_bytes // 4, dtype=torch.int32, device=options.device)

    def read(name: str, work) -> None:
        rounds = timed(work, options, calls=4)
        rates = [read_bytes / ms / 1e6 for ms in rounds]
        recorder.add(f"read stream, {name}", rounds, gb_per_second=max(rates))

    recorder.attempt(
        "read stream, torch.sum",
        lambda: read("torch.sum", lambda: words.view(torch.float32).sum()),
    )
    recorder.attempt(
        "read stream, torch.max",
        lambda: read("torch.max", lambda: words.max()),
    )
    if options.cuda:
        for block in (4096, 8192):
            recorder.attempt(
                f"read stream, triton {block}",
                lambda block=block: read(f"triton {block}", _triton_read(words, block)),
            )
    del words

    size = MATRIX if options.cuda else 256

    def product() -> None:
        a = torch.randn(size, size, device=options.device, dtype=torch.bfloat16)
        b = torch.randn(size, size, device=options.device, dtype=torch.bfloat16)
        rounds = timed(lambda: a @ b, options, calls=10)
        rates = [2 * size**3 / ms / 1e9 for ms in rounds]
        recorder.add("bf16 product", rounds, tflops=max(rates))

    recorder.attempt("bf16 product", product)


def _triton_read(words: torch.Tensor, block: int):
    """A kernel that only reads: each program ors a few blocks together."""
    import triton

    from .read_kernel import STEPS, read_kernel

    programs = words.numel() // (block * STEPS)
    out = torch.empty(programs, dtype=torch.int32, device=words.device)
    assert programs * block * STEPS == words.numel(), triton.__version__
    return lambda: read_kernel[(programs,)](
        words, out, BLOCK=block, COUNT=STEPS, num_warps=8
    )

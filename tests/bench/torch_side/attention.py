"""Attention of one new token per sequence by PyTorch, over the same slots."""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from .common import (
    Options,
    Recorder,
    graphed,
    layers_to_walk,
    read_shape,
    timed,
)

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}


def measure(options: Options, recorder: Recorder) -> None:
    """Times each kernel of `scaled_dot_product_attention`, per layer.

    Query heads that share a KV head are given either as grouped heads or as
    rows of one head, which reads the same keys once. Keys and values of several
    layers are walked, as a model does.
    """
    for batch in options.batches:
        for slots in options.slots:
            recorder.attempt(
                f"attention, batch {batch}, {slots} slots",
                lambda: _cell(options, recorder, batch, slots),
            )


def _cell(options: Options, recorder: Recorder, batch: int, slots: int) -> None:
    shape = read_shape(options.shape)
    layer_bytes = 4 * batch * shape.kv_heads * slots * shape.head_dim
    count = layers_to_walk(shape, layer_bytes)
    dtype = torch.bfloat16 if options.cuda else torch.float32

    def tensor(*sizes: int) -> torch.Tensor:
        return torch.randn(*sizes, device=options.device, dtype=dtype)

    caches = [
        tuple(tensor(batch, shape.kv_heads, slots, shape.head_dim) for _ in "kv")
        for _ in range(count)
    ]
    query = tensor(batch, shape.heads, 1, shape.head_dim)
    rows = query.view(batch, shape.kv_heads, shape.group, shape.head_dim)

    def grouped() -> None:
        for key, value in caches:
            scaled_dot_product_attention(query, key, value, enable_gqa=True)

    def packed() -> None:
        for key, value in caches:
            scaled_dot_product_attention(rows, key, value)

    for layout, work in (("grouped", grouped), ("packed", packed)):
        for name, backend in BACKENDS.items():

            def run(work=work, backend=backend) -> None:
                with sdpa_kernel(backend):
                    work()

            what = f"SDPA {name}, {layout}"
            common = dict(
                shape=shape.name,
                batch=batch,
                slots=slots,
                bytes=layer_bytes,
                layers=count,
            )

            def time_it(run=run, what=what, common=common) -> None:
                eager = [ms / count for ms in timed(run, options)]
                recorder.add(what, eager, launched="eager", **common)
                graph = [ms / count for ms in timed(graphed(run, options), options)]
                recorder.add(what, graph, launched="graph", **common)

            recorder.attempt(f"{what}, batch {batch}, {slots} slots", time_it)

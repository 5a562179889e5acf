"""KeepKV as somebody would write it with PyTorch's operations.

The same step as `merge_attend`: attention over voted slots, the moving average
of scores, the slot with the lowest score, the slot with the key nearest to its
own, and the merge of the two (form `realVotes`). Everything is on the device,
for all sequences and heads at once.
"""

from dataclasses import dataclass

import torch

from .common import (
    Options,
    Recorder,
    graphed,
    layers_to_walk,
    read_shape,
    timed,
)

ALPHA = 0.99
SINKS = 4
RECENT = 0.2
FREE = -1e30


@dataclass
class Layer:
    """The slots of a layer: one more than the budget."""

    keys: torch.Tensor  # (batch, kv heads, slots, head dim)
    values: torch.Tensor  # the same
    bias: torch.Tensor  # (batch, kv heads, slots): ln votes
    ema: torch.Tensor  # the same: moving sum of scores
    seen: torch.Tensor  # the same: rows that observed the slot
    position: torch.Tensor  # the same
    free: torch.Tensor  # (batch, kv heads): the slot that is free

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All of them, in order."""
        return (
            self.keys,
            self.values,
            self.bias,
            self.ema,
            self.seen,
            self.position,
            self.free,
        )


def random_layer(batch, kv_heads, slots, head_dim, *, device, dtype) -> Layer:
    """A full cache whose last slot is free."""
    sizes = (batch, kv_heads, slots + 1)
    keys, values = (
        torch.randn(*sizes, head_dim, device=device, dtype=dtype) for _ in "kv"
    )
    bias = torch.zeros(sizes, device=device)
    bias[:, :, -1] = FREE
    position = torch.arange(slots + 1, device=device).expand(sizes).contiguous()
    return Layer(
        keys=keys,
        values=values,
        bias=bias,
        ema=torch.rand(sizes, device=device) / slots,
        seen=torch.full(sizes, 64.0, device=device),
        position=position,
        free=torch.full(sizes[:2], slots, device=device),
    )


def step(
    query, key, value, newest, keys, values, bias, ema, seen, position, free,
    *, alpha: float, recent: int,
):
    """Appends a token, attends and merges; the layer's tensors are changed.

    `query` is (batch, kv heads, group, head dim); `key` and `value` are (batch,
    kv heads, head dim); `newest` is the position, a tensor of one number.
    Returns the output, (batch, kv heads, group, head dim).
    """
    head_dim = query.shape[-1]
    at = free[..., None]
    wide = at[..., None].expand(*at.shape, head_dim)
    keys.scatter_(2, wide, key[:, :, None])
    values.scatter_(2, wide, value[:, :, None])
    bias.scatter_(2, at, 0.0)
    ema.scatter_(2, at, 0.0)
    seen.scatter_(2, at, 0.0)
    position.scatter_(2, at, newest.expand_as(at))

    logits = (query @ keys.transpose(-1, -2)).float() / head_dim**0.5
    voted = logits + bias[:, :, None]
    sums = voted.logsumexp(-1, keepdim=True)
    weights = (voted - sums).exp()
    output = weights.to(values.dtype) @ values

    score = (logits - sums).exp().mean(2)
    ema.mul_(alpha).add_(score, alpha=1 - alpha)
    seen.add_(1)
    log_score = ema.log() - torch.log1p(-(alpha**seen))

    live = bias > FREE / 2
    evictable = live & (position >= SINKS) & (position + recent <= newest)
    victim = log_score.masked_fill(~evictable, torch.inf).argmin(-1, keepdim=True)
    wide = victim[..., None].expand(*victim.shape, head_dim)
    norms = keys.float().square().sum(-1)
    nearness = (keys @ keys.gather(2, wide).transpose(-1, -2)).squeeze(-1).float()
    nearness = nearness * norms.clamp_min(1e-20).rsqrt()
    target_ok = live & (position >= SINKS)
    target_ok = target_ok.scatter(2, victim, False)
    target = nearness.masked_fill(~target_ok, -torch.inf).argmax(-1, keepdim=True)

    pair = torch.cat((target, victim), -1)
    pair_wide = pair[..., None].expand(*pair.shape, head_dim)
    scores = log_score.gather(2, pair)
    biases = bias.gather(2, pair)
    masses = scores + biases
    mass = masses.logsumexp(-1, keepdim=True)
    votes = biases.logsumexp(-1, keepdim=True)
    shares = (masses - mass).exp()
    divergence = (shares * scores).sum(-1, keepdim=True) - (mass - votes)
    new_bias = votes - divergence
    mix = shares[..., None]
    new_key = (keys.gather(2, pair_wide).float() * mix).sum(2, keepdim=True)
    new_value = (values.gather(2, pair_wide).float() * mix).sum(2, keepdim=True)
    wide = target[..., None].expand(*target.shape, head_dim)
    keys.scatter_(2, wide, new_key.to(keys.dtype))
    values.scatter_(2, wide, new_value.to(values.dtype))
    count = seen.gather(2, pair).amax(-1, keepdim=True)
    new_ema = (mass - new_bias + torch.log1p(-(alpha**count))).exp()
    ema.scatter_(2, target, new_ema)
    seen.scatter_(2, target, count)
    bias.scatter_(2, target, new_bias)
    bias.scatter_(2, victim, FREE)
    free.copy_(victim.squeeze(-1))
    return output


def check() -> None:
    """Checks that a merge leaves the output of the current query as it was.

    With `alpha` 0 the scores are those of the query, and the merge is exact. In
    64-bit floats only rounding is left.
    """
    torch.manual_seed(0)
    layer = random_layer(2, 3, 40, 8, device="cpu", dtype=torch.float64)
    for name in ("bias", "ema", "seen"):
        setattr(layer, name, getattr(layer, name).double())
    query = torch.randn(2, 3, 1, 8, dtype=torch.float64)
    token = [torch.randn(2, 3, 8, dtype=torch.float64) for _ in "kv"]
    newest = torch.tensor([41])
    # Scores are computed as 32-bit floats in the step.
    output = step(query, *token, newest, *layer.tensors(), alpha=0.0, recent=8)
    voted = query @ layer.keys.transpose(-1, -2) / 8**0.5 + layer.bias[:, :, None]
    after = voted.softmax(-1) @ layer.values
    off = (after - output).abs().max().item()
    live = (layer.bias > FREE / 2).sum(-1)
    if not (off < 1e-5 and (live == 40).all()):
        raise AssertionError(f"the merge changed the output by {off}, left {live}")


def measure(options: Options, recorder: Recorder) -> None:
    """Times the step per layer: eager, and compiled as one CUDA graph."""
    recorder.attempt("check of the policy", check)
    if recorder.failures:
        return
    for batch in options.batches:
        for slots in options.slots:
            recorder.attempt(
                f"policy, batch {batch}, {slots} slots",
                lambda: _cell(options, recorder, batch, slots),
            )


def _cell(options: Options, recorder: Recorder, batch: int, slots: int) -> None:
    shape = read_shape(options.shape)
    layer_bytes = 4 * batch * shape.kv_heads * slots * shape.head_dim
    count = layers_to_walk(shape, layer_bytes)
    dtype = torch.bfloat16 if options.cuda else torch.float32
    device = options.device
    layers = [
        random_layer(
            batch, shape.kv_heads, slots, shape.head_dim, device=device, dtype=dtype
        )
        for _ in range(count)
    ]
    sizes = (batch, shape.kv_heads)
    query = torch.randn(
        *sizes, shape.group, shape.head_dim, device=device, dtype=dtype
    )
    key, value = (
        torch.randn(*sizes, shape.head_dim, device=device, dtype=dtype) for _ in "kv"
    )
    newest = torch.full((1,), slots + 1, device=device)
    recent = int(RECENT * slots)
    common = dict(
        shape=shape.name, batch=batch, slots=slots, bytes=layer_bytes, layers=count
    )

    def walk(function):
        def run() -> None:
            newest.add_(1)
            for layer in layers:
                function(
                    query, key, value, newest, *layer.tensors(),
                    alpha=ALPHA, recent=recent,
                )

        return run

    with torch.no_grad():
        eager = [ms / count for ms in timed(walk(step), options)]
        recorder.add("policy, eager", eager, launched="eager", **common)
        compiled = walk(torch.compile(step, dynamic=False, fullgraph=True))
        rounds = [ms / count for ms in timed(compiled, options)]
        recorder.add("policy, compiled", rounds, launched="eager", **common)
        rounds = [ms / count for ms in timed(graphed(compiled, options), options)]
        recorder.add("policy, compiled", rounds, launched="graph", **common)

"""`generate` of transformers: eager, and with a static cache and torch.compile."""

import time

import torch

from .common import Options, Recorder, read_shape

PROMPT = 448
SHORT = 16
LONG = 80


def measure(options: Options, recorder: Recorder) -> None:
    """Times a decode step as the difference of a long and a short text."""
    shape = read_shape(options.shape)
    model = _random_model(options)
    vocabulary = shape.config["vocab_size"]
    for batch in options.batches:
        ids = torch.randint(0, vocabulary, (batch, PROMPT), device=options.device)
        for what, settings in (
            ("generate, eager", {}),
            ("generate, static cache, compiled", {"cache_implementation": "static"}),
        ):
            recorder.attempt(
                f"{what}, batch {batch}",
                lambda: _cell(options, recorder, model, ids, what, settings),
            )


def _random_model(options: Options) -> torch.nn.Module:
    """The shape with random weights, made on the device."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = dict(read_shape(options.shape).config)
    config = AutoConfig.for_model(config.pop("model_type"), **config)
    dtype = torch.bfloat16 if options.cuda else torch.float32
    with torch.device(options.device):
        model = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation="sdpa"
        )
    model.eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def _cell(options, recorder, model, ids, what: str, settings: dict) -> None:
    mask = torch.ones_like(ids)

    def generate(count: int) -> float:
        begin = time.perf_counter()
        with torch.no_grad():
            out = model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=count,
                min_new_tokens=count,
                do_sample=False,
                **settings,
            )
        if options.cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - begin
        made = out.shape[1] - ids.shape[1]
        if made != count:
            raise AssertionError(f"made {made} ids instead of {count}")
        return seconds

    # The long text first: a static cache keeps the length that it had.
    for count in (LONG, SHORT, LONG):
        generate(count)
    rounds = []
    for _ in range(options.rounds):
        long, short = generate(LONG), generate(SHORT)
        rounds.append((long - short) * 1000 / (LONG - SHORT))
    recorder.add(
        what,
        rounds,
        shape=options.shape,
        batch=ids.shape[0],
        slots=PROMPT + (LONG + SHORT) // 2,
    )

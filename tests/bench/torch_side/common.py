"""Shapes, timing and results, shared by everything that is measured."""

import json
import statistics
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import torch

SHAPES = Path(__file__).resolve().parent.parent / "shapes"


@dataclass(frozen=True)
class Shape:
    """Sizes of a model."""

    name: str
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    config: dict

    @property
    def group(self) -> int:
        """Query heads that share a KV head."""
        return self.heads // self.kv_heads


def read_shape(name: str) -> Shape:
    """Reads the configuration that the Deno side reads too."""
    config = json.loads((SHAPES / f"{name}.json").read_text())
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    return Shape(
        name=name,
        layers=config["num_hidden_layers"],
        heads=heads,
        kv_heads=config["num_key_value_heads"],
        head_dim=head_dim,
        config=config,
    )


@dataclass(frozen=True)
class Options:
    """What a worker is asked for."""

    shape: str
    batches: list[int]
    slots: list[int]
    rounds: int
    device: str

    @property
    def cuda(self) -> bool:
        """Whether it runs on a GPU; a CPU is for trying the program out."""
        return self.device == "cuda"


class Recorder:
    """Results of a worker. The file is complete at each moment."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self.results: list[dict] = []
        self.failures: list[dict] = []
        self._write()

    def add(self, what: str, rounds: list[float], **more: object) -> None:
        """Adds milliseconds of each round."""
        ms = statistics.median(rounds)
        self.results.append({"what": what, "ms": ms, "rounds": rounds, **more})
        print(f"{what}: {ms:.4f} ms {more}", flush=True)
        self._write()

    def fail(self, what: str, error: BaseException) -> None:
        """Adds what could not be measured."""
        reason = f"{type(error).__name__}: {error}".strip().splitlines()[0][:300]
        self.failures.append({"what": what, "reason": reason})
        print(f"{what}: not measured: {reason}", flush=True)
        self._write()

    def attempt(self, what: str, measure: Callable[[], None]) -> None:
        """Measures, and goes on whatever happens."""
        try:
            measure()
        except Exception as error:  # noqa: BLE001: every failure is reported
            self.fail(what, error)
            traceback.print_exc(limit=-3)
        finally:
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _write(self) -> None:
        text = json.dumps({"results": self.results, "failures": self.failures})
        self._path.write_text(text)


def timed(
    work: Callable[[], object], options: Options, calls: int = 1
) -> list[float]:
    """Milliseconds of `work`, the mean of `calls` calls, for each round.

    Three calls warm up.
    """
    for _ in range(3):
        work()
    rounds = []
    for _ in range(options.rounds):
        if options.cuda:
            begin = torch.cuda.Event(enable_timing=True)
            end = torch.cuda.Event(enable_timing=True)
            begin.record()
            for _ in range(calls):
                work()
            end.record()
            torch.cuda.synchronize()
            rounds.append(begin.elapsed_time(end) / calls)
        else:
            start = time.perf_counter()
            for _ in range(calls):
                work()
            rounds.append((time.perf_counter() - start) * 1000 / calls)
    return rounds


def graphed(work: Callable[[], object], options: Options) -> Callable[[], object]:
    """The same work as one CUDA graph, so that launches cost nothing."""
    if not options.cuda:
        return work
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()

    def replay(graph: torch.cuda.CUDAGraph = graph, _kept: object = work) -> None:
        """Runs the graph. What it reads and writes must outlive it."""
        graph.replay()

    return replay


def layers_to_walk(shape: Shape, layer_bytes: int) -> int:
    """Layers with memory of their own, so that no cache holds all of it.

    As many as the model has, but no more than a gibibyte's worth, and two at
    least: the device memory has to hold them.
    """
    enough = -(-(2**30) // max(1, layer_bytes))
    return max(2, min(shape.layers, enough))

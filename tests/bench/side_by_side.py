"""Measures this project and PyTorch in turn, in one run on one GPU.

    python3 tests/bench/side_by_side.py --shapes llama-3.1-8b

Run it from the root of the repository, with `deno`, PyTorch, Triton and
transformers installed and the CUDA library built (`deno task build:cuda`).
Nothing is downloaded. The parts of a run, each of which may be left out:

    ceilings   what the GPU reads and multiplies at most
    ours       decode steps and merge_attend of this project
    attention  scaled_dot_product_attention over the same slots
    policy     KeepKV composed from PyTorch's operations, eager and compiled
    generate   generate of transformers, eager and static cache with compile
    again      ours once more, to see whether the GPU has changed meanwhile

Each part is a process of its own with a limit of time: a part that fails or
takes too long is reported, what it had measured until then is kept, and the
others go on. At the end there is one table of ratios. docs/performance.md says
what the numbers mean.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PARTS = ("ceilings", "ours", "attention", "policy", "generate", "again")
LIMITS = {
    "ceilings": 60,
    "ours": 90,
    "attention": 60,
    "policy": 120,
    "generate": 180,
    "again": 60,
}


def arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--shapes", default="qwen2.5-0.5b", help="names in tests/bench/shapes")
    add("--parts", default=",".join(PARTS), help="which parts to run")
    add("--batches", default="1", help="sequences in one step")
    add("--slots", default="512,3277", help="slots per head of attention")
    add("--full", default="32768", help="slots of the full cache; 0 for none")
    add("--rounds", type=int, default=5)
    add("--steps", type=int, default=32, help="decode steps of a round of ours")
    add("--limits", default="", help="seconds of parts, as ours=120,policy=60")
    add("--seconds", type=float, default=470, help="seconds for everything")
    add("--backend", default="cuda", help="backend of ours")
    add("--device", default="cuda", help="device of PyTorch; cpu to try it out")
    add("--deno", default="deno", help="path of the program")
    add("--json", help="file for everything that was measured")
    add("--worker", help=argparse.SUPPRESS)
    add("--out", help=argparse.SUPPRESS)
    return parser.parse_args()


def numbers(text: str) -> list[int]:
    """A list of whole numbers, without zeros."""
    return [int(part) for part in text.split(",") if int(part) > 0]


def work(args: argparse.Namespace) -> None:
    """A part that uses PyTorch, in a process of its own."""
    import importlib

    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from torch_side.common import Options, Recorder

    options = Options(
        shape=args.shapes,
        batches=numbers(args.batches),
        slots=numbers(args.slots),
        rounds=args.rounds,
        device=args.device,
    )
    names = {"generate": "generation"}
    module = importlib.import_module(
        f"torch_side.{names.get(args.worker, args.worker)}"
    )
    recorder = Recorder(args.out)
    recorder.attempt(args.worker, lambda: module.measure(options, recorder))


class Run:
    """One run: its parts, its clock and what it found."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.begin = time.monotonic()
        self.parts = args.parts.split(",")
        unknown = [part for part in self.parts if part not in PARTS]
        if unknown:
            raise SystemExit(f"Cannot run {unknown}: expected some of {PARTS}")
        self.limits = dict(LIMITS)
        for item in filter(None, args.limits.split(",")):
            part, seconds = item.split("=")
            self.limits[part] = int(seconds)
        self.failures: list[dict] = []
        self.results: list[dict] = []
        self.stream = 0.0
        self.matrix = 0.0

    def left(self) -> float:
        """Seconds that are left for everything."""
        return self.args.seconds - (time.monotonic() - self.begin)

    def run(self) -> None:
        """Runs all parts, for one shape after the other."""
        shapes = self.args.shapes.split(",")
        if "ceilings" in self.parts:
            self.part("ceilings", shapes[0])
        for shape in shapes:
            for part in PARTS[1:]:
                if part in self.parts:
                    self.part(part, shape)

    def part(self, part: str, shape: str) -> None:
        """Runs one part and keeps what it wrote."""
        seconds = min(self.limits[part], self.left())
        print(f"== {part}, {shape}, at most {seconds:.0f} s", flush=True)
        if seconds < 10:
            self.fail(part, shape, "there was no time left")
            return
        with tempfile.TemporaryDirectory() as folder:
            out = f"{folder}/out.json"
            ours = part in ("ours", "again")
            command = (
                self.our_command(shape, out, seconds)
                if ours
                else self.worker_command(part, shape, out)
            )
            begin = time.monotonic()
            reason = call(command, seconds)
            print(f"== {time.monotonic() - begin:.0f} s", flush=True)
            if reason is not None:
                self.fail(part, shape, reason)
            try:
                found = json.loads(Path(out).read_text())
            except (OSError, ValueError):
                self.fail(part, shape, "nothing was written")
                return
        for failure in found["failures"]:
            self.failures.append({"part": part, "shape": shape, **failure})
        for result in found["results"]:
            self.results.append({"part": part, "shape": shape, **result})
        if part == "ceilings":
            rates = found["results"]
            self.stream = max((r.get("gb_per_second", 0) for r in rates), default=0)
            self.matrix = max((r.get("tflops", 0) for r in rates), default=0)
        if ours and self.stream == 0:
            self.stream = found["ceilings"].get("stream", 0) / 1e9
        self.save()

    def our_command(self, shape: str, out: str, seconds: float) -> list[str]:
        """The command that measures this project."""
        args = self.args
        slots = numbers(args.slots)
        caches = [f"{policy}:{n}" for n in slots for policy in ("full", "keepkv")]
        caches += [f"full:{n}" for n in numbers(args.full)]
        command = [args.deno, "task", "bench:speed", "--backend", args.backend]
        command += ["--sections", "decode,attend", "--shapes", shape]
        command += ["--caches", ",".join(caches), "--batches", args.batches]
        command += ["--rounds", str(args.rounds), "--steps", str(args.steps)]
        # It stops by itself before it would be stopped.
        command += ["--json", out, "--seconds", str(int(seconds * 0.8))]
        if self.stream:
            command += ["--stream", f"{self.stream:.1f}"]
        if self.matrix:
            command += ["--matrix", f"{self.matrix:.1f}"]
        return command

    def worker_command(self, part: str, shape: str, out: str) -> list[str]:
        """The command that runs a part of PyTorch's side."""
        args = self.args
        command = [sys.executable, __file__, "--worker", part, "--out", out]
        command += ["--shapes", shape, "--batches", args.batches]
        # The full cache is for ours: in PyTorch it is the same kernel again.
        command += ["--slots", args.slots, "--rounds", str(args.rounds)]
        command += ["--device", args.device]
        return command

    def fail(self, part: str, shape: str, reason: str) -> None:
        """Notes a part that did not come to its end."""
        failure = {"part": part, "shape": shape, "what": part, "reason": reason}
        self.failures.append(failure)
        print(f"{part}, {shape}: {reason}", flush=True)

    def save(self) -> None:
        """Writes everything to the file, if there is one."""
        if self.args.json is None:
            return
        found = {
            "stream_gb_per_second": self.stream,
            "matrix_tflops": self.matrix,
            "results": self.results,
            "failures": self.failures,
        }
        Path(self.args.json).write_text(json.dumps(found))


def call(command: list[str], seconds: float) -> str | None:
    """Runs a command; says why it did not come to its end, if so."""
    try:
        process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    except OSError as error:
        return f"cannot start {command[0]}: {error}"
    try:
        status = process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        # The whole group: deno task has a child that holds the GPU.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return f"stopped after {seconds:.0f} s"
    return None if status == 0 else f"exit status {status}"


class Table:
    """Ours and theirs side by side."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.rows: list[list[str]] = []

    def ours(self, section: str, shape: str, cache: str, batch: int) -> dict | None:
        """The median of both times that this project was measured."""
        found = [
            result
            for result in self.run.results
            if result["part"] in ("ours", "again")
            and (result["section"], result["shape"]) == (section, shape)
            and (result["cache"], result["batch"]) == (cache, batch)
        ]
        if not found:
            return None
        rounds = [ms for result in found for ms in result["rounds"]]
        ms = statistics.median(rounds)
        # Both times must agree, or the GPU has changed meanwhile.
        drift = max(r["ms"] for r in found) / min(r["ms"] for r in found) - 1
        return {**found[0], "ms": ms, "drift": drift}

    def theirs(self, part: str, shape: str, batch: int, slots: int | None, **want):
        """Results of PyTorch's side, the fastest first."""
        found = [
            result
            for result in self.run.results
            if result["part"] == part
            and (result["shape"], result["batch"]) == (shape, batch)
            and (slots is None or result["slots"] == slots)
            and all(result.get(key) == value for key, value in want.items())
        ]
        return sorted(found, key=lambda result: result["ms"])

    def add(self, what: str, ours: dict, other: str, theirs: dict | None) -> None:
        """A row: ours, the bound, and another time as a multiple of ours."""
        gigabytes = ours.get("bytes", 0) / 1e9
        stream = self.run.stream
        bound = ours.get("boundMs") or (gigabytes / stream * 1e3 if stream else None)
        share = gigabytes / stream * 1e3 / ours["ms"] if stream else None
        self.rows.append(
            [
                what,
                f"{ours['ms']:.4f}",
                f"{gigabytes:.4f}",
                "" if bound is None else f"{bound:.4f}",
                "" if share is None else f"{share * 100:.1f} %",
                f"{ours['drift'] * 100:+.1f} %",
                other,
                "" if theirs is None else f"{theirs['ms']:.4f}",
                "" if theirs is None else f"{theirs['ms'] / ours['ms']:.2f}",
            ]
        )

    def build(self) -> None:
        """Makes the rows for everything that was measured on both sides."""
        args = self.run.args
        slots = numbers(args.slots)
        for shape in args.shapes.split(","):
            for batch in numbers(args.batches):
                where = f"{shape}, batch {batch}"
                for cache in [f"full:{min(slots)}"]:
                    ours = self.ours("decode", shape, cache, batch)
                    if ours is None:
                        continue
                    what = f"step, {where}, {cache}"
                    found = self.theirs("generate", shape, batch, None)
                    for result in found or [None]:
                        name = result["what"] if result else "not measured"
                        self.add(what, ours, name, result)
                self.build_gain(shape, batch)
                for count in slots:
                    for policy in ("full", "keepkv"):
                        self.build_attend(where, shape, batch, policy, count)

    def build_gain(self, shape: str, batch: int) -> None:
        """The full cache against those with fewer slots."""
        for full in numbers(self.run.args.full):
            whole = self.ours("decode", shape, f"full:{full}", batch)
            for count in numbers(self.run.args.slots):
                small = self.ours("decode", shape, f"keepkv:{count}", batch)
                if whole is None or small is None or count >= full:
                    continue
                gain = whole["ms"] / small["ms"]
                bound = whole["bytes"] / small["bytes"]
                name = f"our full:{full}; bytes allow {bound:.2f}: "
                name += f"{gain / bound * 100:.1f} %"
                what = f"step, {shape}, batch {batch}, keepkv:{count}"
                self.add(what, small, name, whole)

    def build_attend(self, where, shape, batch, policy, count) -> None:
        """`merge_attend` beside the kernels of PyTorch."""
        ours = self.ours("attend", shape, f"{policy}:{count}", batch)
        if ours is None:
            return
        what = f"layer, {where}, {policy}:{count}"
        for launched in ("graph", "eager"):
            best = self.theirs(
                "attention", shape, batch, count, launched=launched
            )
            if best:
                name = f"{best[0]['what']} ({launched})"
                self.add(what, ours, name, best[0])
        if policy == "keepkv":
            for result in self.theirs("policy", shape, batch, count):
                name = f"{result['what']} ({result['launched']})"
                self.add(what, ours, name, result)

    def show(self) -> None:
        """Prints the table and what could not be measured."""
        heads = ["what", "our ms", "GB", "bound ms", "of stream", "drift"]
        heads += ["beside", "ms", "times ours"]
        widths = [
            max(len(row[i]) for row in [heads, *self.rows])
            for i in range(len(heads))
        ]
        print(
            f"\nread stream {self.run.stream:.0f} GB/s, "
            f"bf16 products {self.run.matrix:.0f} TFLOP/s"
        )
        for row in [heads, *self.rows]:
            cells = [
                cell.ljust(width) if i in (0, 6) else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths))
            ]
            print("  ".join(cells).rstrip())
        for failure in self.run.failures:
            print("not measured: {part}, {shape}: {what}: {reason}".format(**failure))


def main() -> int:
    """Runs everything, or one part of PyTorch's side."""
    args = arguments()
    if args.worker:
        work(args)
        return 0
    run = Run(args)
    run.run()
    table = Table(run)
    table.build()
    table.show()
    run.save()
    return 0 if run.results else 1


if __name__ == "__main__":
    sys.exit(main())

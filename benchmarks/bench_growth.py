"""Takes processor time and memory of each step of a run as images, pairs and trials grow.

    python -m benchmarks.bench_growth --pairs 10000 100000 1000000 --json growth.json --plot g.png

For each N pairs to train on: generated drawings, N / 10 in N / 100 classes, and N / 10 trials of
5-way one-shot recognition. The training has as many steps each time; what grows is what it reads.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure
from ml_metadata import MetadataStore
from ml_metadata.proto.metadata_store_pb2 import Execution
from rich.console import Console
from rich.table import Table

from benchmarks.machine import machine, memory_of
from data_ingest.sources.glyphs import write_glyphs
from pipeline.runs.metadata_store import locate
from pipeline.runs.workspace import Workspace
from pipeline.settings import MetadataSettings

STEPS = ("PairExampleGen", "StatisticsGen", "Trainer", "Evaluator", "ServingGate")
_CHARACTERS = 50
_WRITERS = 10


@dataclass(frozen=True)
class Result:
    """What one step took."""

    step: str
    pairs: int
    """To train on."""
    cpu_seconds: float
    """Of all processes, at whatever else the machine had to do."""
    memory_gb: float
    """GiB that all processes of the run had together, at most."""


class Sample(NamedTuple):
    """What a run and its processes have at a moment."""

    when: float
    """Seconds since 1970."""
    cpu_seconds: float
    """Since its start, in user and system mode."""
    memory_gb: float


class Sampler(threading.Thread):
    """Watches a process and its descendants, five times a second, while it runs."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        super().__init__(daemon=True)
        self._process = process
        self.samples: list[Sample] = []
        self.start()

    def run(self) -> None:
        while self._process.poll() is None:
            tree = [*_tree(self._process.pid)]
            cpu, memory = sum(map(_cpu_seconds, tree)), sum(map(_resident, tree))
            self.samples.append(Sample(time.time(), cpu, memory / 1024))
            time.sleep(0.2)


def _tree(pid: int) -> Iterator[int]:
    yield pid
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = listed.read_text(encoding="ascii").split()
        except OSError:
            continue
        for child in children:
            yield from _tree(int(child))


def _resident(pid: int) -> float:
    try:
        return memory_of(pid).resident
    except (OSError, KeyError):  # has ended
        return 0.0


def _cpu_seconds(pid: int) -> float:
    """Of a process, and of its children that have ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def measure(pairs: int, folder: Path, *, steps: int) -> list[Result]:
    """Runs the pipeline on new drawings in an empty folder."""
    images = folder / "drawings.zip"
    alphabets = max(pairs // 100 // _CHARACTERS, 4)
    write_glyphs(images, alphabets=alphabets, characters=_CHARACTERS, seed=1, writers=_WRITERS)
    workspace = Workspace(folder / "output")
    trials = pairs // 20
    sampling = (
        f"{{train_pairs: {pairs}, ways: [5], within_trials: {trials}, between_trials: {trials}}}"
    )
    command = [sys.executable, "-m", "pipeline.cli.main", "run", "--json", "--data", str(images)]
    command += ["--output", str(workspace.root), "--set", f"pairs={sampling}"]
    command += ["--set", f"train.steps={steps}", "--set", "evaluate.thresholds={}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        sampler = Sampler(process)
        process.communicate()
        sampler.join()
    if process.returncode:
        raise SystemExit(f"`oneshot run` ended with {process.returncode}")
    return list(_results(pairs, workspace, sampler.samples))


def _results(pairs: int, workspace: Workspace, samples: Sequence[Sample]) -> Iterator[Result]:
    store = MetadataStore(locate(MetadataSettings(), workspace).connection())
    for execution in store.get_executions():
        names = {context.name for context in store.get_contexts_by_execution(execution.id)}
        step = next((step for step in STEPS if any(n.endswith(f".{step}") for n in names)), None)
        if step is None or execution.last_known_state != Execution.COMPLETE:
            continue
        start = execution.create_time_since_epoch / 1000
        end = execution.last_update_time_since_epoch / 1000
        during = [sample for sample in samples if start <= sample.when <= end]
        if during:
            cpu = max(one.cpu_seconds for one in during) - during[0].cpu_seconds
            yield Result(step, pairs, cpu, max(one.memory_gb for one in during))


def show(results: Sequence[Result]) -> None:
    """Prints the table on stderr."""
    table = Table("step", title="A run as its data grows")
    sizes = sorted({one.pairs for one in results})
    for pairs in sizes:
        table.add_column(f"{pairs:,} pairs: CPU s", justify="right")
        table.add_column("GiB", justify="right")
    for step in STEPS:
        found = {one.pairs: one for one in results if one.step == step}
        cells = [(f"{found[n].cpu_seconds:.0f}", f"{found[n].memory_gb:.2f}") for n in sizes]
        table.add_row(step, *(text for pair in cells for text in pair))
    Console(stderr=True, width=120).print(table)


def plot(results: Sequence[Result], path: Path) -> None:
    """Draws processor time and memory of each step over the number of pairs."""
    by_step = defaultdict(list)
    for one in sorted(results, key=lambda one: one.pairs):
        by_step[one.step].append(one)
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    seconds, memory = figure.subplots(1, 2)
    for step, own in by_step.items():
        pairs = [one.pairs for one in own]
        seconds.plot(pairs, [one.cpu_seconds for one in own], marker="o", label=step)
        memory.plot(pairs, [one.memory_gb for one in own], marker="o", label=step)
    for axes, title in ((seconds, "processor time, s"), (memory, "memory of all processes, GiB")):
        axes.set(xscale="log", xlabel="pairs to train on", title=title)
        axes.grid(alpha=0.3)
    seconds.set_yscale("log")
    memory.set_ylim(0, None)
    seconds.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Runs from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--steps", type=int, default=300, help="of the training (%(default)s)")
    parser.add_argument("--json", type=Path, help="where to write the results")
    parser.add_argument("--plot", type=Path, help="where to draw them")
    arguments = parser.parse_args()
    results: list[Result] = []
    for pairs in arguments.pairs:
        with tempfile.TemporaryDirectory() as folder:
            results += measure(pairs, Path(folder), steps=arguments.steps)
        show(results)
    report = json.dumps([machine("tfx", "tensorflow"), *map(asdict, results)], indent=2) + "\n"
    if arguments.json is None:
        sys.stdout.write(report)
    else:
        arguments.json.write_text(report, encoding="utf-8")
    if arguments.plot is not None:
        plot(results, arguments.plot)


if __name__ == "__main__":
    main()

"""Times the writing of pair records by Beam against a loop that writes the same ones, by size.

    python -m benchmarks.bench_ingest --pairs 30000 300000 1000000 --workers 1 2 --json ingest.json

Each measurement is a process of its own, whose peak memory it has. The loop reads each image,
decodes it once with Pillow, holds all of them in memory and serialises the pairs as they are drawn.
"""

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import tensorflow as tf
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.pipeline import Pipeline
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.machine import machine
from data_ingest.records.catalog import CatalogPart, Found, build_catalog
from data_ingest.records.features import Pair, serialize_pair
from data_ingest.records.plan import make_plan
from data_ingest.records.read import Inputs, list_inputs
from data_ingest.records.write import write_pairs
from data_ingest.settings import DatasetSettings, PairSettings
from data_ingest.sources.layout import ImageReader
from data_ingest.sources.resolve import resolve
from pipeline.settings import BeamSettings

LOOP = 0
"""Stands for the number of workers of the loop."""


@dataclass(frozen=True)
class Result:
    """What writing the records of all splits took."""

    pairs: int
    """To train on; the other splits have their 36,000."""
    workers: int
    records: int
    seconds: float
    cpu_seconds: float
    """Of all processes, after the imports of the first."""
    memory_gb: float
    """The most that one process had."""
    bytes_a_pair: float
    """Of the pairs to train on."""

    @property
    def rate(self) -> float:
        """Records a second and core."""
        return self.records / self.cpu_seconds


def measure(data: Path | None, pairs: int, workers: int, folder: Path) -> Result:
    """Writes records in this process, and its workers."""
    found = resolve(
        DatasetSettings(), data=data, environ=os.environ, synthetic_dir=folder / "glyphs"
    )
    settings = PairSettings(train_pairs=pairs)
    out = folder / "records"
    out.mkdir()
    started, before = time.perf_counter(), _cpu()
    inputs = list_inputs(found.containers())
    if workers == LOOP:
        records = _by_loop(inputs, settings, out)
    else:
        records = _by_beam(inputs, settings, out, workers)
    cpu, wall = _cpu() - before, time.perf_counter() - started
    most = max(resource.getrusage(who).ru_maxrss for who in (_SELF, _CHILDREN))
    size = sum(path.stat().st_size for path in out.glob("Split-train/*"))
    return Result(pairs, workers, records, wall, cpu, most / 2**20, size / pairs)


_SELF = resource.RUSAGE_SELF
_CHILDREN = resource.RUSAGE_CHILDREN


def _cpu() -> float:
    return sum(os.times()[:4])


def _by_beam(inputs: Inputs, settings: PairSettings, out: Path, workers: int) -> int:
    options = PipelineOptions(BeamSettings(workers=workers).pipeline_args())
    with Pipeline(options=options) as pipeline:
        write_pairs(pipeline, inputs, settings, directory=str(out), max_rejected_share=1.0)
    while any(file.read_text() for file in Path("/proc/self/task").glob("*/children")):
        time.sleep(0.05)  # Workers are counted when they have ended.
    splits = json.loads((out / "sampling.json").read_bytes())["splits"].values()
    return sum(kind["pairs"] for split in splits for kind in split["pairs"])


def _by_loop(inputs: Inputs, settings: PairSettings, out: Path) -> int:
    images: dict[tuple[int, int], bytes] = {}
    parts = []
    with ImageReader() as reader:
        for portion in inputs.portions:
            found = []
            for offset, file in enumerate(portion.images):
                data = reader.read(file)
                Image.open(io.BytesIO(data)).load()
                images[portion.number, offset] = data
                found.append(Found.of(file, data, portion.first + offset, portion.number, offset))
            parts.append(CatalogPart(portion.source, tuple(found), ()))
    plan = make_plan(build_catalog(parts), settings, official=inputs.official.trials)
    places = [
        list(zip(one.located.block.tolist(), one.located.position.tolist(), strict=True))
        for one in plan.streams
    ]
    records = 0
    for shard in plan.shards:
        stream = plan.streams[shard.stream]
        place, index = places[shard.stream], stream.located.index
        drawn = stream.draw(shard.start, shard.stop)
        name = f"{out}/Split-{shard.split}/{shard.file:05d}.gz"
        tf.io.gfile.makedirs(f"{out}/Split-{shard.split}")
        options = tf.io.TFRecordOptions(compression_type="GZIP", compression_level=1)
        with tf.io.TFRecordWriter(name, options) as writer:
            columns = (drawn.row_a.tolist(), drawn.row_b.tolist(), drawn.label.tolist())
            for a, b, label, trial in zip(*columns, drawn.trial, strict=True):
                names = (index.class_name(a), index.class_name(b))
                groups = (index.group_name(a), index.group_name(b))
                writers = (index.writer(a), index.writer(b))
                pair = (images[place[a]], images[place[b]], label, *names, *groups, *writers)
                writer.write(serialize_pair(Pair(*pair, trial, stream.protocol, stream.way)))
                records += 1
    return records


def in_a_process(data: Path | None, pairs: int, workers: int) -> Result:
    """`measure` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.bench_ingest", "--one", f"{pairs}:{workers}"]
    command += [] if data is None else ["--data", str(data)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return Result(**json.loads(done.stdout))


def rows(results: Sequence[Result]) -> Iterator[tuple[str, ...]]:
    """The table, beside the loop of the same number of pairs."""
    loops = {one.pairs: one for one in results if one.workers == LOOP}
    for one in results:
        loop = loops[one.pairs]
        yield (
            f"{one.pairs:,}",
            "loop" if one is loop else str(one.workers),
            f"{one.seconds:.1f}",
            f"{one.rate:,.0f}",
            f"{one.rate / loop.rate:.2f}",
            f"{one.memory_gb:.2f}",
            f"{one.bytes_a_pair:.0f}",
        )


def show(results: Sequence[Result]) -> None:
    """Prints the table on stderr."""
    table = Table(title="Writing pair records")
    for name in ("pairs", "workers", "s", "records/s/core", "x loop", "GiB", "bytes/pair"):
        table.add_column(name, justify="right")
    for row in rows(results):
        table.add_row(*row)
    Console(stderr=True, width=120).print(table)


def plot(results: Sequence[Result], path: Path) -> None:
    """Draws peak memory and rate over the number of pairs."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    memory, rate = figure.subplots(1, 2)
    for workers in sorted({one.workers for one in results}):
        own = sorted((one for one in results if one.workers == workers), key=lambda one: one.pairs)
        label = "loop" if workers == LOOP else f"Beam, {workers} worker{'s' * (workers > 1)}"
        pairs = [one.pairs for one in own]
        memory.plot(pairs, [one.memory_gb for one in own], marker="o", label=label)
        rate.plot(pairs, [one.rate for one in own], marker="o", label=label)
    for axes, title in ((memory, "peak memory of a process, GiB"), (rate, "records/s/core")):
        axes.set(xscale="log", xlabel="pairs to train on", title=title, ylim=(0, None))
        axes.grid(alpha=0.3)
    memory.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Runs from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path, help="images; else what `oneshot run` finds")
    parser.add_argument("--pairs", type=int, nargs="+", default=[30_000, 300_000, 1_000_000])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--json", type=Path, help="where to write the results")
    parser.add_argument("--plot", type=Path, help="where to draw them")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        pairs, workers = map(int, arguments.one.split(":"))
        with tempfile.TemporaryDirectory() as folder:
            result = measure(arguments.data, pairs, workers, Path(folder))
        sys.stdout.write(json.dumps(asdict(result)))
        return
    results: list[Result] = []
    for pairs in arguments.pairs:
        for workers in (LOOP, *arguments.workers):
            results.append(in_a_process(arguments.data, pairs, workers))
            show(results)
            report = [machine("apache-beam", "tensorflow"), *map(asdict, results)]
            if arguments.json is not None:
                arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    if arguments.json is None:
        sys.stdout.write(json.dumps(report, indent=2) + "\n")
    if arguments.plot is not None:
        plot(results, arguments.plot)


if __name__ == "__main__":
    main()

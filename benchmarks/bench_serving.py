"""Measures what a server adds to the bare `Session.run`: single images over gRPC and REST.

    python -m benchmarks.bench_serving --model output/serving_model/siamese

All in one run, on the same images, one load after another; the bare Session is measured before and
after the servers, and its better figure counts. Clients and server share the machine's cores, so
what clients cost is in the server's figures too: a single client is a real one, several only send
prepared bytes. `--grpc` and `--rest` measure a server that runs already, such as TF Serving.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from benchmarks.machine import machine
from serving.saved_model.versions import newest_complete

CLIENTS: Final = (1, 8, 32)
LATENCY_TARGET: Final = 2.0
THROUGHPUT_TARGET: Final = 0.8


def newest(folder: Path) -> Path:
    """The newest version in a folder of versions.

    Raises:
      SystemExit: there is none.
    """
    version = newest_complete(folder)
    if version is None:
        raise SystemExit(f"{folder} holds no version; `oneshot run` pushes one")
    return version


@contextmanager
def local_server(folder: Path) -> Iterator[dict[str, str]]:
    """`oneshot serve` on free ports; yields the addresses by protocol."""
    command = [
        *(sys.executable, "-m", "pipeline.cli.main", "serve", "--json"),
        *("--port", "0", "--rest_api_port", "0", "--model_base_path", str(folder)),
        *("--model_name", "siamese"),
    ]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        if not line:
            raise SystemExit("the server did not start")
        where = json.loads(line)
        yield {"grpc": where["grpc"], "rest": where["rest"]}
    finally:
        server.terminate()
        server.wait()


def measure(*arguments: str) -> Any:
    """Runs one load in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.serving_load", *arguments]
    quiet = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=quiet)
    return json.loads(done.stdout)


def better(first: Any, second: Any) -> Any:
    """The bare figures that are harder to reach."""
    singles = (first["single"], second["single"])
    batches = (first["batch_32"], second["batch_32"])
    return {
        "single": min(singles, key=lambda figures: figures["p50_ms"]),
        "batch_32": max(batches, key=lambda figures: figures["images_per_second"]),
    }


def ratios(bare: Any, servers: dict[str, dict[int, Any]]) -> dict[str, Any]:
    """Latency of one client and throughput of the most, against the bare Session."""
    found: dict[str, Any] = {}
    for protocol, loads in servers.items():
        latency = loads[min(loads)]["p50_ms"] / bare["single"]["p50_ms"]
        most = max(loads)
        throughput = loads[most]["images_per_second"] / bare["batch_32"]["images_per_second"]
        found[protocol] = {
            "single_p50_over_bare": round(latency, 3),
            "single_target_met": latency <= LATENCY_TARGET,
            f"throughput_{most}_over_bare": round(throughput, 3),
            "throughput_target_met": throughput >= THROUGHPUT_TARGET,
        }
    return found


def table(bare: Any, servers: dict[str, dict[int, Any]]) -> Table:
    """The figures of the bare Session and of the servers, one load a line."""
    shown = Table(title="embed, one image a request")
    for title in (
        "",
        "clients",
        "p50 ms",
        "p99 ms",
        "images/s",
        "errors",
        "p50 / bare",
        "/s / bare",
    ):
        shown.add_column(title, justify="left" if not title else "right")
    single, batch = bare["single"], bare["batch_32"]
    shown.add_row(
        "Session.run",
        "1",
        f"{single['p50_ms']:.2f}",
        f"{single['p99_ms']:.2f}",
        f"{single['images_per_second']:.0f}",
        *("", "1.00", f"{single['images_per_second'] / batch['images_per_second']:.2f}"),
    )
    shown.add_row(
        f"Session.run, batches of 32 in {batch['threads']} threads",
        *("", "", "", f"{batch['images_per_second']:.0f}", "", "", "1.00"),
    )
    for protocol, loads in servers.items():
        for clients, figures in loads.items():
            shown.add_row(
                protocol,
                str(clients),
                f"{figures['p50_ms']:.2f}",
                f"{figures['p99_ms']:.2f}",
                f"{figures['images_per_second']:.0f}",
                str(figures["errors"]),
                f"{figures['p50_ms'] / single['p50_ms']:.2f}",
                f"{figures['images_per_second'] / batch['images_per_second']:.2f}",
            )
    return shown


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path("output/serving_model/siamese"))
    parser.add_argument("--seconds", type=float, default=5.0, help="a load (%(default)s)")
    parser.add_argument("--grpc", help="HOST:PORT of a server that runs already")
    parser.add_argument("--rest", help="URL of a server that runs already")
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes the figures there")
    parser.add_argument("--check", action="store_true", help="exit code 1 if a target is missed")
    options = parser.parse_args()
    seconds = ("--seconds", str(options.seconds))
    version = newest(options.model)

    first = measure("bare", "--model", str(version), *seconds)
    running = {"grpc": options.grpc, "rest": options.rest}
    running = {protocol: address for protocol, address in running.items() if address}
    servers: dict[str, dict[int, Any]] = {}

    def load(addresses: dict[str, str]) -> None:
        for protocol, address in addresses.items():
            servers[protocol] = {
                clients: measure(
                    protocol, "--address", address, "--clients", str(clients), *seconds
                )
                for clients in CLIENTS
            }

    if running:
        load(running)
    else:
        with local_server(options.model) as addresses:
            load(addresses)
    bare = better(first, measure("bare", "--model", str(version), *seconds))

    result = {
        "machine": machine("tensorflow", "grpcio", "httpx"),
        "model": str(version),
        "server": running or "oneshot serve",
        "bare": bare,
        **servers,
        "ratios": ratios(bare, servers),
    }
    console = Console(width=110)
    console.print(table(bare, servers))
    for protocol, found in result["ratios"].items():
        console.print(f"{protocol}: {found}")
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    met = all(
        found["single_target_met"] and found["throughput_target_met"]
        for found in result["ratios"].values()
    )
    return 1 if options.check and not met else 0


if __name__ == "__main__":
    sys.exit(main())

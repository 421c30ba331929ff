"""`oneshot worker-pool`: workers for Beam's job servers."""

import argparse
import signal
import threading
from typing import Any, Final

from pipeline.cli.shared import Context, add_command, on_signals

_PORT: Final = 50000


def add_parsers(commands: Any) -> None:
    """Adds the command to those of `oneshot`."""
    parser = add_command(
        commands, "worker-pool", _serve, text="start workers for Beam's job servers (Flink, Spark)"
    )
    parser.add_argument(
        "--port", type=_port, default=_PORT, help="0: any free one (default: %(default)s)"
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; whoever reaches it can run code here (default: %(default)s)",
    )


def _serve(context: Context) -> None:
    """Starts a worker whenever a job server asks for one, until SIGTERM or Ctrl-C.

    The job server is told the address by `beam.worker_pool`. Workers read and write the output
    folder and the images under the paths that `oneshot run` has.
    """
    from pipeline.runners.beam import worker_pool

    options, ended = context.options, threading.Event()
    with (
        context.progress(),
        on_signals(lambda _: ended.set(), signal.SIGTERM, signal.SIGINT),
        worker_pool(options.host, options.port) as port,
    ):
        told = f"Workers for Beam's job servers on {options.host}:{port}"
        context.show({"host": options.host, "port": port}, told)
        ended.wait()


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port < 2**16:
        raise argparse.ArgumentTypeError(f"0 to 65535, not {port}")
    return port

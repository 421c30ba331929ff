"""`oneshot tensorboard`: curves, batches and embeddings of a training, in TensorBoard."""

import signal
import threading
from pathlib import Path
from typing import Any

from data_ingest.errors import InputError
from data_ingest.progress import step
from pipeline.cli.shared import CONFIGURED, OUTPUT, Context, add_command, on_signals

_LOOPBACK = "127.0.0.1"


def add_parsers(commands: Any) -> None:
    """Adds the group to the commands of `oneshot`."""
    parser = add_command(
        commands,
        "tensorboard",
        _tensorboard,
        OUTPUT,
        CONFIGURED,
        text="look at a training, also at one under way: curves, batches, embeddings",
    )
    parser.add_argument(
        "run_id",
        nargs="?",
        metavar="RUN",
        help="a run that `oneshot runs` lists, or latest (default: the newest training)",
    )
    parser.add_argument(
        "--port", type=int, help="port of the page (default: 6006, or the next free one)"
    )


def _tensorboard(context: Context) -> None:
    """Shows a training in TensorBoard, on a page that only this computer can open.

    SCALARS has the curves, IMAGES batches as the network saw them, PROJECTOR the embeddings of
    held-out images. The page follows a training that is under way; Ctrl-C ends it.
    """
    run_id, port = context.options.run_id, context.options.port
    with context.quiet_libraries():
        folder = _newest_training(context) if run_id is None else _training_of(context, run_id)
        with step("Loading TensorBoard"):
            from tensorboard import program

            board = program.TensorBoard()
            arguments = ["--logdir", str(folder), "--host", _LOOPBACK, "--load_fast", "false"]
            board.configure(["tensorboard", *arguments, *(["--port", str(port)] if port else [])])
            try:
                url = board.launch()
            except program.TensorBoardServerException as error:
                raise RuntimeError(error.msg) from error
    ended = threading.Event()
    with on_signals(lambda _: ended.set(), signal.SIGINT, signal.SIGTERM):
        context.show(
            {"url": url, "logs": str(folder)}, f"TensorBoard {url}", f"Logs        {folder}"
        )
        ended.wait()


def _newest_training(context: Context) -> Path:
    folders = context.workspace.artifacts.glob("Trainer/model_run/[0-9]*")
    newest = max(folders, key=lambda folder: int(folder.name), default=None)
    if newest is None:
        raise InputError(
            f"{context.options.output}: nothing has been trained here yet: `oneshot run` does it, "
            "or see --output"
        )
    return newest


def _training_of(context: Context, run_id: str) -> Path:
    if run_id == "latest":
        run_id = context.workspace.latest_run.resolve().name
    for node in context.history().nodes(run_id):
        if node.node_id == "Trainer" and "model_run" in node.outputs:
            folder = Path(node.outputs["model_run"].uri)
            if not folder.is_dir():
                raise InputError(f"run {run_id}: the logs of its training, {folder}, are gone")
            return folder
    raise InputError(
        f"run {run_id}: it has no finished training; `oneshot runs` lists the runs, and without "
        "RUN the newest training is shown, also one that is under way"
    )

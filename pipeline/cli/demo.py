"""`oneshot demo`: a page to try the model on, with a server of its own or one that runs already."""

import argparse
import logging
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from data_ingest.errors import InputError
from data_ingest.sampling.protocols import ONE_SHOT_SPLIT
from pipeline.cli.shared import CONFIGURED, OUTPUT, Context, add_command, on_signals, print_json
from pipeline.runs.summary import SUMMARY_FILE, read_json
from pipeline.runs.workspace import Workspace
from serving.errors import ServingError
from serving.saved_model.versions import newest_complete, read_crop

if TYPE_CHECKING:
    from serving.demo.pictures import Pictures

VERSIONS: Final = 3
"""Newest versions to choose from."""
TIMEOUT_SECONDS: Final = 60.0
LOADING_SECONDS: Final = 600.0
ANSWER_SECONDS: Final = 10.0
"""Within which a server that runs already has to answer."""
_log = logging.getLogger(__name__)


def add_parsers(commands: Any) -> None:
    """Adds the command to those of `oneshot`."""
    parser = add_command(
        commands,
        "demo",
        _demo,
        OUTPUT,
        CONFIGURED,
        text="open a page to try the model on: draw, upload, enrol, compare",
    )
    parser.add_argument(
        "--port",
        type=_port,
        default=7860,
        help="port of the page, 0: any free one (default: %(default)s)",
    )
    parser.add_argument(
        "--server", metavar="URL", help="REST address of a server to ask (default: start one)"
    )


def _port(text: str) -> int:
    if not 0 <= (number := int(text)) <= 65535:
        raise argparse.ArgumentTypeError(f"0 to 65535, not {number}")
    return number


def _demo(context: Context) -> None:
    """Opens a page on this machine, and on no other, to try the pushed model on.

    Draw, drop a file or use the camera; see who it is among those enrolled; enrol by a name;
    compare two pictures; choose the version. The gallery begins with classes that the last run
    did not train on, and is gone when the command ends.
    """
    flags, workspace = context.options, context.workspace
    models = workspace.serving_model
    newest = newest_complete(models)
    crop = None if newest is None else read_crop(newest)
    if newest is None and flags.server is None:
        raise InputError(
            f"{models}: there is no model yet: `make run` trains one in minutes, then `make demo` "
            "shows it"
        )
    try:
        with context.quiet_libraries():
            from serving.client import Client
            from serving.demo.page import demo_page, serving
            from serving.demo.recogniser import Recogniser

            pictures, about = _pictures(workspace, cropped=crop is not None)
    except ModuleNotFoundError as error:
        raise RuntimeError(f"{error}: `pip install 'siamese-oneshot[demo,serve]'`") from error
    if not flags.verbose:
        logging.getLogger("tensorflow").setLevel(logging.ERROR)
    with ExitStack() as cleanup:
        cleanup.enter_context(context.progress())
        folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="oneshot-demo-")))
        # Where Gradio keeps what is uploaded.
        os.environ["GRADIO_TEMP_DIR"] = str(folder / "uploaded")
        url = flags.server or cleanup.enter_context(_server(models))
        try:
            client = cleanup.enter_context(Client(url, model=models.name, timeout=TIMEOUT_SECONDS))
        except ValueError as error:
            raise InputError(f"--server {url}: {error}") from error
        recogniser = Recogniser(client, folder, pictures, models=models, crop=crop)
        cleanup.callback(recogniser.close)
        try:
            client.wait_ready(timeout=LOADING_SECONDS if flags.server is None else ANSWER_SECONDS)
            recogniser.prepare()
        except ServingError as error:
            raise RuntimeError(f"{url}: {error.message}") from error
        page = cleanup.enter_context(serving(demo_page(recogniser, about=about), port=flags.port))
        stop = threading.Event()
        cleanup.enter_context(on_signals(lambda _: stop.set(), signal.SIGTERM, signal.SIGINT))
        _log.info("Page     %s (Ctrl-C ends it)", page)
        if flags.json:
            print_json({"page": page, "server": url}, indent=None)
        stop.wait()


@contextmanager
def _server(models: Path) -> Iterator[str]:
    """Serves the newest versions; gives the REST address."""
    from serving.server.models import ModelSetup
    from serving.server.server import LocalServer, ServerOptions
    from serving.server.versions import HostOptions, Policy

    setup = ModelSetup(models.absolute(), HostOptions(policy=Policy(latest=VERSIONS)))
    with LocalServer(ServerOptions({models.name: setup}, grpc_port=None, rest_port=0)) as server:
        yield server.rest_url


def _pictures(workspace: Workspace, *, cropped: bool) -> "tuple[Pictures, str]":
    """What the gallery begins with, and a sentence about it."""
    from serving.demo.pictures import Pictures, generated_pictures, recorded_pictures

    # `latest` comes first, then the runs, newest first.
    for file in sorted(workspace.runs.glob(f"*/{SUMMARY_FILE}"), reverse=True):
        examples = read_json(file).get("artifacts", {}).get("examples", "")
        split = Path(examples, f"Split-{ONE_SHOT_SPLIT}")
        if split.is_dir():
            pictures = recorded_pictures(split)
            number = len(pictures.enrolled)
            return pictures, f"Enrolled are {number} classes that the model was not trained on."
    if cropped:  # there are no generated faces
        return Pictures({}, {}), "Nobody is enrolled yet."
    pictures = generated_pictures()
    return pictures, f"Enrolled are {len(pictures.enrolled)} generated glyphs."

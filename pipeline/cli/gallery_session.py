"""Opens the gallery of a command, and tells what is to be known besides its answer."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from data_ingest.errors import InputError
from data_ingest.progress import step
from pipeline.cli.shared import Context

if TYPE_CHECKING:
    from serving.gallery import Gallery
    from serving.gallery.embedder import Embedder


def advise(advice: str | None) -> None:
    """What is to be known besides; apart from the answer, which scripts read."""
    if advice is not None:
        print(f"note: {advice}", file=sys.stderr)


@contextmanager
def open_session(context: Context, *, in_memory: bool = False) -> "Iterator[Gallery]":
    """The gallery; stderr is closed to TensorFlow's C++ code meanwhile.

    One question is searched in the file: reading the whole gallery would take longer.
    """
    from serving.errors import Code, ServingError
    from serving.gallery import open_gallery
    from serving.gallery.gallery import FALSE_ACCEPT_RATE

    rate = context.options.false_accept_rate
    # Loading the model takes most of the time.
    with context.quiet_libraries(), step("Asking the gallery", logged=False):
        try:
            with open_gallery(
                context.options.gallery,
                embedder_of(context.options.model),
                false_accept_rate=FALSE_ACCEPT_RATE if rate is None else rate,
                in_memory=in_memory,
                crop=context.options.crop,
            ) as gallery:
                yield gallery
        except ServingError as error:
            if error.code in (
                Code.INVALID_ARGUMENT,
                Code.NOT_FOUND,
                Code.ALREADY_EXISTS,
                Code.FAILED_PRECONDITION,
            ):
                raise InputError(error.message) from error
            raise RuntimeError(error.message) from error


def embedder_of(model: str) -> "Embedder":
    """The model of a folder, or of the server at a URL."""
    if model.startswith(("http://", "https://")):
        from serving.client import Client
        from serving.gallery.embedder import ServerEmbedder

        try:
            return ServerEmbedder(Client(model))
        except ValueError as error:
            raise InputError(f"--model {model}: {error}") from error
    from serving.gallery.embedder import FolderEmbedder

    return FolderEmbedder(Path(model))


def images_told(count: int) -> str:
    """`1 image`, `2 images`."""
    return f"{count} image{'' if count == 1 else 's'}"

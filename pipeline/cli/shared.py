"""What the commands of `oneshot` share: options, what follows from them, and how a result is told.

A group of commands is a module with `add_parsers`, which declares each command by `add_command`,
and a handler for each, which takes a `Context`. Nothing that imports TensorFlow, TFX or Beam is
imported before a handler runs.
"""

import argparse
import inspect
import json
import os
import signal
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table

from data_ingest.errors import InputError
from data_ingest.paths import absolute
from pipeline.config import PipelineConfig, load_config
from pipeline.runs.logs import console_logging, run_logging
from pipeline.runs.status import ExitCode
from pipeline.runs.workspace import Workspace

if TYPE_CHECKING:
    from pipeline.runs.history import RunHistory
    from pipeline.runs.lease import Lease
    from pipeline.runs.metadata_store import MetadataLocation


class Context:
    """The options of one command, and what follows from them, made when it is first asked for."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options

    @cached_property
    def config(self) -> PipelineConfig:
        return load_config(self.options.config, self.options.overrides)

    @cached_property
    def workspace(self) -> Workspace:
        """The output folder; of a command with CONFIGURED, for the model that is configured."""
        if "config" not in self.options:
            return Workspace(self.options.output)
        return Workspace(self.options.output, self.config.push.model_name)

    @cached_property
    def metadata(self) -> "MetadataLocation":
        """Where the history is; an InputError where its file is damaged."""
        from pipeline.runs.metadata_store import locate
        from pipeline.runs.repair import refuse_damaged

        location = locate(self.config.metadata, self.workspace)
        refuse_damaged(location.sqlite_file, self.workspace)
        return location

    def lease(self) -> "Lease":
        return self.metadata.lease(ttl=self.config.retrain.lease_seconds)

    def history(self) -> "RunHistory":
        """The runs so far; an InputError where there is no store of them yet."""
        from pipeline.runs.history import RunHistory

        file = self.metadata.sqlite_file
        if file is not None and not file.is_file():
            raise InputError(
                f"{self.options.output}: no runs here yet (no {file.name}); see --output"
            )
        return RunHistory(self.metadata.connection())

    def progress(self, secrets: Sequence[str] = ()) -> AbstractContextManager[None]:
        """Our own lines go to stderr meanwhile."""
        return console_logging(sys.stderr, verbose=self.options.verbose, secrets=secrets)

    def quiet_libraries(self) -> AbstractContextManager[TextIO]:
        """As `progress`; what TensorFlow's native code prints besides goes nowhere."""
        return run_logging(Path(os.devnull), verbose=self.options.verbose)

    def show(self, document: object, *told: RenderableType) -> None:
        """Prints a result on stdout: the document with --json, else what a person is told."""
        if self.options.json:
            print_json(document)
            return
        console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
        for part in told:
            console.print(part)


@contextmanager
def on_signals(handle: Callable[[int], None], *numbers: signal.Signals) -> Iterator[None]:
    """Calls `handle` with the number of each such signal that arrives meanwhile."""
    before = {number: signal.signal(number, lambda got, _: handle(got)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def print_json(document: object, *, indent: int | None = 2) -> None:
    """Prints a document on stdout at once."""
    text = json.dumps(document, indent=indent, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding)
    except UnicodeEncodeError:
        # A terminal that has not all letters, or a path that is not UTF-8.
        text = json.dumps(document, indent=indent)
    print(text, flush=True)


def table(
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    title: str | None = None,
    right: Collection[str] = (),
    folded: Collection[str] = (),
) -> Table:
    """Columns under headings; those in `right` are flush right, those in `folded` may wrap."""
    made = Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
    )
    for heading in headings:
        made.add_column(
            heading,
            justify="right" if heading in right else "left",
            no_wrap=heading not in folded,
            overflow="fold" if heading in folded else "ellipsis",
        )
    for row in rows:
        made.add_row(*row)
    return made


Handler = Callable[[Context], ExitCode | None]
"""Does what a command is for; None stands for `ExitCode.DONE`."""


def add_command(
    commands: Any,
    name: str,
    handler: Handler,
    *parents: argparse.ArgumentParser,
    text: str,
) -> argparse.ArgumentParser:
    """Declares a command with --json and --verbose, and the options of `parents` (OUTPUT, ...).

    `text` is what the list of commands says of it; its own help begins with the handler's
    docstring, where there is one.
    """
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        parents=[_COMMON, *parents],
        help=text,
        description=inspect.getdoc(handler) or text,
    )
    parser.set_defaults(handler=handler)
    return parser


def typed_path(text: str) -> Path:
    """A path as it was typed, for what is looked at once: not empty, which would be the working
    folder."""
    if not text:
        raise argparse.ArgumentTypeError("give a path, not ''")
    return Path(text)


def named_path(text: str) -> Path:
    """A path in the form in which all of them are stored and compared."""
    try:
        return absolute(typed_path(text))
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def count(text: str) -> int:
    """A number of 1 or more as the value of an option."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"1 or more, not {number}")
    return number


def _options(*names: str, **settings: Any) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(*names, **settings)
    return parser


OUTPUT = _options(
    "--output",
    type=named_path,
    default="output",
    metavar="DIR",
    help="folder of all results (default: %(default)s)",
)
CONFIGURED = _options(
    "--config",
    type=named_path,
    metavar="FILE",
    help="settings, YAML (default: pipeline_config.yaml of this folder, if there is one)",
)
CONFIGURED.add_argument(
    "--set",
    action="append",
    default=[],
    metavar="KEY=VALUE",
    dest="overrides",
    help="change one setting, such as train.steps=500; may be given several times",
)
DATA = _options(
    "--data",
    type=named_path,
    metavar="DIR_OR_ZIP",
    help="your images, <class>/<image> or <group>/<class>/<image> (default: Omniglot)",
)
_COMMON = _options("--json", action="store_true", help="print the result as JSON")
_COMMON.add_argument(
    "-v", "--verbose", action="store_true", help="show the logs of all libraries, too"
)

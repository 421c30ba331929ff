"""Sends our progress lines to people and everything else to a run's log file, without secrets."""

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TextIO

from pipeline.fingerprint import OUR_PACKAGES
from pipeline.runs.live import LiveHandler, is_terminal


@contextmanager
def console_logging(
    stream: TextIO, *, verbose: bool = False, secrets: Sequence[str] = ()
) -> Iterator[None]:
    """Our own lines go to `stream`; with `verbose` every library's lines do too.

    On a terminal what is being done is shown below them.
    """
    handler = LiveHandler(stream) if is_terminal(stream) else logging.StreamHandler(stream)
    handler.setFormatter(_ConsoleFormatter(secrets=secrets))
    loggers = [logging.getLogger(name) for name in (("",) if verbose else OUR_PACKAGES)]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        with handler.shown() if isinstance(handler, LiveHandler) else nullcontext():
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)


@contextmanager
def run_logging(
    log_file: Path, *, verbose: bool = False, secrets: Sequence[str] = ()
) -> Iterator[TextIO]:
    """Everything goes to `log_file`; a person gets our progress lines on the console.

    The file descriptors of stdout and stderr point at the file meanwhile: TensorFlow's C++ code
    and child processes write there without asking Python's logging.

    Args:
      log_file: appended to.
      verbose: every library's lines go to the console too.
      secrets: what is left out of all lines; TFX logs how it connects, password and all.

    Yields:
      the console, for what must reach a person all the same.
    """
    log_file.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    root = logging.getLogger()
    root_handlers, root_level = root.handlers[:], root.level
    with (
        log_file.open("a", encoding="utf-8", errors="backslashreplace", buffering=1) as log,
        _stderr() as console,
    ):
        file_handler = logging.StreamHandler(log)
        form = "%(asctime)s %(levelname)s %(name)s: %(message)s"
        file_handler.setFormatter(_FileFormatter(form, secrets=secrets))
        root.handlers = [file_handler]
        root.setLevel(logging.INFO)
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        try:
            with console_logging(console, verbose=verbose, secrets=secrets):
                yield console
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for descriptor, original in zip(saved, (1, 2), strict=True):
                os.dup2(descriptor, original)
                os.close(descriptor)
            root.handlers = root_handlers
            root.setLevel(root_level)


@contextmanager
def _stderr() -> Iterator[TextIO]:
    """What stderr is now, as a stream that stays."""
    stream = os.fdopen(os.dup(2), "w", encoding="utf-8", errors="backslashreplace", buffering=1)
    try:
        yield stream
    finally:
        # Its terminal may have been closed with a line unwritten.
        with suppress(OSError):
            stream.close()


class _FileFormatter(logging.Formatter):
    """Puts *** in the place of secrets."""

    def __init__(self, fmt: str | None = None, *, secrets: Sequence[str]) -> None:
        super().__init__(fmt)
        self._secrets = secrets

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text


class _ConsoleFormatter(_FileFormatter):
    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 of logging
        prefix = "" if record.levelno <= logging.INFO else f"{record.levelname}: "
        return f"{self.formatTime(record, '%H:%M:%S')}  {prefix}{record.message}"

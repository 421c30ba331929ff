"""Errors that say what the user can do about them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class InputError(ValueError):
    """The input or the configuration is unusable.

    The message names the file, key or field, and says what to do about it. The command line
    prints it without a traceback and exits with code 2.
    """


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Gives an OSError from inside that names no file, such as that of a full disk, this name."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error

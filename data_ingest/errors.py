"""Errors that say what the user can do about them."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_OF_THE_FILE: Final = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EINVAL)
_ADVICE: Final = {
    errno.EMFILE: "raise the limit of open files (`ulimit -n 4096`)",
    errno.ENFILE: "raise the limit of open files of this machine (`sysctl fs.file-max`)",
    errno.ENOMEM: "free some memory, or let fewer workers read at a time (`beam.workers`)",
}
_UNESCAPED: Final = re.compile(r"@.*@|[/?#].*@|%(?![0-9A-Fa-f]{2})")
_CONTROL: Final = re.compile(r"[\0-\x1f\x7f-\x9f]")


class InputError(ValueError):
    """The input or the configuration is unusable.

    The message names the file, key or field, and says what to do about it. The command line
    prints it without a traceback and exits with code 2.
    """


class ReadError(OSError):
    """This machine, its disks or its network keep a file from being read; the file may be sound.

    The message names the file, and says what to do before the same command is run again.
    """


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Gives an OSError from inside that names no file, such as that of a full disk, this name."""
    try:
        yield
    except OSError as error:
        if isinstance(error, ReadError) or error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Tells what is wrong with the file from what is wrong with the machine.

    That there is no such file, and errors without a number, such as those of decoders, pass.

    Args:
      name: path of what is being read, for errors that name no file.

    Raises:
      InputError: it may not be read.
      ReadError: too many files are open, memory is short, a disk or a network share fails.
    """
    try:
        yield
    except ReadError:
        raise
    except PermissionError as error:
        name = str(error.filename or name)
        raise InputError(
            f"{shown(name)} may not be read: make it readable for this user, or take it away"
        ) from error
    except OSError as error:
        if error.errno is None or error.errno in _OF_THE_FILE:
            raise
        raise _read_error(str(error.filename or name), error.errno) from error
    except MemoryError as error:
        raise _read_error(name, errno.ENOMEM) from error


def refuse_unescaped(url: str, name: str) -> None:
    """Raises InputError where a user or password in a URL holds what would end it there.

    Its rest would pass for a host or a database, which messages name.

    Args:
      url: of a database.
      name: where it comes from, such as the key of the configuration.
    """
    if _UNESCAPED.search(url.partition("://")[2]):
        raise InputError(
            f"{name}: write @ / ? # and % in a user or password as %40 %2F %3F %23 and %25"
        )


def shown(name: str) -> str:
    """A file's name in one line, with control characters written out."""
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], name)


def _read_error(name: str, number: int) -> ReadError:
    advice = _ADVICE.get(number, "see that its disk or network share works")
    error = ReadError(f"{shown(name)}: {os.strerror(number)}: {advice}, and run the command again")
    error.errno = number
    return error

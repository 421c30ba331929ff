"""Brings paths to the one form in which they are stored and compared."""

import os
from pathlib import Path

from data_ingest.errors import InputError


def absolute(path: Path) -> Path:
    """A path from the root, without `~`, `..` and doubled slashes.

    Links are kept, so that one can stand in for a folder whose name TFX cannot take; only of a
    path with `..` behind a link, which leads out of what the link names, they are followed.

    Raises:
      InputError: the working folder is gone, or there is no home.
    """
    try:
        path = path.expanduser()
        # Two slashes at the beginning are kept by POSIX's rules, and mean nothing on Linux.
        plain = Path("/" + os.path.normpath(path.absolute()).lstrip("/"))
        return path.resolve() if ".." in path.parts and plain.resolve() != path.resolve() else plain
    except RuntimeError as error:
        raise InputError(f"{path}: {error}: set HOME, or write the path out") from error
    except FileNotFoundError:
        raise InputError(
            f"{path}: the working folder is gone: change into another, or write the path out"
        ) from None

"""Versions of a model in an object store (`gs://…`), which has no rename and no folders."""

import posixpath
import time
from collections.abc import Callable

from tfx.dsl.io import fileio

from components.versions import ROLLED_BACK_PREFIX

SAVED_MODEL = "saved_model.pb"


def is_remote(path: str) -> bool:
    """Whether a path is a URI such as `gs://bucket/models`, and not one of this file system."""
    return "://" in path


def newest_version(base: str) -> str | None:
    """Folder of the newest complete version in a model base path, local or remote; None: none.

    A name that is no number is none, as for TF Serving: neither what a push is still writing nor
    what was withdrawn counts.
    """
    complete = [
        number
        for number in version_numbers(base)
        if fileio.exists(posixpath.join(base, str(number), SAVED_MODEL))
    ]
    return posixpath.join(base, str(max(complete))) if complete else None


def version_numbers(base: str) -> list[int]:
    """Numbers of the versions in a base path, ascending; empty if it does not exist."""
    return _numbers(base, prefix="")


def push_to_object_store(
    source: str, base: str, *, now: Callable[[], float] = time.time
) -> tuple[str, int]:
    """Copies a SavedModel with everything beside it to `base/<version>`.

    An object appears whole, several do not appear at once: `saved_model.pb` is copied last, so
    that a server finds either nothing to load or all of it. A copy that fails is taken away.

    Args:
      source: a SavedModel folder, local or remote.
      base: the model base path, a URI.
      now: the clock, seconds since 1970.

    Returns:
      The version's URI and its number: the time, or one more than the newest if that is not
      older; the number of a version that was rolled back is not used again.

    Raises:
      FileNotFoundError: `source` holds no `saved_model.pb`.
    """
    files = _files(source)
    if SAVED_MODEL not in files:
        raise FileNotFoundError(f"there is no SavedModel in {source}")
    taken = [*version_numbers(base), *_numbers(base, prefix=ROLLED_BACK_PREFIX)]
    version = max([int(now()), *(number + 1 for number in taken)])
    target = posixpath.join(base, str(version))
    try:
        for name in sorted(files, key=lambda name: (name == SAVED_MODEL, name)):
            copy = posixpath.join(target, name)
            fileio.makedirs(posixpath.dirname(copy))
            fileio.copy(posixpath.join(source, name), copy)
    except BaseException:
        if fileio.exists(target):
            fileio.rmtree(target)
        raise
    return target, version


def _numbers(base: str, *, prefix: str) -> list[int]:
    if not fileio.isdir(base):
        return []
    # Object stores list folders with a slash at the end.
    names = [str(name).rstrip("/") for name in fileio.listdir(base)]
    ends = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    return sorted(int(end) for end in ends if end.isascii() and end.isdigit())


def _files(folder: str) -> list[str]:
    """All files below a folder, relative to it."""
    return [
        posixpath.relpath(posixpath.join(str(parent), str(name)), folder)
        for parent, _, names in fileio.walk(folder)
        for name in names
    ]
